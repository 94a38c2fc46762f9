#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: a file goes from an ordinary TCP sender in one namespace into a
# dma-buf in the other.
# Usage: demo.sh FILE
set -euo pipefail

file=${1:?usage: $0 FILE}

"$(dirname "$0")/pair.sh"
# Into the guest's memory: what the sender reads from the host comes slower than TCP
# could take it.
copy=$(mktemp)
cp "$file" "$copy"
exec "$DEVMEM_BIN/devmem-demo" run --file "$copy" \
	--rx-netns rx --rx-if ethrx --tx-netns tx --addr 192.0.2.1 --port 5201 --queue 4
