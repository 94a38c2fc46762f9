#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of ktap.py: it must not let a failure pass."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import ktap

GOOD = """KTAP version 1
1..2
ok 1 first
ok 2 second
"""


def verdicts(text, status=0):
    r = ktap.parse_ktap("prog", text, status)
    return len(r.passed), len(r.failed), len(r.skipped)


def reasons(text, status=0):
    return "\n".join(reason for _, reason in ktap.parse_ktap("prog", text, status).failed)


class Ktap(unittest.TestCase):
    def test_all_pass(self):
        for head in ktap.HEADS:
            text = GOOD.replace("KTAP version 1", head)
            r = ktap.parse_ktap("prog", "noise before\n" + text, 0)
            self.assertEqual(r.passed, ["prog/first", "prog/second"])
            self.assertEqual((r.failed, r.skipped), ([], []))

    def test_failure_carries_its_diagnostics(self):
        text = "KTAP version 1\n1..1\n# at foo.rs:3\n# left 1, right 2\nnot ok 1 sums\n"
        r = ktap.parse_ktap("prog", text, 1)
        self.assertEqual(r.failed, [("prog/sums", "at foo.rs:3; left 1, right 2")])

    def test_what_a_test_took_is_no_reason(self):
        text = "KTAP version 1\n1..1\n# left 1, right 2\n# took 17 ms\nnot ok 1 sums\n"
        self.assertEqual(reasons(text, 1), "left 1, right 2")

    def test_dash_before_the_name(self):
        r = ktap.parse_ktap("prog", "KTAP version 1\n1..1\nok 1 - name with words\n", 0)
        self.assertEqual(r.passed, ["prog/name with words"])

    def test_skip_has_a_reason(self):
        r = ktap.parse_ktap("prog", "KTAP version 1\n1..1\nok 1 big # SKIP no huge pages\n", 0)
        self.assertEqual(r.skipped, [("prog/big", "no huge pages")])
        self.assertEqual(r.passed, [])

    def test_whole_program_skipped(self):
        r = ktap.parse_ktap("prog", "KTAP version 1\n1..0 # no netdevsim\n", 0)
        self.assertEqual(r.skipped, [("prog", "no netdevsim")])

    def test_whole_program_skipped_as_selftests_do(self):
        r = ktap.parse_ktap("prog", "TAP version 13\n1..0 # SKIP no netdevsim\n", 4)
        self.assertEqual((r.passed, r.failed, r.skipped), ([], [], [("prog", "no netdevsim")]))

    def test_status_of_a_skip(self):
        self.assertEqual(verdicts("TAP version 13\n1..1\nok 1 a # SKIP b\n", 4), (0, 0, 1))
        # One that passed was not skipped.
        self.assertEqual(verdicts(GOOD, 4), (2, 1, 0))
        self.assertEqual(verdicts("TAP version 13\n1..2\nok 1 a # SKIP b\nok 2 c\n", 4), (1, 1, 1))

    def test_too_few_results(self):
        self.assertEqual(verdicts("KTAP version 1\n1..3\nok 1 a\nok 2 b\n"), (2, 1, 0))

    def test_too_many_results(self):
        self.assertIn("2 results, 1 planned", reasons("KTAP version 1\n1..1\nok 1 a\nok 2 b\n"))

    def test_no_plan(self):
        self.assertIn("no plan", reasons("KTAP version 1\nok 1 a\n"))

    def test_wrong_number(self):
        self.assertIn("where 2 was due", reasons("KTAP version 1\n1..2\nok 1 a\nok 3 b\n"))

    def test_silence_is_failure(self):
        self.assertEqual(verdicts(""), (0, 1, 0))
        self.assertEqual(verdicts("Segmentation fault\n", 139), (0, 1, 0))

    def test_died_after_all_results(self):
        self.assertIn("exit status 139", reasons(GOOD, 139))

    def test_hung(self):
        self.assertIn("ran out of time", reasons(GOOD, 124))

    def test_guest_died(self):
        self.assertIn("the guest died", reasons(GOOD, None))

    def test_bail_out(self):
        text = "KTAP version 1\n1..1\nok 1 a\nBail out! no NIC\n"
        self.assertEqual(reasons(text), "Bail out! no NIC")

    def test_cut_off_in_the_middle(self):
        self.assertEqual(verdicts("KTAP version 1\n1..2\nok 1 a\n", None), (1, 2, 0))

    def test_subtests_count_instead_of_their_parent(self):
        text = (
            "KTAP version 1\n1..1\n"
            "  KTAP version 1\n  1..2\n  ok 1 x\n  ok 2 y # SKIP later\n"
            "ok 1 suite\n"
        )
        r = ktap.parse_ktap("prog", text, 0)
        self.assertEqual(r.passed, ["prog/suite/x"])
        self.assertEqual(r.skipped, [("prog/suite/y", "later")])
        self.assertEqual(r.failed, [])

    def test_failed_subtest_in_passed_test(self):
        text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  not ok 1 x\nok 1 suite\n"
        self.assertIn("passed although", reasons(text))

    def test_subtests_without_parent(self):
        text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 x\n"
        self.assertIn("without the result", reasons(text))


