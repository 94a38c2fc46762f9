#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/check-kernel, on kernel build trees that are made up."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECK = ROOT / "scripts/check-kernel"

CONFIG = "CONFIG_MODULES=y\nCONFIG_RUST=y\nCONFIG_NET_DEVMEM=y\n"
SYMVERS = "0x0\tnet_mp_niov_clear_page_pool\tvmlinux\tEXPORT_SYMBOL_GPL\tNETDEV_INTERNAL\n"


@functools.cache
def series():
    """What the patches add to headers, in their order: patch, header, lines."""
    return list(read_series())


def read_series():
    for patch in sorted((ROOT / "patches").glob("*/*.patch")):
        for chunk in re.split(r"^diff --git ", patch.read_text(), flags=re.M)[1:]:
            name = chunk.split(" b/", 1)[1].split("\n", 1)[0]
            if name.startswith("include/net/"):
                added = re.findall(r"^\+(?!\+\+)(.*)$", chunk, flags=re.M)
                yield f"{patch.parent.name}/{patch.name}", name, "\n".join(added) + "\n"


class MadeUpKernel(unittest.TestCase):
    """A kernel build tree without the series."""

    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.kdir = self.dir / "kernel"
        (self.kdir / "include/net/page_pool").mkdir(parents=True)
        self.write("Makefile", "")
        self.write(".config", CONFIG)
        self.write("Module.symvers", SYMVERS)
        self.write("include/net/page_pool/memory_provider.h", "struct memory_provider_ops {\n")

    def write(self, name, text):
        (self.kdir / name).write_text(text)

    def apply(self, until=None):
        """What the series adds to headers, up to a patch."""
        for patch, name, text in series():
            if until is not None and patch.startswith(until):
                break
            with (self.kdir / name).open("a") as header:
                header.write(text)


class Refuses(unittest.TestCase):
    """Of what a script that `check()` runs refuses, in one line."""

    def refused(self, *words):
        result = self.check()
        self.assertNotEqual(result.returncode, 0)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        for word in words:
            self.assertIn(word, lines[0])


class CheckKernel(MadeUpKernel, Refuses):
    def check(self):
        env = dict(os.environ, DEVMEM_CACHE=str(self.dir / "cache"))
        return subprocess.run([CHECK, self.kdir], env=env, capture_output=True, text=True)

    def test_unpatched(self):
        self.refused("patches/15-seam/0001-page_pool-let-a-module-provide-the-memory.patch")

    def test_patched_in_part(self):
        self.apply(until="15-seam/0005-")
        self.refused("patches/15-seam/0005-net-devmem-let-modules-provide-device-memory.patch")

    def test_patched(self):
        self.apply()
        result = self.check()
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_symbols_not_exported(self):
        self.apply()
        self.write("Module.symvers", "")
        self.refused("net-export-what-a-device-memory-provider-needs.patch")

    def test_without_rust(self):
        self.apply()
        self.write(".config", CONFIG.replace("CONFIG_RUST=y\n", ""))
        self.refused("CONFIG_RUST")

    def test_not_a_kernel(self):
        (self.kdir / ".config").unlink()
        self.refused("no configured kernel build tree")


if __name__ == "__main__":
    unittest.main()
