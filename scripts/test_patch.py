#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/patch, with sets and a tree that are made up."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).parent

BEFORE = "one\ntwo\nthree\n"
# Before and after each set.
SETS = {"01-first": (BEFORE, "ONE\ntwo\nthree\n"), "02-second": ("ONE\ntwo\nthree\n", "1\ntwo\nthree\n")}
FILE = "net/core/dev.c"


def patch(old, new):
    """Such as git makes, with names and mail addresses for `git am`."""
    lines = [f"-{line}" for line in old.splitlines()] + [f"+{line}" for line in new.splitlines()]
    count = len(old.splitlines())
    return "\n".join([
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001", "From: A <a@b.example>",
        "Date: Sun, 29 Nov 2026 04:00:00 +0000", "Subject: [PATCH net 1/1] dev", "", "Why.", "---",
        f"diff --git a/{FILE} b/{FILE}", f"--- a/{FILE}", f"+++ b/{FILE}",
        f"@@ -1,{count} +1,{count} @@", *lines, "",
    ])


class Patch(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.root, self.tree = self.dir / "project", self.dir / "linux"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("patch", "lib.sh"):
            shutil.copy(SCRIPTS / name, self.root / "scripts" / name)
        for name, (old, new) in SETS.items():
            folder = self.root / "patches" / name
            folder.mkdir(parents=True)
            depends = "none" if name == "01-first" else "first"
            (folder / "0000-cover-letter.patch").write_text(f"Depends-on: {depends}\n")
            (folder / "0001-dev.patch").write_text(patch(old, new))
        self.file = self.tree / FILE
        self.file.parent.mkdir(parents=True)
        self.file.write_text(BEFORE)

    def patch(self, name="", **more):
        env = {**os.environ, "KSRC": str(self.tree), "SET": name,
               "DEVMEM_CACHE": str(self.dir / "cache"), **more}
        return subprocess.run([self.root / "scripts/patch"], env=env, cwd=self.dir, check=False,
                              capture_output=True, text=True)

    def applies(self, name, text):
        done = self.patch(name)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.file.read_text(), text)

    def fails(self, name, why):
        before = self.file.read_text()
        done = self.patch(name)
        self.assertEqual(done.returncode, 1)
        self.assertIn(why, done.stderr)
        self.assertEqual(self.file.read_text(), before)

    def test_all_of_it(self):
        self.applies("", SETS["02-second"][1])

    def test_one_set_after_the_other(self):
        for name, (_, new) in SETS.items():
            self.applies(name[3:], new)

    def test_replaces_files_that_are_hard_links(self):
        os.link(self.file, self.dir / "other")
        self.applies("first", SETS["01-first"][1])
        self.assertEqual((self.dir / "other").read_text(), BEFORE)

    def test_tells_which_set_is_missing(self):
        self.fails("second", "needs: first")

    def test_tells_that_it_is_there_already(self):
        self.applies("first", SETS["01-first"][1])
        self.fails("first", "is in " + str(self.tree) + " already")

    def test_a_tilde_that_the_shell_has_left(self):
        done = self.patch(KSRC="~/linux", HOME=str(self.dir))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.file.read_text(), SETS["02-second"][1])

    def make_repository(self):
        for args in (["init", "-q"], ["config", "user.name", "a"],
                     ["config", "user.email", "a@b.example"], ["add", "."],
                     ["commit", "-q", "-m", "base"]):
            subprocess.run(["git", *args], cwd=self.tree, check=True)

    def log(self):
        return subprocess.run(["git", "log", "--format=%s"], cwd=self.tree, check=True,
                              capture_output=True, text=True).stdout.splitlines()

    def test_in_a_repository(self):
        self.make_repository()
        self.fails("second", "needs: first")
        self.applies("first", SETS["01-first"][1])
        self.assertEqual(self.log(), ["dev", "base"])

    def test_tells_that_it_is_in_the_repository_already(self):
        self.make_repository()
        self.applies("", SETS["02-second"][1])
        self.fails("", "is in " + str(self.tree) + " already")
        self.assertEqual(self.log(), ["dev", "dev", "base"])

    def git(self, *args, check=True, **more):
        return subprocess.run(["git", *args], cwd=self.tree, check=check, capture_output=True,
                              text=True, **more).stdout

    def test_leaves_alone_what_the_user_has_begun(self):
        self.make_repository()
        mail = patch("one\nTWO\nthree\n", "1\nTWO\nthree\n")
        self.git("am", check=False, input=mail)
        status = self.git("status")
        self.assertIn("git am --abort", status)
        self.fails("", "has not ended")
        self.assertEqual(self.git("status"), status)

    def test_nobody_to_commit(self):
        self.make_repository()
        self.git("config", "user.name", "")
        self.fails("", "does not know who commits")

    def test_no_such_set(self):
        self.fails("third", "no set third; there are: first second")

    def test_no_such_tree(self):
        self.file.unlink()
        done = self.patch()
        self.assertEqual(done.returncode, 1)
        self.assertIn("is no kernel source tree", done.stderr)


if __name__ == "__main__":
    unittest.main()
