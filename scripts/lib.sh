# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034 # read by those who source it
#
# What every script here shares: places, versions, and how to talk while working.
# Sourced, after `set -euo pipefail`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
CACHE=${DEVMEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/devmem_provider}
mkdir -p "$CACHE"
CACHE=$(cd "$CACHE" && pwd -P)

case $CACHE/ in
"$ROOT"/*)
	echo "DEVMEM_CACHE lies inside the work tree: $CACHE" >&2
	exit 1
	;;
esac

case $CACHE$ROOT in
*[[:space:]:]*)
	echo "the kernel's build takes no space or colon in a path: $ROOT, $CACHE" >&2
	exit 1
	;;
esac

# Not every shell has put a folder there: dash and zsh leave the ~ of KSRC=~/linux as it is.
for name in KSRC KDIR MO FILE DESTDIR INSTALL_PATH; do
	# shellcheck disable=SC2088 # as it was typed
	case ${!name:-} in
	"~" | "~/"*) printf -v "$name" '%s' "$HOME${!name#"~"}" ;;
	esac
done
unset name

# Pinned versions.
KERNEL_SERIES=7.3
KERNEL_VERSION=7.3.4-1~bpo13+1
BINDGEN_VERSION=0.73.2
BINDGEN_MIN=0.71.1
RUST_MIN=1.85.0
VNG_VERSION=1.42
QEMU_MIN=8.1
LIBURING_VERSION=2.15-1
UCX_VERSION=1.13.1-1

# The guest, that is its kernel: fast, or one that looks for bugs. Each has a configuration of its own in
# selftests/guest/, on top of kernel.config. For "own" it is what the user has built in KDIR, as it is.
GUEST=${GUEST:-fast}
export GUEST
case $GUEST in
fast | debug | kcsan) ;;
*)
	# KDIR has it.
	if [ "$GUEST" != own ] || [ -z "${KDIR:-}" ]; then
		echo "there is no guest $GUEST: GUEST is fast, debug or kcsan" >&2
		exit 1
	fi
	;;
esac

# Which patches that kernel has: all of them, or only those that make netdevsim a NIC for
# device memory ("netdevsim"), to compare with.
PATCHES=${PATCHES:-all}
export PATCHES

# What the user told our Makefile is not meant for the makes that the scripts run.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

# Nor is where the user has his kernels built: modules would be for that kernel, whatever KDIR says.
unset KBUILD_OUTPUT

# LLVM=1 is what kernel developers have in their environment: it does not choose one.
[ "${LLVM:-1}" != 1 ] || LLVM=-19
export LLVM

# What this checkout builds. Several checkouts can share a cache.
OUT=$CACHE/out/$(printf '%s' "$ROOT" | sha256sum | cut -c1-12)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$OUT/target}

# Time is counted from the start of the command the user typed.
export DEVMEM_T0=${DEVMEM_T0:-$EPOCHSECONDS}

elapsed()
{
	local s=$((EPOCHSECONDS - DEVMEM_T0))

	printf '%d:%02d' $((s / 60)) $((s % 60))
}

say()
{
	printf '[%s] %s\n' "$(elapsed)" "$*"
}

die()
{
	printf '[%s] error: %s\n' "$(elapsed)" "$*" >&2
	exit 1
}

# within SECONDS: that limit, or what is left of DEVMEM_BUDGET, the seconds that the whole command
# may take: the rest is for telling what came of it.
within()
{
	local limit=$1 left

	if [ -n "${DEVMEM_BUDGET:-}" ]; then
		left=$((DEVMEM_BUDGET - 90 - (EPOCHSECONDS - DEVMEM_T0)))
		limit=$((left < limit ? left : limit))
	fi
	echo $((limit > 1 ? limit : 1))
}

# version_ge A B: is A the same as B or newer?
version_ge()
{
	[ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | sed -n 1p)" = "$2" ]
}

# follow PID LABEL COUNTER [TOTAL]: show how far the job PID is until it ends, and
# return its status. COUNTER is a command that prints a number, TOTAL what it will
# come to; without it only the number is shown, and large ones as percent. On a terminal one line is
# rewritten, otherwise a line is printed every 20 seconds.
follow()
{
	local pid=$1 label=$2 counter=$3 total=${4:-0}
	local n text last=$EPOCHSECONDS tty="" shown="" rc=0

	[ -t 1 ] && tty=1
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.5
		n=$($counter || true)
		n=${n:-0}
		if [ "$total" -gt 0 ]; then
			# The total is a measured one: never claim the end before it.
			[ "$n" -ge "$total" ] && n=$((total - 1))
			if [ "$total" -lt 1000 ]; then
				text="$label: $n of $total"
			else
				text="$label: $((n * 100 / total)) %"
			fi
		else
			text="$label: $n"
		fi
		if [ -n "$tty" ]; then
			printf '\r\033[K[%s] %s' "$(elapsed)" "$text"
			shown=1
		elif [ $((EPOCHSECONDS - last)) -ge 20 ]; then
			say "$text"
			last=$EPOCHSECONDS
		fi
	done
	[ -n "$shown" ] && printf '\r\033[K'
	wait "$pid" || rc=$?
	return "$rc"
}

# kill_children: ends what this shell started in the background; for traps.
kill_children()
{
	local pids

	pids=$(jobs -p)
	# shellcheck disable=SC2086 # one word per process
	[ -z "$pids" ] || kill $pids 2>/dev/null || true
}

# wait_all PID...: waits for every one, fails if any failed.
wait_all()
{
	local pid rc=0

	for pid; do
		wait "$pid" || rc=$?
	done
	return "$rc"
}

# bytes_in FILE_OR_DIR: its size so far, for follow.
bytes_in()
{
	du -sb "$1" 2>/dev/null | cut -f1
}

# A private apt: its own sources, lists and packages beside the host's, which stay
# as they are. It reads one suite of Debian from the mirror that the host uses
# already, and verifies it with Debian's own keyring.
apt_suite=""
apt_opts=()

debian_mirror()
{
	local uri

	if [ -n "${DEVMEM_DEBIAN_MIRROR:-}" ]; then
		echo "$DEVMEM_DEBIAN_MIRROR"
		return
	fi
	# "Origin" is known once the host ran `apt-get update`, the codename always.
	# shellcheck disable=SC2016 # apt's variable, not ours
	uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
		'Origin: Debian' 'Label: Debian' | sed -n 1p)
	if [ -z "$uri" ]; then
		# shellcheck source=/dev/null disable=SC2016
		uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' \
			"Release: $(. /etc/os-release && echo "$VERSION_CODENAME")" | sed -n 1p)
	fi
	[ -n "$uri" ] || die "apt knows no Debian mirror: set DEVMEM_DEBIAN_MIRROR to one"
	echo "$uri"
}

# apt_update SUITE [deb-src]: reads its index, or that of sources, too, and keeps others out until apt_unlock.
apt_update()
{
	local dir=$CACHE/apt/$1${2:+-src} keyring mirror kind

	apt_suite=$1
	apt_opts=(
		-o Dir::Etc::sourcelist="$dir/sources.list"
		-o Dir::Etc::sourceparts=/dev/null
		-o Dir::State::lists="$dir/lists"
		-o Dir::Cache="$dir/cache"
		-o APT::Sandbox::User="$(id -un)"
		-o Acquire::Languages=none
		-o Acquire::Retries=3
	)
	exec 7>"$CACHE/apt.lock"
	flock 7
	for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do
		[ -e "$keyring" ] && break
	done
	[ -e "$keyring" ] || die "Debian's archive keyring is missing: install debian-archive-keyring"
	mirror=$(debian_mirror)
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	for kind in deb ${2:-}; do
		echo "$kind [signed-by=$keyring] $mirror $apt_suite main"
	done >"$dir/sources.list"
	# A warning here would be one about a missing signature or a failed fetch.
	apt-get -qq "${apt_opts[@]}" -o APT::Update::Error-Mode=any update ||
		die "cannot read $apt_suite from $mirror"
}

apt_unlock()
{
	flock -u 7
}

# apt_versions PACKAGE: what the private apt offers, newest first.
apt_versions()
{
	apt-cache "${apt_opts[@]}" madison "$1" | awk '$0 ~ /Packages$/ { print $3 }'
}

# apt_choose PACKAGE VERSION: that version if it is offered, the newest otherwise.
apt_choose()
{
	local offered newest

	offered=$(apt_versions "$1")
	[ -n "$offered" ] || die "$apt_suite offers no $1 any more"
	if grep -qxF "$2" <<<"$offered"; then
		echo "$2"
		return
	fi
	newest=$(head -n1 <<<"$offered")
	say "$1 $2 is gone from the archive, taking $newest" >&2
	echo "$newest"
}

# not_pinned: a line for what is not of the version that is pinned above.
not_pinned()
{
	local version

	version=$(kernel_version)
	[ "${version:-$KERNEL_VERSION}" = "$KERNEL_VERSION" ] ||
		echo "this was linux $version: the pinned $KERNEL_VERSION is gone from the archive"
	version=$(cat "$CACHE/tools/liburing-$LIBURING_VERSION/version" 2>/dev/null || true)
	[ "${version:-$LIBURING_VERSION}" = "$LIBURING_VERSION" ] ||
		echo "this was liburing $version: the pinned $LIBURING_VERSION is gone from the archive"
}

# apt_fetch PACKAGE VERSION DIR: downloads PACKAGE into DIR, its hash checked
# against the signed index.
apt_fetch()
{
	local package=$1 version=$2 dir=$3 size

	size=$(apt-cache "${apt_opts[@]}" show "$package=$version" | awk '$1 == "Size:" { print $2; exit }')
	mkdir -p "$dir"
	(cd "$dir" && exec apt-get -qq "${apt_opts[@]}" download "$package=$version") &
	follow $! "downloading $package $version ($((size / 1000000)) MB)" \
		"bytes_in $dir" "$size" || die "cannot download $package $version"
}

# toolchain: puts what scripts/tools installed in front of the host's.
toolchain()
{
	PATH=$CACHE/tools/bindgen-$BINDGEN_VERSION/bin:$CACHE/tools/virtme-ng-$VNG_VERSION/bin:$PATH
	PATH=$CACHE/tools/qemu-$QEMU_MIN/bin:$PATH
	export PATH
	if [ -z "${RUST_LIB_SRC:-}" ] && command -v rustc >/dev/null; then
		local dir version

		dir=$(rustc --print sysroot)/lib/rustlib/src/rust/library
		version=$(rustc_version)
		[ -e "$dir/core/src/lib.rs" ] || dir=$CACHE/tools/rust-src-$version/library
		RUST_LIB_SRC=$dir
	fi
	export RUST_LIB_SRC
}

rustc_version()
{
	rustc --version 2>/dev/null | awk '{ print $2 }'
}

# The LLVM that rustc is made with: its major version.
rustc_llvm_version()
{
	rustc --version --verbose | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'
}

qemu_version()
{
	qemu-system-x86_64 --version 2>/dev/null | sed -n '1s/.* version \([0-9.]*\).*/\1/p'
}

