#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Sums up test results: KTAP of the guest's programs, cargo test's and unittest's.

Prints what failed and why, then one line "N passed, N failed, N skipped". Exits
with 1 if anything failed, or was skipped without being expected to be.

Nothing passes by silence: a program that is missing, died, hung, printed no plan
or broke it counts as a failed test, each.

Programs run on several providers, each run is named PROVIDER/PROGRAM, or
GUEST:PROVIDER/PROGRAM. A test has to end the same way on all providers of a guest, and
to print the same "# saw:" lines. Where it does not, that is a failure too, unless the
difference is intended.
"""

import argparse
import difflib
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
HEADS = ("KTAP version 1", "TAP version 13", "TAP version 14")
SAW = "# saw: "
TOOK = re.compile(r"took \d+ ms")
TIMED_OUT = (124, 137)
# Of the kernel's selftests, KSFT_SKIP: all that there was has been skipped.
ALL_SKIPPED = 4


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
        starts_level = text in HEADS
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
                directive = (match.group("directive") or "").removeprefix("SKIP").strip()
                results.skip(prefix, directive or "no reason given")
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
        line = lines[i].strip().lstrip("# ")
        if not TOOK.fullmatch(line):
            said.insert(0, line)
    return "; ".join(filter(None, [directive, *said])) or "no diagnostics"


def parse_ktap(program, text, status):
    """Results of one program, from what it printed and its exit status."""
    results = Results()
    lines = text.splitlines()
    start = next((i for i, l in enumerate(lines) if l.strip().endswith(HEADS)), 0)
    end = parse_level(lines, start, 0, program, results)
    if end < len(lines):
        results.fail(program, f"output that makes no sense: {lines[end]}")
    if status is None:
        results.fail(program, "did not end: the guest died or ran out of time")
    elif status in TIMED_OUT:
        results.fail(program, "ran out of time")
    elif status == ALL_SKIPPED and results.skipped and not results.passed:
        pass
    elif status != 0 and not results.failed:
        results.fail(program, f"exit status {status}, though no test failed")
    return results


def read_status(path):
    """The exit status that is in a file; None if it did not come to be written."""
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text else None


def read_log(path):
    """What a log says: nothing, if there is none."""
    return path.read_text(errors="replace") if path.exists() else ""


def read_runs(directory, runs):
    """Results of the guest's programs, each run of which must have left its own."""
    results = Results()
    for run in runs:
        output = directory / run
        if not output.exists():
            results.fail(run, "did not run")
            continue
        status = read_status(directory / f"{run}.status")
        results.add(parse_ktap(run, output.read_text(errors="replace"), status))
    return results


def read_cases(path):
    """The cases that each program has to have, listed as path of the program and case.

    The kernel's test library puts the program's name before each.
    """
    cases = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            program, case = line.split()
            program = pathlib.PurePath(program)
            cases.setdefault(program.name, []).append(f"{program.stem}.{case}")
    return cases


def missing_cases(results, runs, cases):
    """A failure for each case that a run should have, but gave no result of."""
    missing = Results()
    seen = {*results.passed, *(n for n, _ in results.failed), *(n for n, _ in results.skipped)}
    for run in runs:
        for case in cases.get(run.partition("/")[2], []):
            if f"{run}/{case}" not in seen:
                missing.fail(f"{run}/{case}", "gave no result")
    return missing


def observations(text):
    """What each test of a program came to: its verdict, and what it saw."""
    tests = {}
    saw = []
    for line in text.splitlines():
        if line.startswith(SAW):
            saw.append(line[len(SAW):])
        elif match := RESULT.match(line):
            directive = match.group("directive") or ""
            if match.group("not"):
                verdict = "failed"
            elif directive.upper().startswith("SKIP"):
                verdict = "skipped"
            else:
                verdict = "passed"
            tests[match.group("name") or match.group("number")] = (verdict, saw)
            saw = []
    if saw:
        tests["(after the last test)"] = ("passed", saw)
    return tests


def difference(one, other):
    """In words, how one provider's (name, verdict, lines seen) differ from another's."""
    (name, verdict, saw), (name2, verdict2, saw2) = one, other
    if verdict != verdict2:
        return f"{verdict} on {name}, {verdict2} on {name2}"
    if verdict == "passed" and saw != saw2:
        lines = [
            f"    {name if line[0] == '-' else name2}: {line[2:]}"
            for line in difflib.ndiff(saw, saw2)
            if line[0] in "-+"
        ]
        return "\n".join(["seen differently:", *lines])
    return None


