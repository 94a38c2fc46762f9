#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In a guest: runs programs of an installed kselftest directory as on a NIC: on a netdevsim pair that they are
# told of as of one. With "ssh" and "sshd" the other end is told to be another machine: with "ssh" an `ssh` that runs
# commands in its namespace stands for the way there, with "sshd" it is ssh's own, to an sshd in that namespace.
# Usage: given.sh netns|ssh|sshd DIR [OPTIONS of DIR/run_kselftest.sh]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

way=${1:?usage: $0 netns|ssh|sshd DIR [OPTION...]}
dir=$2
shift 2
load_netdevsim
begin_giving
give_pair
# no_ssh: what passes for it.
no_ssh()
{
	local bin

	bin=$(mktemp -d)
	# shellcheck disable=SC2016 # for the script to expand
	printf '#!/bin/sh\n[ "$1" = root@remote ] && shift && exec ip netns exec remote sh -c "$*"\n' >"$bin/ssh"
	chmod +x "$bin/ssh"
	export PATH=$bin:$PATH REMOTE_TYPE=ssh REMOTE_ARGS=root@remote
}

# real_ssh: an sshd at the other end, and the keys for it.
real_ssh()
{
	local sshd keys key

	sshd=$(command -v sshd) || die "there is no sshd: apt-get install openssh-server"
	keys=$(mktemp -d)
	for key in host user; do
		ssh-keygen -q -t ed25519 -N '' -f "$keys/$key"
	done
	mkdir -p /run/sshd
	ip netns exec remote "$sshd" -f /dev/null -h "$keys/host" -E "$keys/log" -o "ListenAddress=$REMOTE_V4" \
		-o "AuthorizedKeysFile=$keys/user.pub" -o StrictModes=no -o PidFile=none -o UsePAM=yes
	REMOTE_ARGS="-i $keys/user -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
	REMOTE_ARGS+=" -o UserKnownHostsFile=$keys/known root@$REMOTE_V4"
	export REMOTE_TYPE=ssh REMOTE_ARGS
	# shellcheck disable=SC2086 # as the programs take it
	ssh $REMOTE_ARGS true || {
		cat "$keys/log" >&2
		die "no ssh to the other end"
	}
}

case $way in
ssh) no_ssh ;;
sshd) real_ssh ;;
esac

# state: what tests have to put back.
state()
{
	ethtool -g "$NETIF" | grep -i split || true
	ethtool -n "$NETIF"
	ethtool -x "$NETIF"
	cat "/sys/class/net/$NETIF/mtu"
	ip netns exec remote cat /sys/class/net/ethremote/mtu
}

before=$(state)
rc=0
"$dir/run_kselftest.sh" "$@" || rc=$?
[ "$(state)" = "$before" ] || {
	echo "$NETIF is not as it was:"
	diff <(echo "$before") <(state)
	rc=1
}
exit "$rc"
