// SPDX-License-Identifier: GPL-2.0
/*
 * Memory provider ops that page pools may take, and some that they may not
 */

#include <linux/dma-direction.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <net/net_namespace.h>
#include <net/netdev_lock.h>
#include <net/netdev_rx_queue.h>
#include <net/page_pool/helpers.h>
#include <net/page_pool/memory_provider.h>

#include "devmem_test.h"

#define RING_SIZE	16

static netmem_ref ops_alloc(struct page_pool *pool, gfp_t gfp)
{
	return 0;
}

static bool ops_release(struct page_pool *pool, netmem_ref netmem)
{
	return false;
}

static int ops_init(struct page_pool *pool)
{
	return 0;
}

static void ops_destroy(struct page_pool *pool)
{
}

static int ops_nl_fill(void *mp_priv, struct sk_buff *rsp,
		       struct netdev_rx_queue *rxq)
{
	return 0;
}

static void ops_uninstall(void *mp_priv, struct netdev_rx_queue *rxq,
			  bool in_use)
{
}

#define OPS						\
	.alloc_netmems	= ops_alloc,			\
	.release_netmem	= ops_release,			\
	.init		= ops_init,			\
	.destroy	= ops_destroy,			\
	.nl_fill	= ops_nl_fill,			\
	.uninstall	= ops_uninstall

static const struct memory_provider_ops ops_good = {
	.owner		= THIS_MODULE,
	OPS
};

static const struct memory_provider_ops ops_of_nobody = { OPS };

/* Ops where everybody can write, and what they say is the module that has them in its
 * read-only data.
 */
struct forgery {
	struct memory_provider_ops ops;
	struct module owner;
};

static struct forgery *forge(void)
{
	struct forgery *forgery = kvzalloc_obj(*forgery);

	if (!forgery)
		return NULL;
	forgery->ops = ops_good;
	forgery->ops.owner = &forgery->owner;
	forgery->owner.state = MODULE_STATE_LIVE;
	forgery->owner.mem[MOD_RODATA].base = forgery;
	forgery->owner.mem[MOD_RODATA].size = sizeof(*forgery);
	atomic_set(&forgery->owner.refcnt, 1);
	return forgery;
}

static int create_pool(struct net_device *dev, u32 queue,
		       const struct memory_provider_ops *ops)
{
	struct netdev_rx_queue *rxq;
	struct page_pool *pool;

	netdev_assert_locked(dev);

	if (queue >= dev->real_num_rx_queues)
		return -ERANGE;
	rxq = __netif_get_rx_queue(dev, queue);
	if (rxq->mp_params.mp_ops)
		return -EBUSY;

	rxq->mp_params.mp_ops = ops;
	pool = devmem_test_create_pool(dev, queue, RING_SIZE);
	rxq->mp_params.mp_ops = NULL;
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	page_pool_destroy(pool);
	return 0;
}

static int try_ops(const struct devmem_test_ops *spec,
		   const struct memory_provider_ops *ops)
{
	struct net_device *dev;
	int err = -ENODEV;

	dev = dev_get_by_index(current->nsproxy->net_ns, spec->ifindex);
	if (!dev)
		return err;

	netdev_lock(dev);
	if (dev->reg_state == NETREG_REGISTERED)
		err = create_pool(dev, spec->queue, ops);
	netdev_unlock(dev);
	dev_put(dev);
	return err;
}

int devmem_test_ops(const struct devmem_test_ops *spec)
{
	struct forgery *forgery;
	int err;

	switch (spec->kind) {
	case DEVMEM_TEST_OPS_GOOD:
		return try_ops(spec, &ops_good);
	case DEVMEM_TEST_OPS_OF_NOBODY:
		return try_ops(spec, &ops_of_nobody);
	case DEVMEM_TEST_OPS_WRITABLE:
	case DEVMEM_TEST_OPS_FORGED:
		break;
	default:
		return -EINVAL;
	}

	forgery = forge();
	if (!forgery)
		return -ENOMEM;
	if (spec->kind == DEVMEM_TEST_OPS_WRITABLE)
		forgery->ops.owner = THIS_MODULE;
	err = try_ops(spec, &forgery->ops);
	kvfree(forgery);
	return err;
}
