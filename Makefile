# SPDX-License-Identifier: GPL-2.0
#
# The user's entry; Kbuild is the kernel's. `make help` lists what there is.

KDIR ?=
MO ?=
KSRC ?=
FILE ?=
NIC ?=
TESTS ?=
GUEST ?= fast
DURATION ?= 600
SEED ?=
MODE ?=
SERIES ?=
ROUNDS ?=
FROM ?=
SET ?=
WITH ?=
DESTDIR ?=
PREFIX ?= /usr/local
export DESTDIR PREFIX
export KDIR MO KSRC FILE NIC TESTS GUEST DURATION SEED MODE SERIES ROUNDS FROM SET WITH

PHONY := all
all: ## build the module, against the cached guest kernel or KDIR=<built kernel tree>
ifeq ($(KDIR),)
	@scripts/prepare kernel
endif
	@scripts/module modules

PHONY += demo
demo: ## build everything, boot the guest, or KDIR's kernel, and receive a file (FILE=) into a dma-buf (NIC=igb: on PCI, into a device's memory)
	@scripts/demo

PHONY += test
test: ## all tests, on the host and in the guests (TESTS="program[/test]..." for some, WITH=lint); KDIR=<built kernel tree>: what that kernel allows
	@scripts/test

PHONY += test-upstream
test-upstream: ## the kernel's own tests only (part of test; TESTS= as there)
	@scripts/test upstream

PHONY += test-debug
test-debug: ## in the guest with KASAN, lockdep, kmemleak and others only (part of test)
	@scripts/test debug

PHONY += test-kcsan
test-kcsan: ## in the guest that looks for data races (not part of test)
	@scripts/test kcsan

PHONY += test-pci
test-pci: ## on igb, a NIC on PCI, as QEMU emulates it, only (part of test)
	@scripts/test pci

PHONY += ucx
ucx: ## UCX's transport over device memory, for Debian 12's UCX, which is fetched (Documentation/ucx.rst)
	@scripts/ucx build

PHONY += test-ucx
test-ucx: ## that, on the host and between two namespaces in the guest (TESTS=; not part of test)
	@scripts/ucx test

PHONY += fuzz
fuzz: ## random operations on both providers, compared, for DURATION=600 seconds (SEED=, KDIR= as for demo)
	@scripts/fuzz

PHONY += fuzz-netlink
fuzz-netlink: ## malformed requests, cmsgs and tokens, guided by KCOV, for DURATION=600 seconds (SEED=)
	@scripts/fuzz netlink

PHONY += fuzz-bulk
fuzz-bulk: ## a malicious peer of the bulk library, on the host, for DURATION=600 seconds (SEED=)
	@scripts/fuzz bulk

PHONY += bench
bench: ## measure both providers, instructions and time (MODE=instructions|time|seam|profile SERIES= ROUNDS=)
	@scripts/bench

PHONY += bench-record
bench-record: ## the same, and put the figures into Documentation/ and into what test compares with
	@scripts/bench --record

PHONY += coverage
coverage: ## how much of the module the guest's tests run (GUEST=debug for all of them)
	@scripts/coverage

PHONY += host-checks
host-checks: ## the plain logic under Miri, a solver, deeper tests, and mutated; the library for musl and 32 bits
	@scripts/host-checks

PHONY += guest
guest: ## a shell in the booted guest (GUEST=debug: that one), or on KDIR's kernel, a netdevsim pair ready
	@scripts/shell

PHONY += modules_install
modules_install: all ## install the module where KDIR's modules live (INSTALL_MOD_PATH=)
	@scripts/module SAMPLES=n modules
	@scripts/module SAMPLES=n modules_install

PHONY += install
install: ## install module (KDIR=the running kernel's), devmem-cat, its pages (DESTDIR= PREFIX=/usr/local)
	@KDIR="$${KDIR:-/lib/modules/$$(uname -r)/build}" scripts/install module tools

PHONY += install-tools
install-tools: ## the same without the module
	@scripts/install tools

PHONY += install-dkms
install-dkms: ## install the module's source for DKMS, in /usr/src (DESTDIR=)
	@scripts/install dkms

PHONY += uninstall
uninstall: ## remove what these have installed (DESTDIR= PREFIX=/usr/local)
	@scripts/install uninstall

PHONY += deb
deb: ## a Debian package of devmem-cat and of the module's source for DKMS
	@scripts/deb

PHONY += patch
patch: ## apply the kernel series to a tree of your own, KSRC=<kernel source>, or a set of it, SET=<name>
	@scripts/patch

PHONY += bisect
bisect: ## build the kernel at each patch of the series, FROM=1 or FROM=seam/0002 on
	@scripts/bisect

PHONY += fmt
fmt: ## format the Rust code
	@scripts/fmt

PHONY += lint
lint: ## rustfmt, clippy, W=1, checkpatch, shellcheck, SPDX lines, call sites, claims, driver guide; fails on any finding
	@scripts/lint

PHONY += rust-analyzer
rust-analyzer: all ## write rust-project.json for rust-analyzer
	@scripts/rust-analyzer

PHONY += clean
clean: ## remove what was built from this tree; the kernel stays in the cache
	@scripts/clean

PHONY += help
help: ## this list
	@awk -F '## ' '/^[a-z_-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  The cache is \$$DEVMEM_CACHE, by default ~/.cache/devmem_provider."

.PHONY: $(PHONY)
