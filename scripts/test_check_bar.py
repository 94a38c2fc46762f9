#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of check-bar."""

import pathlib
import subprocess
import tempfile
import unittest

PROGRAM = pathlib.Path(__file__).resolve().parent / "check-bar"
STREAM = bytes(range(1, 101))


class CheckBar(unittest.TestCase):
    def setUp(self):
        work = tempfile.TemporaryDirectory()
        self.addCleanup(work.cleanup)
        self.work = pathlib.Path(work.name)
        # The rear half of the stream is in front.
        self.leave(bytes(8) + STREAM[50:] + bytes(8) + STREAM[:50], "66 50\n8 50\n")

    def leave(self, bar, pieces, stream=STREAM):
        (self.work / "bar").write_bytes(bar)
        (self.work / "pieces").write_text(pieces)
        (self.work / "stream").write_bytes(stream)

    def run_it(self):
        return subprocess.run([PROGRAM, self.work], capture_output=True, text=True)

    def assert_fails(self, what):
        done = self.run_it()
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn(what, done.stderr)

    def test_what_was_sent_is_there(self):
        done = self.run_it()
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("100 bytes in 2 pieces", done.stdout)

    def test_another_byte(self):
        bar = bytearray((self.work / "bar").read_bytes())
        bar[8] ^= 1
        (self.work / "bar").write_bytes(bar)
        self.assert_fails("differ at 50")

    def test_another_order(self):
        (self.work / "pieces").write_text("8 50\n66 50\n")
        self.assert_fails("differ at 0")

    def test_one_is_missing(self):
        (self.work / "pieces").write_text("66 50\n")
        self.assert_fails("50 bytes of 100")

    def test_nothing_was_sent(self):
        self.leave(bytes(8), "", b"")
        self.assert_fails("0 bytes of 0")

    def test_places_that_cannot_be(self):
        for pieces, what in (
            ("66 51\n", "not in the memory"),
            ("66 0\n", "not in the memory"),
            ("-1 50\n", "not in the memory"),
            ("8 50\n57 50\n", "two pieces at 57"),
            ("8\n", "unpack"),
            ("here\n", "here"),
        ):
            with self.subTest(pieces):
                (self.work / "pieces").write_text(pieces)
                self.assert_fails(what)

    def test_nothing_was_left(self):
        for name in ("bar", "pieces", "stream"):
            with self.subTest(name):
                self.setUp()
                (self.work / name).unlink()
                self.assert_fails(name)


if __name__ == "__main__":
    unittest.main()
