# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts that run in the guest: its modules and a pair of netdevsim NICs.
# Sourced, after `set -euo pipefail`.

: "${DEVMEM_MODULE:?}" "${NETDEVSIM_DIR:?}"

# The pair that the demo and the shell use. The tests make their own.
RX_ID=10
TX_ID=11
QUEUES=8

die()
{
	echo "guest: $*" >&2
	exit 1
}

is_loaded()
{
	[ -e "/sys/module/$1" ]
}

load_netdevsim()
{
	local m

	for m in psample ptp_mock netdevsim; do
		is_loaded "$m" || insmod "$NETDEVSIM_DIR/$m.ko"
	done
}

load_provider()
{
	is_loaded devmem_provider || insmod "$DEVMEM_MODULE"
}

# new_nic ID NETNS NAME: a netdevsim device, named NAME and moved into NETNS.
new_nic()
{
	local dir=/sys/bus/netdevsim/devices/netdevsim$1/net

	echo "$1 1 $QUEUES" >/sys/bus/netdevsim/new_device
	# udev gives it another name, at some time after it appeared.
	udevadm settle
	ip link set dev "$(ls "$dir")" name "$3" netns "$2"
}

ifindex()
{
	ip netns exec "$1" cat "/sys/class/net/$2/ifindex"
}

# make_pair: namespaces rx and tx, with ethrx and ethtx linked to one another.
make_pair()
{
	local ns fd_rx fd_tx

	for ns in rx tx; do
		ip netns add "$ns"
		ip -n "$ns" link set lo up
	done
	new_nic "$RX_ID" rx ethrx
	new_nic "$TX_ID" tx ethtx
	exec {fd_rx}</run/netns/rx {fd_tx}</run/netns/tx
	echo "$fd_rx:$(ifindex rx ethrx) $fd_tx:$(ifindex tx ethtx)" \
		>/sys/bus/netdevsim/link_device
	exec {fd_rx}<&- {fd_tx}<&-

	ip -n rx addr add 192.0.2.1/24 dev ethrx
	ip -n rx addr add 2001:db8::1/64 dev ethrx nodad
	ip -n tx addr add 192.0.2.2/24 dev ethtx
	ip -n tx addr add 2001:db8::2/64 dev ethtx nodad
	ip -n rx link set ethrx up
	ip -n tx link set ethtx up
}

remove_pair()
{
	echo "$TX_ID" >/sys/bus/netdevsim/del_device
	echo "$RX_ID" >/sys/bus/netdevsim/del_device
	ip netns del tx
	ip netns del rx
}
