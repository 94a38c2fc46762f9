// SPDX-License-Identifier: GPL-2.0
/*
 * What a buffer costs: page pools of our own on bound queues
 *
 * Made the way a NIC driver makes its own, such a pool gets the queue's binding as
 * its memory provider. Its buffers are then taken and given back without any packet.
 */

#include <linux/bottom_half.h>
#include <linux/dma-direction.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/overflow.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>
#include <linux/timex.h>
#include <linux/uaccess.h>
#include <net/net_namespace.h>
#include <net/netdev_lock.h>
#include <net/page_pool/helpers.h>
#include <net/page_pool/memory_provider.h>
#include <net/xdp.h>

#include "devmem_test.h"

#define MAX_POOLS	64
#define MAX_BUFFERS	BIT(22)
/* Of the ring of a pool, as that of netdevsim. */
#define RING_SIZE	256

/* Buffers on the way between a pool and us. */
struct bench_buffers {
	netmem_ref *netmems;
	u32 count;
};

struct bench_pool {
	struct page_pool *pool;
	struct bench_buffers buffers;
};

struct bench {
	const struct devmem_test_bench *spec;
	/* Held aside the whole time, taken by the first pool. */
	struct bench_buffers held;
	u32 num_pools;
	struct bench_pool pools[] __counted_by(num_pools);
};

static bool buffers_init(struct bench_buffers *buffers, u32 most)
{
	/* The provider's last answer can be more than what is asked for. */
	buffers->netmems = kvmalloc_objs(*buffers->netmems,
					 most + PP_ALLOC_CACHE_SIZE);
	return buffers->netmems;
}

static void take_direct(struct page_pool *pool, struct bench_buffers *buffers,
			u32 most)
{
	while (buffers->count < most) {
		netmem_ref netmem = pool->mp_ops->alloc_netmems(pool, GFP_ATOMIC);

		if (!netmem)
			return;
		buffers->netmems[buffers->count++] = netmem;
		while (pool->alloc.count)
			buffers->netmems[buffers->count++] =
				pool->alloc.cache[--pool->alloc.count];
	}
}

static void give_direct(struct page_pool *pool, struct bench_buffers *buffers)
{
	u32 i;

	for (i = 0; i < buffers->count; i++)
		pool->mp_ops->release_netmem(pool, buffers->netmems[i]);
}

/* As page pools do it that got many at once. */
static void give_direct_bulk(struct page_pool *pool, struct bench_buffers *buffers)
{
	u32 i, count;

	if (!pool->mp_ops->release_netmems) {
		give_direct(pool, buffers);
		return;
	}
	for (i = 0; i < buffers->count; i += count) {
		count = min(buffers->count - i, XDP_BULK_QUEUE_SIZE);
		pool->mp_ops->release_netmems(pool, &buffers->netmems[i], count);
	}
}

/* What a page pool does whose provider has taken a buffer back, for all of them. */
static void forget_direct(struct page_pool *pool, struct bench_buffers *buffers)
{
	atomic_add(buffers->count, &pool->pages_state_release_cnt);
	buffers->count = 0;
}

static void take_from_pool(struct page_pool *pool, struct bench_buffers *buffers,
			   u32 most)
{
	while (buffers->count < most) {
		netmem_ref netmem = page_pool_alloc_netmems(pool, GFP_ATOMIC);

		if (!netmem)
			return;
		buffers->netmems[buffers->count++] = netmem;
	}
}

static void give_to_pool(struct page_pool *pool, struct bench_buffers *buffers)
{
	u32 i;

	/* As from NAPI: we are the only user of the pool. */
	for (i = 0; i < buffers->count; i++)
		page_pool_put_full_netmem(pool, buffers->netmems[i], true);
	buffers->count = 0;
}

static void give_to_pool_bulk(struct bench_buffers *buffers)
{
	u32 i, count;

	for (i = 0; i < buffers->count; i += count) {
		count = min(buffers->count - i, XDP_BULK_QUEUE_SIZE);
		page_pool_put_netmem_bulk(&buffers->netmems[i], count);
	}
	buffers->count = 0;
}

