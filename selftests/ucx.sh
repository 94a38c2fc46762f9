#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Tests of UCX's transport over device memory, between two ends that may be namespaces. Prints KTAP.
# DIR is what scripts/ucx has built. Of the ends, commands run as `$SERVER COMMAND` and `$CLIENT COMMAND`; the server's
# address is ADDRESS, and its device DEVICE. The client's has the same name: ucx_perftest tells the server its own.
# LANDING=queue has payload land in device memory, at both.
# TESTS names some of the tests, if not all are to be run.
# Usage: [SERVER="ip netns exec NAME"] [CLIENT=...] [LANDING=queue] ucx.sh DIR ADDRESS DEVICE
set -uo pipefail

dir=${1:?usage: $0 DIR ADDRESS DEVICE}
address=$2 device=$3
read -r -a server <<<"${SERVER:-}"
read -r -a client <<<"${CLIENT:-}"
port=13340
limit=${LIMIT:-120}
log=$(mktemp) said=$(mktemp) agent=$(mktemp)
trap 'rm -f "$log" "$said" "$agent"' EXIT

# UCX's own messages: only what is wrong.
export UCX_TLS=devmem,tcp UCX_ALLOC_PRIO=md:devmem,mmap UCX_WARN_UNUSED_ENV_VARS=n
export LD_LIBRARY_PATH=$dir/lib

# ucx COMMAND...: with the transport.
ucx()
{
	timeout --kill-after=5 "$limit" env LD_PRELOAD="${preload-$dir/libuct_devmem.so.0}" "$@"
}

# both SERVER... -- CLIENT...: runs what serves in the background; both have to go well, but for a server that
# is killed.
both()
{
	local -a serves=() asks=()
	local pid rc=0

	while [ "$1" != -- ]; do
		serves+=("$1")
		shift
	done
	shift
	asks=("$@")
	# shellcheck disable=SC2030
	(ucx "${server[@]}" "${serves[@]}") >"$log" 2>&1 </dev/null &
	pid=$!
	# Until it listens. ucx_perftest does not try again.
	for _ in {1..100}; do
		if "${server[@]}" ss -Hltn "sport = :$port" | grep -q .; then
			break
		fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	ucx "${client[@]}" "${asks[@]}" || rc=$?
	if ! wait "$pid" && [ -z "${killed:-}" ]; then
		rc=$((rc ? rc : 1))
	fi
	sed 's/^/# server: /' "$log"
	# The next one takes another.
	port=$((port + 1))
	return "$rc"
}

# perf TEST SIZE [OPTION...]: UCT's, between the devices.
perf()
{
	local test=$1 size=$2
	local -a options=(-t "$test" -s "$size" -n 50 -w 5 -p "$port" -f)

	shift 2
	both ucx_perftest -x devmem -d "$device" "$@" "${options[@]}" -- \
		ucx_perftest "$address" -x devmem -d "$device" "$@" "${options[@]}"
}

# protocol TEST SIZE [OPTION...]: UCP's.
protocol()
{
	local -a options=(-t "$1" -s "$2" "${@:3}" -n 50 -w 5 -p "$port" -f)

	both ucx_perftest "${options[@]}" -- ucx_perftest "$address" "${options[@]}"
}

check()
{
	both ucx_check serve "$port" -- ucx_check "$address" "$port" "$1"
}

info()
{
	ucx "${server[@]}" ucx_info -d | grep -A3 'Transport: devmem' | tee "$said" &&
		grep -q "Device: $device" "$said"
}

# In a namespace in which no device is up.
no_device()
{
	ucx unshare -rn env -u UCX_DEVMEM_COPY ucx_info -d 2>&1 | tee "$said" | grep -A9 'devmem$' &&
		grep -q 'no device can send from device memory (none is up)' "$said"
}

# As in many containers: then UCX is not to have it, also if the CPU may copy.
no_io_uring()
{
	UCX_DEVMEM_COPY=y ucx "${server[@]}" no_io_uring ucx_info -d 2>&1 | tee "$said" | grep -A9 'devmem$'
	grep -q 'devmem: no io_uring here: Operation not permitted' "$said" && ! grep -q 'Transport: devmem' "$said"
}

