// SPDX-License-Identifier: GPL-2.0
/*
 * A family of generic netlink that comes and goes
 */

#include <linux/module.h>
#include <net/genetlink.h>

#include "devmem_test.h"

static struct genl_family devmem_test_family = {
	.name		= "devmem_test",
	.version	= 1,
	.module		= THIS_MODULE,
};

int devmem_test_come_and_go(void)
{
	int err = genl_register_family(&devmem_test_family);

	return err ?: genl_unregister_family(&devmem_test_family);
}