def write_runs(directory, outputs):
    for run, output in outputs.items():
        path = directory / run
        path.parent.mkdir(exist_ok=True)
        path.write_text(output)
        path.with_name(f"{path.name}.status").write_text("0\n")


class Runs(unittest.TestCase):
    def test_run_without_output(self):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            write_runs(d, {"c/one": GOOD})
            r = ktap.read_runs(d, ["c/one", "rust/one"])
        self.assertEqual(r.passed, ["c/one/first", "c/one/second"])
        self.assertEqual(r.failed, [("rust/one", "did not run")])

    def test_status_that_was_not_written(self):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            write_runs(d, {"c/one": GOOD})
            (d / "c/one.status").write_text("")
            ((name, reason),) = ktap.read_runs(d, ["c/one"]).failed
        self.assertEqual(name, "c/one")
        self.assertIn("did not end", reason)


def one_test(*saw, result="ok 1 a"):
    lines = [f"# saw: {line}" for line in saw]
    return "\n".join(["KTAP version 1", "1..1", *lines, result]) + "\n"


class Compare(unittest.TestCase):
    def compare(self, rust, c, intended=()):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            write_runs(d, {"rust/prog": rust, "c/prog": c})
            r, as_intended = ktap.compare(d, ["rust/prog", "c/prog"], dict(intended))
        self.assertEqual((r.passed, r.skipped), ([], []))
        return r.failed, as_intended

    def test_the_same(self):
        text = one_test("EAGAIN", "5 bytes")
        self.assertEqual(self.compare(text, text), ([], []))

    def test_other_diagnostics_may_differ(self):
        c = one_test("x").replace("ok 1", "# provider: c\nok 1")
        self.assertEqual(self.compare(one_test("x"), c), ([], []))

    def test_difference_names_test_and_lines(self):
        failed, _ = self.compare(one_test("x", "EINVAL"), one_test("x", "returned 2", "y"))
        ((name, reason),) = failed
        self.assertEqual(name, "prog/a")
        self.assertIn("rust: EINVAL", reason)
        self.assertIn("c: returned 2", reason)
        self.assertIn("c: y", reason)
        self.assertNotIn(": x", reason)

    def test_order_matters(self):
        failed, _ = self.compare(one_test("x", "y"), one_test("y", "x"))
        self.assertEqual(len(failed), 1)

    def test_silence_on_one_side(self):
        failed, _ = self.compare(one_test("x"), one_test())
        self.assertIn("rust: x", failed[0][1])

    def test_lines_belong_to_the_test_that_follows(self):
        first = "KTAP version 1\n1..2\n# saw: x\nok 1 a\nok 2 b\n"
        second = "KTAP version 1\n1..2\nok 1 a\n# saw: x\nok 2 b\n"
        failed, _ = self.compare(first, second)
        self.assertEqual([name for name, _ in failed], ["prog/a", "prog/b"])

    def test_lines_after_the_last_test(self):
        failed, _ = self.compare(GOOD + "# saw: x\n", GOOD)
        self.assertEqual(len(failed), 1)

    def test_other_verdict(self):
        failed, _ = self.compare(one_test(), one_test(result="not ok 1 a"))
        self.assertEqual(failed, [("prog/a", "passed on rust, failed on c")])
        failed, _ = self.compare(one_test(result="ok 1 a # SKIP no"), one_test())
        self.assertEqual(failed, [("prog/a", "skipped on rust, passed on c")])

    def test_test_of_one_side(self):
        failed, _ = self.compare(GOOD, GOOD.replace("ok 2 second\n", ""))
        self.assertEqual(failed, [("prog/second", "passed on rust, missing on c")])

    def test_intended(self):
        intended = {"prog/a": "because"}
        result = self.compare(one_test("x"), one_test("y"), intended)
        self.assertEqual(result, ([], [("prog/a", "because")]))

    def test_stale_intention_fails(self):
        failed, _ = self.compare(one_test("x"), one_test("x"), {"prog/a": "because"})
        self.assertIn("none any more", failed[0][1])

    def test_intention_about_no_test_fails(self):
        failed, _ = self.compare(one_test("x"), one_test("x"), {"prog/b": "because"})
        self.assertEqual([name for name, _ in failed], ["prog/b"])

    def test_intention_of_another_program(self):
        text = one_test("x")
        self.assertEqual(self.compare(text, text, {"other/a": "because"}), ([], []))

    def test_failure_is_no_stale_intention(self):
        text = one_test(result="not ok 1 a")
        self.assertEqual(self.compare(text, text, {"prog/a": "because"}), ([], []))

    def test_guests_are_not_compared(self):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            outputs = {"rust/prog": "x", "c/prog": "x", "debug:rust/prog": "y", "debug:c/prog": "z"}
            write_runs(d, {run: one_test(saw) for run, saw in outputs.items()})
            r, _ = ktap.compare(d, list(outputs), {})
        ((name, reason),) = r.failed
        self.assertEqual(name, "debug:prog/a")
        self.assertIn("debug:rust: y", reason)
        self.assertIn("debug:c: z", reason)

    def test_one_provider_alone(self):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            write_runs(d, {"rust/prog": one_test("x")})
            r, _ = ktap.compare(d, ["rust/prog"], {"prog/a": "because"})
        self.assertEqual(r.failed, [])


