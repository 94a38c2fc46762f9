#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Runs ucx.sh between two namespaces, each of which has lo and a device that is joined with the other one's.
# Usage: ucx-pair.sh DIR
set -euo pipefail

dir=${1:?usage: $0 DIR}
# As anybody may, in a namespace of users.
[ -n "${UCX_PAIR:-}" ] || UCX_PAIR=1 exec unshare -rnm "$0" "$dir"
ends=()
trap 'kill "${ends[@]}"' EXIT
for n in 0 1; do
	# UCX looks for devices in /sys.
	exec {said}< <(exec unshare -nm bash -c 'mount -t sysfs sysfs /sys && echo there && exec sleep inf')
	ends[n]=$!
	read -r _ <&"$said"
done
ip link add below netns "${ends[0]}" type veth peer below netns "${ends[1]}"
for n in 0 1; do
	in=(nsenter -n -t "${ends[n]}")
	"${in[@]}" ip addr add "198.51.100.$((n + 1))/24" dev below
	"${in[@]}" ip link set below up
	"${in[@]}" ip link set lo up
	# Its speed is unknown, as that of many virtual machines' devices is.
	"${in[@]}" ip link add eth0 type vxlan id 1 remote "198.51.100.$((2 - n))" dstport 4789
	"${in[@]}" ip addr add "192.0.2.$((n + 1))/24" dev eth0
	"${in[@]}" ip link set eth0 up
done
# The kernel takes its time to say that they have a carrier.
for pid in "${ends[@]}"; do
	until nsenter -n -t "$pid" ip link show dev below | grep -q 'state UP'; do
		sleep 0.1
	done
done
export UCX_NET_DEVICES=lo,eth0
SERVER="nsenter -n -m --wd=$PWD -t ${ends[0]}" CLIENT="nsenter -n -m --wd=$PWD -t ${ends[1]}" \
	"${0%/*}/ucx.sh" "$dir" 192.0.2.1 eth0
