#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: a file goes from an ordinary TCP sender in one namespace into a
# dma-buf in the other, then from one dma-buf into another, by devmem-cat, and last by
# devmem-cat to a reader on the same machine, without a NIC and a copy.
# Usage: demo.sh FILE
set -euo pipefail

file=${1:?usage: $0 FILE}

"$(dirname "$0")/pair.sh"
# Into the guest's memory: what the sender reads from the host comes slower than TCP
# could take it.
copy=$(mktemp)
cp "$file" "$copy"
"$DEVMEM_BIN/devmem-demo" run --file "$copy" \
	--rx-netns rx --rx-if ethrx --tx-netns tx --addr 192.0.2.1 --port 5201 --queue 4

echo
printf '%-26s%14s%14s\n' 'dma-buf to dma-buf' blocking io_uring
"$DEVMEM_BIN/devmem-demo" copy --file "$copy" --rx-netns rx --rx-if ethrx \
	--tx-netns tx --tx-if ethtx --addr 192.0.2.1 --port 5203 --queue 4

echo
echo 'devmem-cat'
received=$(mktemp)
ip netns exec rx "$DEVMEM_BIN/devmem-cat" receive --listen 192.0.2.1:5204 -i ethrx \
	-q 4 --steer --memory 16 -o "$received" &
receiver=$!
until ip netns exec rx ss -Hltn sport = :5204 | grep -q .; do
	kill -0 "$receiver"
	sleep 0.1
done
ip netns exec tx "$DEVMEM_BIN/devmem-cat" send --connect 192.0.2.1:5204 -i ethtx \
	--memory 16 -f "$copy" --quiet
wait "$receiver"
cmp "$copy" "$received"
echo 'the files are equal'

echo
echo 'devmem-cat, on the same machine'
ip link set lo up
place=$(mktemp -u)
"$DEVMEM_BIN/devmem-cat" receive --listen 127.0.0.1:5205 --share "$place" -o "$received" &
receiver=$!
until ss -Hltn sport = :5205 | grep -q .; do
	kill -0 "$receiver"
	sleep 0.1
done
"$DEVMEM_BIN/devmem-cat" send --connect 127.0.0.1:5205 --share "$place" \
	--memory 16 -f "$copy" --quiet
wait "$receiver"
cmp "$copy" "$received"
echo 'the files are equal'
