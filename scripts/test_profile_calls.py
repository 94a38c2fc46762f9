#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of profile_calls.py."""

import unittest

import profile_calls as profile

KALLSYMS = """\
ffffffff81000000 T entry_SYSCALL_64
ffffffff81000100 T __x64_sys_recvmsg
ffffffff81000200 t tcp_recvmsg_dmabuf
ffffffff81000300 T tcp_recvmsg
ffffffff81000400 d some_data
ffffffffc0000000 t recvmsg	[devmem_provider]
ffffffffc0001000 t nsim_rx	[netdevsim]
"""
ENTRY, SYSCALL, C, TCP, RUST, NSIM = (
    0xffffffff81000000, 0xffffffff81000100, 0xffffffff81000200, 0xffffffff81000300,
    0xffffffffc0000000, 0xffffffffc0001000)
USER = 0x401000


def call(*addresses):
    return [USER, ENTRY, SYSCALL, *addresses, ENTRY + 8, USER]


class Calls(unittest.TestCase):
    def setUp(self):
        self.symbols = profile.Symbols(KALLSYMS.splitlines())

    def typical(self, *addresses):
        return profile.typical([a for part in addresses for a in part], self.symbols)

    def test_a_function_goes_on_to_the_next_one(self):
        self.assertEqual(self.symbols.function(TCP - 1), "tcp_recvmsg_dmabuf")
        self.assertEqual(self.symbols.function(USER), profile.USER)

    def test_data_is_no_function(self):
        self.assertEqual(self.symbols.function(0xffffffff81000404), "tcp_recvmsg")

    def test_counts_instructions_by_function(self):
        found = self.typical(call(TCP, TCP + 4, RUST))
        self.assertEqual(found, {"recvmsg": {"devmem_provider": {
            "entry_SYSCALL_64": 2, "__x64_sys_recvmsg": 1, "tcp_recvmsg": 2, "recvmsg": 1}}})

    def test_tells_the_providers_apart(self):
        found = self.typical(call(RUST), call(C), call(TCP), call(NSIM))
        self.assertEqual({k: v.total() for k, v in found["recvmsg"].items()},
                         {"devmem_provider": 4, "builtin": 4})

    def test_a_call_that_began_before_does_not_count(self):
        self.assertEqual(self.typical([SYSCALL, RUST, USER]), {})

    def test_a_call_that_did_not_end_does_not_count(self):
        self.assertEqual(self.typical([USER, SYSCALL, RUST]), {})

    def test_what_is_no_system_call_does_not_count(self):
        self.assertEqual(self.typical([USER, ENTRY, RUST, USER]), {})

    def test_takes_the_call_in_the_middle(self):
        found = self.typical(call(*[RUST] * 9), call(*[RUST] * 2), call(*[RUST] * 5))
        self.assertEqual(found["recvmsg"]["devmem_provider"]["recvmsg"], 5)


class Tables(unittest.TestCase):
    def test_leaves_out_what_is_hardly_anything(self):
        symbols = profile.Symbols(KALLSYMS.splitlines())
        found = profile.typical(call(*[RUST] * 100, TCP) + call(C), symbols)
        heading, rows = profile.rows_of(found["recvmsg"], 0.2, {"recvmsg": "rust::recvmsg"})
        self.assertEqual(heading, ["function", "devmem_provider", "builtin"])
        self.assertEqual(rows[0], ["all", "104", "4"])
        self.assertEqual([row[0] for row in rows[1:]],
                         ["rust::recvmsg", "entry_SYSCALL_64", "__x64_sys_recvmsg", "tcp_recvmsg_dmabuf"])
        self.assertEqual(rows[1], ["rust::recvmsg", "100", "0"])

    def test_reads_what_qemu_logs(self):
        line = "Trace 0: 0x7f3a [0000000000000000/ffffffff81000300/0x4000b0/0xff080001] tcp_recvmsg"
        self.assertEqual(profile.TRACE.match(line).group(1), "ffffffff81000300")


if __name__ == "__main__":
    unittest.main()
