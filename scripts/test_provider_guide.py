#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests that Documentation/provider-guide.rst quotes the sample as it is, and all of it."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDE = ROOT / "Documentation/provider-guide.rst"
SAMPLE = ROOT / "samples/host_provider/host_provider.rs"
# What the sample may have, so that it can be read at one go.
MOST_LINES = 150


def quotes(text):
    """The lines of the literal blocks of the section that goes through the file."""
    section = re.search(r"^Line by line\n=+\n(.*?)\n(?=[^\n]+\n=+\n)", text, re.S | re.M).group(1)
    lines = []
    quoting = False
    for line in section.splitlines():
        if line.startswith("    "):
            if quoting:
                lines.append(line[4:])
        elif line.strip():
            quoting = line.endswith("::")
    return lines


def without_imports(text):
    text = re.sub(r"^// SPDX.*\n", "", text)
    text = re.sub(r"^use .*?;\n", "", text, flags=re.S | re.M)
    return [line for line in text.splitlines() if line.strip()]


class Guide(unittest.TestCase):
    def test_quotes_all_of_the_sample(self):
        self.maxDiff = None
        self.assertEqual(quotes(GUIDE.read_text()), without_imports(SAMPLE.read_text()))

    def test_sees_a_line_that_changed(self):
        changed = SAMPLE.read_text().replace("default: 16", "default: 17")
        self.assertNotEqual(quotes(GUIDE.read_text()), without_imports(changed))

    def test_sees_a_line_that_is_not_quoted(self):
        guide = GUIDE.read_text().replace("            Ok(bound)\n", "")
        self.assertNotEqual(quotes(guide), without_imports(SAMPLE.read_text()))

    def test_the_sample_is_small_and_the_guide_says_how_small(self):
        count = len(SAMPLE.read_text().splitlines())
        self.assertLessEqual(count, MOST_LINES)
        self.assertIn(f"is what this page goes through: {count} lines", GUIDE.read_text().replace("\n", " "))


if __name__ == "__main__":
    unittest.main()