class Cargo(unittest.TestCase):
    TEXT = (
        "running 2 tests\ntest a::b ... ok\ntest c ... {}\n\n"
        "test result: {}. 1 passed; {} failed; {} ignored; 0 measured; 0 filtered out\n"
    )

    def test_counts(self):
        r = ktap.parse_cargo(self.TEXT.format("FAILED", "FAILED", 1, 0))
        self.assertEqual((r.passed, len(r.failed)), (["host/a::b"], 1))

    def test_ignored_with_reason(self):
        r = ktap.parse_cargo(self.TEXT.format("ignored, slow", "ok", 0, 1))
        self.assertEqual(r.skipped, [("host/c", "slow")])

    def test_sums_must_agree(self):
        r = ktap.parse_cargo(self.TEXT.format("ok", "ok", 0, 0))
        self.assertIn("counts", r.failed[0][1])

    def test_nothing_ran(self):
        self.assertEqual(len(ktap.parse_cargo("error: could not compile\n").failed), 1)


class Unittest(unittest.TestCase):
    TEXT = """test_one (t.T.test_one) ... ok
test_two (t.T.test_two)
What it is about. ... {}

----------------------------------------------------------------------
Ran {} tests in 0.001s

"""

    def counts(self, verdict, ran):
        r = ktap.parse_unittest(self.TEXT.format(verdict, ran))
        return len(r.passed), len(r.failed), len(r.skipped)

    def test_verdicts(self):
        self.assertEqual(self.counts("ok", 2), (2, 0, 0))
        self.assertEqual(self.counts("FAIL", 2), (1, 1, 0))
        self.assertEqual(self.counts("ERROR", 2), (1, 1, 0))
        self.assertEqual(self.counts("skipped 'slow'", 2), (1, 0, 1))

    def test_several_runs_add_up(self):
        r = ktap.parse_unittest(self.TEXT.format("ok", 2) * 2)
        self.assertEqual((len(r.passed), len(r.failed)), (4, 0))

    def test_missing_result(self):
        self.assertEqual(self.counts("ok", 3), (2, 1, 0))

    def test_nothing_ran(self):
        self.assertEqual(len(ktap.parse_unittest("Traceback\n").failed), 1)


class Judge(unittest.TestCase):
    def judge(self, skipped, expected, ran=("prog",), partial=False):
        r = ktap.Results()
        r.skipped = skipped
        ktap.judge(r, expected, ran, partial)
        return len(r.failed), len(r.skipped)

    def test_unexpected_skip_fails(self):
        self.assertEqual(self.judge([("prog/a", "why")], {}), (1, 0))

    def test_expected_skip(self):
        self.assertEqual(self.judge([("prog/a", "why")], {"prog/a": "because"}), (0, 1))

    def test_stale_expectation_fails(self):
        self.assertEqual(self.judge([], {"prog/a": "because"}), (1, 0))

    def test_some_tests_tell_nothing_of_others(self):
        self.assertEqual(self.judge([], {"prog/a": "because"}, partial=True), (0, 0))
        self.assertEqual(self.judge([("prog/b", "why")], {}, partial=True), (1, 0))

    def test_expectation_of_another_run(self):
        self.assertEqual(self.judge([], {"other/a": "because"}), (0, 0))
        self.assertEqual(self.judge([], {"c/prog/a": "because"}, ["rust/prog"]), (0, 0))

    def test_stale_expectation_of_one_provider_fails(self):
        self.assertEqual(self.judge([], {"c/prog/a": "because"}, ["c/prog"]), (1, 0))


class Expected(unittest.TestCase):
    def read(self, text):
        with tempfile.TemporaryDirectory() as d:
            path = pathlib.Path(d) / "list"
            path.write_text(text)
            return ktap.read_expected(path)

    def test_name_and_reason(self):
        text = "# note\n\nprog/a because of it\nprog/b\t\tfor two tabs\n"
        self.assertEqual(self.read(text), {"prog/a": "because of it", "prog/b": "for two tabs"})

    def test_no_reason_is_no_entry(self):
        with self.assertRaises(SystemExit):
            self.read("prog/a\n")


