#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of what scripts refuse before they do anything."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parent


class Entry(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)

    def refused(self, script, *words, argument="true", **env):
        env = {**os.environ, "DEVMEM_CACHE": str(self.dir / "cache"), **env}
        done = subprocess.run([SCRIPTS / script, argument], env=env, check=False,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertEqual(done.stdout, "")
        lines = done.stderr.splitlines()
        self.assertEqual(len(lines), 1, done.stderr)
        for word in words:
            self.assertIn(word, lines[0])

    def test_no_such_guest(self):
        for script in "guest", "prepare", "demo":
            self.refused(script, "no guest foo", "fast", GUEST="foo")

    def test_no_such_file(self):
        self.refused("demo", "cannot read /no/file", FILE="/no/file")
        self.refused("demo", f"cannot read {self.dir}", FILE=str(self.dir))

    def test_a_kernel_of_ones_own(self):
        self.refused("guest", "no guest own", GUEST="own")
        kdir = str(self.dir / "kernel")
        for script in "demo", "fuzz", "shell":
            self.refused(script, f"{kdir} is no configured kernel", argument="operations",
                         KDIR=kdir)

    def test_a_kernel_of_ones_own_is_not_for_this(self):
        for script in "bench", "coverage":
            self.refused(script, "leave out KDIR=/kernel", KDIR="/kernel")
        self.refused("fuzz", "debug guest", "KDIR=/kernel", argument="netlink", KDIR="/kernel")

    def test_a_tilde_that_the_shell_has_left(self):
        self.refused("demo", f"cannot read {self.dir}/file", FILE="~/file", HOME=str(self.dir))

    def test_a_function_that_is_not_there(self):
        source = self.dir / "file.c"
        source.write_text("int one_a(void)\n{\n\treturn 1;\n}\n\nint one_b(void)\n{\n}\n")
        count = SCRIPTS / "count-functions"
        for names, lines, status in ((["one_*"], 7, 0), (["one_a"], 4, 0), (["one"], 0, 1),
                                     (["*_b", "two_*"], 3, 1), (["one_a", "one_*"], 7, 0)):
            done = subprocess.run([count, source, *names], check=False, capture_output=True,
                                  text=True)
            self.assertEqual((done.returncode, done.stdout), (status, f"{lines}\n"), names)


if __name__ == "__main__":
    unittest.main()
