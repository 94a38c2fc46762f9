#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of scripts/install, scripts/deb and dkms.conf: what comes where, and goes again.

devmem-cat is the real one, which is built once. Kernels are made up: of the module only what is
installed where is a matter here.
"""

import contextlib
import gzip
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

COMMANDS = ("", "cleanup", "flush", "get", "put", "receive", "send", "serve", "status")
PAGES = (
    "devmem-cat.1", "devmem-cat-cleanup.1", "devmem-cat-flush.1", "devmem-cat-get.1", "devmem-cat-put.1",
    "devmem-cat-receive.1", "devmem-cat-send.1", "devmem-cat-serve.1", "devmem-cat-status.1",
)
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

# A kernel's makefile, as far as we call it: the sample is a module, unless there is none to be. It was built by
# GCC, and so are modules.
MAKEFILE = f"""\
modules := devmem_provider $(if $(filter n,$(SAMPLES)),,host_provider)

modules:
	@test -z "$(LLVM)$(KBUILD_OUTPUT)"
	@for m in $(modules); do echo $$m >$(MO)/$$m.ko; done

modules_install:
	@test -z "$(LLVM)"
	@test "$(DEPMOD)" = true
	@mkdir -p $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/updates
	@for m in $(modules); do cp $(MO)/$$m.ko $(INSTALL_MOD_PATH)/lib/modules/{RELEASE}/updates/$$m.ko$(SUFFIX); done
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


