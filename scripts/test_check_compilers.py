#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/check-compilers, with compilers that are made up."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest

from test_check_kernel import Refuses

CHECK = pathlib.Path(__file__).resolve().parent / "check-compilers"
# What the script itself needs; nothing else is there.
TOOLS = ("bash", "awk", "cut", "dirname", "mkdir", "sed", "sha256sum", "sort")
RUSTC = "rustc 1.95.0 (59807616e 2026-04-14)"
CONFIG = f"""\
CONFIG_CC_IS_CLANG=y
CONFIG_CLANG_VERSION=210103
CONFIG_RUSTC_VERSION_TEXT="{RUSTC}"
"""
LLVM = ("ld.lld", "llvm-nm", "llvm-objcopy", "llvm-strip")


class CheckCompilers(Refuses):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.kdir = self.dir / "kernel"
        (self.kdir / "rust").mkdir(parents=True)
        (self.kdir / "rust/libkernel.rmeta").touch()
        (self.kdir / ".config").write_text(CONFIG)
        self.tool("rustc", RUSTC)
        self.tool("bindgen", "bindgen 0.71.1")
        self.tool("clang-21", "21.1.3")
        for tool in LLVM:
            self.tool(f"{tool}-21", "")

    def tool(self, name, says):
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\necho '{says}'\n")
        (self.bin / name).chmod(0o755)

    def check(self, **env):
        env = {"PATH": str(self.bin), "HOME": str(self.dir), "RUST_LIB_SRC": "/none", **env}
        return subprocess.run([CHECK, self.kdir], env=env, capture_output=True, text=True)

    def accepted(self, llvm, **env):
        result = self.check(**env)
        self.assertEqual((result.returncode, result.stdout), (0, llvm), result.stderr)

    def test_the_kernels_llvm(self):
        self.accepted("-21\n")

    def test_llvm_without_a_suffix(self):
        (self.bin / "clang-21").unlink()
        self.tool("clang", "21.1.3")
        for tool in LLVM:
            (self.bin / f"{tool}-21").rename(self.bin / tool)
        self.accepted("1\n")

    def test_another_llvm(self):
        (self.bin / "clang-21").unlink()
        self.tool("clang", "19.1.7")
        self.refused("clang 21", "apt-get install clang-21")

    def test_an_llvm_that_is_given(self):
        (self.bin / "clang-21").unlink()
        self.accepted("-19\n", LLVM="-19")

    def test_no_linker(self):
        (self.bin / "ld.lld-21").unlink()
        self.refused("ld.lld-21")

    def test_gcc(self):
        (self.kdir / ".config").write_text(CONFIG.replace("CC_IS_CLANG=y", "CC_IS_GCC=y"))
        self.accepted("")

    def test_no_rustc(self):
        (self.bin / "rustc").unlink()
        self.refused("rustc is missing", RUSTC)

    def test_another_rustc(self):
        self.tool("rustc", "rustc 1.85.0 (4d91de4e4 2025-02-17)")
        self.refused(RUSTC, "1.85.0")

    def test_no_bindgen(self):
        (self.bin / "bindgen").unlink()
        self.refused("bindgen is missing")

    def test_an_old_bindgen(self):
        self.tool("bindgen", "bindgen 0.65.1")
        self.refused("0.65.1", "0.71.1")

    def test_headers_without_the_crates(self):
        (self.kdir / "rust/libkernel.rmeta").unlink()
        self.refused("rust/libkernel.rmeta")


if __name__ == "__main__":
    unittest.main()
