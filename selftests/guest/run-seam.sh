#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: measures what the seam costs on this kernel. Leaves lines of JSON in
# $WORK/seam.jsonl. BENCH is the directory of the kernel's own benchmark of page_pool.
# Usage: run-seam.sh BENCH [OPTION...]
set -euo pipefail

export BENCH_PAGE_POOL=$1/bench_page_pool.ko DEVMEM_PROVIDER=builtin
shift
# Only that: the guest that counts instructions loses some of what it prints.
"$DEVMEM_BIN/bench-seam" "$@" </dev/null 2>"$WORK/seam.log" | grep '^{' >"$WORK/seam.jsonl"
