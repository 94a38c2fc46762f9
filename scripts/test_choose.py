#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of choose.py: a name runs what it says, or is refused."""

import json
import pathlib
import subprocess
import tempfile
import unittest

import choose

TEST = ["host", "fast", "upstream", "bench", "debug", "pci", "iommu"]
FILES = {
    "package/Cargo.toml": '[package]\nname = "kselftest"\n',
    "package/src/bin/flags.rs": "tests![peek, sub::trunc, // no, more\n wait]",
    "package/src/bin/slow/main.rs": "tests![walk]",
    "package/src/bin/module.rs": "tests![load]",
    "package/src/bin/nic.rs": "tests![probe, reset]",
    "package/src/bin/peers.rs": "tests![reach, pages]",
    "fuzz/Cargo.toml": '[package]\nname = "fuzz"\n',
    "fuzz/src/main.rs": "",
    "bench/Cargo.toml": '[package]\nname = "x"\n[[bin]]\nname = "bench-all"\npath = "src/main.rs"\n',
    "bench/src/main.rs": "",
    "model/Cargo.toml": '[package]\nname = "model"\n',
    "model/src/main.rs": "",
    "hardware": "# list\nflags/peek\nflags/wait stream\nnic/probe\nnic/reset\npeers/reach\npeers/pages not-iommu\n",
    "upstream-cases": "# list\nnet/devmem.py check_rx\n",
    "programs": "slow debug each\nmodule fast,debug devmem_provider\nnic pci each\npeers pci,iommu each\nfuzz fast both\nmodel host both\nbench-all bench both\n",
    "durations": "fast builtin/flags 7\nfast devmem_provider/flags 9\n",
}


def programs():
    with tempfile.TemporaryDirectory() as root:
        for name, text in FILES.items():
            path = pathlib.Path(root) / "selftests" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return choose.Programs(pathlib.Path(root))