/* Takes buffers aside, the first of each @spec->stride of a row. */
static int bench_hold(struct bench *bench)
{
	const u32 stride = bench->spec->stride;
	const u32 want = bench->spec->held * stride;
	struct page_pool *pool = bench->pools[0].pool;
	struct bench_buffers *held = &bench->held;
	u32 i, taken, kept = 0;

	while (held->count < want) {
		taken = held->count;
		if (fatal_signal_pending(current))
			return -EINTR;
		local_bh_disable();
		take_direct(pool, held, taken + 1);
		local_bh_enable();
		if (held->count == taken)
			return -ENOSPC;
		cond_resched();
	}

	taken = held->count;
	for (i = 0; i < taken; i++) {
		netmem_ref netmem = held->netmems[i];

		if (i < want && i % stride == 0) {
			held->netmems[kept++] = netmem;
			continue;
		}
		pool->mp_ops->release_netmem(pool, netmem);
		atomic_inc(&pool->pages_state_release_cnt);
		cond_resched();
	}
	held->count = kept;
	return 0;
}

static void bench_unhold(struct bench *bench)
{
	struct page_pool *pool = bench->pools[0].pool;
	u32 i;

	for (i = 0; i < bench->held.count; i++) {
		pool->mp_ops->release_netmem(pool, bench->held.netmems[i]);
		cond_resched();
	}
	if (bench->held.count)
		forget_direct(pool, &bench->held);
}

static u64 bench_now(const struct bench *bench)
{
	if (bench->spec->clock == DEVMEM_TEST_CLOCK_NS)
		return ktime_get_ns();
	return get_cycles();
}

static void bench_take(struct bench *bench)
{
	const struct devmem_test_bench *spec = bench->spec;
	u32 i;

	for (i = 0; i < bench->num_pools; i++) {
		struct bench_pool *pool = &bench->pools[i];

		switch (spec->op) {
		case DEVMEM_TEST_BENCH_DIRECT:
		case DEVMEM_TEST_BENCH_DIRECT_BULK:
			take_direct(pool->pool, &pool->buffers, spec->count);
			break;
		default:
			take_from_pool(pool->pool, &pool->buffers, spec->count);
			break;
		}
	}
}

static void bench_give(struct bench *bench)
{
	u32 i;

	for (i = 0; i < bench->num_pools; i++) {
		struct bench_pool *pool = &bench->pools[i];

		switch (bench->spec->op) {
		case DEVMEM_TEST_BENCH_DIRECT:
			give_direct(pool->pool, &pool->buffers);
			break;
		case DEVMEM_TEST_BENCH_DIRECT_BULK:
			give_direct_bulk(pool->pool, &pool->buffers);
			break;
		case DEVMEM_TEST_BENCH_POOL:
			give_to_pool(pool->pool, &pool->buffers);
			break;
		default:
			give_to_pool_bulk(&pool->buffers);
			break;
		}
	}
}

/* Tells how many buffers the pools got together; -ENOSPC if one has too few. */
static int bench_taken(const struct bench *bench, u32 *taken)
{
	u32 i;

	*taken = 0;
	for (i = 0; i < bench->num_pools; i++) {
		if (bench->pools[i].buffers.count < bench->spec->count)
			return -ENOSPC;
		*taken += bench->pools[i].buffers.count;
	}
	return 0;
}

/* With softirqs off, as in NAPI. Interrupts stay on: the locks of providers are BH
 * locks, which do not go with interrupts off. Whoever evaluates the samples has to
 * expect that some of them were interrupted.
 */
static int bench_sample(struct bench *bench, struct devmem_test_sample *sample)
{
	u64 start;
	int err;
	u32 i;

	local_bh_disable();
	start = bench_now(bench);
	bench_take(bench);
	sample->take = bench_now(bench) - start;
	err = bench_taken(bench, &sample->buffers);

	start = bench_now(bench);
	bench_give(bench);
	sample->give = bench_now(bench) - start;
	for (i = 0; i < bench->num_pools; i++)
		forget_direct(bench->pools[i].pool, &bench->pools[i].buffers);
	local_bh_enable();

	return err;
}

static int bench_run(struct bench *bench)
{
	struct devmem_test_sample __user *to;
	u32 i;
	int err;

	to = u64_to_user_ptr(bench->spec->samples);
	for (i = 0; i < bench->spec->num_samples; i++) {
		struct devmem_test_sample sample = {};

		if (fatal_signal_pending(current))
			return -EINTR;
		err = bench_sample(bench, &sample);
		if (err)
			return err;
		if (copy_to_user(&to[i], &sample, sizeof(sample)))
			return -EFAULT;
		cond_resched();
	}
	return 0;
}

