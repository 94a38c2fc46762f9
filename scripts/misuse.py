#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tries to misuse the wrappers in rust/sys: see that the compiler does not let anybody.

Each file of selftests/misuse/ is compiled as one more module of the crate, by the kernel's own
command line, as it was saved when the module was built. It has to fail at the lines that say so, with
the error that they name ("//~ E0599"), and at no others. Without such a file it has to compile,
and rust/sys by itself, too: it imports nothing from outside.
Usage: scripts/misuse.py RUST SNIPPETS OBJECTS, directories all three
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = "devmem_provider.rs"
MARK = re.compile(r"//~ (\w+)\s*$")
# What a crate is that has nothing but the wrappers.
ALONE = "// SPDX-License-Identifier: GPL-2.0\n\n//! The wrappers.\n\nmod sys;\n"


def saved_command(objects):
    """rustc and its arguments, without what to compile and what to make of it."""
    text = (objects / "rust" / f".{ROOT[:-3]}.o.cmd").read_text()
    words = shlex.split(text.splitlines()[0].split(":=", 1)[1].split(";")[0])
    env = {}

    while "=" in words[0]:
        name, value = words.pop(0).split("=", 1)
        env[name] = value
    drop = ("--emit=", "--out-dir", "rust/")
    return env, [w for w in words if not w.startswith(drop) and not w.endswith("/" + ROOT)]


def expected(snippet):
    lines = enumerate(snippet.read_text().splitlines(), 1)
    found = ((n, MARK.search(line)) for n, line in lines)
    return sorted((n, mark[1]) for n, mark in found if mark)


def errors(stderr, snippet):
    """Lines of the snippet, and what is wrong there. Line 0 is anywhere else."""
    found = []
    for line in stderr.splitlines():
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("level") != "error" or not message["spans"]:
            continue
        span = next(s for s in message["spans"] if s["is_primary"])
        here = Path(span["file_name"]).name == "misuse.rs"
        code = (message["code"] or {}).get("code", message["message"])
        found.append((span["line_start"] if here and snippet else 0, code))
    return sorted(found)


class Crate:
    """The crate's files in a directory where there may be another one beside them."""

    def __init__(self, rust, objects, directory):
        self.directory = Path(directory)
        self.objects = objects
        self.env, self.command = saved_command(objects)
        self.root = (rust / ROOT).read_text()
        for path in rust.iterdir():
            if path.name != ROOT:
                (self.directory / path.name).symlink_to(path.resolve())

    def compile(self, root, snippet=None):
        """Returns what is wrong, and all that the compiler says."""
        (self.directory / ROOT).write_text(root)
        misuse = self.directory / "misuse.rs"
        misuse.unlink(missing_ok=True)
        if snippet:
            misuse.symlink_to(snippet.resolve())
        env = os.environ | self.env | {
            "RUSTC_BOOTSTRAP": "1",
            "DEVMEM_PROVIDER_BINDINGS": str(
                self.objects / "rust" / "sys" / "bindings" / "generated.rs"
            ),
        }
        made = self.directory / "made"
        made.mkdir(exist_ok=True)
        command = self.command + [
            "--emit=metadata", "--error-format=json", f"--out-dir={made}", "--cap-lints=warn",
            str(self.directory / ROOT),
        ]
        if snippet:
            command.remove("--cap-lints=warn")
        run = subprocess.run(
            command, cwd=self.objects, env=env, capture_output=True, text=True, check=False
        )
        found = errors(run.stderr, snippet)
        if run.returncode != 0 and not found:
            found = [(0, "rustc failed")]
        return found, run.stderr

    def with_module(self):
        return self.root + "\n#[allow(dead_code, unused)]\nmod misuse;\n"


def main(rust, snippets, objects):
    failed = []

    def check(what, wanted, result):
        found, stderr = result
        if found == wanted:
            print(f"ok: {what}")
            return
        failed.append(what)
        print(f"FAILED: {what}\n  wanted {wanted}\n  got    {found}")
        for line in stderr.splitlines():
            if line.startswith("{") and '"level":"error"' in line:
                print(json.loads(line)["rendered"])

    with tempfile.TemporaryDirectory() as directory:
        crate = Crate(rust, objects, directory)
        check("the crate as it is", [], crate.compile(crate.root))
        check("rust/sys by itself", [], crate.compile(ALONE))
        files = sorted(snippets.glob("*.rs"))
        for snippet in files:
            wanted = expected(snippet)
            if not wanted:
                sys.exit(f"{snippet}: no line says that it must not compile")
            check(snippet.stem, wanted, crate.compile(crate.with_module(), snippet))
    if not files:
        sys.exit(f"nothing in {snippets}")
    if failed:
        sys.exit(f"{len(failed)} of {len(files) + 2} failed")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
