#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of tools/devmem as a package for crates.io: what is in it, and that it builds on its own.

This is what `cargo publish --dry-run` does, but for asking the registry, so that it needs no network:
whether the version is there already, and whether anything may be published are looked at here, or
not at all.
"""

import json
import os
import pathlib
import subprocess
import tarfile
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CRATE = ROOT / "tools/devmem"
# What cargo adds.
ADDED = {".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml", "Cargo.toml.orig"}


def run(*command, **env):
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True,
                          text=True)


def output(*command):
    result = run(*command)
    result.check_returncode()
    return result.stdout


def metadata():
    """What cargo knows of the crate, and where it builds."""
    known = json.loads(output("cargo", "metadata", "--no-deps", "--offline", "--format-version=1"))
    crate = next(package for package in known["packages"] if package["name"] == CRATE.name)
    return crate, pathlib.Path(known["target_directory"])


def tracked():
    """The crate's files, but for its manifest."""
    files = output("git", "ls-files", "--", str(CRATE)).splitlines()
    return {str(pathlib.Path(file).relative_to(CRATE.relative_to(ROOT))) for file in files} - ADDED


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.crate, target = metadata()
        cls.name = f"{CRATE.name}-{cls.crate['version']}"
        cls.file = target / "package" / f"{cls.name}.crate"
        cls.file.unlink(missing_ok=True)
        # Those of the lock file, which nobody may have built anything of yet. There is nothing to fetch where all are
        # in cargo's cache, and no network needed.
        fetched = run("cargo", "fetch", "--locked", CARGO_TERM_COLOR="never")
        if fetched.returncode != 0:
            raise AssertionError("crates of Cargo.lock are not in cargo's cache, and cannot be had:\n"
                                 + fetched.stderr)
        # Of its own features, those that are on by default.
        cls.result = run("cargo", "package", "--offline", "--locked", "--allow-dirty",
                         "--package", CRATE.name, CARGO_TERM_COLOR="never")

    def read(self, name):
        with tarfile.open(self.file) as package:
            return package.extractfile(f"{self.name}/{name}").read().decode()

    def test_it_builds_alone(self):
        self.assertEqual(self.result.returncode, 0, self.result.stderr)
        self.assertIn(f"Verifying {CRATE.name} ", self.result.stderr)
        self.assertIn("Finished ", self.result.stderr)

    def test_nothing_is_missing_or_left_over(self):
        with tarfile.open(self.file) as package:
            members = package.getmembers()
        self.assertTrue(all(member.isfile() for member in members), members)
        names = {member.name.removeprefix(f"{self.name}/") for member in members}
        self.assertEqual(names, ADDED | tracked())
        kinds = {name for name in names if not name.endswith(".rs")}
        self.assertEqual(kinds, ADDED | {"README.md", "LICENSE-GPL", "LICENSE-MIT"})

    def test_licences(self):
        self.assertEqual(self.read("LICENSE-GPL"), (ROOT / "COPYING").read_text())
        self.assertIn("Permission is hereby granted, free of charge", self.read("LICENSE-MIT"))
        for name in tracked():
            if not name.startswith("LICENSE-"):
                head = self.read(name).splitlines()[0]
                self.assertIn("SPDX-License-Identifier: GPL-2.0 OR MIT", head, name)

    def test_what_a_registry_asks_for(self):
        package = tomllib.loads(self.read("Cargo.toml"))
        about = package["package"]
        self.assertEqual(about["license"], "GPL-2.0-only OR MIT")
        self.assertEqual(about["readme"], "README.md")
        self.assertEqual(about["rust-version"], self.crate["rust_version"])
        self.assertTrue(about["description"])
        # None is anybody's; false would be nobody's.
        self.assertIsNone(self.crate["publish"])
        self.assertLessEqual(len(about["keywords"]), 5)
        self.assertLess(self.file.stat().st_size, 10 << 20)
        kinds = [package["dependencies"], package["dev-dependencies"]]
        for name, how in (item for kind in kinds for item in kind.items()):
            self.assertTrue(how["version"], name)
            self.assertNotIn("path", how, name)

    def test_what_is_not_asked_for_is_not_needed(self):
        needed = tomllib.loads(self.read("Cargo.toml"))["dependencies"]
        optional = {name for name, how in needed.items() if how.get("optional")}
        self.assertEqual(optional, {"io-uring", "tokio"})


if __name__ == "__main__":
    unittest.main()