@contextlib.contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def options(text):
    """The long options in a text."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


# Once it has built what there is to build, cargo has nothing to do. It takes its time to find out.
built = None


def setUpModule():
    global built
    built = tempfile.TemporaryDirectory()
    env = {**os.environ, "DESTDIR": f"{built.name}/dest", "PREFIX": "/usr"}
    subprocess.run([INSTALL, "tools"], env=env, check=True, stdout=subprocess.DEVNULL)
    cargo = pathlib.Path(built.name) / "cargo"
    cargo.write_text(f'#!/bin/sh\n[ "$1" = tree ] || exit 0\nexec {shutil.which("cargo")} "$@"\n')
    cargo.chmod(0o755)


def tearDownModule():
    built.cleanup()


class Case(test_check_kernel.MadeUpKernel):
    """A directory to install into, and a kernel that is fit."""

    def setUp(self):
        super().setUp()
        # Names that shells and tar may take for something else.
        self.dest = self.dir / "its dest"
        # In the directory itself, too, nobody has any business but below dest.
        self.prefix = self.dir / "a\\157 prefix*"
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
        (self.kdir / "rust").mkdir(exist_ok=True)
        self.write("rust/libkernel.rmeta", "")
        self.write(".config", test_check_kernel.CONFIG + "CONFIG_CC_IS_GCC=y\n"
                   f'CONFIG_RUSTC_VERSION_TEXT="{RUSTC}"\n')

    def run_script(self, script, *args, **env):
        env = {**os.environ, "TMPDIR": str(self.tmp), "DESTDIR": str(self.dest),
               "PREFIX": str(self.prefix), "KBUILD_OUTPUT": "/none",
               "PATH": f"{self.dir / 'bin'}:{built.name}:{os.environ['PATH']}", **env}
        env.pop("LLVM", None)
        result = subprocess.run([script, *args], env=env, capture_output=True, text=True)
        self.assertEqual(list(self.tmp.iterdir()), [])
        return result

    def install(self, *args, **env):
        result = self.run_script(INSTALL, *args, **env)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def refused(self, *args, **env):
        """Nothing is done, and one line says why."""
        before = snapshot(self.dir)
        result = self.run_script(INSTALL, *args, **env)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertEqual({p for p, _ in snapshot(self.dir)}, {p for p, _ in before})
        line, = result.stderr.splitlines()
        return line

    def program(self, name, text):
        """One that is found before the host's."""
        path = self.dir / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def install_module(self, **env):
        self.fit()
        return self.install("module", KDIR=str(self.kdir), MO=str(self.dir / "mo"),
                            RUSTC=str(self.dir / "rustc"), BINDGEN=str(self.dir / "bindgen"), **env)

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

    def test_what_is_not_made_any_more_goes(self):
        self.install_module(SUFFIX=".zst")
        self.assertEqual(files(self.dest) & {MODULE, f"{MODULE}.zst"}, {f"{MODULE}.zst"})
        self.install("dkms")
        renamed = self.dest / SOURCE / "patches/15-seam/0001-another.patch"
        other = self.dest / "usr/src/devmem_provider-0.0.1/dkms.conf"
        for path in renamed, other:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        manifest = self.dest / str(self.prefix)[1:] / MANIFEST
        with manifest.open("a") as listed:
            listed.write(f"f /{renamed.relative_to(self.dest)}\nf /{other.relative_to(self.dest)}\n")
        self.install_module()
        self.install("dkms")
        self.assertEqual(files(self.dest), self.below_prefix({MANIFEST}) | {MODULE}
                         | source_files() | {str(other.relative_to(self.dest))})
        listed = manifest.read_text()
        self.assertNotIn(".zst", listed)
        self.assertNotIn(renamed.name, listed)
        self.assertIn(f"f /{other.relative_to(self.dest)}\n", listed)

    def test_another_module_of_that_name(self):
        other = self.dest / f"lib/modules/{RELEASE}/updates/dkms/devmem_provider.ko.xz"
        other.parent.mkdir(parents=True)
        other.touch()
        self.assertIn(f"/{other.relative_to(self.dest)}\n", self.install_module())

    def test_what_a_package_has_brought(self):
        self.prefix.mkdir()
        program = self.prefix / "bin/devmem-cat"
        owned = f"printf '%s\\n' 'a-package: {program}'; exit 1"
        self.program("dpkg-query", owned)
        self.assertIn(f"{program} is of the package a-package:",
                      self.refused("tools", DESTDIR=""))
        # Nor is it removed, if it has come later.
        (self.dir / "bin/dpkg-query").unlink()
        self.program("dpkg-query", "exit 1")
        self.install("tools", DESTDIR="")
        self.program("dpkg-query", owned)
        self.assertIn("is of the package a-package:", self.refused("uninstall", DESTDIR=""))
        self.program("dpkg-query", "exit 1")
        self.install("uninstall", DESTDIR="")
        self.assertEqual(list(self.prefix.iterdir()), [])

    def test_what_dkms_has(self):
        self.install("dkms")
        added = self.dest / f"var/lib/dkms/devmem_provider/{VERSION}"
        added.mkdir(parents=True)
        self.assertIn(f"dkms remove devmem_provider/{VERSION} --all", self.refused("uninstall"))
        added.rmdir()
        self.install("uninstall")
        self.assertEqual(files(self.dest), set())

    def test_removed_in_part(self):
        self.install("tools")
        program = self.dest / str(self.prefix)[1:] / "bin/devmem-cat"
        program.unlink()
        program.mkdir()
        self.assertEqual(self.run_script(INSTALL, "uninstall").returncode, 1)
        program.rmdir()
        self.install("uninstall")
        self.assertEqual(list(self.dest.iterdir()), [])

    def test_nowhere_to_write(self):
        # Root may write nearly everywhere, but not into a file.
        self.assertIn(f"you cannot write to {INSTALL}:",
                      self.refused("tools", DESTDIR=str(INSTALL / "none")))

    def test_paths_that_are_refused(self):
        self.assertIn("newline", self.refused("tools", PREFIX="/a\nb"))
        self.assertIn("slash", self.refused("tools", PREFIX="usr"))
        self.fit()
        self.tmp = self.dir / "a tmp"
        self.tmp.mkdir()
        self.assertIn("TMPDIR", self.refused("module", KDIR=str(self.kdir)))

    def test_staged_where_something_is(self):
        secret = self.dir / "bin/secret"
        secret.parent.mkdir()
        secret.touch(0o600)
        self.assertIn("is not empty", self.refused("stage", str(secret.parent), "dkms"))
        self.assertEqual(secret.stat().st_mode & 0o777, 0o600)

    def test_installed_twice(self):
        self.install("tools")
        self.install("tools", "dkms")
        self.install("uninstall")
        self.assertEqual(list(self.dest.iterdir()), [])

    def test_modes(self):
        with umask(0o077):
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


