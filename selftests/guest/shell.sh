#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: an interactive shell beside a netdevsim pair that is ready for use.
set -euo pipefail

"$(dirname "$0")/pair.sh"
cat <<EOF

  Namespaces rx (ethrx, 192.0.2.1, 2001:db8::1) and tx (ethtx, .2, ::2) are joined
  by a netdevsim pair with 8 queues each; devmem_provider.ko is loaded, and the sample
  of another provider is not: insmod \$DEVMEM_HOST_MODULE.
  The root file system is the host's; only \$WORK keeps what is written.

    cat /proc/sys/net/core/devmem_provider          who serves new bindings
    cat /sys/kernel/debug/net_devmem/bindings       the live ones
    devmem-demo run --file FILE --rx-netns rx --rx-if ethrx --tx-netns tx \\
        --addr 192.0.2.1 --port 5201 --queue 4      the demo
    ip netns exec rx devmem-cat receive -l 192.0.2.1:5202 -i ethrx -q 4 --steer --discard &
    ip netns exec tx devmem-cat send -c 192.0.2.1:5202 -i ethtx -f FILE
    ip netns exec rx ethtool -S ethrx               the NIC's counters
    exit                                            ends the guest

EOF
export PATH=$DEVMEM_BIN:$PATH
exec bash -i
