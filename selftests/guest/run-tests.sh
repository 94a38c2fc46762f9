#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: runs test programs one after the other. Each leaves what it printed in
# $WORK/ktap/<name>, and how it ended in $WORK/ktap/<name>.status; scripts/ktap.py
# judges them on the host.
# Usage: run-tests.sh SECONDS PROGRAM... (SECONDS: limit for each program)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

limit=$1
shift
load_netdevsim
load_provider

mkdir -p "$WORK/ktap"
i=0
for name; do
	i=$((i + 1))
	start=$EPOCHSECONDS
	printf '# %d/%d %s\n' "$i" $# "$name"
	rc=0
	timeout --kill-after=5 "$limit" "$DEVMEM_BIN/$name" 2>&1 </dev/null |
		tee "$WORK/ktap/$name" | sed 's/^/    /' || rc=${PIPESTATUS[0]}
	echo "$rc" >"$WORK/ktap/$name.status"
	printf '# %s: exit status %d, %d s\n' "$name" "$rc" $((EPOCHSECONDS - start))
done
