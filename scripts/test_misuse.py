#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of misuse.py, with a crate of a few lines."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path

import misuse

ROOT = "//! X\n\nmod sys;\n"
SOUND = "pub(crate) struct Key(());\n"
UNSOUND = "pub(crate) struct Key(pub(crate) ());\n"
SNIPPET = "use crate::sys::Key;\n\nfn forge() -> Key {\n    Key(()) //~ E0423\n}\n"
COMMAND = (
    "savedcmd_rust/devmem_provider.o := A=b rustc --edition=2021 --crate-type rlib "
    "--out-dir rust/ --emit=obj=rust/devmem_provider.o /tree/rust/devmem_provider.rs ; objtool\n"
)


class Misuse(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.base = Path(directory.name)
        for name in ("rust", "snippets", "objects/rust"):
            (self.base / name).mkdir(parents=True)
        (self.base / "objects/rust/.devmem_provider.o.cmd").write_text(COMMAND)
        (self.base / "rust/devmem_provider.rs").write_text(ROOT)

    def run_on(self, sys_rs, snippet):
        """What it says, and what it ends with."""
        (self.base / "rust/sys.rs").write_text(sys_rs)
        (self.base / "snippets/forge.rs").write_text(snippet)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                misuse.main(*(self.base / name for name in ("rust", "snippets", "objects")))
            except SystemExit as end:
                return out.getvalue(), end.code
        return out.getvalue(), None

    def test_misuse_that_does_not_compile(self):
        out, code = self.run_on(SOUND, SNIPPET)
        self.assertIsNone(code, out)
        self.assertIn("ok: forge", out)

    def test_misuse_that_compiles(self):
        out, code = self.run_on(UNSOUND, SNIPPET)
        self.assertEqual(code, "1 of 3 failed", out)
        self.assertIn("FAILED: forge", out)

    def test_another_error(self):
        out, code = self.run_on(SOUND, SNIPPET.replace("E0423", "E0382"))
        self.assertEqual(code, "1 of 3 failed", out)

    def test_another_line(self):
        out, code = self.run_on(SOUND, SNIPPET + "\nfn other() -> Key {\n    Key(())\n}\n")
        self.assertEqual(code, "1 of 3 failed", out)

    def test_a_crate_that_does_not_compile(self):
        out, code = self.run_on(SOUND + "use crate::nothing;\n", SNIPPET)
        self.assertEqual(code, "3 of 3 failed", out)

    def test_wrappers_that_import_from_outside(self):
        (self.base / "rust/devmem_provider.rs").write_text(ROOT + "mod above;\n")
        (self.base / "rust/above.rs").write_text("pub(crate) struct Above;\n")
        out, code = self.run_on(SOUND + "use crate::above::Above;\n", SNIPPET)
        self.assertEqual(code, "1 of 3 failed", out)
        self.assertIn("FAILED: rust/sys by itself", out)

    def test_a_snippet_without_a_mark(self):
        _, code = self.run_on(SOUND, "fn fine() {}\n")
        self.assertIn("no line says", code)


if __name__ == "__main__":
    unittest.main()