put_bw() { perf put_bw 1048576 -D zcopy; }
put_lat() { perf put_lat 4096 -D zcopy; }
put_lat_short() { perf put_lat 8 -D short; }
put_bw_bcopy() { perf put_bw 8192 -D bcopy; }
get() { perf get 1048576 -D zcopy; }
get_bcopy() { perf get 100 -D bcopy; }
ucp_put_bw() { protocol ucp_put_bw 1048576; }
ucp_put_lat() { protocol ucp_put_lat 8; }
ucp_get() { protocol ucp_get 1048576; }
tag_bw() { protocol tag_bw 1048576; }
tag_lat() { protocol tag_lat 65536; }
serialized_threads() { protocol ucp_put_bw 1048576 -M serialized; }
threads_at_once() { protocol ucp_put_bw 1048576 -M multi -T 2; }
stream_bw() { protocol stream_bw 1048576; }

# Rendezvous of UCP is by the transport, and its own messages are not.
rendezvous()
{
	UCX_LOG_LEVEL=info protocol tag_bw 1048576 2>&1 | tee "$said" &&
		grep -q "tag(tcp/.* devmem/" "$said"
}

data() { check data; }
data_in_ordinary_memory() { UCX_ALLOC_PRIO=mmap check data; }
data_by_four_lanes() { UCX_DEVMEM_LANES=4 check data; }
endpoints_that_come_and_go() { check many; }
killed_peer() { killed=1 check killed; }
flush_of_an_endpoint_closed_by_force() { check forced; }

busy_ends()
{
	local rmem=/proc/sys/net/ipv4/tcp_rmem old rc=0

	# More is to come for the peer than its sockets take.
	old=$("${server[@]}" cat "$rmem")
	[ -z "${SERVER:-}" ] || "${server[@]}" sh -c "echo 4096 16384 32768 >$rmem" || return
	check busy || rc=$?
	[ -z "${SERVER:-}" ] || "${server[@]}" sh -c "echo $old >$rmem"
	return "$rc"
}


# Else it was the first connection that failed, whatever for.
memory_of_too_many()
{
	UCX_DEVMEM_QUEUES=1 UCX_DEVMEM_MEMORY=1m UCX_DEVMEM_SHARERS=33 ucx "${server[@]}" ucx_info -d 2>&1 |
		grep 'UCX_DEVMEM_MEMORY is not 32768 bytes for each lane'
}

# A worker whose port for lanes is another one's goes on without it. That is so where both are on one machine.
options_of_another_worker()
{
	UCX_DEVMEM_LANE_PORT=5302 check data 2>&1 | tee "$said" &&
		grep -q 'lands in host memory: UCX_DEVMEM_LANE_PORT' "$said"
}

# Also of what loads UCP later than the transport, as Open MPI does.
program_that_loads_ucx_later()
{
	ucx ucx_later 2>&1 | tee "$said" &&
		grep -q '^UCX 1.13.1$' "$said" && grep -q '^component devmem$' "$said"
}

# UCX of another version is left alone.
another_version()
{
	LD_LIBRARY_PATH=$dir/other:$LD_LIBRARY_PATH ucx ucx_later 2>&1 | tee "$said" &&
		grep -q 'this is not UCX 1.13.1' "$said" && grep -q '^UCX 1.14.0$' "$said" &&
		! grep -q 'component devmem' "$said"
}

# mpi RANKS: Open MPI's, one half of them with the server, the other one with the client. What is large goes by the
# transport.
mpi()
{
	local lib=$dir/lib half=$(($1 / 2))
	local -a options=(--allow-run-as-root --bind-to none --mca btl '^openib,ofi' --mca oob_tcp_if_include "$device")
	local -a moved=(OPAL_PREFIX="$dir/usr" OPAL_LIBDIR="$lib" OPAL_PKGLIBDIR="$lib/openmpi/lib/openmpi3"
		OPAL_DATADIR="$dir/usr/share" PMIX_MCA_pcompress_base_silence_warning=1)

	# It has no other hardware in mind.
	options+=(--mca pml ucx --mca pml_ucx_tls any --mca pml_ucx_devices any)
	if [ -n "${SERVER:-}" ]; then
		# mpirun starts by this what is to run elsewhere, of which it has a name.
		printf '#!/bin/bash\nshift\nexec %s bash -c "$*"\n' "${client[*]}" >"$agent"
		chmod +x "$agent"
		options+=(--host "$address:$half,elsewhere:$half" --mca plm_rsh_agent "$agent"
			--mca orte_launch_agent "$dir/usr/bin/orted")
	else
		options+=(--oversubscribe)
	fi
	ucx "${server[@]}" env "${moved[@]}" UCX_LOG_LEVEL=info "$dir/usr/bin/mpirun.openmpi" -np "$1" "${options[@]}" \
		"$dir/bin/mpi_check" 2>&1 | tee "$said" &&
		[ "$(grep -c 'all is as it was sent' "$said")" = "$1" ] && grep -q "tag(tcp/$device devmem/$device)" "$said"
}