# qemu_lacks: tells why there is no guest with a NIC, or fails.
qemu_lacks()
{
	! version_ge "$(qemu_version)" "$QEMU_MIN" || return
	echo "the NIC is emulated by QEMU $QEMU_MIN and newer, this is $(qemu_version)"
}

bindgen_version()
{
	bindgen --version 2>/dev/null | awk '{ print $2 }'
}

# Where scripts/kernel keeps things, for a kernel version and what else the
# objects depend on.
kernel_version()
{
	cat "$CACHE/source/for-$KERNEL_VERSION" 2>/dev/null || true
}

kernel_source()
{
	local dir

	dir=$CACHE/source/$(kernel_version)
	[ "$PATCHES" = all ] || dir+=/$PATCHES
	echo "$dir"
}

# The configuration of the guest's kernel. It is the fast one that has NICs on PCI.
kernel_config()
{
	local -a on_pci=()

	[ "$GUEST" != fast ] || on_pci=("$ROOT/selftests/guest/pci.config")
	cat "$ROOT/selftests/guest/kernel.config" "${on_pci[@]}" "$ROOT/selftests/guest/$GUEST.config"
}

kernel_obj()
{
	local key

	key=$({
		kernel_config
		clang"$LLVM" --version
		ld.lld"$LLVM" --version
		rustc --version --verbose
		bindgen --version
	} | sha256sum | cut -c1-12)
	echo "$(kernel_source)/obj-$key"
}

