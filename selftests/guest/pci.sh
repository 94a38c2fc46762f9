#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest pci: runs programs of the tests on igb: those tests of each that a NIC can be given to.
# Usage: pci.sh MTU PROGRAM...
set -euo pipefail
. "$(dirname "$0")/lib.sh"

mtu=${1:?usage: $0 MTU PROGRAM...}
shift
load_provider
begin_giving
give_igb
ip link set "$NETIF" mtu "$mtu"
ip -n remote link set ethremote mtu "$mtu"
wait_for_link

rc=0
for program; do
	"$DEVMEM_BIN/$program" || rc=1
done
exit "$rc"
