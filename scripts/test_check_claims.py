#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/check-claims, on a small tree and on what runs of it have printed."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECK = ROOT / "scripts/check-claims"

FLAGS = """
// tests![commented_out]
fn main() -> ExitCode {
    runner::run(tests![
        peek, // a comment, with a comma
        peek_offset,
    ])
}
"""

UAPI = """
====
uAPI
====

============ ================== ============================
errno        Reason             Test
============ ================== ============================
``EINVAL``   a reason           ``flags/peek``
``EFAULT``   another reason     ``flags/peek_offset``, ``peek``,
             in two lines       ``upstream:devmem.py/check_rx``
``EPERM``    no ``CAP``         none: nobody has tried
============ ================== ============================
"""

SECURITY = """
The three promises
==================

An unprivileged process can

- not do this with ``ioctl``:
  ``flags/peek``,
- not do that (none: for a reason).

What is left
============

- Much.
"""

DEFECTS = """
.. list-table::
   :header-rows: 1
   :widths: 40 60

   * - Defect
     - Reproduced
   * - One that
       takes two lines
     - ``debug:slow/walk``,
       KASAN
   * - Another
     - ``module/load``, ``host/area_tests::*``
"""

HOST = """
#[test]
fn one() {}

proptest! {
    #[test]
    fn many(number in any::<u32>()) {}
}

fn no_test() {}
"""

KTAP = "KTAP version 1\n1..{}\n{}\n"
CARGO = "test area_tests::one ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0\n"
RUNS = {
    "devmem_provider/flags": ["peek", "peek_offset"],
    "builtin/flags": ["peek", "peek_offset"],
    "debug:devmem_provider/slow": ["walk"],
    "devmem_provider/module": ["load"],
    "devmem_provider/devmem.py": ["devmem.check_rx"],
}