# config_lacks KDIR: the options of the guests' kernel that the one built there has not, neither y nor m.
config_lacks()
{
	local set='s/^\(CONFIG_[A-Z0-9_]*\)=[ym]$/\1/p'

	LC_ALL=C comm -23 <(sed -n "$set" "$ROOT/selftests/guest/kernel.config" | LC_ALL=C sort -u) \
		<(sed -n "$set" "$1/.config" | LC_ALL=C sort -u)
}

# own_kernel: checks that KDIR has a kernel to boot, and says which.
own_kernel()
{
	local lacks

	KDIR=$(realpath -m "$KDIR")
	[ -e "$KDIR/.config" ] || die "$KDIR is no configured kernel build tree: it has no .config (KDIR)"
	[ -e "$KDIR/arch/x86/boot/bzImage" ] ||
		die "the kernel in $KDIR has not been built: it has no arch/x86/boot/bzImage (KDIR)"
	lacks=$(config_lacks "$KDIR")
	say "the kernel in $KDIR: linux $(own_release)"
	[ -z "$lacks" ] ||
		say "of the options in selftests/guest/kernel.config it lacks $(wc -w <<<"$lacks"):" "${lacks//$'\n'/ }"
}

# The release of the kernel in KDIR.
own_release()
{
	cat "$KDIR/include/config/kernel.release" 2>/dev/null || echo "of unknown release"
}

