#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In a guest: runs programs of an installed kselftest directory as on a NIC: on a netdevsim pair that they are
# told of as of one. With "ssh" the other end is told to be another machine: an `ssh` that runs commands in
# its namespace stands for the way there.
# Usage: given.sh netns|ssh DIR [OPTIONS of DIR/run_kselftest.sh]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

way=${1:?usage: $0 netns|ssh DIR [OPTION...]}
dir=$2
shift 2
load_netdevsim
begin_giving
give_pair
if [ "$way" = ssh ]; then
	bin=$(mktemp -d)
	# shellcheck disable=SC2016 # for the script to expand
	printf '#!/bin/sh\n[ "$1" = root@remote ] && shift && exec ip netns exec remote sh -c "$*"\n' >"$bin/ssh"
	chmod +x "$bin/ssh"
	export PATH=$bin:$PATH REMOTE_TYPE=ssh REMOTE_ARGS=root@remote
fi

# state: what tests have to put back.
state()
{
	ethtool -g "$NETIF" | grep -i split || true
	ethtool -n "$NETIF"
	ethtool -x "$NETIF"
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
