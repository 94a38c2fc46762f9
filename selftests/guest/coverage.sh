#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# In the guest: runs test programs on a module that is built for coverage, and leaves its
# profile in $WORK/profile, a directory for each time that it was unloaded.
# Usage: coverage.sh MODULE KEEPER SECONDS PROVIDER/PROGRAM...
# KEEPER is devmem_coverage.ko; the rest as for run-tests.sh.
set -euo pipefail

kept=/sys/kernel/debug/devmem_coverage
keeper=$2
export DEVMEM_MODULE=$1
shift 2

mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
insmod "$keeper"
"$(dirname "$0")/run-tests.sh" "$@"

# What the tests left is freed within a second, and the module then unused.
for _ in {1..50}; do
	rmmod devmem_provider 2>/dev/null && break
	sleep 0.1
done
[ ! -e /sys/module/devmem_provider ] || {
	echo "devmem_provider is still in use:" >&2
	cat /sys/kernel/debug/net_devmem/bindings >&2
	exit 1
}
mkdir "$WORK/profile"
cp -r "$kept/." "$WORK/profile"
