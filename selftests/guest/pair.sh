#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: loads the modules, makes the netdevsim pair and checks that the two
# ends reach each other.
# Usage: pair.sh [COMMAND [ARG...]], run with the pair in place
set -euo pipefail
. "$(dirname "$0")/lib.sh"

load_netdevsim
load_provider
make_pair
# The first packet waits for IPv6's and ARP's neighbour discovery.
ip netns exec tx ping -q -c 1 -w 10 192.0.2.1 >/dev/null || die "no IPv4 over the netdevsim pair"
ip netns exec tx ping -q -c 1 -w 10 2001:db8::1 >/dev/null || die "no IPv6 over the netdevsim pair"

[ $# -eq 0 ] || exec "$@"
