#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Instructions of system calls by function, from QEMU's log of what the guest executed.

`start` has QEMU log each instruction, until `stop`; `table` counts them, by the guest's
/proc/kallsyms. A system call is everything from its entry to the return to user space. Of the calls
that a provider had a part in, that with the median number of instructions is shown.
"""

import argparse
import bisect
import collections
import pathlib
import re
import socket
import subprocess
import sys

import bench

PROVIDERS = (bench.MODULE, bench.BUILTIN)
# Functions by which the kernel's own provider is known, of those that nobody else calls.
BUILTIN = {"tcp_recvmsg_dmabuf", "sock_devmem_put_tokens", "zerocopy_fill_skb_from_devmem"}
ENTRY = re.compile(r"__x64_sys_(\w+)")
TRACE = re.compile(r"Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/")
USER = "user space"
KERNEL_START = 1 << 63
PROMPT = b"(qemu) "


class Monitor:
    """QEMU's monitor, for people, at a socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.answer()

    def answer(self):
        text = b""
        while not text.endswith(PROMPT):
            more = self.socket.recv(4096)
            if not more:
                raise EOFError("QEMU has ended")
            text += more
        return text.decode(errors="replace")

    def ask(self, text):
        self.socket.sendall(text.encode() + b"\n")
        return self.answer()

    def command(self, text):
        """Whether QEMU knows this command."""
        return "unknown command" not in self.ask(text)


def start(monitor):
    # The latter is what QEMU 7 calls it.
    if not any([monitor.command("one-insn-per-tb on"), monitor.command("singlestep on")]):
        sys.exit("this QEMU cannot tell single instructions")
    monitor.command("log exec,nochain")


def stop(monitor):
    monitor.command("log none")
    # As fast as before.
    monitor.command("one-insn-per-tb off")
    monitor.command("singlestep off")


class Symbols:
    """Where functions begin, by /proc/kallsyms."""

    def __init__(self, lines):
        found = []
        for line in lines:
            address, kind, name, *module = line.split()
            if kind in "tTwW":
                found.append((int(address, 16), name, module == [f"[{bench.MODULE}]"]))
        found.sort()
        self.starts = [address for address, _, _ in found]
        self.names = [name for _, name, _ in found]
        self.of_module = {name for _, name, ours in found if ours}
        self.known = {}

    def function(self, address):
        if address not in self.known:
            at = bisect.bisect_right(self.starts, address) - 1
            inside = address >= KERNEL_START and at >= 0
            self.known[address] = self.names[at] if inside else USER
        return self.known[address]


def calls(addresses, symbols):
    """The system calls that were made from beginning to end: (name, instructions by function)."""
    name, counts = None, None
    for address in addresses:
        function = symbols.function(address)
        if function == USER:
            if name:
                yield name, counts
            name, counts = None, collections.Counter()
            continue
        if counts is None:
            continue
        if not name and (entry := ENTRY.fullmatch(function)):
            name = entry.group(1)
        counts[function] += 1


def provider(counts, symbols):
    """Which provider had a part in a call."""
    if symbols.of_module & counts.keys():
        return bench.MODULE
    return bench.BUILTIN if BUILTIN & counts.keys() else None


def typical(addresses, symbols):
    """Instructions by function of a typical call: {name of the call: {provider: counts}}."""
    found = {}
    for name, counts in calls(addresses, symbols):
        who = provider(counts, symbols)
        if who:
            found.setdefault(name, {}).setdefault(who, []).append(counts)
    return {
        name: {who: sorted(many, key=lambda c: c.total())[(len(many) - 1) // 2]
               for who, many in by_provider.items()}
        for name, by_provider in found.items()
    }


def demangled(names, command):
    """What people call these functions."""
    if not names:
        return {}
    text = subprocess.run([command], input="\n".join(names), capture_output=True, text=True,
                          check=True).stdout
    return dict(zip(names, text.splitlines(), strict=True))


def rows_of(by_provider, least, names=None):
    """Heading and rows: all, then the functions that are at least this share of a column."""
    names = names or {}
    present = [p for p in PROVIDERS if p in by_provider]
    totals = [by_provider[p].total() for p in present]
    functions = {f for p in present for f in by_provider[p]}
    share = {f: max(by_provider[p][f] / total for p, total in zip(present, totals)) for f in functions}
    rows = [["all", *map(bench.number, totals)]]
    for f in sorted(functions, key=lambda f: (-share[f], f)):
        if share[f] >= least:
            rows.append([names.get(f, f), *(bench.number(by_provider[p][f]) for p in present)])
    return ["function", *present], rows


def print_profile(log, kallsyms, least, demangler, out):
    symbols = Symbols(kallsyms.read_text().splitlines())
    with log.open(errors="replace") as lines:
        addresses = (int(m.group(1), 16) for m in map(TRACE.match, lines) if m)
        profile = typical(addresses, symbols)
    if not profile:
        sys.exit("no call of either provider was logged")
    names = demangled(sorted({f for p in profile.values() for c in p.values() for f in c}), demangler)
    for call, by_provider in profile.items():
        bench.print_table(f"{call}(): instructions", *rows_of(by_provider, least, names), out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("start", "has QEMU log what the guest executes"), ("stop", "ends that")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("monitor", type=pathlib.Path, help="the socket of QEMU's monitor")
    sub = commands.add_parser("table", help="counts what was logged")
    sub.add_argument("--symbols", type=pathlib.Path, required=True, help="the guest's /proc/kallsyms")
    sub.add_argument("--demangler", required=True, help="a command like c++filt")
    sub.add_argument("--least", type=float, default=0.01, help="share of a call that is shown")
    sub.add_argument("log", type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "start":
        start(Monitor(args.monitor))
    elif args.command == "stop":
        stop(Monitor(args.monitor))
    else:
        print_profile(args.log, args.symbols, args.least, args.demangler, sys.stdout)


if __name__ == "__main__":
    main()
