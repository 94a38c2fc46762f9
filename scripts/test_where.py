#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of where.py."""

import unittest

import where

MAP = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000100 T text_poke
ffffffff81000200 t smp_call_function_many_cond
ffffffff81000300 T _etext
ffffffff82000000 D some_data
"""
REGISTERS = """\
CPU#0
RAX=0000000000000000 RBX=0000000000000000
RIP=ffffffff81000234 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CPU#1
RAX=0000000000000000 RBX=0000000000000000
RIP=ffffffff81000100 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CPU#2
RIP=ffffffffc0000010 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CPU#3
RIP=0000000000401000 RFL=00000246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0
"""
STACK = """\
ffffc90000013d00: 0xffffffff81000210 0x0000000000000001
ffffc90000013d10: 0xffffffff81000180 0xffffffff82000010
ffffc90000013d20: 0xffffffff81000190 0xffffffffc0000010
"""


class Where(unittest.TestCase):
    def setUp(self):
        self.text = where.Text(MAP.splitlines())

    def test_each_cpu_has_a_place(self):
        self.assertEqual(where.functions(REGISTERS, self.text), {
            0: "smp_call_function_many_cond", 1: "halted", 2: "0xffffffffc0000010",
            3: "user space"})

    def test_text_on_the_stack_are_callers(self):
        self.assertEqual(where.callers(STACK, self.text),
                         ["smp_call_function_many_cond", "text_poke"])

    def test_no_answer_is_no_place(self):
        self.assertEqual(where.functions("unknown command", self.text), {})


if __name__ == "__main__":
    unittest.main()