class Cases(unittest.TestCase):
    LIST = "# list\nnet/prog.py one\nnet/prog.py two\nnet/other.py one\n"

    def missing(self, output):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            (d / "cases").write_text(self.LIST)
            write_runs(d, {"c/prog.py": output})
            results = ktap.read_runs(d, ["c/prog.py"])
            cases = ktap.read_cases(d / "cases")
        return [name for name, _ in ktap.missing_cases(results, ["c/prog.py"], cases).failed]

    def test_whatever_the_result(self):
        text = "TAP version 13\n1..2\nnot ok 1 prog.one\nok 2 prog.two # SKIP old\n"
        self.assertEqual(self.missing(text), [])

    def test_more_than_listed(self):
        text = "TAP version 13\n1..3\nok 1 prog.new\nok 2 prog.one\nok 3 prog.two\n"
        self.assertEqual(self.missing(text), [])

    def test_missing(self):
        text = "TAP version 13\n1..1\nok 1 prog.two\n"
        self.assertEqual(self.missing(text), ["c/prog.py/prog.one"])

    def test_nothing_ran(self):
        self.assertEqual(len(self.missing("Traceback\n")), 2)


class CommandLine(unittest.TestCase):
    def run_ktap(self, output, *args, other=None):
        with tempfile.TemporaryDirectory() as d:
            d = pathlib.Path(d)
            (d / "none").write_text("# none\n")
            write_runs(d, {"rust/prog": output, "c/prog": other or output})
            done = subprocess.run(
                [sys.executable, ktap.__file__, "--expected-skips", d / "none"]
                + ["--intended-differences", d / "none", "--ktap", d]
                + [*args, "rust/prog", "c/prog"],
                capture_output=True,
                text=True,
                check=False,
            )
        return done.returncode, done.stdout.splitlines()[-1]

    def test_success(self):
        self.assertEqual(self.run_ktap(GOOD), (0, "4 passed, 0 failed, 0 skipped"))

    def test_failure_elsewhere(self):
        result = self.run_ktap(GOOD, "--fail", "kernel log")
        self.assertEqual(result, (1, "4 passed, 1 failed, 0 skipped"))

    def test_logs_that_are_missing(self):
        result = self.run_ktap(GOOD, "--cargo", "/none/log", "--unittest", "/none/log")
        self.assertEqual(result, (1, "4 passed, 2 failed, 0 skipped"))

    def test_difference_fails_the_run(self):
        result = self.run_ktap(one_test("x"), other=one_test("y"))
        self.assertEqual(result, (1, "2 passed, 1 failed, 0 skipped"))

    def test_missing_case_fails_the_run(self):
        with tempfile.NamedTemporaryFile("w") as cases:
            cases.write("net/prog third\n")
            cases.flush()
            result = self.run_ktap(GOOD, "--cases", cases.name)
        self.assertEqual(result, (1, "4 passed, 2 failed, 0 skipped"))

    def test_some_tests_need_not_differ_as_intended(self):
        with tempfile.NamedTemporaryFile("w") as intended:
            intended.write("prog/third a reason\n")
            intended.flush()
            args = ["--intended-differences", intended.name]
            self.assertEqual(self.run_ktap(GOOD, *args)[0], 1)
            self.assertEqual(self.run_ktap(GOOD, *args, "--partial")[0], 0)

    def test_skips_on_a_kernel_of_ones_own(self):
        output = "TAP version 13\n1..2\nok 1 first\nok 2 second # SKIP lacks CONFIG_TLS\n"
        self.assertEqual(self.run_ktap(output), (1, "2 passed, 2 failed, 0 skipped"))
        result = self.run_ktap(output, "--may-skip")
        self.assertEqual(result, (0, "2 passed, 0 failed, 2 skipped"))
        # All that was to differ may be among it.
        with tempfile.NamedTemporaryFile("w") as intended:
            intended.write("prog/first a reason\n")
            intended.flush()
            args = ["--may-skip", "--intended-differences", intended.name]
            skipped = "TAP version 13\n1..0 # SKIP no kernel\n"
            result = self.run_ktap(skipped, *args)
        self.assertEqual(result, (1, "0 passed, 0 failed, 2 skipped"))

    def test_parts(self):
        table = ktap.parts_table("prepare\t7\t11\nfast guest\t100\t120\n", 103)
        self.assertEqual(table.splitlines()[-1].split(), ["all", "103", "131"])
        self.assertEqual(table.splitlines()[2].split(), ["fast", "guest", "100", "120"])

    def test_nothing_at_all_is_no_success(self):
        self.assertEqual(self.run_ktap("KTAP version 1\n1..0\n")[0], 1)


if __name__ == "__main__":
    unittest.main()