def compare(directory, runs, intended, partial=False):
    """Compares the runs of each program on the providers, or some of its tests (partial).

    Returns a failure for each test that differs and is not intended to, or does not
    differ although it is, and a list of the intended differences.
    """
    results = Results()
    as_intended = []
    programs = {}
    for run in runs:
        provider, _, program = run.partition("/")
        guest, _, _ = provider.rpartition(":")
        if (directory / run).exists():
            text = (directory / run).read_text(errors="replace")
            programs.setdefault((guest, program), []).append((provider, observations(text)))
    for (guest, program), seen in programs.items():
        prefix = f"{guest}:" if guest else ""
        (first, tests), *others = seen
        compared = set()
        for second, tests2 in others:
            for test in dict.fromkeys([*tests, *tests2]):
                name = f"{program}/{test}"
                missing = ("missing", [])
                one = (first, *tests.get(test, missing))
                other = (second, *tests2.get(test, missing))
                what = difference(one, other)
                if what and name in intended:
                    as_intended.append((prefix + name, intended[name]))
                elif what:
                    results.fail(prefix + name, what)
                elif name in intended and one[1] == "passed":
                    results.fail(prefix + name, "an intended difference which is none any more")
                compared.add(name)
        if others and not partial:
            for name in intended:
                if name.partition("/")[0] == program and name not in compared:
                    results.fail(prefix + name, "an intended difference of a test that there is not")
    return results, as_intended


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
    """Tests of which something is expected (a skip, a difference), and the reason."""
    expected = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, *reason = line.split(maxsplit=1)
            if not reason:
                sys.exit(f"{path}: {name} needs a reason")
            expected[name] = reason[0].strip()
    return expected


def judge(results, expected, ran, partial=False, may_skip=False):
    """Turns what the list of expected skips does not cover into failures.

    `ran` names what was run; lines of others do not count. Of some tests (partial) nobody can tell
    whether a line is still needed. On a kernel of somebody's own everything may be skipped: the
    reason is told.
    """
    if may_skip:
        return
    for name, reason in results.skipped:
        if name not in expected:
            results.fail(name, f"skipped, which is not expected: {reason}")
    results.skipped = [s for s in results.skipped if s[0] in expected]
    if partial:
        return
    for name in sorted(set(expected) - {n for n, _ in results.skipped}):
        if not any(name.startswith(f"{run}/") for run in ran):
            continue
        results.fail(name, "expected to be skipped, but was not")


def parts_table(text, elapsed):
    """What the parts of the run took, of lines "name<tab>wall<tab>CPU", in seconds.

    Parts run beside one another: their sum is more than the whole took.
    """
    rows = [line.split("\t") for line in text.splitlines()]
    cpu = sum(int(row[2]) for row in rows)
    rows.append(["all", str(elapsed), str(cpu)])
    width = max(len(row[0]) for row in rows)
    lines = [f"{'part':{width}}  wall, s  CPU, s"]
    lines += [f"{name:{width}} {wall:>8} {cpu:>7}" for name, wall, cpu in rows]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expected-skips", type=pathlib.Path, required=True)
    parser.add_argument("--intended-differences", type=pathlib.Path)
    parser.add_argument("--cargo", type=pathlib.Path, help="output of cargo test")
    parser.add_argument("--unittest", type=pathlib.Path, help="output of unittest -v")
    parser.add_argument("--ktap", type=pathlib.Path, help="directory of what the runs printed")
    parser.add_argument("--cases", type=pathlib.Path, help="cases that programs have to have")
    parser.add_argument("--parts", type=pathlib.Path, help="what the parts of the run took")
    parser.add_argument("--elapsed", type=int, help="seconds that the whole run took")
    parser.add_argument("--note", action="append", default=[], help="to be said in the end")
    parser.add_argument("--partial", action="store_true", help="some tests of the programs ran")
    parser.add_argument("--may-skip", action="store_true", help="a skip is no failure")
    parser.add_argument("--fail", action="append", default=[], help="a failure seen elsewhere")
    parser.add_argument("runs", nargs="*", metavar="provider/program")
    args = parser.parse_args()

    results = Results()
    # First: they may be why others fail.
    for reason in args.fail:
        results.fail("run", reason)
    if args.cargo:
        results.add(parse_cargo(read_log(args.cargo)))
    if args.unittest:
        results.add(parse_unittest(read_log(args.unittest)))
    if args.ktap:
        results.add(read_runs(args.ktap, args.runs))
    if args.cases:
        results.add(missing_cases(results, args.runs, read_cases(args.cases)))
    ran = [*args.runs, "host"] if args.cargo else args.runs
    judge(results, read_expected(args.expected_skips), ran, args.partial, args.may_skip)
    as_intended = []
    if args.ktap:
        intended = read_expected(args.intended_differences) if args.intended_differences else {}
        partial = args.partial or args.may_skip
        differences, as_intended = compare(args.ktap, args.runs, intended, partial)
        results.add(differences)

    if args.parts:
        print(parts_table(args.parts.read_text(), args.elapsed))
    for name, reason in as_intended:
        print(f"differs as intended: {name}: {reason}")
    for name, reason in results.skipped:
        print(f"skipped: {name}: {reason}")
    for name, reason in results.failed:
        print(f"FAILED: {name}: {reason}")
    for note in args.note:
        print(f"NOTE: {note}")
    print(
        f"{len(results.passed)} passed, {len(results.failed)} failed, "
        f"{len(results.skipped)} skipped"
    )
    sys.exit(1 if results.failed or not results.passed else 0)


if __name__ == "__main__":
    main()
