#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/kselftest, selftests/run_kselftest.sh and selftests/needs.

Programs are made up: a cargo that writes scripts stands for the real one.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import choose
import ktap

ROOT = choose.ROOT
SELFTESTS = ROOT / "selftests"
NAMES = sorted(source.stem for source in (SELFTESTS / "kselftest/src/bin").iterdir())
CARGO = """\
#!/bin/bash
while [ "$1" != --target ]; do shift; done
dir=$CARGO_TARGET_DIR/$2/release
mkdir -p "$dir"
for f in "$SOURCES"/* devmem-cat; do
	p=$(basename "$f" .rs)
	printf '#!/bin/sh\\necho "TAP version 13"\\necho "1..1"\\necho "ok 1 %s"\\n' "$p" >"$dir/$p"
done
case " $RUSTFLAGS " in *" -Ctarget-feature=+crt-static "*) ;; *) exit 1 ;; esac
"""
PASSED = "echo TAP version 13; echo 1..1; echo ok 1 all"


def options(text):
    return set(re.findall(r"^CONFIG_(\w+)=[ym]$", text, flags=re.M))


class Temporary(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)


class Install(Temporary):
    def make(self, *args):
        bin_dir = self.dir / "bin"
        bin_dir.mkdir(exist_ok=True)
        cargo = bin_dir / "cargo"
        cargo.write_text(CARGO)
        cargo.chmod(0o755)
        env = {
            **os.environ,
            "PATH": f"{bin_dir}:{os.environ['PATH']}",
            "CARGO_TARGET_DIR": str(self.dir / "target"),
            "DEVMEM_CACHE": str(self.dir / "cache"),
            "SOURCES": str(SELFTESTS / "kselftest/src/bin"),
            "TARGET": "made-up",
        }
        for name in ("KDIR", "COLLECTION", "INSTALL_PATH"):
            env.pop(name, None)
        return subprocess.run(
            ["make", "-s", "-C", SELFTESTS, *args],
            env=env, capture_output=True, text=True, check=False,
        )

    def install(self, *args):
        done = self.make("install", f"INSTALL_PATH={self.dir}/to", *args)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.dir / "to"

    def test_what_is_there(self):
        to = self.install()
        files = {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()}
        rest = {"devmem-cat", "config", "settings", "needs", "Makefile"}
        self.assertEqual(files, {"run_kselftest.sh", "kselftest-list.txt",
                                 *(f"devmem/{name}" for name in {*NAMES, *rest})})
        lines = (to / "kselftest-list.txt").read_text().splitlines()
        self.assertEqual(lines, [f"devmem:{name}" for name in NAMES])
        for name in NAMES:
            self.assertTrue(os.access(to / "devmem" / name, os.X_OK), name)

    def test_it_runs(self):
        to = self.install()
        done = subprocess.run([to / "run_kselftest.sh", "-t", "devmem:queries"],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("ok 1 selftests: devmem: queries\n", done.stdout)

    def test_beside_the_kernels_own(self):
        to = self.dir / "to"
        (to / "kselftest").mkdir(parents=True)
        (to / "kselftest/runner.sh").touch()
        (to / "run_kselftest.sh").write_text("the kernel's\n")
        (to / "kselftest-list.txt").write_text("net:one\nx:old\nx:older\n")
        self.install("COLLECTION=x")
        self.assertEqual((to / "run_kselftest.sh").read_text(), "the kernel's\n")
        lines = (to / "kselftest-list.txt").read_text().splitlines()
        self.assertEqual(lines, ["net:one", *(f"x:{name}" for name in NAMES)])

    def test_twice(self):
        to = self.install()
        (to / "devmem/gone").touch()
        (to / "devmem/net.config").write_text("NETIF=eth0\n")
        self.install()
        self.assertFalse((to / "devmem/gone").exists())
        # Which NIC there is the user has said.
        self.assertEqual((to / "devmem/net.config").read_text(), "NETIF=eth0\n")
        self.assertEqual(len((to / "kselftest-list.txt").read_text().splitlines()), len(NAMES))

    def test_a_directory_of_others(self):
        theirs = self.dir / "to/devmem/work"
        theirs.mkdir(parents=True)
        done = self.make("install", f"INSTALL_PATH={self.dir}/to")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("was not made by this", done.stderr)
        self.assertEqual(list((self.dir / "to").rglob("*")), [theirs.parent, theirs])

    def test_paths_are_from_where_make_is(self):
        done = self.make("install", f"INSTALL_PATH={os.path.relpath(self.dir / 'to', SELFTESTS)}")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue((self.dir / "to/devmem/queries").exists())

    def test_no_path(self):
        done = self.make("install")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("INSTALL_PATH", done.stderr)

    def test_list(self):
        done = self.make("emit_tests", "COLLECTION=x")
        self.assertEqual(done.stdout.splitlines(), [f"x:{name}" for name in NAMES])

    def test_config(self):
        config = options((self.install() / "devmem/config").read_text())
        kernel = options("".join((SELFTESTS / "guest" / name).read_text()
                                 for name in ("kernel.config", "pci.config")))
        self.assertLessEqual(config, kernel)
        # All that tests look for and the fast guest has; nothing of how that boots.
        self.assertLessEqual(Needs.options() & kernel, config)
        self.assertTrue({"IKCONFIG_PROC", "NETDEVSIM", "RDS_TCP"} <= config)
        self.assertFalse({"VIRTIO_PCI", "ACPI", "FORTIFY_SOURCE"} & config)

    def test_makefile(self):
        to = self.install()
        (self.dir / "to/lib.mk").write_text("print:\n\t@echo $(TEST_PROGS)\n\t@echo $(TEST_FILES)\n")
        make = ["make", "-s", "-C", to / "devmem", "print"]
        self.assertEqual(subprocess.check_output(make, text=True).splitlines(),
                         [" ".join(NAMES), "devmem-cat needs"])


class Runner(Temporary):
    def setUp(self):
        super().setUp()
        shutil.copy(SELFTESTS / "run_kselftest.sh", self.dir)
        self.list = []

    def program(self, name, script, collection="c"):
        path = self.dir / collection / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.list.append(f"{collection}:{name}")

    def run_all(self, *args, **env):
        (self.dir / "kselftest-list.txt").write_text("".join(f"{line}\n" for line in self.list))
        done = subprocess.run([self.dir / "run_kselftest.sh", *args], cwd="/", text=True,
                              env={**os.environ, **env}, capture_output=True, check=False)
        return done.returncode, done.stdout

    def results(self, output):
        return re.findall(r"^(?:not )?ok .*$", output, flags=re.M)

    def test_verdicts(self):
        self.program("good", PASSED)
        self.program("bad", "echo not ok 1 all; exit 1")
        self.program("absent", "exit 4")
        self.program("known", "exit 2")
        code, output = self.run_all()
        self.assertEqual(code, 1)
        self.assertEqual(output.splitlines()[:2], ["TAP version 13", "1..4"])
        self.assertEqual(self.results(output), [
            "ok 1 selftests: c: good",
            "not ok 2 selftests: c: bad # exit=1",
            "ok 3 selftests: c: absent # SKIP",
            "ok 4 selftests: c: known # XFAIL",
        ])
        self.assertEqual(output.splitlines()[-1],
                         "# Totals: pass:1 fail:1 xfail:1 xpass:0 skip:1 error:0")
        self.assertIn("\n# ok 1 all\n", output)

    def test_it_is_ktap(self):
        self.program("good", PASSED)
        self.program("bad", "exit 3")
        code, output = self.run_all()
        results = ktap.parse_ktap("run", output, code)
        self.assertEqual(results.passed, ["run/selftests: c: good"])
        self.assertEqual([name for name, _ in results.failed], ["run/selftests: c: bad"])

    def test_success(self):
        self.program("good", PASSED)
        self.program("absent", "exit 4")
        self.assertEqual(self.run_all()[0], 0)

    def test_failures_may_be_no_error(self):
        self.program("bad", "exit 1")
        self.assertEqual(self.run_all("-f")[0], 0)

    def test_missing_program(self):
        self.list.append("c:none")
        code, output = self.run_all()
        self.assertEqual((code, self.results(output)),
                         (1, ["not ok 1 selftests: c: none # no program c/none"]))

    def test_limits(self):
        self.program("long", "sleep 30")
        (self.dir / "c/settings").write_text("timeout=1\n")
        code, output = self.run_all()
        self.assertEqual((code, self.results(output)),
                         (1, ["not ok 1 selftests: c: long # TIMEOUT 1 seconds"]))
        self.program("short", "sleep 2")
        code, output = self.run_all("-t", "c:short", "-o", "0")
        self.assertEqual((code, self.results(output)), (0, ["ok 1 selftests: c: short"]))

    def test_what_goes_on_keeps_nobody_waiting_for_the_verdict(self):
        self.program("parent", "sleep 20 >/dev/null 2>&1 & exit 1")
        start = time.monotonic()
        self.assertIn("exit=1", self.run_all()[1])
        self.assertLess(time.monotonic() - start, 20)

    def test_nor_does_it_if_it_has_the_output(self):
        self.program("parent", "sleep 60 & exit 1")
        start = time.monotonic()
        self.assertIn("exit=1", self.run_all()[1])
        self.assertLess(time.monotonic() - start, 60)

    def test_output_that_is_a_file(self):
        self.program("good", PASSED)
        self.program("good2", PASSED)
        expected = self.run_all()[1]
        with (self.dir / "output").open("w+") as output:
            subprocess.run([self.dir / "run_kselftest.sh"], stdout=output, check=True)
            output.seek(0)
            self.assertEqual(output.read(), expected)

    def test_interrupted(self):
        # A program that ends by nothing but a signal.
        self.program("long", "echo $$; exec sleep 60")
        self.program("next", PASSED)
        (self.dir / "kselftest-list.txt").write_text("c:long\nc:next\n")
        for args in ([], ["-o", "0"]):
            with subprocess.Popen(
                [self.dir / "run_kselftest.sh", *args], stdout=subprocess.PIPE, text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            ) as running:
                while not (number := re.fullmatch(r"# (\d+)\n", running.stdout.readline())):
                    pass
                # As the terminal does.
                os.killpg(running.pid, signal.SIGINT)
                self.assertNotIn("c: next", running.stdout.read())
            self.assertNotEqual(running.returncode, 0)
            limit = time.monotonic() + 10
            while pathlib.Path("/proc", number[1]).exists() and time.monotonic() < limit:
                time.sleep(0.05)
            self.assertFalse(pathlib.Path("/proc", number[1]).exists())

    def test_choice(self):
        for name, collection in (("a", "c"), ("b", "c"), ("a", "d")):
            self.program(name, PASSED, collection)
        everything = ["c:a", "c:b", "d:a"]
        for args, chosen in (
            ([], everything),
            (["-l"], everything),
            (["-c", "c"], everything[:2]),
            (["-t", "d:a"], everything[2:]),
            (["-t", "c:b", "-t", "d:a"], everything[1:]),
            (["-S", "c:b"], ["c:a", "d:a"]),
            (["-c", "c", "-S", "c:a"], ["c:b"]),
        ):
            extra = [] if "-l" in args else ["-d"]
            self.assertEqual(self.run_all(*args, *extra)[1].split(), chosen, args)

    def test_refused(self):
        self.program("a", PASSED)
        for args in (["-t", "c:b"], ["-c", "d"], ["-t"], ["-n"], ["a"], ["-S", "c:a"]):
            code, output = self.run_all(*args)
            self.assertEqual((code, self.results(output)), (1, []), args)
        self.list = []
        self.assertEqual(self.run_all(), (1, ""))

    def test_logs(self):
        self.program("a", PASSED)
        for args, log in ((["-s"], "output.log"), (["-p", self.dir / "logs"], "logs/a")):
            output = self.run_all(*args)[1]
            self.assertEqual(self.results(output), ["ok 1 selftests: c: a"])
            self.assertNotIn("# ok 1 all", output)
            self.assertIn("# ok 1 all", (self.dir / log).read_text())

    def test_where_and_with_what(self):
        self.program("a-b", 'pwd; echo "$#: $*"')
        output = self.run_all(KSELFTEST_A_B_ARGS="one two")[1]
        self.assertIn(f"# {self.dir.resolve()}/c\n# 2: one two\n", output)


class Hardware(unittest.TestCase):
    LINES = choose.lines_of(SELFTESTS / "hardware")

    def test_of_tests_that_there_are(self):
        tests = choose.Programs(ROOT).tests
        for name, *words in self.LINES:
            program, _, test = name.partition("/")
            self.assertIn(test, tests[program], name)
            self.assertIn(words, ([], ["stream"], ["not-iommu"]), name)

    def test_the_table_has_the_programs(self):
        text = (ROOT / "Documentation/testing.rst").read_text()
        table = text.partition("\nProgram            On a NIC")[2].partition("\nall others")[0]
        rows = re.findall(r"^``(\w+)`` ", table, flags=re.M)
        self.assertEqual(rows, self.programs())

    def test_the_other_table_has_the_others(self):
        text = (ROOT / "Documentation/testing.rst").read_text()
        table = text.partition("\nProgram             Why not\n")[2].partition("\n\n")[0]
        rows = re.findall(r"^``(\w+)`` ", table, flags=re.M)
        there = choose.binaries(SELFTESTS / "kselftest")
        self.assertEqual(rows, sorted(there.keys() - {*self.programs()}))

    @classmethod
    def programs(cls):
        return sorted({name.partition("/")[0] for name, *_ in cls.LINES})


class Needs(unittest.TestCase):
    @staticmethod
    def lines():
        return choose.lines_of(SELFTESTS / "needs")

    @staticmethod
    def options():
        words = [word for _, *words in Needs.lines() for word in words]
        return {word.partition("=")[0] for word in words if word[0].isupper()}

    def test_of_tests_that_there_are(self):
        tests = choose.Programs(ROOT).tests
        for name, *needs in self.lines():
            program, _, test = name.partition("/")
            self.assertTrue(needs, name)
            self.assertTrue(program == "*" or program in tests, name)
            self.assertTrue(not test or test in tests[program], name)

    def test_words(self):
        for name, *needs in self.lines():
            for need in needs:
                self.assertRegex(need, r"^([A-Z][A-Z0-9_]*(=m)?|@\w+|\$\w+|/[\w/]+)$", name)

    def test_the_guests_have_it(self):
        config = "".join((SELFTESTS / "guest" / name).read_text()
                         for name in ("kernel.config", "pci.config", "debug.config"))
        # What others select, or default to.
        derived = {"EVENT_TRACING", "HOTPLUG_CPU", "INET_TCP_DIAG"}
        self.assertEqual(self.options() - options(config), derived)


if __name__ == "__main__":
    unittest.main()
