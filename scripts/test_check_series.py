#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/check-series, on small sets, and on those that there are."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest

CHECK = pathlib.Path(__file__).parent / "check-series"

COVER = """From 0 Mon Sep 17 00:00:00 2001
Subject: [{prefix} 0/{count}] all of it

Measured: nothing.

Tested: by nobody.

Depends-on: {depends}

somebody ({count}):
{subjects}
"""

PATCH = """From 0 Mon Sep 17 00:00:00 2001
Subject: [{prefix} {number}/{count}] {subject}

Why.

{fixes}Signed-off-by: somebody <some@body>
---
diff --git a/{file} b/{file}
--- a/{file}
+++ b/{file}
@@ -1 +1 @@
-{old}
+{new}
"""

FIXES = 'Fixes: 0123456789ab ("a: b")\n'


class CheckSeries(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        self.write("pristine/a.c", "one\n")
        self.write("pristine/b.c", "one\n")
        self.write("README.md", "")
        self.write("Documentation/a.rst", "See fix/0001.\n")
        # Each change: file, old, new.
        self.set("01-fix", [("a.c", "one", "two")])
        self.set("02-more", [("b.c", "one", "two"), ("a.c", "two", "three")], depends="fix")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def set(self, folder, changes, depends="none", prefix="PATCH net", fixes=FIXES):
        shutil.rmtree(self.root / "patches" / folder, ignore_errors=True)
        count = len(changes)
        subjects = [f"{file}: {new}" for file, _, new in changes]
        for number, (file, old, new) in enumerate(changes, 1):
            self.write(f"patches/{folder}/{number:04}-p.patch", PATCH.format(
                prefix=prefix, number=number, count=count, subject=subjects[number - 1],
                fixes=fixes, file=file, old=old, new=new,
            ))
        self.write(f"patches/{folder}/0000-cover-letter.patch", COVER.format(
            prefix=prefix, count=count, depends=depends,
            subjects="\n".join(f"  {subject}" for subject in subjects),
        ))

    def edit(self, name, old, new):
        text = (self.root / "patches" / name).read_text()
        self.assertIn(old, text)
        self.write(f"patches/{name}", text.replace(old, new))

    def check(self, *args):
        return subprocess.run(
            [CHECK, "--root", self.root, "--pristine", self.root / "pristine", *args],
            capture_output=True, text=True, check=False,
        )

    def wrong(self, *lines):
        done = self.check()
        *told, _ = done.stdout.splitlines()
        self.assertEqual(told, list(lines), done.stderr)
        self.assertEqual(done.returncode, 1 if lines else 0)

    def test_right(self):
        self.wrong()
        self.assertEqual(self.check().stdout, "2 sets, 3 patches\n")

    def test_a_set_that_needs_more_than_it_says(self):
        self.edit("02-more/0000-cover-letter.patch", "Depends-on: fix", "Depends-on: none")
        self.wrong("02-more: 0002-p.patch does not apply after nothing")

    def test_needs_of_needs(self):
        self.set("03-last", [("a.c", "three", "four")], depends="more")
        self.wrong()

    def test_depends_on_what_comes_later(self):
        self.edit("01-fix/0000-cover-letter.patch", "Depends-on: none", "Depends-on: more")
        self.wrong("01-fix: depends on more, which does not come before")

    def test_depends_on_nothing_there(self):
        self.edit("02-more/0000-cover-letter.patch", "Depends-on: fix", "Depends-on: fxi")
        self.wrong("02-more: depends on fxi, which does not come before")

    def test_more_than_fifteen(self):
        numbers = [str(n) for n in range(17)]
        self.write("pristine/c.c", "0\n")
        self.set("03-long", [("c.c", *pair) for pair in zip(numbers, numbers[1:])])
        self.wrong("03-long: 16 patches, more than 15")

    def test_gaps(self):
        (self.root / "patches/02-more/0001-p.patch").unlink()
        self.assertIn("02-more: the numbers of its patches have gaps", self.check().stdout)
        (self.root / "patches/01-fix").rename(self.root / "patches/03-fix")
        self.assertIn("03-fix: is set 2", self.check().stdout)

    def test_no_cover_letter(self):
        (self.root / "patches/01-fix/0000-cover-letter.patch").unlink()
        self.wrong("01-fix: no 0000-cover-letter.patch")

    def test_sections_of_the_cover_letter(self):
        self.edit("01-fix/0000-cover-letter.patch", "Measured: nothing.", "")
        self.edit("01-fix/0000-cover-letter.patch", "Tested: by nobody.", "Tested:")
        self.wrong(
            '01-fix: its cover letter has no "Measured:"',
            '01-fix: its cover letter has no "Tested:"',
        )

    def test_subjects(self):
        self.edit("02-more/0002-p.patch", "net 2/2", "net 2/3")
        self.edit("02-more/0001-p.patch", "b.c: two", "b.c: 2")
        self.wrong(
            '02-more: its cover letter does not list "b.c: 2"',
            "02-more: 0002-p.patch: not [PATCH net 2/2]",
        )

    def test_fixes(self):
        self.set("02-more", [("b.c", "one", "two")], fixes="")
        self.wrong('02-more: 0001-p.patch: no "Fixes: 12 digits ("subject")"')
        self.set("02-more", [("b.c", "one", "two")], fixes="", prefix="PATCH net-next")
        self.wrong()

    def test_citations(self):
        self.write("Documentation/a.rst", "fix/0001, 1/1000, usr/share/0001,\n``more/0003``, old/0001\n")
        self.wrong(
            "Documentation/a.rst:2: no patch more/0003", "Documentation/a.rst:2: no patch old/0001"
        )

    def test_size(self):
        self.set("03-last", [("a.c", "three", "EXPORT_SYMBOL(three);")], depends="more")
        told = "1 lines added, 0 of them moved and 1 new, 1 of these code, 1 exports"
        self.assertEqual(self.check("--size", "last").stdout, told + "\n")
        self.edit("03-last/0000-cover-letter.patch", "Measured:", f"Size: {told}\n\nMeasured:")
        self.wrong()
        self.edit("03-last/0000-cover-letter.patch", "1 exports", "2 exports")
        self.wrong(f"03-last: its size is {told}")

    def test_moved_lines(self):
        # A line goes from one file to another.
        self.set("03-last", [("a.c", "three", "two"), ("b.c", "two", "three")], depends="more")
        done = self.check("--size", "last")
        self.assertIn("2 lines added, 2 of them moved and 0 new", done.stdout)


class Here(unittest.TestCase):
    def test_the_sets_that_there_are(self):
        done = subprocess.run([CHECK], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
