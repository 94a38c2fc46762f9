#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Shows that the properties of properties.rs hold for all inputs.

Usage: check.py LIBRARY [PROPERTY...]

Executes the machine code that rustc made of them with symbols for arguments, along all
paths. On each, a solver has to find no arguments with which it returns false, or panics.
Prints what it found, and exits with 1 if that is anything.
"""

import logging
import sys
import time

# Before the import, which complains that there is no emulator. None is needed.
logging.getLogger("angr").setLevel(logging.CRITICAL)
logging.getLogger("cle").setLevel(logging.CRITICAL)

import angr  # noqa: E402
import claripy  # noqa: E402

# Numbers of bits of the arguments of each property.
PROPERTIES = {
    "layout": [64] * 5,
    "address": [64] * 3,
    "unsound": [64] * 4,
    "extents": [64] * 4,
    "window": [64] * 4,
    "tokens": [32] * 3,
    "take": [32, 64, 64, 64],
    "commit": [32, 64, 64],
}

# What has to be found in the properties that do not hold.
PLANTED = {"planted_false": "false with", "planted_overflow": "panics with"}

# More steps than any path has: if there are more, something is not bounded.
MOST_STEPS = 1000


def show(state, arguments):
    values = [state.solver.eval(argument) for argument in arguments]
    return "(" + ", ".join(f"{value:#x}" for value in values) + ")"


def check(project, name, widths):
    """Returns the number of paths, and what is wrong on some of them."""
    arguments = [claripy.BVS(f"{name}{i}", bits) for i, bits in enumerate(widths)]
    begin = project.loader.find_symbol(name).rebased_addr
    panic = project.loader.find_symbol("property_panics").rebased_addr
    # A place to return to that is no code.
    end = 0x0DEAD000
    state = project.factory.call_state(
        begin,
        *[argument.zero_extend(64 - argument.length) for argument in arguments],
        ret_addr=end,
        add_options={
            angr.options.ZERO_FILL_UNCONSTRAINED_MEMORY,
            angr.options.ZERO_FILL_UNCONSTRAINED_REGISTERS,
        },
    )
    simulation = project.factory.simulation_manager(state)
    wrong = []
    paths = 0

    for _ in range(MOST_STEPS):
        simulation.move("active", "returned", lambda s: s.addr == end)
        simulation.move("active", "panicked", lambda s: s.addr == panic)
        for s in simulation.panicked:
            wrong.append(f"panics with {show(s, arguments)}")
        for s in simulation.returned:
            paths += 1
            false = s.regs.al != 1
            if s.solver.satisfiable(extra_constraints=[false]):
                s.solver.add(false)
                wrong.append(f"false with {show(s, arguments)}")
        simulation.drop(stash="panicked")
        simulation.drop(stash="returned")
        if not simulation.active or wrong:
            break
        simulation.step()
    else:
        wrong.append("paths that do not end")
    wrong += [str(record.error) for record in simulation.errored]
    wrong += [f"lost at {s.addr}" for s in simulation.unconstrained]
    if not paths and not wrong:
        wrong.append("no path returns")
    return paths, wrong


def main(library, names):
    project = angr.Project(library, auto_load_libs=False)
    failed = 0

    for name, expected in PLANTED.items():
        _, wrong = check(project, name, [64])
        found = len(wrong) == 1 and wrong[0].startswith(expected)
        print(f"test model::finds_{name} ... {'ok' if found else 'FAILED'}", flush=True)
        failed += not found

    for name in names or PROPERTIES:
        start = time.monotonic()
        paths, wrong = check(project, name, PROPERTIES[name])
        took = f"{paths} paths, {time.monotonic() - start:.0f} s"
        print(f"test model::{name} ... {'FAILED' if wrong else 'ok'} ({took})", flush=True)
        for line in wrong:
            print(f"    {line}", flush=True)
        failed += bool(wrong)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
