# SPDX-License-Identifier: GPL-2.0
"""Makes raw LLVM profiles of what the guest kept of the module's counters.

Usage: profraw.py READELF MODULE DIR OUT

DIR has a directory for each time that the module was unloaded, with its profile sections and
their addresses (selftests/guest/coverage/). For each, OUT gets a .profraw for llvm-profdata.
READELF is an llvm-readelf, which tells the sizes of the sections of MODULE, the .ko.
"""

import json
import pathlib
import struct
import subprocess
import sys

# InstrProfData.inc of LLVM 19 to 22. A profile of another version is refused by llvm-profdata.
MAGIC = int.from_bytes(b"\xfflprofr\x81", "big")
VERSION = 10
DATA_RECORD = 64
COUNTER = 8
# IPVK_Last: kinds of value profiles, none of which there are here.
LAST_VALUE_KIND = 2

DATA = "__llvm_prf_data"
COUNTERS = "__llvm_prf_cnts"
NAMES = "__llvm_prf_names"


def section_sizes(readelf, module):
    """The sizes of the profile sections of an object file."""
    told = subprocess.run(
        [readelf, "-S", "--elf-output-style=JSON", module],
        check=True,
        capture_output=True,
    ).stdout
    found = {}
    for entry in json.loads(told)[0]["Sections"]:
        section = entry["Section"]
        name = section["Name"]["Name"]
        if name in (DATA, COUNTERS, NAMES):
            found[name] = section["Size"]
    missing = {DATA, COUNTERS, NAMES} - found.keys()
    if missing:
        raise SystemExit(f"{module} is not built for coverage, it lacks {', '.join(missing)}")
    return found


def profile(sections, addresses):
    """A raw profile: the header, and the sections in their order."""
    names = sections[NAMES]
    header = struct.pack(
        "<16Q",
        MAGIC,
        VERSION,
        0,  # bytes of binary ids
        len(sections[DATA]) // DATA_RECORD,
        0,  # padding before the counters
        len(sections[COUNTERS]) // COUNTER,
        0,  # padding behind the counters
        0,  # bytes of bitmaps
        0,  # padding behind the bitmaps
        len(names),
        (addresses[COUNTERS] - addresses[DATA]) % 2**64,
        0,  # from the data to the bitmaps
        addresses[NAMES],
        0,  # tables of virtual functions
        0,  # bytes of their names
        LAST_VALUE_KIND,
    )
    return header + sections[DATA] + sections[COUNTERS] + names + bytes(-len(names) % 8)


def read_unload(directory, sizes):
    """What the guest kept at one unload."""
    sections, addresses = {}, {}
    for name, size in sizes.items():
        content = (directory / name).read_bytes()
        if len(content) < size:
            raise SystemExit(f"{directory / name} has {len(content)} of {size} bytes")
        sections[name] = content[:size]
        addresses[name] = int((directory / f"{name}.address").read_text(), 0)
    return sections, addresses


def main(readelf, module, directory, out):
    sizes = section_sizes(readelf, module)
    unloads = sorted(pathlib.Path(directory).iterdir(), key=lambda path: int(path.name))
    if not unloads:
        raise SystemExit(f"{directory} is empty: the module was never unloaded")
    for unload in unloads:
        path = pathlib.Path(out) / f"{unload.name}.profraw"
        path.write_bytes(profile(*read_unload(unload, sizes)))


if __name__ == "__main__":
    main(*sys.argv[1:])
