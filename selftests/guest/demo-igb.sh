#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In a guest with NICs and memory on PCI: a file goes from an ordinary TCP sender by one NIC of igb to the other, which writes
# it into that memory. It stays there, for the host to look at, and PIECES tells where it is.
# Who is told of a NIC and of memory, as tests are, takes these.
# Usage: demo-igb.sh FILE PIECES
set -euo pipefail
. "$(dirname "$0")/lib.sh"

file=${1:?usage: $0 FILE PIECES}
pieces=${2:?usage: $0 FILE PIECES}
port=5001
queue=1

if [ -z "${NETIF:-}" ]; then
	load_provider
	begin_giving
	give_igb
	give_memory
fi

# zeros COUNT: so many bytes of a key.
zeros()
{
	printf '00:%.0s' $(seq "$1")
}

# igb has no rules for ports: by this key it has queue 1 receive the odd ones (Documentation/igb.rst).
ethtool -X "$NETIF" equal 2 hkey "$(zeros 15)02:$(zeros 23)02"
# A segment fills two buffers, behind 52 bytes of headers.
mtu=$((2 * 4096 + 52))
ip link set "$NETIF" mtu "$mtu"
ip -n "$REMOTE_ARGS" link set ethremote mtu "$mtu"
wait_for_link

# Into the guest's memory, as in the other demo.
copy=$(mktemp)
receiver=""
trap 'rm -f "$copy"; [ -z "$receiver" ] || kill "$receiver" 2>/dev/null || true' EXIT
cp "$file" "$copy"

# pci_of LINK: what a link in sysfs leads to.
pci_of()
{
	basename "$(readlink -f "$1")"
}

device=/sys/class/net/$NETIF/device
printf '%-26s%s\n' \
	provider "$(cat /proc/sys/net/core/devmem_provider)" \
	NIC "$(pci_of "$device/driver"), $(pci_of "$device"), queue $queue" \
	memory "$(pci_of "/sys/bus/pci/devices/${PCI_MEMORY%/*}/driver"), ${PCI_MEMORY%/*}, BAR ${PCI_MEMORY#*/}" \
	'SHA-256 of the file' "$(sha256sum <"$copy" | cut -d' ' -f1)"

"$DEVMEM_BIN/devmem-cat" receive --listen "$LOCAL_V4:$port" -i "$NETIF" -q "$queue" \
	--vfio "$PCI_MEMORY" --pieces "$pieces" &
receiver=$!
until ss -Hltn sport = ":$port" | grep -q .; do
	kill -0 "$receiver"
	sleep 0.1
done
ip netns exec "$REMOTE_ARGS" socat -u -b 262144 STDIN "TCP:$LOCAL_V4:$port" <"$copy" ||
	# A receiver that gave up says why, and one that got no connection waits for it.
	{ sleep 1 && kill "$receiver" 2>/dev/null; } || true
wait "$receiver"
