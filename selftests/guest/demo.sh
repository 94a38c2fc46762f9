#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: a file goes from an ordinary TCP sender in one namespace into a
# dma-buf in the other, then from one dma-buf into another, and last by devmem-cat: by the NIC, to a
# reader on the same machine, without a NIC and a copy, and into memory that is served, and back.
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

echo
echo 'devmem-cat put and get'
key=$(mktemp)
ip netns exec rx "$DEVMEM_BIN/devmem-cat" serve --listen 192.0.2.1:5206 -i ethrx \
	-q 4 --steer --landing 16 --memory 64 >"$key" 2>/dev/null &
server=$!
until [ -s "$key" ]; do
	kill -0 "$server"
	sleep 0.1
done
ip netns exec tx "$DEVMEM_BIN/devmem-cat" put --connect 192.0.2.1:5206 -i ethtx -k "$key" -f "$copy"
ip netns exec tx "$DEVMEM_BIN/devmem-cat" get --connect 192.0.2.1:5206 -i ethtx -k "$key" \
	--size "$(stat -c %s "$copy")" -o "$received"
kill "$server"
wait "$server" || [ $? = 130 ]
cmp "$copy" "$received"
echo 'the files are equal'