# order TEST...: what flushes and fences say, of two workers of one process. Its device does not send to itself, so
# that the CPU copies.
order()
{
	local test

	for test in "$@"; do
		UCX_ALLOC_PRIO=mmap UCX_LOG_LEVEL=info ucx "${client[@]}" ucx_order "$test" 2>&1 | tee "$said" &&
			grep -q "rma(devmem/" "$said" || return
	done
}

flush_of_what_waits() { order flush worker_flush flush_when_told; }
flush_by_four_lanes() { UCX_DEVMEM_LANES=4 order flush worker_flush; }
flush_before_there_is_a_connection() { order early_flush early_worker_flush; }
fence_of_what_waits() { order fence early_fence; }
fence_by_four_lanes() { UCX_DEVMEM_LANES=4 order fence early_fence; }
# Memory that is free is not what it was.
endpoint_closed_while_another_is_told() { MALLOC_PERTURB_=165 order close_next; }

mpi_of_two() { mpi 2; }
mpi_of_four() { mpi 4; }

# By hand, as no end of ours would say it. Nothing else of UCX listens there.
lane_named_twice() { UCX_TLS=devmem UCX_DEVMEM_LANE_PORT=5301 check twice; }

# With lo, too, which leads to somewhere else there.
data_by_any_device() { UCX_DEVMEM_COPY=y check data; }

# ucx_perftest handles no errors, so that UCX ends it. Who notices is the transport: there is no other.
killed_peer_of_uct()
{
	local -a options=(-D zcopy -t put_bw -s 1048576 -n 1000000000 -p "$port" -f)

	killed=1 both timeout -s KILL 30 ucx_perftest -x devmem -d "$device" "${options[@]}" -- \
		ucx_perftest "$address" -x devmem -d "$device" "${options[@]}" 2>&1 | tee "$said"
	grep -q 'devmem: the peer is gone: Connection reset by remote peer' "$said"
}

loaded_by_the_program()
{
	preload="" UCX_CHECK_DLOPEN=$dir/libuct_devmem.so.0 UCX_LOG_LEVEL=info check data 2>&1 | tee "$said" &&
		grep -q "rma(devmem/" "$said"
}

data_that_lands()
{
	UCX_DEVMEM_LANE_PORT=5300 UCX_DEVMEM_QUEUES=$LANDING UCX_DEVMEM_MEMORY=16m check data
}

tests=(
	info no_device no_io_uring put_bw put_lat put_lat_short put_bw_bcopy get get_bcopy
	ucp_put_bw ucp_put_lat ucp_get tag_bw tag_lat stream_bw rendezvous serialized_threads threads_at_once
	data data_in_ordinary_memory data_by_four_lanes
	flush_of_what_waits flush_by_four_lanes flush_before_there_is_a_connection
	fence_of_what_waits fence_by_four_lanes endpoint_closed_while_another_is_told
	endpoints_that_come_and_go killed_peer
	flush_of_an_endpoint_closed_by_force busy_ends lane_named_twice memory_of_too_many
	program_that_loads_ucx_later another_version
	killed_peer_of_uct loaded_by_the_program mpi_of_two mpi_of_four
)
# Between two machines, as it were, or on one.
if [ -n "${SERVER:-}" ]; then
	tests+=(data_by_any_device)
else
	tests+=(options_of_another_worker)
fi
[ -z "${LANDING:-}" ] || tests+=(data_that_lands)
[ -z "${TESTS:-}" ] || read -r -a tests <<<"$TESTS"

# ucx_info and ucx_perftest are UCX's, ucx_check is ours.
PATH=$dir/bin:$PATH
echo 'TAP version 13'
echo "1..${#tests[@]}"
n=0 failures=0
for t in "${tests[@]}"; do
	n=$((n + 1))
	if "$t" 2>&1 | sed -E 's/^(# )?/# /'; then
		echo "ok $n $t"
	else
		echo "not ok $n $t"
		failures=$((failures + 1))
	fi
done
[ "$failures" = 0 ]