class Tree(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        self.write("selftests/kselftest/src/bin/flags.rs", FLAGS)
        self.write("selftests/kselftest/src/bin/slow/main.rs", "tests![walk::walk, softirq::leaks]")
        self.write("selftests/kselftest/src/bin/module.rs", "tests![load]")
        self.write("selftests/host/src/area_tests.rs", HOST)
        self.write("selftests/upstream-cases", "# cases\ndrivers/net/hw/devmem.py check_rx\n")
        self.write(
            "selftests/programs",
            "# exceptions\nmodule fast,debug devmem_provider\nslow debug each\n",
        )
        self.uapi(UAPI)
        self.write("Documentation/security.rst", SECURITY)
        self.defects(DEFECTS.replace("``module/", "``devmem_provider/module/"))

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def uapi(self, text):
        self.write("Documentation/uapi.rst", text)

    def defects(self, text):
        self.write("Documentation/defects.rst", text)

    def check(self, *args):
        command = [CHECK, "--root", self.root, *args]
        return subprocess.run(command, capture_output=True, text=True, check=False)


class Documents(Tree):
    """What is wrong with the documents."""

    def wrong(self, *lines):
        done = self.check()
        self.assertEqual(done.stderr, "")
        told = [line for line in done.stdout.splitlines() if line.startswith("Documentation/")]
        self.assertEqual(told, [f"Documentation/{line}" for line in lines])
        self.assertEqual(done.returncode, 1 if lines else 0)

    def cell(self, cell, *lines):
        """The cell of the first line of uapi.rst."""
        self.uapi(UAPI.replace("``flags/peek``\n", f"{cell}\n", 1))
        self.wrong(*(f"uapi.rst:9: {line}" for line in lines))

    def test_all_well(self):
        done = self.check()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(
            done.stdout.splitlines(),
            [
                "defects.rst: 2 lines, 0 of them without a test",
                "security.rst: 2 lines, 1 of them without a test",
                "uapi.rst: 3 lines, 1 of them without a test",
                "6 tests are named",
            ],
        )

    def test_no_test_and_no_reason(self):
        told = '"``EINVAL``" names no test, and no reason ("none: why")'
        for cell in ("", "seen by hand", "none", "none: "):
            self.cell(cell, told)

    def test_what_there_is_not(self):
        self.cell("``flags/no_such_test``", "no test flags/no_such_test")
        self.cell("``no_such/peek``", "no test no_such/peek")
        self.cell("``flags/commented_out``", "no test flags/commented_out")
        self.cell("``flags/z*``", "no test flags/z*")
        self.cell("``flags/peek``, ``walk``", "no test flags/walk")
        self.cell("``upstream:devmem.py/check_tx``", "no test upstream:devmem.py/check_tx")
        self.cell("``host/area_tests::no_test``", "no test host/area_tests::no_test")
        self.cell("``EINVAL``", "EINVAL is no test")
        self.cell("none: ``flags/gone`` is not there yet", "no test flags/gone")

    def test_several_at_once(self):
        self.cell("``flags/peek``, KASAN, ``peek_*`` and ``debug:slow/*``")
        self.cell("``host/area_tests::one``, ``area_tests::many``")

    def test_where_a_program_runs(self):
        self.cell("``slow/walk``", "slow/walk: slow runs in another guest: debug")
        self.cell(
            "``module/load``",
            "module/load: runs on one provider, say devmem_provider/module",
        )
        self.cell("``builtin/module/load``", "builtin/module/load: module does not run on builtin")
        self.cell("``both/flags/peek``", "both/flags/peek: flags does not run on both")
        self.cell("``kcsan:slow/walk``", "kcsan:slow/walk: slow runs in another guest: debug")
        for name in ("debug:flags/peek", "debug:builtin/slow/walk", "builtin/flags/peek"):
            self.cell(f"``{name}``")

    def test_lines_of_a_list_table(self):
        self.defects(DEFECTS.replace("``debug:slow/walk``,\n       KASAN", "KASAN"))
        self.wrong(
            'defects.rst:8: "One that takes two lines" names no test, and no reason ("none: why")',
            "defects.rst:11: module/load: runs on one provider, say devmem_provider/module",
        )

    def test_a_cell_that_is_missing(self):
        self.defects("\n".join(DEFECTS.splitlines()[:-1]))
        self.wrong("defects.rst:12: not 2 columns")

    def test_tables_have_the_column(self):
        self.uapi(UAPI.replace("Test", "What"))
        self.wrong("uapi.rst:6: the table needs one column Test or Reproduced or Shown on it by")

    def test_a_first_column_in_two_lines_is_two_lines(self):
        self.uapi(UAPI.replace("``EPERM``    no", "and so on\n``EPERM``    no"))
        self.wrong('uapi.rst:12: "and so on" names no test, and no reason ("none: why")')

    def test_text_between_the_columns(self):
        self.uapi(UAPI.replace("no ``CAP``         none", "no ``CAP`` at all at none"))
        self.wrong("uapi.rst:12: text between the columns of a table")

    def test_a_table_that_does_not_end(self):
        self.uapi(UAPI.rstrip().rpartition("\n")[0])
        self.wrong("uapi.rst:6: a table that does not end")

    def test_items_of_a_list(self):
        self.write("Documentation/security.rst", SECURITY.replace("``flags/peek``,", "nothing,"))
        told = '"not do this with ``ioctl``:" names no test, and no reason ("none: why")'
        self.wrong(f"security.rst:7: {told}")

    def test_names_elsewhere(self):
        for text, line in (
            ("See ``flags/peek``,\n``gone``; ``rust/sys`` and ``x``.", 2),
            ("=== ===\na   b\n=== ===\n\n``flags/gone``\n", 5),
            ("=== ===\na   b\n=== ===\nc   ``flags/gone``\n=== ===\n", 4),
        ):
            self.write("Documentation/design.rst", text)
            self.wrong(f"design.rst:{line}: no test flags/gone")

    def test_names_in_the_audit(self):
        audit = "file,test\na.c,none\nb.c,flags/gone\nc.c,flags\n"
        self.write("Documentation/unreadable.csv", audit)
        self.wrong("unreadable.csv:3: no test flags/gone", "unreadable.csv:4: flags is no test")

    def test_what_cannot_be_read(self):
        self.write("selftests/kselftest/src/bin/empty.rs", "fn main() {}")
        done = self.check()
        self.assertIn("empty.rs: no list tests![]", done.stdout)
        self.assertEqual(done.returncode, 1)
        (self.root / "selftests/kselftest/src/bin/empty.rs").unlink()
        (self.root / "Documentation/uapi.rst").unlink()
        done = self.check()
        self.assertIn("uapi.rst", done.stdout)
        self.assertEqual(done.returncode, 1)


class Patches(Tree):
    """What is wrong with what patches say."""

    def says(self, text):
        self.write("patches/01-a/0001-b.patch", f"Why.\n\n{text}\n\nSigned-off-by: me\n---\n")
        done = self.check()
        self.assertEqual(done.returncode, 1 if "patches/" in done.stdout else 0)
        return [line for line in done.stdout.splitlines() if line.startswith("patches/")]

    def test_tests_that_there_are(self):
        self.assertEqual(self.says("Tested by flags/peek, debug:slow/walk\nand host/area_tests::many."), [])
        self.assertEqual(self.says("No test."), [])

    def test_a_test_that_there_is_not(self):
        told = self.says("Tested by flags/peek\nand flags/poke.")
        self.assertEqual(told, ["patches/01-a/0001-b.patch: no test flags/poke"])

    def test_no_test(self):
        self.assertEqual(self.says("Tested by hand."), ["patches/01-a/0001-b.patch: names no test"])


class Runs(Tree):
    """What was not tested in a run."""

    def setUp(self):
        super().setUp()
        self.runs = {run: [f"ok {{}} {test}" for test in tests] for run, tests in RUNS.items()}
        self.cargo = CARGO.replace("test result", "test area_tests::many ... ok\ntest result")

    def results(self):
        for run, lines in self.runs.items():
            text = "\n".join(line.format(i) for i, line in enumerate(lines, 1))
            self.write(f"results/{run}", KTAP.format(len(lines), text))
            self.write(f"results/{run}.status", "0\n")
        self.write("cargo", self.cargo)
        args = ["--results", self.root / "results"]
        return self.check(*args, "--cargo", self.root / "cargo", *RUNS)

    def untested(self, *lines):
        done = self.results()
        self.assertEqual(done.stdout.splitlines(), list(lines), done.stderr)
        self.assertEqual(done.returncode, 1 if lines else 0, done.stderr)
        return done

    def test_all_passed(self):
        done = self.untested()
        # The second provider of the debug guest was not to be run.
        self.assertEqual(done.stderr, "9 tests passed that the documents name\n")

    def test_not_on_one_provider(self):
        self.runs["builtin/flags"] = ["ok {} peek"]
        self.untested(
            "builtin/flags: did not run, but named in Documentation: peek_offset (uapi.rst:10)"
        )

    def test_not_at_all(self):
        del self.runs["devmem_provider/module"]
        self.untested(
            "devmem_provider/module: did not run, but named in Documentation: load (defects.rst:12)"
        )

    def test_skipped(self):
        self.runs["debug:devmem_provider/slow"] = ["ok {} walk # SKIP no memory"]
        self.untested(
            "debug:devmem_provider/slow: skipped, but named in Documentation: walk (defects.rst:8)"
        )

    def test_a_failure_is_told_once(self):
        self.runs["devmem_provider/flags"][0] = "not ok {} peek"
        self.untested()

    def test_cases_and_host(self):
        self.runs["devmem_provider/devmem.py"] = ["ok {} devmem.check_tx"]
        self.cargo = CARGO
        self.untested(
            "host: did not run, but named in Documentation: area_tests::many (defects.rst:12)",
            "devmem_provider/devmem.py: did not run, but named in Documentation: "
            "devmem.check_rx (uapi.rst:10)",
        )

    def test_what_was_not_to_be_run_does_not_count(self):
        self.results()
        done = self.check("--results", self.root / "results", "debug:devmem_provider/slow")
        self.assertEqual((done.stdout, done.returncode), ("", 0))
        self.assertEqual(done.stderr, "1 tests passed that the documents name\n")
        done = self.check("--results", self.root / "results", "debug:builtin/slow")
        self.assertEqual(
            done.stdout,
            "debug:builtin/slow: did not run, but named in Documentation: walk (defects.rst:8)\n",
        )


class Here(unittest.TestCase):
    def test_the_documents_name_tests_that_there_are(self):
        done = subprocess.run([CHECK], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main()
