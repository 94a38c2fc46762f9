#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: runs test programs one after the other, each on a provider. A run leaves
# what it printed in $WORK/ktap/<provider>/<program>, and how it ended beside that in
# <program>.status and <program>.took; scripts/ktap.py judges them on the host. A kernel that can tell what
# was left behind is asked in the end.
# Where $SHARED is set, a directory, other guests have the same list: who makes the directory
# of a run's number there runs it. A guest with NICs on PCI gives them to the programs.
# With -w kmemleak is turned off after these programs, which come first: of the others it is another guest
# that looks for lost memory.
# Usage: run-tests.sh [-w "PROGRAM..."] SECONDS PROVIDER/PROGRAM[/TEST,...]... (SECONDS: limit for each run)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

kmemleak=/sys/kernel/debug/kmemleak
# Whether it was booted to be on: one that has given up is a failure. And after which programs it is to be off.
leaks="" only=""
if [ -e "$kmemleak" ] && { ! grep -qx CONFIG_DEBUG_KMEMLEAK_DEFAULT_OFF=y "$KERNEL_CONFIG" ||
	grep -qw kmemleak=on /proc/cmdline; }; then
	leaks=1
fi
if [ "$1" = -w ]; then
	only=" $2 "
	shift 2
fi
limit=$1
shift
# Programs load what they need, and say what is missing.
load_netdevsim || [ -z "${NETDEVSIM_DIR:-}" ]
load_provider
if [ -n "${PLACE:-}" ]; then
	begin_giving
	give_igb
	give_memory
fi

# The guest that looks for data races does so from now on: booting has races of its own.
look_for_races()
{
	local kcsan=/sys/kernel/debug/kcsan

	[ "${GUEST:-}" = kcsan ] || return 0
	# fork() copies a task_struct of which other CPUs change what the copy does not use.
	echo '!memcpy_and_pad' >"$kcsan"
	echo on >"$kcsan"
}

# How many accesses were watched, lest nobody looked.
tell_watched()
{
	local watched

	[ "${GUEST:-}" = kcsan ] || return 0
	watched=$(sed -n 's/^setup_watchpoints: //p' /sys/kernel/debug/kcsan)
	echo "# accesses watched by KCSAN: $watched"
	[ "$watched" -gt 0 ]
}

# What nobody refers to any more, and yet was not freed: the kernel's log counts it, which
# fails the run. The first scan only finds what may be lost.
scan_memory()
{
	[ -n "$leaks" ] || return 0
	echo "# looking for lost memory"
	# kmemleak leaves alone what is younger than 5 s.
	sleep 6
	echo scan >"$kmemleak"
	echo scan >"$kmemleak"
	cp "$kmemleak" "$WORK/kmemleak"
	sed 's/^/    /' "$WORK/kmemleak"
}

# end_watch PROGRAM: if that is the first one of which another guest looks for lost memory.
end_watch()
{
	[ -n "$leaks" ] && [ -n "$only" ] && [[ "$only" != *" $1 "* ]] || return 0
	scan_memory
	echo off >"$kmemleak"
	leaks=""
}

# Nobody is bound: no NIC may have anything mapped.
check_mappings()
{
	local dump=/sys/kernel/debug/dma-api/dump

	[ -e "$dump" ] || return 0
	if grep ^netdevsim "$dump" >"$WORK/dma-mappings"; then
		echo "WARNING: DMA mappings are left, see $WORK/dma-mappings" >/dev/kmsg
	fi
}

# take NUMBER: is that run ours?
take()
{
	if [ -n "${SHARED:-}" ] && ! mkdir "$SHARED/$1" 2>/dev/null; then
		[ -d "$SHARED/$1" ] || die "no run can be taken in $SHARED"
		return 1
	fi
}

look_for_races
i=0
for run; do
	i=$((i + 1))
	take "$i" || continue
	IFS=/ read -r provider program names <<<"$run"
	end_watch "$program"
	start=$EPOCHSECONDS
	IFS=, read -r -a names <<<"$names"
	printf '# %d/%d %s\n' "$i" $# "$run"
	mkdir -p "$WORK/ktap/$provider"
	rc=0
	# A program for both chooses by itself.
	export DEVMEM_PROVIDER=$provider
	[ "$DEVMEM_PROVIDER" != both ] || unset DEVMEM_PROVIDER
	bounded --kill-after=5 "$limit" "$DEVMEM_BIN/$program" "${names[@]}" 2>&1 </dev/null |
		tee "$WORK/ktap/$provider/$program" | sed 's/^/    /' || rc=${PIPESTATUS[0]}
	echo "$rc" >"$WORK/ktap/$provider/$program.status"
	took=$((EPOCHSECONDS - start))
	echo "$took" >"$WORK/ktap/$provider/$program.took"
	printf '# %s: exit status %d, %d s\n' "$run" "$rc" "$took"
done
scan_memory
check_mappings
tell_watched
