#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: the tests of UCX's transport between two namespaces, on each provider that is named. What they print is
# left as run-tests.sh has it.
# Usage: ucx.sh DIR PROVIDER...
set -euo pipefail
. "$(dirname "$0")/lib.sh"

dir=$1
shift
"$(dirname "$0")/pair.sh"
# ucx_perftest wants one name for both.
for end in rx tx; do
	ip -n "$end" link set "eth$end" down
	ip -n "$end" link set "eth$end" name eth0
	ip -n "$end" link set eth0 up
done
ip netns exec tx ping -q -c 1 -w 10 192.0.2.1 >/dev/null || die "no IPv4 under the other name"
# What the tests allocate at once is a little more than the 64 MiB that udmabuf makes by default.
echo 256 >/sys/module/udmabuf/parameters/size_limit_mb
# Lanes land on queue 4 of either end, to which nothing else goes.
for end in rx tx; do
	ip netns exec "$end" bash -c ". selftests/guest/lib.sh && split_headers eth0"
	ip netns exec "$end" ethtool -X eth0 equal 4 >/dev/null
	ip netns exec "$end" ethtool -N eth0 flow-type tcp4 dst-port 5300 action 4 >/dev/null
done
for provider; do
	echo "$provider" >/proc/sys/net/core/devmem_provider
	mkdir -p "$WORK/ktap/$provider"
	rc=0
	SERVER="ip netns exec rx" CLIENT="ip netns exec tx" LANDING=4 LIMIT=900 \
		selftests/ucx.sh "$dir" 192.0.2.1 eth0 2>&1 </dev/null |
		tee "$WORK/ktap/$provider/ucx" || rc=$?
	echo "$rc" >"$WORK/ktap/$provider/ucx.status"
done
