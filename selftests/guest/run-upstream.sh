#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: runs the kernel's own tests one after the other, each on a provider and
# on a fresh netdevsim pair. What they leave is as run-tests.sh has it.
# Usage: run-upstream.sh DIR SECONDS PROVIDER:PATH... (PATH below DIR, the selftests;
# SECONDS: limit for each program)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

dir=$1
limit=$2
shift 2

# No binding may outlive its owner for long, with or without the device. That is a minute, lest a busy
# machine fails: it takes a second or two.
bindings_gone()
{
	local i

	for i in {1..600}; do
		[ "$(wc -l </sys/kernel/debug/net_devmem/bindings)" -le 1 ] && return
		sleep 0.1
	done
	return 1
}

load_netdevsim
load_provider
begin_giving

i=0
for run; do
	i=$((i + 1))
	start=$EPOCHSECONDS
	provider=${run%%:*}
	path=${run#*:}
	name=$provider/${path##*/}
	printf '# %d/%d %s\n' "$i" $# "$name"
	mkdir -p "$WORK/ktap/$provider"
	echo "$provider" >/proc/sys/net/core/devmem_provider
	give_pair
	# The tests send from ports at random, some thirty of them, and without SO_REUSEADDR:
	# one that waits for late segments (TIME_WAIT) would be in use still.
	ip netns exec remote sysctl -qw net.ipv4.tcp_max_tw_buckets=0
	rc=0
	(cd "$dir/${path%/*}" && bounded --kill-after=20 "$limit" /usr/bin/python3 "${path##*/}") \
		2>&1 </dev/null | tee "$WORK/ktap/$name" | sed 's/^/    /' || rc=${PIPESTATUS[0]}
	remove_nics
	ip netns del remote
	if ! bindings_gone; then
		echo "# $name: bindings are left:"
		cat /sys/kernel/debug/net_devmem/bindings
		rc=$((rc ? rc : 1))
	fi
	echo "$rc" >"$WORK/ktap/$name.status"
	printf '# %s: exit status %d, %d s\n' "$name" "$rc" $((EPOCHSECONDS - start))
done
