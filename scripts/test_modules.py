#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests that the modules of the tests' crates use each other in one direction only."""

import graphlib
import pathlib
import re
import unittest

SELFTESTS = pathlib.Path(__file__).resolve().parent.parent / "selftests"
COMMENT = re.compile(r"//[^\n]*")
USED = re.compile(r"\bcrate::(\w+)")


def uses(crate):
    """By module of a crate, which others it uses. What is in a folder is a part of the module above."""
    graph = {}
    for source in (crate / "src").rglob("*.rs"):
        module = source.relative_to(crate / "src").parts[0].removesuffix(".rs")
        if module not in ("lib", "main", "bin"):
            graph.setdefault(module, set()).update(USED.findall(COMMENT.sub("", source.read_text())))
    return {module: (used & graph.keys()) - {module} for module, used in graph.items()}


class Modules(unittest.TestCase):
    def test_no_circles(self):
        for crate in ("testlib", "fuzz", "fuzz-netlink", "bench"):
            with self.subTest(crate):
                graphlib.TopologicalSorter(uses(SELFTESTS / crate)).prepare()

    def test_the_library(self):
        graph = uses(SELFTESTS / "testlib")
        self.assertEqual(graph["report"], set())
        self.assertEqual([module for module, used in graph.items() if "runner" in used], [])
        self.assertIn("report", graph["runner"])


if __name__ == "__main__":
    unittest.main()