class Pages(unittest.TestCase):
    def setUp(self):
        self.below = pathlib.Path(built.name) / "dest/usr"

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
            self.assertGreaterEqual(len(said), 10 if command in ("receive", "send") else 2, page)
            values = re.findall(r"^ +- (\S+: +\S.*)$", help_text, flags=re.M)
            self.assertEqual(len(values), help_text.count("\n          - "), page)
            for line in said + [" ".join(value.split()) for value in values]:
                # A page has the default before what the option is.
                line = re.sub(r" \[default: .*\]$", "", line)
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
        # The kernel's makefiles take no space.
        self.dest = self.dir / "dest"
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
    def build(self, **env):
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.dir))
        result = self.run_script(ROOT / "scripts/deb", directory, **env)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        package, = directory.iterdir()
        return package

    def test_package(self):
        package = self.build()
        for check in self.contents, self.same_again, self.installed_and_purged:
            with self.subTest(check.__name__):
                check(package)

    def contents(self, package):
        listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True,
                                text=True).stdout.splitlines()
        entries = {line.split()[-1][2:]: line.split() for line in listed}
        doc = "usr/share/doc/devmem-provider"
        tools = {re.sub(r"(man1/.*)$", r"\1.gz", f"usr/{f}") for f in TOOLS}
        tools = {f.replace("zsh/site-functions", "zsh/vendor-completions") for f in tools}
        wanted = tools | source_files() | {
            f"{doc}/{file}" for file in ("changelog.gz", "copyright", "crates.gz")}
        wanted -= {f"{doc}/COPYING", f"{doc}/LICENSE-MIT", f"{SOURCE}/COPYING"}
        self.assertEqual({f for f in entries if not f.endswith("/") and f}, wanted)
        self.assertEqual({e[1] for e in entries.values()}, {"root/root"})

        subprocess.run(["dpkg-deb", "-R", package, self.dir / "all"], check=True)
        fields = subprocess.run(["dpkg-deb", "-f", package], check=True, capture_output=True,
                                text=True).stdout
        self.assertIn(f"\nVersion: {VERSION}\n", fields)
        self.assertRegex(fields, r"\nDepends: .*libc6 \(>= ")
        size = sum(-(-os.path.getsize(self.dir / "all" / f) // 1024)
                   if not f.endswith("/") else 1 for f in entries if f)
        self.assertIn(f"\nInstalled-Size: {size}\n", fields)
        crates = gzip.decompress((self.dir / "all" / doc / "crates.gz").read_bytes()).decode()
        # A crate, and words of the license that it is under.
        self.assertRegex(crates, r"(?s)\nclap-\d.*Permission is hereby granted.*\nnix-\d.*"
                         "Permission is hereby granted")
        # Its scripts are for a shell, and its sums are right.
        for script in ("postinst", "prerm"):
            subprocess.run(["sh", "-n", self.dir / "all/DEBIAN" / script], check=True)
        subprocess.run(["md5sum", "--quiet", "-c", "DEBIAN/md5sums"], cwd=self.dir / "all",
                       check=True)

    def same_again(self, package):
        with umask(0o077):
            again = self.build(TZ="Asia/Tokyo", LC_ALL="C", PREFIX="/opt", DESTDIR="/none")
        self.assertEqual(package.read_bytes(), again.read_bytes())

    def installed_and_purged(self, package):
        root = self.dir / "root"
        admin = root / "var/lib/dpkg"
        for directory in ("info", "updates"):
            (admin / directory).mkdir(parents=True)
        # What it depends on is there: dpkg processes no triggers otherwise.
        depends = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True,
                                 capture_output=True, text=True).stdout
        (admin / "status").write_text("".join(
            f"Package: {name}\nStatus: install ok installed\nVersion: 999\nArchitecture: all\n"
            "Multi-Arch: foreign\nMaintainer: nobody <nobody@localhost>\nDescription: none\n\n"
            for name in re.findall(r"(?:^|, )([a-z0-9.+-]+)", depends)))
        # A dkms that notes what it is asked.
        dkms = self.dir / "bin/dkms"
        self.program("dkms", 'echo "$1" >>"$0.log"\n'
                     'case $1 in status) cat "$0.added" 2>/dev/null ;; add) echo y >"$0.added" ;; '
                     'remove) rm "$0.added" ;; esac; exit 0')
        env = {**os.environ, "PATH": f"{dkms.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"}
        dpkg = ["dpkg", f"--root={root}", "--force-script-chrootless", "--force-not-root",
                "--force-unsafe-io", "--log=/dev/null"]

        def run(*action):
            subprocess.run([*dpkg, *action], env=env, check=True, capture_output=True)

        # Without DKMS at first, which brings itself along later.
        dkms.rename(self.dir / "dkms")
        run("--install", package)
        (self.dir / "dkms").rename(dkms)
        self.assertFalse(dkms.with_suffix(".log").exists())
        run("--install", self.package_of_dkms())
        run("--purge", "dkms")
        run("--install", package)
        run("--purge", "devmem-provider")
        left = {f for f in files(root) if not f.startswith("var/lib/dpkg/")}
        self.assertEqual(left, set())
        self.assertFalse(dkms.with_suffix(".added").exists())
        asked = dkms.with_suffix(".log").read_text().split()
        self.assertEqual([a for a in asked if a != "status"], ["add", "remove", "add", "remove"])

    def package_of_dkms(self):
        """One that has nothing but its name."""
        root = self.dir / "dkms-package"
        (root / "usr/sbin").mkdir(parents=True)
        (root / "usr/sbin/dkms").touch()
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text("Package: dkms\nVersion: 1\nArchitecture: all\n"
                                             "Maintainer: nobody <nobody@localhost>\nDescription: none\n")
        subprocess.run(["dpkg-deb", "-Znone", "-b", root, self.dir / "dkms.deb"], check=True,
                       stdout=subprocess.DEVNULL)
        return self.dir / "dkms.deb"


if __name__ == "__main__":
    unittest.main()
