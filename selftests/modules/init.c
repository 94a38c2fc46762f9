// SPDX-License-Identifier: GPL-2.0
/*
 * A provider of device memory whose module does not come to be: its init registers it, and
 * fails in the end
 */

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <net/devmem.h>
#include <net/page_pool/memory_provider.h>

#include "devmem_test.h"

static bool failing;
module_param(failing, bool, 0600);
MODULE_PARM_DESC(failing, "init fails, once this is false again");

static struct net_devmem_binding *failing_bind(struct netdev_nl_sock *priv,
					       struct genl_info *info)
{
	return ERR_PTR(-EIO);
}

/* Nothing is ever bound. */
static void failing_end(struct net_devmem_binding *binding)
{
}

static const struct memory_provider_ops failing_mp_ops = {
	.owner		= THIS_MODULE,
};

static const struct net_devmem_ops failing_ops = {
	.name		= "failing",
	.owner		= THIS_MODULE,
	.mp_ops		= &failing_mp_ops,
	.bind_rx	= failing_bind,
	.unmap		= failing_end,
	.free		= failing_end,
};

int devmem_test_init_fails(void)
{
	int err;

	if (!failing)
		return 0;

	err = net_devmem_register(&failing_ops);
	if (err)
		return err;
	while (READ_ONCE(failing) && !fatal_signal_pending(current))
		msleep(20);
	net_devmem_unregister(&failing_ops);
	return -EIO;
}

MODULE_IMPORT_NS("NETDEV_INTERNAL");