/**
 * devmem_test_create_pool() - make a page pool as a NIC driver does
 * @dev: device
 * @queue: receive queue whose memory provider it gets, if there is one
 * @size: buffers that fit into its ring
 *
 * Context: Process context, @dev locked. Can sleep.
 * Return: the page pool, or an error pointer.
 */
struct page_pool *devmem_test_create_pool(struct net_device *dev, u32 queue,
					  u32 size)
{
	struct page_pool_params params = {
		.flags = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV |
			 PP_FLAG_ALLOW_UNREADABLE_NETMEM,
		.pool_size = size,
		.nid = NUMA_NO_NODE,
		.dev = dev->dev.parent,
		.dma_dir = DMA_FROM_DEVICE,
		.max_len = PAGE_SIZE,
		.netdev = dev,
		.queue_idx = queue,
	};

	return page_pool_create(&params);
}

static struct page_pool *create_pool(struct net_device *dev, u32 queue)
{
	struct page_pool *pool;

	if (queue >= dev->real_num_rx_queues)
		return ERR_PTR(-ERANGE);

	pool = devmem_test_create_pool(dev, queue, RING_SIZE);
	if (IS_ERR(pool) || pool->mp_ops)
		return pool;
	page_pool_destroy(pool);
	return ERR_PTR(-ENODATA);
}

static int create_pools(struct bench *bench)
{
	const struct devmem_test_bench *spec = bench->spec;
	struct net_device *dev;
	int err = -ENODEV;
	u32 i;

	dev = dev_get_by_index(current->nsproxy->net_ns, spec->ifindex);
	if (!dev)
		return err;

	netdev_lock(dev);
	if (dev->reg_state != NETREG_REGISTERED)
		goto out;
	err = 0;
	for (i = 0; i < bench->num_pools; i++) {
		struct page_pool *pool = create_pool(dev, spec->queue + i);

		if (IS_ERR(pool)) {
			err = PTR_ERR(pool);
			break;
		}
		bench->pools[i].pool = pool;
	}
out:
	netdev_unlock(dev);
	dev_put(dev);
	return err;
}

static void bench_free(struct bench *bench)
{
	u32 i;

	for (i = 0; i < bench->num_pools; i++) {
		if (bench->pools[i].pool)
			page_pool_destroy(bench->pools[i].pool);
		kvfree(bench->pools[i].buffers.netmems);
	}
	kvfree(bench->held.netmems);
	kfree(bench);
}

static struct bench *bench_new(const struct devmem_test_bench *spec)
{
	struct bench *bench;
	u32 i;

	bench = kzalloc_flex(*bench, pools, spec->num_queues);
	if (!bench)
		return NULL;
	bench->spec = spec;
	bench->num_pools = spec->num_queues;

	if (!buffers_init(&bench->held, spec->held * spec->stride))
		goto err_free;
	for (i = 0; i < bench->num_pools; i++)
		if (!buffers_init(&bench->pools[i].buffers, spec->count))
			goto err_free;
	return bench;

err_free:
	bench_free(bench);
	return NULL;
}

static bool bench_is_valid(const struct devmem_test_bench *spec)
{
	u32 held;

	return spec->op <= DEVMEM_TEST_BENCH_POOL_BULK && spec->stride &&
	       spec->clock <= DEVMEM_TEST_CLOCK_NS && !spec->reserved &&
	       spec->num_queues && spec->num_queues <= MAX_POOLS &&
	       spec->queue <= S32_MAX && spec->count && spec->count <= MAX_BUFFERS &&
	       !check_mul_overflow(spec->held, spec->stride, &held) &&
	       held <= MAX_BUFFERS;
}

int devmem_test_bench(const struct devmem_test_bench *spec)
{
	struct bench *bench;
	int err;

	if (!bench_is_valid(spec))
		return -EINVAL;

	bench = bench_new(spec);
	if (!bench)
		return -ENOMEM;

	err = create_pools(bench);
	if (err)
		goto out;
	err = bench_hold(bench);
	if (!err)
		err = bench_run(bench);
	bench_unhold(bench);
out:
	bench_free(bench);
	return err;
}
