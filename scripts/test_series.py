#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/series, on a small tree."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SERIES = pathlib.Path(__file__).parent / "series"

PRISTINE = {
    "net/core/dev.c": "one\ntwo\nthree\n",
    "net/core/sock.c": "a\nb\nc\n",
    "include/net/old.h": "old\n",
    "mm/untouched.c": "same\n",
}

CHANGE_DEV = {"net/core/dev.c": "one\nTWO\nthree\n"}
CHANGE_DEV_AGAIN = {"net/core/dev.c": "one\nTWO\nTHREE\n"}
CHANGE_SOCK = {"net/core/sock.c": "a\nb\nc\nd\n"}
ADD = {"include/net/devmem.h": "new\n"}
RENAME = {"include/net/old.h": None, "include/net/renamed.h": "old\n"}


def write(root, files):
    for name, text in files.items():
        path = root / name
        if text is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(root):
    return {
        str(p.relative_to(root)): p.read_text()
        for p in root.rglob("*")
        if p.is_file() and ".git" not in p.parts
    }


class Series(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.src = self.dir / "src"
        self.patches = self.dir / "patches"
        write(self.src / "pristine", PRISTINE)
        # Older than any object: what is replaced has to be newer.
        for path in (self.src / "pristine").rglob("*"):
            os.utime(path, (1e9, 1e9))

    def make_patches(self, *changes):
        """One patch for each change, and the tree they lead to."""
        shutil.rmtree(self.patches, ignore_errors=True)
        self.patches.mkdir()
        repo = pathlib.Path(tempfile.mkdtemp(dir=self.dir))

        def git(*args):
            name = ["-c", "user.name=t", "-c", "user.email=t@t"]
            command = ["git", "-C", repo, *name, *args]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        git("init", "-q")
        write(repo, PRISTINE)
        git("add", "-A")
        git("commit", "-qm", "base")
        for i, change in enumerate(changes, 1):
            write(repo, change)
            git("add", "-A")
            git("commit", "-qm", f"patch {i}")
            text = git("format-patch", "-1", "--stdout", "-M", "HEAD")
            (self.patches / f"{i:04}-p.patch").write_text(text)
        return read(repo)

    def run_series(self, *args):
        return subprocess.run(
            [SERIES, *args], capture_output=True, text=True, check=False,
            env={**os.environ, "DEVMEM_CACHE": str(self.dir / "cache")},
        )

    def apply(self):
        return self.run_series("apply", self.patches, self.src)

    def assert_at(self, want):
        done = self.apply()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(read(self.src / "tree"), want)
        self.assertEqual(read(self.src / "pristine"), PRISTINE)
        digest = self.run_series("hash", self.patches).stdout
        self.assertEqual((self.src / "series").read_text(), digest)

    def stamps(self):
        tree = self.src / "tree"
        return {str(p.relative_to(tree)): p.stat().st_mtime_ns for p in tree.rglob("*.[ch]")}

    def test_empty_series(self):
        self.assert_at(self.make_patches())

    def test_change_add_and_rename(self):
        self.assert_at(self.make_patches(CHANGE_DEV, ADD, RENAME, CHANGE_DEV_AGAIN))

    def test_patches_go_and_come(self):
        for changes in ([ADD, RENAME], [CHANGE_DEV], [], [RENAME, CHANGE_DEV, ADD], [ADD]):
            self.assert_at(self.make_patches(*changes))

    def test_only_what_differs_is_written(self):
        self.assert_at(self.make_patches(CHANGE_DEV, CHANGE_SOCK))
        before = self.stamps()
        self.assert_at(self.make_patches(CHANGE_DEV, CHANGE_SOCK, CHANGE_DEV_AGAIN))
        after = self.stamps()
        changed = {n for n in after if after[n] != before.get(n)}
        self.assertEqual(changed, {"net/core/dev.c"})

    def test_what_goes_back_is_newer_than_its_object(self):
        self.assert_at(self.make_patches(CHANGE_DEV))
        before = self.stamps()["net/core/dev.c"]
        self.assert_at(self.make_patches())
        self.assertGreater(self.stamps()["net/core/dev.c"], before)

    def test_interrupted_run_is_put_right(self):
        self.assert_at(self.make_patches(CHANGE_DEV, ADD))
        want = self.make_patches(CHANGE_SOCK, RENAME)
        # As if killed in the middle of copying: lists of both, some files done.
        (self.src / "series").unlink()
        write(self.src / "tree", {"include/net/renamed.h": "half"})
        touched = ["include/net/devmem.h", "include/net/old.h", "include/net/renamed.h"]
        touched += ["net/core/dev.c", "net/core/sock.c"]
        (self.src / "touched").write_text("\n".join(touched) + "\n")
        self.assert_at(want)

    def test_patch_that_does_not_apply(self):
        want = self.make_patches(CHANGE_DEV)
        self.assert_at(want)
        self.make_patches(ADD, CHANGE_DEV)
        (self.src / "pristine/net/core/dev.c").write_text("else\n")
        done = self.apply()
        self.assertEqual(done.returncode, 1)
        self.assertIn("0002-p.patch does not apply", done.stderr)
        self.assertEqual(read(self.src / "tree"), want)

    def content(self):
        return (self.src / "content").read_text()

    def test_sets_in_folders(self):
        want = self.make_patches(CHANGE_DEV, ADD, CHANGE_DEV_AGAIN)
        first, second = self.patches / "01-first", self.patches / "02-second"
        first.mkdir()
        second.mkdir()
        (self.patches / "0001-p.patch").rename(first / "0001-p.patch")
        (self.patches / "0002-p.patch").rename(second / "0001-p.patch")
        (self.patches / "0003-p.patch").rename(second / "0002-p.patch")
        # A letter that applies to nothing.
        (first / "0000-cover-letter.patch").write_text("Subject: [PATCH 0/1] all\n")
        self.assert_at(want)

    def test_the_same_content_is_left_alone(self):
        want = self.make_patches(CHANGE_DEV, CHANGE_DEV_AGAIN, CHANGE_SOCK, ADD)
        self.assert_at(want)
        stamps, content, series = self.stamps(), self.content(), (self.src / "series").read_text()
        self.assertEqual(self.make_patches({**ADD, **CHANGE_SOCK}, CHANGE_DEV_AGAIN), want)
        self.assert_at(want)
        self.assertEqual(self.stamps(), stamps)
        self.assertEqual(self.content(), content)
        self.assertNotEqual((self.src / "series").read_text(), series)
        self.assert_at(self.make_patches(CHANGE_DEV, ADD))
        self.assertNotEqual(self.content(), content)

    def test_a_tree_of_older_scripts(self):
        self.assert_at(self.make_patches(CHANGE_DEV, ADD))
        stamps, content = self.stamps(), self.content()
        (self.src / "content").unlink()
        self.assertEqual(self.apply().returncode, 0)
        self.assertEqual((self.content(), self.stamps()), (content, stamps))

    def test_cache_inside_a_repository(self):
        subprocess.run(["git", "init", "-q", self.dir], check=True)
        self.assert_at(self.make_patches(CHANGE_DEV, ADD))


if __name__ == "__main__":
    unittest.main()
