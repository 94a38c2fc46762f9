# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For scripts that run in the guest: its modules and a pair of netdevsim NICs.
# Sourced, after `set -euo pipefail`. A kernel of the user's own finds netdevsim by modprobe, and may take
# no module of ours: NETDEVSIM_DIR and DEVMEM_MODULE are not set then.

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

# bounded OPTION... SECONDS COMMAND...: what timeout does. In the end all that the command has left ends, too:
# it would keep open where the output goes to, and whoever reads there would wait for it.
bounded()
{
	local rc=0

	# timeout makes a process group of its own.
	(echo "$BASHPID" >"$WORK/group" && exec timeout "$@") || rc=$?
	kill -KILL -- "-$(<"$WORK/group")" 2>/dev/null || true
	return "$rc"
}

load_netdevsim()
{
	local m

	if [ -z "${NETDEVSIM_DIR:-}" ]; then
		[ -e /sys/bus/netdevsim ] || modprobe netdevsim
		return
	fi
	for m in ptp_mock netdevsim; do
		is_loaded "$m" || insmod "$NETDEVSIM_DIR/$m.ko"
	done
}

load_provider()
{
	[ -z "${DEVMEM_MODULE:-}" ] || is_loaded devmem_provider || insmod "$DEVMEM_MODULE"
}

# new_nic ID NETNS NAME: a netdevsim device, named NAME and moved into NETNS.
new_nic()
{
	local dir=/sys/bus/netdevsim/devices/netdevsim$1/net

	echo "$1 1 $QUEUES" >/sys/bus/netdevsim/new_device
	# Where udev runs, it may give it another name meanwhile.
	for _ in {1..20}; do
		! ip link set dev "$(ls "$dir")" name "$3" netns "$2" || return 0
		sleep 0.1
	done
	die "no netdevsim device $3"
}

ifindex()
{
	ip netns exec "$1" cat "/sys/class/net/$2/ifindex"
}

# new_pair NETNS1 NAME1 NETNS2 NAME2: two NICs, linked to one another.
new_pair()
{
	local fd1 fd2

	new_nic "$RX_ID" "$1" "$2"
	new_nic "$TX_ID" "$3" "$4"
	exec {fd1}<"/run/netns/$1" {fd2}<"/run/netns/$3"
	echo "$fd1:$(ifindex "$1" "$2") $fd2:$(ifindex "$3" "$4")" \
		>/sys/bus/netdevsim/link_device
	exec {fd1}<&- {fd2}<&-
}

remove_nics()
{
	echo "$TX_ID" >/sys/bus/netdevsim/del_device
	echo "$RX_ID" >/sys/bus/netdevsim/del_device
}

# make_pair: namespaces rx and tx, with ethrx and ethtx linked to one another.
make_pair()
{
	local ns

	for ns in rx tx; do
		ip netns add "$ns"
		ip -n "$ns" link set lo up
	done
	new_pair rx ethrx tx ethtx
	ip -n rx addr add 192.0.2.1/24 dev ethrx
	ip -n rx addr add 2001:db8::1/64 dev ethrx nodad
	ip -n tx addr add 192.0.2.2/24 dev ethtx
	ip -n tx addr add 2001:db8::2/64 dev ethtx nodad
	ip -n rx link set ethrx up
	ip -n tx link set ethtx up
}

remove_pair()
{
	remove_nics
	ip netns del tx
	ip netns del rx
}

# begin_giving: a name for the guest's first namespace, in which tests run that are given a pair.
begin_giving()
{
	ip netns attach local $$
	ip link set lo up
}

# give_ends PAIR: a NIC in the first namespace, joined to one in the namespace `remote` by the command PAIR, and the
# variables by which tests are told of them: drivers/net/README.rst of the kernel's selftests.
give_ends()
{
	export NETIF=ethlocal LOCAL_V4=192.0.2.1 LOCAL_V6=2001:db8:1::1
	export REMOTE_TYPE=netns REMOTE_ARGS=remote REMOTE_V4=192.0.2.2 REMOTE_V6=2001:db8:1::2
	export LOCAL_PREFIX_V6=2001:db8:2::/64

	ip netns add remote
	ip -n remote link set lo up
	"$1" local "$NETIF" remote ethremote

	ip addr add "$LOCAL_V4/24" dev "$NETIF"
	ip addr add "$LOCAL_V6/64" dev "$NETIF" nodad
	ip -n remote addr add "$REMOTE_V4/24" dev ethremote
	ip -n remote addr add "$REMOTE_V6/64" dev ethremote nodad
	ip link set "$NETIF" up
	ip -n remote link set ethremote up
}

# give_pair: the same, with a netdevsim pair.
give_pair()
{
	give_ends new_pair
}

# split_headers NIC: Debian 12's ethtool cannot, and the kernel's tool wants python3-yaml. Without either each test has
# that done, and waits for the link.
split_headers()
{
	ethtool -G "$1" tcp-data-split on 2>/dev/null ||
		/usr/bin/python3 "$KSRC/tools/net/ynl/pyynl/cli.py" --family ethtool --do rings-set \
			--json "{\"header\": {\"dev-name\": \"$1\"}, \"tcp-data-split\": \"enabled\"}" >/dev/null 2>&1 ||
		echo "# there is nobody to have $1 split headers"
}

# igb_pair NETNS1 NAME1 NETNS2 NAME2: the two NICs on PCI, which QEMU has joined, with as many queues as they have, and with
# headers split.
igb_pair()
{
	local nic nics=()

	is_loaded igb || insmod "$NETDEVSIM_DIR/igb.ko"
	for nic in /sys/bus/pci/drivers/igb/*:*/net/*; do
		nic=${nic##*/}
		ip link set dev "$nic" down
		ethtool -L "$nic" combined 8
		split_headers "$nic"
		nics+=("$nic")
	done
	[ ${#nics[@]} = 2 ] || die "there are not two NICs of igb: ${nics[*]}"
	ip link set dev "${nics[0]}" name "$2" netns "$1"
	ip link set dev "${nics[1]}" name "$4" netns "$3"
}

# wait_for_link: it takes a NIC seconds to have it, after whatever resets it.
wait_for_link()
{
	local _

	for _ in {1..100}; do
		! ping -q -c 1 -w 1 "$REMOTE_V4" >/dev/null || return 0
		sleep 0.2
	done
	die "$NETIF does not reach $REMOTE_V4"
}

# give_igb: the same, with igb on PCI.
give_igb()
{
	give_ends igb_pair
	wait_for_link
}

# give_memory: the device on PCI that is nothing but memory (ivshmem) becomes vfio-pci's, and tests are told of it.
give_memory()
{
	local unsafe=/sys/module/vfio/parameters/enable_unsafe_noiommu_mode device

	for device in /sys/bus/pci/devices/*; do
		[ "$(<"$device/vendor") $(<"$device/device")" = "0x1af4 0x1110" ] || continue
		[ -e "$device/iommu_group" ] || echo 1 >"$unsafe"
		echo vfio-pci >"$device/driver_override"
		echo "${device##*/}" >/sys/bus/pci/drivers_probe
		export PCI_MEMORY=${device##*/}/2
		return
	done
	die "there is no memory on PCI"
}
