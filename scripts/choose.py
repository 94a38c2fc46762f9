#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Chooses what scripts/test runs: all, or what TESTS names. Needs nothing that was built.

Leaves in a directory, for each guest and for the kernel's own tests ("upstream"), todo-GUEST:
lines "provider/program[/test,...]", the longest first. `runs` has the names of their results,
`alone` what needs no list: "host" and "bench"; "partial" is there if only some tests of a
program are to run. watched-debug has the programs for which kmemleak has to look for lost memory
in the debug guest, where that takes long: those that this run does not have in the fast guest.

Names are those under which tests fail, [guest:][provider/]program[/test]. One that leads to
nothing is refused: whoever mistypes it would take what did not run for passed.
"""

import argparse
import collections
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# In these tests run on a NIC on PCI that they are given: of programs which have such tests, these. In the first one all that
# have some, in the others, where the NIC and other devices reach each other in other ways, those for them.
NICS = ("pci", "iommu", "apart")
# The last one is a kernel of the user's own: what it lacks is found out there.
GUESTS = ("fast", "debug", "kcsan", *NICS, "own")
# Programs which measure, and those that need no guest.
BENCH, HOST = "bench", "host"
PROVIDERS = ("devmem_provider", "builtin")
ALONE = ("host", "bench")
NAME = re.compile(
    rf"(?:(?P<guest>{'|'.join(GUESTS)}|upstream):)?(?:(?P<provider>{'|'.join(PROVIDERS)}|both)/)?"
    r"(?P<program>[^/:]+)(?:/(?P<test>.*))?"
)
LIST = re.compile(r"\btests!\s*\[(.*?)\]", flags=re.S)
COMMENT = re.compile(r"//[^\n]*")
# Runs whose duration is not known come first.
UNKNOWN = 999999


class Mistake(Exception):
    """A name that leads to nothing."""


def lines_of(path):
    """The words of each line that says something."""
    lines = path.read_text().splitlines()
    return [line.split() for line in lines if line.strip() and not line.startswith("#")]


def binaries(package):
    """The programs of a package, with their sources, as cargo finds them."""
    manifest = tomllib.loads((package / "Cargo.toml").read_text())
    named = {entry["path"]: entry["name"] for entry in manifest.get("bin", [])}
    found = {name: package / path for path, name in named.items()}
    main = "src/main.rs"
    if (package / main).exists() and main not in named:
        found[manifest["package"]["name"]] = package / main
    for source in package.glob("src/bin/*"):
        if str(source.relative_to(package)) not in named:
            found[source.stem] = source / "main.rs" if source.is_dir() else source
    return found


def listed(source):
    """The tests that a program has by its lists `tests!`; none, if only it itself knows."""
    lists = LIST.findall(COMMENT.sub("", source.read_text()))
    names = [name.strip() for text in lists for name in text.split(",")]
    return [name.rpartition("::")[2] for name in names if name]


class Programs:
    """The programs that there are, and where they run."""

    def __init__(self, root):
        selftests = root / "selftests"
        found = {}
        for manifest in selftests.glob("*/Cargo.toml"):
            found.update(binaries(manifest.parent))
        self.tests = {name: listed(found[name]) for name in sorted(found)}
        self.on_a_nic = {}
        self.not_iommu = set()
        for name, *marks in lines_of(selftests / "hardware"):
            program, _, test = name.partition("/")
            self.on_a_nic.setdefault(program, []).append(test)
            if "not-iommu" in marks:
                self.not_iommu.add(name)
        self.cases = collections.defaultdict(list)
        for path, case in lines_of(selftests / "upstream-cases"):
            self.cases[pathlib.PurePath(path).name].append(case)
        self.exceptions = {
            program: (guests.split(","), which)
            for program, guests, which in lines_of(selftests / "programs")
        }
        self.took = {
            (guest, run): int(seconds)
            for guest, run, seconds in lines_of(selftests / "durations")
        }

    def guests(self, program):
        if program in self.cases:
            return ["upstream"]
        nics = NICS[:1] if program in self.on_a_nic else ()
        everywhere = [guest for guest in GUESTS if guest not in NICS or guest in nics]
        guests = self.exceptions.get(program, (everywhere, ""))[0]
        # A kernel of the user's own runs all but these.
        return guests if {BENCH, HOST, "own"} & {*guests} or {*guests} <= {*NICS} else [*guests, "own"]

    def providers(self, program, those):
        """On which of those providers a program runs: also on both at once."""
        which = self.exceptions.get(program, ("", "each"))[1]
        if which == "both":
            return ["both"]
        return [p for p in those if p in PROVIDERS and which in ("each", p)]


class Plan:
    """What is to run, in these parts of a run and on these providers."""

    def __init__(self, programs, parts, providers=()):
        for provider in providers:
            if provider not in PROVIDERS:
                raise Mistake(f"no provider {provider}; there are: {' '.join(PROVIDERS)}")
        self.programs = programs
        self.parts = parts
        self.lists = [part for part in (*GUESTS, "upstream") if part in parts]
        self.all = list(providers or PROVIDERS)
        # What is slow is for the module only, where there is something else.
        self.slow = self.all if providers or "fast" not in parts else [PROVIDERS[0]]
        # By guest and provider/program, the tests: None if these are all.
        self.runs = {}
        self.alone = []

    def add(self, guest, program, providers, test=None):
        """Puts these runs on the list, and says whether there are any."""
        there = self.programs.providers(program, providers)
        for provider in there:
            tests = self.runs.setdefault((guest, f"{provider}/{program}"), {} if test else None)
            if tests is not None and test:
                tests[test] = True
            else:
                self.runs[guest, f"{provider}/{program}"] = None
        return bool(there)

    def everything(self):
        self.alone = [part for part in ALONE if part in self.parts]
        for program in [*self.programs.tests, *self.programs.cases]:
            for guest in self.programs.guests(program):
                if guest in self.lists:
                    self.add(guest, program, self.all if guest == "fast" else self.slow)

    def name(self, name):
        """Puts on the list what a name means."""
        match = NAME.fullmatch(name)
        guest, provider, program, test = match.groups() if match else (None, None, name, None)
        if program in ALONE:
            if program != name:
                raise Mistake(f"{name}: {program} runs as a whole, and is named so: {program}")
            if program not in self.parts:
                raise Mistake(f"{name} is not in this run, which has: {' '.join(self.parts)}")
            self.alone.append(name)
            return
        if program not in self.programs.tests and program not in self.programs.cases:
            known = [*self.programs.tests, *self.programs.cases, *ALONE]
            raise Mistake(f"no test program {program}; there are: {' '.join(known)}")
        test = self.test(name, guest, program, test)
        guests = [g for g in self.programs.guests(program) if g in self.lists]
        if guest:
            guests = [g for g in guests if g == guest]
        elif test:
            guests = guests[:1]
        if not guests:
            raise Mistake(
                f"{name}: {program} runs in {' '.join(self.programs.guests(program))}, "
                f"and this run has {' '.join(self.parts)}"
            )
        for where in guests:
            providers = self.all if where == "fast" or test else self.slow
            if provider:
                # Both at once is no choice.
                providers = [p for p in [*self.all, "both"] if p == provider]
            if provider and self.programs.providers(program, providers) != [provider]:
                providers = []
            if not providers or not self.add(where, program, providers, test):
                there = self.programs.providers(program, self.all) or ["none of these"]
                raise Mistake(
                    f"{name}: of the providers {' '.join(self.all)} "
                    f"{program} runs on {' '.join(there)}"
                )

    def test(self, name, guest, program, test):
        """The test that a name has, if it is there; the kernel's programs run as a whole."""
        if test is None:
            return None
        known = self.programs.tests.get(program)
        if program in self.programs.cases:
            stem = pathlib.PurePath(program).stem
            known = self.programs.cases[program]
            if test.removeprefix(f"{stem}.") in known:
                return None
        if guest in NICS or not guest and self.lists and {*self.lists} <= {*NICS}:
            known = self.programs.on_a_nic.get(program, known)
        if not test or "," in test or known and test not in known:
            raise Mistake(f"no test {name}; {program} has: {' '.join(known)}")
        return test

    def on_a_nic(self, guest, program):
        """What runs of a program in a guest with such a NIC."""
        return [test for test in self.programs.on_a_nic.get(program, ())
                if guest != "iommu" or f"{program}/{test}" not in self.programs.not_iommu]

    def watched(self, guest):
        """Programs on the list of a guest that the fast guest does not run, or not all of them."""
        return sorted({run.split("/")[1] for where, run in self.runs
                       if where == guest and self.runs.get(("fast", run), {}) is not None})

    def lines(self, guest):
        """The list of a guest. What is watched there comes first."""
        runs = [(run, tests) for (where, run), tests in self.runs.items() if where == guest]
        if guest in NICS:
            runs = [(run, tests or self.on_a_nic(guest, run.partition("/")[2]))
                    for run, tests in runs]
        took = self.programs.took
        watched = self.watched(guest)
        runs.sort(key=lambda run: (run[0].split("/")[1] not in watched,
                                   -took.get((guest, run[0]), UNKNOWN)))
        return ["/".join([run, ",".join(tests)] if tests else [run]) for run, tests in runs]

    def results(self):
        """The names of the results."""
        plain = ("fast", "upstream")
        return [run if guest in plain else f"{guest}:{run}" for guest, run in self.runs]

    def write(self, directory):
        def put(name, lines):
            (directory / name).write_text("".join(f"{line}\n" for line in lines))

        for guest in (*GUESTS, "upstream"):
            put(f"todo-{guest}", self.lines(guest))
        put("watched-debug", self.watched("debug"))
        put("runs", self.results())
        put("alone", self.alone)
        if any(tests is not None for tests in self.runs.values()):
            put("partial", [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", required=True, help="of the run: guests, and others")
    parser.add_argument("--providers", default="", help="only these")
    parser.add_argument("--tests", default="", help="names")
    parser.add_argument("directory", type=pathlib.Path)
    args = parser.parse_args()
    try:
        plan = Plan(Programs(ROOT), args.parts.split(), args.providers.split())
        for name in args.tests.split():
            plan.name(name)
        if not args.tests.split():
            plan.everything()
        plan.write(args.directory)
    except Mistake as mistake:
        sys.exit(f"error: {mistake}")


if __name__ == "__main__":
    main()
