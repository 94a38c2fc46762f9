#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/install, scripts/deb and dkms.conf: what comes where, and goes again.

devmem-cat is the real one. Kernels are made up: of the module only what is installed where is a
matter here.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib
import unittest

import test_check_kernel

ROOT = pathlib.Path(__file__).resolve().parent.parent
INSTALL = ROOT / "scripts/install"
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
SOURCE = f"usr/src/devmem_provider-{VERSION}"
RELEASE = "7.3.0-made-up"
RUSTC = "rustc 1.95.0 (59807616e 2026-04-14)"

COMMANDS = ("", "receive", "send")
PAGES = ("devmem-cat.1", "devmem-cat-receive.1", "devmem-cat-send.1")
COMPLETIONS = (
    "bash-completion/completions/devmem-cat",
    "zsh/site-functions/_devmem-cat",
    "fish/vendor_completions.d/devmem-cat.fish",
)
# Below PREFIX.
TOOLS = {
    "bin/devmem-cat",
    *(f"share/man/man1/{page}" for page in PAGES),
    *(f"share/{file}" for file in COMPLETIONS),
    *(f"share/doc/devmem-provider/{file}"
      for file in ("README.md", "CHANGELOG.md", "COPYING", "LICENSE-MIT")),
}
MANIFEST = "lib/devmem-provider/installed"
MODULE = f"lib/modules/{RELEASE}/updates/devmem_provider.ko"

# A kernel's makefile, as far as we call it: the sample is a module, unless there is none to be.
MAKEFILE = f"""\
modules := devmem_provider $(if $(filter n,$(SAMPLES)),,host_provider)

modules:
	@for m in $(modules); do echo $$m >$(MO)/$$m.ko; done

modules_install:
	@test "$(DEPMOD)" = true
	@mkdir -p $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/updates
	@for m in $(modules); do cp $(MO)/$$m.ko $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/updates; done
"""


def source_files():
    """What DKMS needs."""
    scripts = ("dkms", "module", "check-kernel", "check-compilers", "lib.sh")
    rust = [p for p in (ROOT / "rust").rglob("*")
            if p.is_file() and (p.suffix in (".rs", ".c", ".h") or p.name == "Kbuild")
            and p.name != "generated.rs" and not p.name.endswith(".mod.c")]
    return {
        f"{SOURCE}/{name}" for name in (
            "dkms.conf", "Kbuild", "COPYING", *(f"scripts/{s}" for s in scripts),
            *(str(p.relative_to(ROOT)) for p in rust),
            *(str(p.relative_to(ROOT)) for p in (ROOT / "patches").rglob("*.patch")))
    }


def files(directory):
    """All files below a directory."""
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def snapshot(*directories):
    """What is there, and how old."""
    return {(p, p.lstat().st_mtime_ns) for d in directories if d.exists()
            for p in [d, *d.rglob("*")]}


def sourced(conf, variable, **env):
    """What a shell has in a variable after it read a file."""
    script = f'set -e; . "{conf}"; echo "${{{variable}}}"'
    return subprocess.run(["bash", "-c", script], env={**os.environ, **env}, check=True,
                          capture_output=True, text=True).stdout.strip()


