#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: measures series of the bench. Each leaves what it measured in
# $WORK/series/<series>.jsonl, what it said in <series>.log, and how it ended in
# <series>.status. The console is not used: where instructions are counted, it loses some.
# Nor is there a limit of time: idle time takes none there, and is over at once.
# Usage: run-bench.sh [OPTION...] -- SERIES...
set -euo pipefail
. "$(dirname "$0")/lib.sh"

options=()
while [ "$1" != -- ]; do
	options+=("$1")
	shift
done
shift

load_netdevsim
load_provider
mkdir -p "$WORK/series"
failed=0
for series; do
	rc=0
	"$DEVMEM_BIN/devmem-bench" "${options[@]}" "$series" </dev/null \
		>"$WORK/series/$series.jsonl" 2>"$WORK/series/$series.log" || rc=$?
	echo "$rc" >"$WORK/series/$series.status"
	[ "$rc" = 0 ] || failed=1
done
exit "$failed"
