#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of the demo on igb, as far as the host has to do with it. Guests are made up."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parent

# Leaves the file in the memory, its halves the wrong way round, as the environment has it.
GUEST = """\
#!/bin/bash
set -euo pipefail
. "$(dirname "$0")/lib.sh"
echo "guest: $*" >&2
[ -z "${DIES:-}" ] || exit "$DIES"
[[ " $* " == *" -p switch "* ]] || exit 0
work=$OUT/guest/$2
pieces=${*: -1}
file=${*: -2:1}
mkdir -p "$work"
{ tail -c 50 "$file"; head -c 50 "$file"; } >"$work/bar"
[ -z "${SPOILT:-}" ] || printf x | dd of="$work/bar" bs=1 seek="$SPOILT" conv=notrunc status=none
[ -n "${SILENT:-}" ] || printf '50 50\\n0 50\\n' >"$pieces"
"""


class Demo(unittest.TestCase):
    def setUp(self):
        root = tempfile.TemporaryDirectory()
        self.addCleanup(root.cleanup)
        self.dir = pathlib.Path(root.name)
        scripts = self.dir / "tree/scripts"
        scripts.mkdir(parents=True)
        for name in "demo", "lib.sh", "check-bar":
            shutil.copy(SCRIPTS / name, scripts)
        for name, text in ("guest", GUEST), ("prepare", "#!/bin/sh\n"):
            (scripts / name).write_text(text)
            (scripts / name).chmod(0o755)
        self.file = self.dir / "file"
        self.file.write_bytes(bytes(range(100)))

    def demo(self, **env):
        unset = {"KDIR", "GUEST", "CARGO_TARGET_DIR"}
        env = {**{name: value for name, value in os.environ.items() if name not in unset},
               "DEVMEM_CACHE": str(self.dir / "cache"), "FILE": str(self.file), "NIC": "igb", **env}
        return subprocess.run([self.dir / "tree/scripts/demo"], env=env, check=False, capture_output=True,
                              text=True)

    def assert_refused(self, *words, **env):
        done = self.demo(**env)
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertNotIn("guest:", done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_what_was_sent_is_in_the_memory(self):
        done = self.demo()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("100 bytes in 2 pieces", done.stdout)

    def test_a_byte_that_is_another_one(self):
        done = self.demo(SPOILT="3")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("differ at 53", done.stderr)

    def test_a_guest_that_fails(self):
        done = self.demo(DIES="7")
        self.assertEqual((done.returncode, done.stdout), (7, ""))

    def test_a_guest_that_tells_nothing(self):
        done = self.demo(SILENT="1")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("pieces", done.stderr)

    def test_without_a_nic_of_igb(self):
        for nic in "", "netdevsim":
            done = self.demo(NIC=nic)
            self.assertEqual((done.returncode, done.stdout), (0, ""))
            self.assertIn("selftests/guest/demo.sh", done.stderr)

    def test_no_such_nic(self):
        self.assert_refused("no NIC igc", "netdevsim", "igb", NIC="igc")

    def test_other_kernels(self):
        self.assert_refused("leave out KDIR", KDIR=str(self.dir))
        self.assert_refused("fast", GUEST="debug")

    def test_a_file_that_has_no_room(self):
        most = 48 << 20
        with open(self.file, "r+b") as file:
            file.truncate(most + 1)
        self.assert_refused("more than 48 MiB")
        os.truncate(self.file, most)
        self.assertIn("guest:", self.demo().stderr)


if __name__ == "__main__":
    unittest.main()