def options(text):
    """The long options in a text."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


class Case(test_check_kernel.MadeUpKernel):
    """A directory to install into, and a kernel that is fit."""

    def setUp(self):
        super().setUp()
        self.dest = self.dir / "dest"
        # In the directory itself, too, nobody has any business but below dest.
        self.prefix = self.dir / "prefix"
        self.tmp = self.dir / "tmp"
        self.tmp.mkdir()
        (self.dir / "mo").mkdir()

    def fit(self):
        self.apply()
        self.write("Makefile", MAKEFILE)
        self.write("../rustc", f"#!/bin/sh\necho '{RUSTC}'\n")
        self.write("../bindgen", "#!/bin/sh\necho bindgen 0.73.2\n")
        for tool in ("rustc", "bindgen"):
            (self.dir / tool).chmod(0o755)
        (self.kdir / "rust").mkdir()
        self.write("rust/libkernel.rmeta", "")
        self.write(".config", test_check_kernel.CONFIG + "CONFIG_CC_IS_GCC=y\n"
                   f'CONFIG_RUSTC_VERSION_TEXT="{RUSTC}"\n')

    def run_script(self, script, *args, **env):
        env = {**os.environ, "TMPDIR": str(self.tmp), "DESTDIR": str(self.dest),
               "PREFIX": str(self.prefix), **env}
        env.pop("LLVM", None)
        result = subprocess.run([script, *args], env=env, capture_output=True, text=True)
        self.assertEqual(list(self.tmp.iterdir()), [])
        return result

    def install(self, *args, **env):
        result = self.run_script(INSTALL, *args, **env)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def install_module(self):
        self.fit()
        self.install("module", KDIR=str(self.kdir), MO=str(self.dir / "mo"),
                     RUSTC=str(self.dir / "rustc"), BINDGEN=str(self.dir / "bindgen"))

    def below_prefix(self, names):
        return {f"{str(self.prefix)[1:]}/{name}" for name in names}


class Install(Case):
    def test_what_is_installed_is_removed(self):
        outside = [pathlib.Path(p) for p in (f"/lib/modules/{RELEASE}", f"/{SOURCE}")]
        before = snapshot(*outside)
        self.install_module()
        self.install("tools", "dkms")
        self.assertEqual(files(self.dest), self.below_prefix({*TOOLS, MANIFEST})
                         | {MODULE} | source_files())
        self.assertFalse(self.prefix.exists())
        self.assertEqual(snapshot(*outside), before)
        self.install("uninstall")
        self.assertEqual(list(self.dest.iterdir()), [])

    def test_what_others_put_there_stays(self):
        (self.dest / str(self.prefix)[1:] / "bin").mkdir(parents=True)
        self.install("tools")
        page = self.dest / str(self.prefix)[1:] / "share/man/man1/others.1"
        page.touch()
        self.install("uninstall")
        self.assertEqual(files(self.dest), self.below_prefix({"share/man/man1/others.1"}))
        self.assertTrue((self.dest / str(self.prefix)[1:] / "bin").is_dir())

    def test_installed_twice(self):
        self.install("tools")
        self.install("tools", "dkms")
        self.install("uninstall")
        self.assertEqual(list(self.dest.iterdir()), [])

    def test_modes(self):
        self.install("tools", "dkms")
        for path in self.dest.rglob("*"):
            program = path.is_dir() or path.name == "devmem-cat" and path.parent.name == "bin" \
                or path.parent.name == "scripts" and path.suffix != ".sh"
            self.assertEqual(path.stat().st_mode & 0o777, 0o755 if program else 0o644, path)

    def test_nothing_to_uninstall(self):
        result = self.run_script(INSTALL, "uninstall")
        self.assertEqual(result.returncode, 1)
        self.assertIn("nothing was installed here", result.stderr)

    def test_versions_are_the_same(self):
        c = re.search(r'MODULE_VERSION\("(.*)"\)', (ROOT / "rust/version.c").read_text())
        changes = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
        self.assertEqual({c[1], changes[1], sourced(ROOT / "dkms.conf", "PACKAGE_VERSION",
                                                    kernelver=RELEASE)}, {VERSION})


class Pages(Case):
    def setUp(self):
        super().setUp()
        self.install("tools")
        self.below = self.dest / str(self.prefix)[1:]

    def help(self, *args):
        return subprocess.run([self.below / "bin/devmem-cat", *args, "--help"], check=True,
                              capture_output=True, text=True).stdout

    def test_pages_say_what_help_says(self):
        for command, page in zip(COMMANDS, PAGES):
            text = (self.below / "share/man/man1" / page).read_text()
            text = text.replace("\\-", "-").replace("\\*(Aq", "'")
            listed = text.partition(".SH OPTIONS")[2].partition(".SH ")[0]
            text = re.sub(r"\\f.|^\.\w+ *", "", listed, flags=re.M)
            help_text = self.help(*command.split())
            self.assertEqual(options(text), options(help_text), page)
            # What each option is, in the same words.
            said = re.findall(r"^ +--?\w.*?(?: {2,}|\n +)(\S.*)$", help_text, flags=re.M)
            self.assertGreaterEqual(len(said), 10 if command else 2, page)
            values = re.findall(r"^ +- (\S+: +\S.*)$", help_text, flags=re.M)
            self.assertEqual(len(values), help_text.count("\n          - "), page)
            for line in said + [" ".join(value.split()) for value in values]:
                self.assertIn(line, " ".join(text.split()), page)

    def test_pages_are_clean(self):
        if not shutil.which("groff"):
            self.fail("groff is missing: scripts/deps installs it")
        for page in PAGES:
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z",
                                   self.below / "share/man/man1" / page],
                                  check=True, capture_output=True, text=True)
            self.assertEqual(done.stderr, "")

    def test_completions_know_all_options(self):
        wanted = set().union(*(options(self.help(*c.split())) for c in COMMANDS))
        for file in COMPLETIONS:
            text = (self.below / "share" / file).read_text()
            missing = {o for o in wanted if o not in text and f"-l {o[2:]}" not in text}
            self.assertEqual(missing, set(), file)


class Dkms(Case):
    def setUp(self):
        super().setUp()
        self.install("dkms")
        self.source = self.dest / SOURCE

    def conf(self, variable):
        return sourced(self.source / "dkms.conf", variable, kernelver=RELEASE,
                       kernel_source_dir=str(self.kdir))

    def dkms(self, variable):
        """Runs what dkms.conf has dkms run, where it does."""
        env = {**os.environ, "RUSTC": str(self.dir / "rustc"), "HOME": str(self.tmp),
               "BINDGEN": str(self.dir / "bindgen"), "TMPDIR": str(self.tmp),
               "RUST_LIB_SRC": "/none"}
        for name in ("LLVM", "DEVMEM_CACHE", "XDG_CACHE_HOME"):
            env.pop(name, None)
        result = subprocess.run(self.conf(variable).split(), cwd=self.source, env=env,
                                capture_output=True, text=True)
        self.assertEqual(list(self.tmp.iterdir()), [])
        return result

    def test_builds_on_a_kernel_with_the_series(self):
        self.fit()
        self.assertEqual(self.conf("AUTOINSTALL"), "yes")
        for step in ("PRE_BUILD", "MAKE[0]"):
            result = self.dkms(step)
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(files(self.source / self.conf("BUILT_MODULE_LOCATION[0]")),
                         {"devmem_provider.ko"})

    def test_a_kernel_without_the_series(self):
        self.write("Module.symvers", "")
        self.assertEqual(self.conf("AUTOINSTALL"), "")
        for step in ("PRE_BUILD", "MAKE[0]"):
            result = self.dkms(step)
            self.assertEqual(result.returncode, 1)
            self.assertIn("patches/15-seam/0001-", result.stderr)

    def test_no_bindgen(self):
        self.fit()
        (self.dir / "bindgen").unlink()
        result = self.dkms("PRE_BUILD")
        self.assertEqual(result.returncode, 1)
        self.assertIn("bindgen", result.stderr)
        self.assertIn("is missing", result.stderr)

    def test_what_kbuild_names_is_there(self):
        kbuild = (self.source / "Kbuild").read_text()
        objects = re.search(r"^devmem_provider-y := (.*)$", kbuild, flags=re.M)[1].split()
        for name in objects:
            sources = [self.source / f"{name[:-2]}{suffix}" for suffix in (".c", ".rs")]
            self.assertTrue(any(s.exists() for s in sources), name)


class Deb(Case):
    def build(self, name):
        result = self.run_script(ROOT / "scripts/deb", self.dir / name)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        package, = (self.dir / name).iterdir()
        return package

    def test_contents(self):
        package = self.build("deb")
        listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True,
                                text=True).stdout.splitlines()
        entries = {line.split()[-1][2:]: line.split() for line in listed}
        doc = "usr/share/doc/devmem-provider"
        tools = {re.sub(r"(man1/.*)$", r"\1.gz", f"usr/{f}") for f in TOOLS}
        tools = {f.replace("zsh/site-functions", "zsh/vendor-completions") for f in tools}
        wanted = tools | source_files() | {f"{doc}/changelog.gz", f"{doc}/copyright"}
        wanted -= {f"{doc}/COPYING", f"{doc}/LICENSE-MIT", f"{SOURCE}/COPYING"}
        self.assertEqual({f for f in entries if not f.endswith("/") and f}, wanted)
        self.assertEqual({e[1] for e in entries.values()}, {"root/root"})

        fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True,
                                text=True).stdout
        self.assertIn(f"\nVersion: {VERSION}\n", fields)
        self.assertRegex(fields, r"\nDepends: .*libc6 \(>= ")
        # Its scripts are for a shell, and its sums are right.
        subprocess.run(["dpkg-deb", "-R", package, self.dir / "all"], check=True)
        for script in ("postinst", "prerm"):
            subprocess.run(["sh", "-n", self.dir / "all/DEBIAN" / script], check=True)
        subprocess.run(["md5sum", "--quiet", "-c", "DEBIAN/md5sums"], cwd=self.dir / "all",
                       check=True)
        self.assertEqual(package.read_bytes(), self.build("again").read_bytes())

    def test_installed_and_purged(self):
        package = self.build("deb")
        root = self.dir / "root"
        admin = root / "var/lib/dpkg"
        for directory in ("info", "updates"):
            (admin / directory).mkdir(parents=True)
        (admin / "status").touch()
        # A dkms that notes what it is asked.
        self.write("../dkms", '#!/bin/sh\necho "$1" >>"$0.log"\n'
                   'case $1 in status) cat "$0.added" 2>/dev/null ;; add) echo y >"$0.added" ;; '
                   'remove) rm "$0.added" ;; esac; exit 0\n')
        (self.dir / "dkms").chmod(0o755)
        env = {**os.environ, "PATH": f"{self.dir}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        dpkg = ["dpkg", f"--root={root}", "--force-script-chrootless", "--force-depends",
                "--force-not-root", "--log=/dev/null"]
        for action in ("--install", package), ("--install", package), ("--purge", "devmem-provider"):
            subprocess.run([*dpkg, *action], env=env, check=True, capture_output=True)
        left = {f for f in files(root) if not f.startswith("var/lib/dpkg/")}
        self.assertEqual(left, set())
        self.assertFalse((self.dir / "dkms.added").exists())
        asked = (self.dir / "dkms.log").read_text().split()
        self.assertEqual([a for a in asked if a != "status"], ["add", "remove", "add", "remove"])


if __name__ == "__main__":
    unittest.main()
