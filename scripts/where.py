#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Where the CPUs of a guest are that does not get on: their functions, of some moments, by System.map.

Asks QEMU's monitor, which answers whatever the guest does.
"""

import argparse
import collections
import pathlib
import re
import sys
import time

import profile_calls

STATE = re.compile(r"CPU#(\d+).*?RIP=([0-9a-f]+).*?HLT=(\d)", re.S)
WORD = re.compile(r"0x([0-9a-f]{16})")
MOMENTS = 20
PAUSE = 0.05
# Words of each stack that are looked at.
STACK = 256


class Text:
    """The functions of a kernel, by its System.map. It does not know modules."""

    def __init__(self, lines):
        lines = list(lines)
        bounds = {name: int(address, 16) for address, _, name in map(str.split, lines)
                  if name in ("_stext", "_etext")}
        self.start, self.end = bounds["_stext"], bounds["_etext"]
        self.symbols = profile_calls.Symbols(lines)

    def __contains__(self, address):
        return self.start <= address < self.end

    def name(self, address):
        if address in self or address < profile_calls.KERNEL_START:
            return self.symbols.function(address)
        return f"{address:#x}"


def functions(answer, text):
    """By CPU, where it is by an answer to `info registers -a`."""
    return {int(cpu): "halted" if halted == "1" else text.name(int(rip, 16))
            for cpu, rip, halted in STATE.findall(answer)}


def callers(answer, text):
    """What may have called, by an answer to `x /...gx $rsp`: the innermost first, each once."""
    words = (int(word, 16) for word in WORD.findall(answer))
    return list(dict.fromkeys(text.name(word) for word in words if word in text))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("monitor", type=pathlib.Path, help="the socket of QEMU's monitor")
    parser.add_argument("map", type=pathlib.Path, help="System.map of the guest's kernel")
    args = parser.parse_args()
    with args.map.open() as lines:
        text = Text(lines)
    monitor = profile_calls.Monitor(args.monitor)
    seen = collections.defaultdict(collections.Counter)
    for _ in range(MOMENTS):
        for cpu, function in functions(monitor.ask("info registers -a"), text).items():
            seen[cpu][function] += 1
        time.sleep(PAUSE)
    for cpu, counts in sorted(seen.items()):
        print(f"CPU {cpu}:", ", ".join(f"{n} x {name}" for name, n in counts.most_common(8)))
        monitor.ask(f"cpu {cpu}")
        print("  on its stack:", " < ".join(callers(monitor.ask(f"x /{STACK}gx $rsp"), text)))
    return 0 if seen else 1


if __name__ == "__main__":
    sys.exit(main())