# own_module: where the module for the kernel in KDIR is, if that takes one.
own_module()
{
	local ko

	ko=$(module_dir "$KDIR")/devmem_provider.ko
	[ ! -e "$ko" ] || echo "$ko"
}

# get_ready WHAT [PART]: has up to date what runs in the guest, as `scripts/prepare PART` does; with KDIR what runs on
# the kernel there. WHAT takes the series.
get_ready()
{
	if [ -z "${KDIR:-}" ]; then
		"$ROOT/scripts/prepare" "${@:2}"
		return
	fi
	KDIR=$(realpath -m "$KDIR")
	export GUEST=own KDIR
	"$ROOT/scripts/prepare" own
	[ -n "$(own_module)" ] || die "$1 takes a kernel with the series: make patch KSRC=$KDIR"
}

# no_kdir WHAT...: refuses KDIR where it would mean nothing.
no_kdir()
{
	[ -z "${KDIR:-}" ] || die "$*, not with a kernel of your own: leave out KDIR=$KDIR"
}

# lock FD MODE: MODE is -s for shared, -x for exclusive. Guests share the tree's lock and
# that of their objects, which nobody may replace then. First comes the tree's.
lock()
{
	flock -n "$2" "$1" && return
	say "waiting for another run on this cache to end"
	flock "$2" "$1"
}

tree_lock=$CACHE/kernel.lock

# open_tree_lock: has FD 9 be the tree's lock: the one that our caller holds, if he does, which
# he then goes on holding.
open_tree_lock()
{
	[ /proc/self/fd/9 -ef "$tree_lock" ] || exec 9>"$tree_lock"
}

# obj_lock OBJ: the lock of an object directory.
obj_lock()
{
	echo "$CACHE/kernel-${1##*/}.lock"
}

# Where scripts/upstream builds the kernel's own tests, for a kernel version, a
# toolchain and what else goes into it. Our patches do not touch the tests.
upstream_dir()
{
	local key

	key=$({
		kernel_version
		cat "$ROOT/scripts/upstream"
		cat "$CACHE/tools/liburing-$LIBURING_VERSION/version"
		clang"$LLVM" --version
		gcc --version
		/usr/bin/python3 --version
	} | sha256sum | cut -c1-12)
	echo "$CACHE/upstream/$key"
}

# module_dir KDIR: where the module for that kernel is built.
module_dir()
{
	echo "$OUT/module-$(realpath "$1" | sha256sum | cut -c1-12)"
}

# test_module_dir KDIR: the same for the tests' own module.
test_module_dir()
{
	echo "$(module_dir "$1")-test"
}

# series_patches DIR: the patches in DIR in their order, which are in folders, a set each. Cover
# letters are none.
series_patches()
{
	find "$1" -name '[0-9]*.patch' ! -name '0000-*' | LC_ALL=C sort
}

# series_set NAME: the folder of a set.
series_set()
{
	local dir

	for dir in "$ROOT"/patches/[0-9][0-9]-"$1"; do
		[ -d "$dir" ] || break
		echo "$dir"
		return
	done
	die "no set $1; there are: $(find "$ROOT/patches" -mindepth 1 -maxdepth 1 -printf '%f\n' |
		sort | cut -d- -f2- | tr '\n' ' ')"
}

# set_needs DIR: the names of the sets that a set's cover letter says it depends on.
set_needs()
{
	sed -n 's/^Depends-on: //p' "$1/0000-cover-letter.patch" | sed '/^none$/d'
}

# touched PATCH...: every file that the patches create, change, rename or delete.
touched()
{
	[ $# -eq 0 ] || sed -n 's,^diff --git a/\(.*\) b/\(.*\)$,\1\n\2,p' "$@" | sort -u
}