class Choice(unittest.TestCase):
    def plan(self, names, parts=TEST, providers=()):
        plan = choose.Plan(programs(), parts, providers)
        for name in names.split():
            plan.name(name)
        return plan

    def lines(self, names, **kwargs):
        plan = self.plan(names, **kwargs)
        lists = [(guest, plan.lines(guest)) for guest in (*choose.GUESTS, "upstream")]
        return {guest: lines for guest, lines in lists if lines}

    def refused(self, names, what, **kwargs):
        with self.assertRaisesRegex(choose.Mistake, what):
            self.plan(names, **kwargs)

    def test_everything(self):
        plan = choose.Plan(programs(), TEST)
        plan.everything()
        both = ["devmem_provider/flags", "builtin/flags"]
        fast = {*both, "devmem_provider/module", "both/fuzz"}
        self.assertEqual(set(plan.lines("fast")), fast)
        slow = {"devmem_provider/flags", "devmem_provider/slow", "devmem_provider/module"}
        self.assertEqual(set(plan.lines("debug")), slow)
        self.assertEqual(plan.lines("upstream"), ["devmem_provider/devmem.py"])
        peers = "devmem_provider/peers/reach"
        pci = {"devmem_provider/flags/peek,wait", "devmem_provider/nic/probe,reset", f"{peers},pages"}
        self.assertEqual(set(plan.lines("pci")), pci)
        self.assertEqual(plan.lines("iommu"), [peers])
        self.assertEqual(plan.alone, ["host", "bench"])
        self.assertIn("debug:devmem_provider/slow", plan.results())
        self.assertIn("pci:devmem_provider/flags", plan.results())
        # Those whose duration is not known, and then the longest.
        self.assertEqual(plan.lines("fast")[-2:], both)

    def test_who_looks_for_lost_memory(self):
        plan = choose.Plan(programs(), TEST)
        plan.everything()
        self.assertEqual(plan.watched("debug"), ["slow"])
        self.assertEqual(plan.lines("debug")[0], "devmem_provider/slow")
        everything = ["flags", "module", "slow"]
        plan = choose.Plan(programs(), ["debug"])
        plan.everything()
        self.assertEqual(plan.watched("debug"), everything)
        self.assertEqual(self.plan("debug:flags").watched("debug"), ["flags"])
        self.assertEqual(self.plan("flags").watched("debug"), [])
        # Some tests of it are not all.
        self.assertEqual(self.plan("fast:flags/peek debug:flags").watched("debug"), ["flags"])

    def test_program(self):
        fast = ["devmem_provider/flags", "builtin/flags"]
        pci = ["devmem_provider/flags/peek,wait"]
        self.assertEqual(self.lines("flags"), {"fast": fast, "debug": fast[:1], "pci": pci})
        self.assertEqual(self.lines("fast:flags"), {"fast": fast})
        self.assertEqual(self.lines("slow", parts=["debug"])["debug"][1], "builtin/slow")
        self.assertEqual(self.lines("flags", providers=["builtin"])["debug"], ["builtin/flags"])

    def test_single(self):
        both = ["devmem_provider/flags/peek", "builtin/flags/peek"]
        self.assertEqual(self.lines("flags/peek"), {"fast": both})
        self.assertEqual(set(self.lines("debug:flags/peek")["debug"]), set(both))
        self.assertEqual(len(self.lines("slow/walk")["debug"]), 2)
        self.assertEqual(self.lines("both/fuzz/any"), {"fast": ["both/fuzz/any"]})

    def test_where_each_failed(self):
        names = "flags/peek debug:builtin/flags/wait builtin/flags/trunc devmem_provider/module/load"
        lines = self.lines(names)
        self.assertEqual(lines["debug"], ["builtin/flags/wait"])
        fast = ["devmem_provider/flags/peek", "builtin/flags/peek,trunc"]
        self.assertEqual(set(lines["fast"]), {"devmem_provider/module/load", *fast})

    def test_all_and_one(self):
        whole = ["devmem_provider/flags", "builtin/flags"]
        self.assertEqual(self.lines("fast:flags flags/peek"), {"fast": whole})
        self.assertEqual(self.lines("flags/peek fast:flags"), {"fast": whole})

    def test_a_kernel_of_ones_own(self):
        plan = choose.Plan(programs(), ["own"])
        plan.everything()
        both = {f"{p}/{name}" for p in choose.PROVIDERS for name in ("flags", "slow")}
        self.assertEqual(set(plan.lines("own")), both | {"devmem_provider/module", "both/fuzz"})
        self.assertIn("own:builtin/slow", plan.results())
        plan = self.plan("slow/walk", parts=["own"], providers=["builtin"])
        self.assertEqual(plan.lines("own"), ["builtin/slow/walk"])
        self.refused("own:flags", "this run has")
        self.refused("bench-all", "runs in bench", parts=["own"])

    def test_on_a_nic(self):
        both = ["devmem_provider/nic/reset", "builtin/nic/reset"]
        self.assertEqual(self.lines("nic/reset"), {"pci": both})
        self.assertEqual(self.lines("pci:builtin/flags/wait"), {"pci": ["builtin/flags/wait"]})
        pci = ["devmem_provider/flags/peek,wait", "builtin/flags/peek,wait"]
        self.assertEqual(self.lines("flags", parts=["pci"]), {"pci": pci})
        self.assertEqual(self.lines("iommu:peers"), {"iommu": ["devmem_provider/peers/reach"]})
        self.refused("iommu:flags", "flags runs in fast debug kcsan pci own")
        self.refused("peers/load", "peers has: reach pages")
        self.refused("pci:flags/trunc", "flags has: peek wait")
        self.refused("flags/trunc", "flags has: peek wait", parts=["pci", "iommu"])
        for name in "pci:module", "pci:module/load":
            self.refused(name, "module runs in fast debug own")

    def test_alone(self):
        self.assertEqual(self.plan("host").alone, ["host"])
        self.assertEqual(self.lines("host bench"), {})
        for name in ("host/nonsense", "bench/nonsense", "debug:host", "builtin/bench"):
            self.refused(name, "as a whole")
        self.refused("host", "not in this run", parts=["debug"])

    def test_upstream(self):
        there = {"upstream": ["devmem_provider/devmem.py"]}
        for name in ("devmem.py", "upstream:devmem.py/check_rx", "devmem.py/devmem.check_rx"):
            self.assertEqual(self.lines(name), there)
        self.assertEqual(self.lines("builtin/devmem.py"), {"upstream": ["builtin/devmem.py"]})
        self.refused("devmem.py/nonsense", "no test")
        self.refused("debug:devmem.py", "runs in upstream")

    def test_refused(self):
        self.refused("flags nonsense", "no test program nonsense")
        self.refused("flags/nonsense", "no test flags/nonsense")
        self.refused("flags/", "no test flags/")
        self.refused("fuzz/", "no test fuzz/")
        self.refused("flags fast:slow/walk", "slow runs in debug")
        self.refused("flags kcsan:flags", "this run has host fast")
        self.refused("flags bench-all", "bench-all runs in bench")
        self.refused("flags both/flags", "flags runs on devmem_provider builtin")
        self.refused("builtin/module", "module runs on devmem_provider")
        self.refused("builtin/fuzz", "fuzz runs on both")
        self.refused("module", "none of these", providers=["builtin"])
        self.refused("builtin/flags", "flags runs on", providers=["devmem_provider"])
        self.refused("flags", "no provider nonsense", providers=["nonsense"])

    def test_partial(self):
        for name, partial in (("flags", False), ("flags/peek", True)):
            with tempfile.TemporaryDirectory() as directory:
                directory = pathlib.Path(directory)
                self.plan(name).write(directory)
                self.assertEqual((directory / "partial").exists(), partial)
                self.assertIn("builtin/flags\n", (directory / "runs").read_text())


class Ours(unittest.TestCase):
    def test_the_programs_are_those_of_cargo(self):
        command = ["cargo", "metadata", "--no-deps", "--locked", "--format-version", "1"]
        metadata = json.loads(subprocess.check_output(command, cwd=choose.ROOT))
        bins = [
            target["name"]
            for package in metadata["packages"]
            if "/selftests/" in package["manifest_path"]
            for target in package["targets"]
            if "bin" in target["kind"]
        ]
        self.assertEqual(list(choose.Programs(choose.ROOT).tests), sorted(bins))


if __name__ == "__main__":
    unittest.main()
