#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Sums up test results: KTAP of the guest's programs, cargo test's and unittest's.

Prints what failed and why, then one line "N passed, N failed, N skipped". Exits
with 1 if anything failed, or was skipped without being expected to be.

Nothing passes by silence: a program that is missing, died, hung, printed no plan
or broke it counts as a failed test, each.
"""

import argparse
import pathlib
import re
import sys

RESULT = re.compile(
    r"^(?P<not>not )?ok (?P<number>\d+)(?: (?:- )?(?P<name>[^#]*?))?\s*(?:#\s*(?P<directive>.*))?$"
)
PLAN = re.compile(r"^1\.\.(\d+)(?:\s*#\s*(?P<directive>.*))?$")
CARGO_TEST = re.compile(r"^test (?P<name>.+) \.\.\. (?P<result>ok|FAILED|ignored(?:, .*)?)$")
CARGO_SUM = re.compile(r"^test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored")
UNIT_TEST = re.compile(r"^(?P<name>.+) \.\.\. (?P<result>ok|FAIL|ERROR|skipped .*)$")
UNIT_SUM = re.compile(r"^Ran (\d+) tests? in ")
TIMED_OUT = (124, 137)


class Results:
    """Tests that ended, by verdict."""

    def __init__(self):
        self.passed = []
        self.failed = []
        self.skipped = []

    def fail(self, name, reason):
        self.failed.append((name, reason))

    def skip(self, name, reason):
        self.skipped.append((name, reason))

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def parse_level(lines, start, indent, prefix, results):
    """Counts the results at one depth of nesting, and of what is nested in it.

    Returns the number of the line after the level.
    """
    plan = None
    seen = 0
    nested = None
    version = False
    i = start
    while i < len(lines):
        line = lines[i]
        depth = len(line) - len(line.lstrip(" "))
        text = line.strip()
        starts_level = text in ("KTAP version 1", "TAP version 13", "TAP version 14")
        if starts_level and depth > indent:
            nested = Results()
            i = parse_level(lines, i, depth, prefix, nested)
            continue
        if depth < indent and (RESULT.match(text) or PLAN.match(text) or starts_level):
            break
        if depth > indent:
            i += 1
            continue
        if starts_level:
            if version:
                results.fail(prefix, "two version lines")
            version = True
        elif text.startswith("Bail out!"):
            results.fail(prefix, text)
        elif match := PLAN.match(text):
            if plan is not None:
                results.fail(prefix, "two plans")
            plan = int(match.group(1))
            if plan == 0:
                results.skip(prefix, match.group("directive") or "no reason given")
        elif match := RESULT.match(text):
            seen += 1
            number = int(match.group("number"))
            name = f"{prefix}/{match.group('name') or number}"
            directive = match.group("directive") or ""
            if number != seen:
                results.fail(name, f"result number {number} where {seen} was due")
            if match.group("not"):
                if nested is None or not nested.failed:
                    results.fail(name, failure(lines, i, directive))
            elif directive.upper().startswith("SKIP"):
                results.skip(name, directive[4:].strip() or "no reason given")
            elif directive:
                results.fail(name, f"unknown directive: {directive}")
            elif nested is None:
                results.passed.append(name)
            if nested is not None:
                rename(nested, prefix, name)
                if match.group("not") is None and nested.failed:
                    results.fail(name, "passed although one of its subtests failed")
                results.add(nested)
                nested = None
        i += 1
    if nested is not None:
        results.add(nested)
        results.fail(prefix, "subtests without the result of the test that they belong to")
    if not version:
        results.fail(prefix, "printed no KTAP")
    elif plan is None:
        results.fail(prefix, "no plan")
    elif seen != plan:
        results.fail(prefix, f"{seen} results, {plan} planned")
    return i


def rename(results, old, new):
    """Moves nested results from below `old` to below `new`."""
    results.passed = [new + n[len(old):] for n in results.passed]
    results.failed = [(new + n[len(old):], r) for n, r in results.failed]
    results.skipped = [(new + n[len(old):], r) for n, r in results.skipped]


def failure(lines, i, directive):
    """What a failed test said: its directive and the diagnostics just before it."""
    said = []
    while i > 0 and lines[i - 1].strip().startswith("#") and len(said) < 20:
        i -= 1
        said.insert(0, lines[i].strip().lstrip("# "))
    return "; ".join(filter(None, [directive, *said])) or "no diagnostics"


def parse_ktap(program, text, status):
    """Results of one program, from what it printed and its exit status."""
    results = Results()
    lines = text.splitlines()
    start = next((i for i, l in enumerate(lines) if l.strip().endswith("TAP version 1")), 0)
    end = parse_level(lines, start, 0, program, results)
    if end < len(lines):
        results.fail(program, f"output that makes no sense: {lines[end]}")
    if status is None:
        results.fail(program, "did not end: the guest died or ran out of time")
    elif status in TIMED_OUT:
        results.fail(program, "ran out of time")
    elif status != 0 and not results.failed:
        results.fail(program, f"exit status {status}, though no test failed")
    return results


def read_programs(directory, programs):
    """Results of the guest's programs, each of which must have left its own."""
    results = Results()
    for program in programs:
        output = directory / program
        if not output.exists():
            results.fail(program, "did not run")
            continue
        status = directory / f"{program}.status"
        results.add(
            parse_ktap(
                program,
                output.read_text(errors="replace"),
                int(status.read_text()) if status.exists() else None,
            )
        )
    return results


