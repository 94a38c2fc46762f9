#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: measures the first case of a series again and again, until the host, which
# looks on, has seen enough and makes $WORK/enough. $WORK/series.log tells the rounds.
# Usage: run-profile.sh SERIES
set -euo pipefail
. "$(dirname "$0")/lib.sh"

load_netdevsim
load_provider
cp /proc/kallsyms "$WORK/kallsyms"
"$DEVMEM_BIN/devmem-bench" --endless "$1" </dev/null >/dev/null 2>"$WORK/series.log" &
bench=$!
while [ ! -e "$WORK/enough" ]; do
	kill -0 "$bench" 2>/dev/null || die "$(tail -n 1 "$WORK/series.log")"
	sleep 0.1
done
kill "$bench"
wait "$bench" || true
