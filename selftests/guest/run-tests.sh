#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: runs test programs one after the other, each on a provider. A run leaves
# what it printed in $WORK/ktap/<provider>/<program>, and how it ended beside that in
# <program>.status; scripts/ktap.py judges them on the host.
# Usage: run-tests.sh SECONDS PROVIDER/PROGRAM... (SECONDS: limit for each run)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

limit=$1
shift
load_netdevsim
load_provider

i=0
for run; do
	i=$((i + 1))
	start=$EPOCHSECONDS
	printf '# %d/%d %s\n' "$i" $# "$run"
	mkdir -p "$WORK/ktap/${run%/*}"
	rc=0
	DEVMEM_PROVIDER=${run%/*} timeout --kill-after=5 "$limit" "$DEVMEM_BIN/${run#*/}" 2>&1 </dev/null |
		tee "$WORK/ktap/$run" | sed 's/^/    /' || rc=${PIPESTATUS[0]}
	echo "$rc" >"$WORK/ktap/$run.status"
	printf '# %s: exit status %d, %d s\n' "$run" "$rc" $((EPOCHSECONDS - start))
done
