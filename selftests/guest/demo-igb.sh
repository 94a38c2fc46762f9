#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest, with NICs and memory on PCI: a file goes from an ordinary TCP sender through two NICs of igb into that memory,
# and stays there. Where it is the host finds in $WORK/pieces.
# Usage: demo-igb.sh FILE
set -euo pipefail
. "$(dirname "$0")/lib.sh"

file=${1:?usage: $0 FILE}

# zeros COUNT: so many bytes of a key.
zeros()
{
	printf '00:%.0s' $(seq "$1")
}

load_provider
make_pair igb_pair
give_memory
# Flows to odd ports are queue 1's, all else is queue 0's.
ip netns exec rx ethtool -X ethrx equal 2 hkey "$(zeros 15)02:$(zeros 23)02"
ip -n rx link set ethrx mtu 9000
ip -n tx link set ethtx mtu 9000
wait_for_link rx 192.0.2.2

copy=$(mktemp)
cp "$file" "$copy"
"$DEVMEM_BIN/devmem-demo" keep --file "$copy" --rx-netns rx --rx-if ethrx --tx-netns tx \
	--addr 192.0.2.1 --port 5201 --queue 1 --memory 64 --device "$PCI_MEMORY" --pieces "$WORK/pieces"
