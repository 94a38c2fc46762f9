#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of profraw.py."""

import pathlib
import struct
import tempfile
import unittest

import profraw

SIZES = {profraw.DATA: 128, profraw.COUNTERS: 24, profraw.NAMES: 5}
ADDRESSES = {profraw.DATA: 0x1000, profraw.COUNTERS: 0x800, profraw.NAMES: 0x2000}


class Profile(unittest.TestCase):
    def setUp(self):
        kept = tempfile.TemporaryDirectory()
        self.addCleanup(kept.cleanup)
        self.unload = pathlib.Path(kept.name)
        for number, (name, size) in enumerate(SIZES.items(), 1):
            # The guest keeps what follows in memory, too.
            (self.unload / name).write_bytes(bytes([number]) * size + b"\xee" * 7)
            (self.unload / f"{name}.address").write_text(f"{ADDRESSES[name]:#018x}\n")

    def test_sections_are_cut_to_their_size(self):
        sections, addresses = profraw.read_unload(self.unload, SIZES)
        self.assertEqual({name: len(content) for name, content in sections.items()}, SIZES)
        self.assertEqual(addresses, ADDRESSES)

    def test_a_short_section_is_refused(self):
        (self.unload / profraw.COUNTERS).write_bytes(bytes(23))
        with self.assertRaisesRegex(SystemExit, "23 of 24 bytes"):
            profraw.read_unload(self.unload, SIZES)

    def test_the_header_tells_what_follows(self):
        made = profraw.profile(*profraw.read_unload(self.unload, SIZES))
        header = struct.unpack_from("<16Q", made)
        self.assertEqual(made[:8], b"\x81rforpl\xff")
        self.assertEqual((header[3], header[5], header[9]), (2, 3, 5))
        self.assertEqual(header[10], 2**64 - 0x800)
        self.assertEqual(header[12], 0x2000)
        body = bytes([1]) * 128 + bytes([2]) * 24 + bytes([3]) * 5 + bytes(3)
        self.assertEqual(made[128:], body)


if __name__ == "__main__":
    unittest.main()