def parse_cargo(text):
    """Results of `cargo test`, checked against the sums it prints."""
    results = Results()
    sums = [0, 0, 0]
    found = False
    for line in text.splitlines():
        if match := CARGO_TEST.match(line):
            name = "host/" + match.group("name")
            verdict = match.group("result")
            if verdict == "ok":
                results.passed.append(name)
            elif verdict == "FAILED":
                results.fail(name, "see the log of the host tests")
            else:
                results.skip(name, verdict.partition(", ")[2] or "no reason given")
        elif match := CARGO_SUM.match(line):
            found = True
            sums = [a + int(b) for a, b in zip(sums, match.groups())]
    if not found:
        results.fail("host", "no result of cargo test")
    elif sums != [len(results.passed), len(results.failed), len(results.skipped)]:
        results.fail("host", f"cargo test counts {sums} passed, failed, ignored")
    return results


def parse_unittest(text):
    """Results of Python's unittest (-v), of any number of runs, checked against its sums."""
    results = Results()
    ran = 0
    for line in text.splitlines():
        if match := UNIT_TEST.match(line):
            name = "scripts/" + match.group("name")
            verdict = match.group("result")
            if verdict == "ok":
                results.passed.append(name)
            elif verdict in ("FAIL", "ERROR"):
                results.fail(name, "see the log of the script tests")
            else:
                results.skip(name, verdict.partition(" ")[2])
        elif match := UNIT_SUM.match(line):
            ran += int(match.group(1))
    counted = len(results.passed) + len(results.failed) + len(results.skipped)
    if ran == 0 or ran != counted:
        results.fail("scripts", f"unittest ran {ran}, {counted} have a result")
    return results


def read_expected(path):
    """The skips that are expected: test and reason."""
    expected = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.strip().partition(" ")
            if not reason.strip():
                sys.exit(f"{path}: {name} needs a reason")
            expected[name] = reason.strip()
    return expected


def judge(results, expected, ran):
    """Turns what the list of expected skips does not cover into failures.

    `ran` names the programs of this run; lines of others do not count.
    """
    for name, reason in results.skipped:
        if name not in expected:
            results.fail(name, f"skipped, which is not expected: {reason}")
    results.skipped = [s for s in results.skipped if s[0] in expected]
    for name in sorted(set(expected) - {n for n, _ in results.skipped}):
        if name.partition("/")[0] not in ran:
            continue
        results.fail(name, "expected to be skipped, but was not")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expected-skips", type=pathlib.Path, required=True)
    parser.add_argument("--cargo", type=pathlib.Path, help="output of cargo test")
    parser.add_argument("--unittest", type=pathlib.Path, help="output of unittest -v")
    parser.add_argument("--ktap", type=pathlib.Path, help="directory of the programs' output")
    parser.add_argument("--fail", action="append", default=[], help="a failure seen elsewhere")
    parser.add_argument("programs", nargs="*")
    args = parser.parse_args()

    results = Results()
    if args.cargo:
        results.add(parse_cargo(args.cargo.read_text(errors="replace")))
    if args.unittest:
        results.add(parse_unittest(args.unittest.read_text(errors="replace")))
    if args.ktap:
        results.add(read_programs(args.ktap, args.programs))
    ran = [*args.programs, "host"] if args.cargo else args.programs
    judge(results, read_expected(args.expected_skips), ran)
    for reason in args.fail:
        results.fail("run", reason)

    for name, reason in results.skipped:
        print(f"skipped: {name}: {reason}")
    for name, reason in results.failed:
        print(f"FAILED: {name}: {reason}")
    print(
        f"{len(results.passed)} passed, {len(results.failed)} failed, "
        f"{len(results.skipped)} skipped"
    )
    sys.exit(1 if results.failed or not results.passed else 0)


if __name__ == "__main__":
    main()
