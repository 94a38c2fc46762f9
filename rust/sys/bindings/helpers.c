// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the kernel, callable from Rust
 *
 * Each does what its namesake does, or accesses a member of a structure that the
 * kernel crate's bindings keep opaque, and nothing else.
 */

#include <linux/dma-mapping.h>
#include <linux/netdevice.h>
#include <linux/percpu-refcount.h>
#include <linux/sched.h>
#include <linux/skbuff.h>
#include <linux/spinlock.h>
#include <linux/uio.h>
#include <linux/xarray.h>
#include <net/devmem.h>
#include <net/genetlink.h>
#include <net/netdev_lock.h>
#include <net/netdev_rx_queue.h>
#include <net/page_pool/memory_provider.h>
#include <net/page_pool/types.h>
#include <net/sock.h>

#include "helpers.h"

void rust_helper_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

void rust_helper_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

int rust_helper_spin_trylock_bh(spinlock_t *lock)
{
	return spin_trylock_bh(lock);
}

void rust_helper_dma_sync_single_for_cpu(struct device *dev, dma_addr_t addr,
					 size_t size,
					 enum dma_data_direction dir)
{
	dma_sync_single_for_cpu(dev, addr, size, dir);
}

void rust_helper_dma_sync_single_for_device(struct device *dev,
					    dma_addr_t addr, size_t size,
					    enum dma_data_direction dir)
{
	dma_sync_single_for_device(dev, addr, size, dir);
}

bool rust_helper_net_devmem_binding_get(struct net_devmem_binding *binding)
{
	return net_devmem_binding_get(binding);
}

void rust_helper_percpu_ref_get_many(struct percpu_ref *ref, unsigned long nr)
{
	percpu_ref_get_many(ref, nr);
}

void rust_helper_net_devmem_binding_put(struct net_devmem_binding *binding)
{
	net_devmem_binding_put(binding);
}

void *rust_helper_page_pool_mp_priv(const struct page_pool *pool)
{
	return pool->mp_priv;
}

unsigned int rust_helper_page_pool_order(const struct page_pool *pool)
{
	return pool->p.order;
}

void rust_helper_page_pool_disable_dma_sync(struct page_pool *pool)
{
	pool->dma_sync = false;
	pool->dma_sync_for_cpu = false;
}

unsigned int rust_helper_page_pool_queue_idx(const struct page_pool *pool)
{
	return pool->slow.queue_idx;
}

void rust_helper_page_pool_set_wants_back(struct page_pool *pool,
					  const bool *wants_back)
{
	pool->mp_wants_back = wants_back;
}

const bool *rust_helper_page_pool_wants_back(const struct page_pool *pool)
{
	return pool->mp_wants_back;
}

long rust_helper_net_iov_pp_ref_count(struct net_iov *niov)
{
	return atomic_long_read(&niov->desc.pp_ref_count);
}

void rust_helper_net_iov_pp_ref_inc(struct net_iov *niov)
{
	atomic_long_inc(&niov->desc.pp_ref_count);
}

bool rust_helper_netif_device_present(const struct net_device *dev)
{
	return netif_device_present(dev);
}

bool rust_helper_netdev_need_ops_lock(const struct net_device *dev)
{
	return netdev_need_ops_lock(dev);
}

unsigned int rust_helper_real_num_rx_queues(const struct net_device *dev)
{
	return dev->real_num_rx_queues;
}

void rust_helper_netdev_unlock(struct net_device *dev)
{
	netdev_unlock(dev);
}

void rust_helper_netdev_hold(struct net_device *dev, netdevice_tracker *tracker)
{
	netdev_hold(dev, tracker, GFP_KERNEL);
}

void rust_helper_netdev_put(struct net_device *dev, netdevice_tracker *tracker)
{
	netdev_put(dev, tracker);
}

/* The device that has the queue: if it is leased, that which it is leased from. */
struct net_device *rust_helper_rx_queue_hw_dev(struct net_device *dev,
					       unsigned int rxq)
{
	struct netdev_rx_queue *lease = __netif_get_rx_queue(dev, rxq)->lease;

	return lease ? lease->dev : dev;
}

unsigned int rust_helper_netmem_tx(const struct net_device *dev)
{
	return dev->netmem_tx;
}

bool rust_helper_net_devmem_takes_local(const struct net_device *dev)
{
	return net_devmem_takes_local(dev);
}

struct net *rust_helper_genl_info_net(const struct genl_info *info)
{
	return genl_info_net(info);
}

void *rust_helper_genlmsg_data(const struct genlmsghdr *gnlh)
{
	return genlmsg_data(gnlh);
}

int rust_helper_genlmsg_len(const struct genlmsghdr *gnlh)
{
	return genlmsg_len(gnlh);
}

u32 rust_helper_net_devmem_max_tokens(const struct sk_buff *skb)
{
	return net_devmem_max_tokens(skb);
}

netmem_ref rust_helper_net_devmem_loan_token(struct net_devmem_loan *loan)
{
	return net_devmem_loan_token(loan);
}

unsigned int rust_helper_skb_headlen(const struct sk_buff *skb)
{
	return skb_headlen(skb);
}

bool rust_helper_skb_frags_readable(const struct sk_buff *skb)
{
	return skb_frags_readable(skb);
}

struct skb_shared_info *rust_helper_skb_shinfo(const struct sk_buff *skb)
{
	return skb_shinfo(skb);
}

void rust_helper_skb_add_rx_frag_netmem(struct sk_buff *skb, int i,
					netmem_ref netmem, int off, int size,
					unsigned int truesize)
{
	skb_add_rx_frag_netmem(skb, i, netmem, off, size, truesize);
}

size_t rust_helper_iov_iter_count(const struct iov_iter *i)
{
	return iov_iter_count(i);
}

size_t rust_helper_iter_iov_addr(const struct iov_iter *i)
{
	return (size_t)iter_iov_addr(i);
}

size_t rust_helper_iter_iov_len(const struct iov_iter *i)
{
	return iter_iov_len(i);
}

bool rust_helper_copy_to_iter_full(const void *addr, size_t bytes,
				   struct iov_iter *i)
{
	return copy_to_iter_full(addr, bytes, i);
}

struct xarray *rust_helper_sk_user_frags(struct sock *sk)
{
	return &sk->sk_user_frags;
}

struct net_devmem_tokens *rust_helper_sk_devmem_tokens(struct sock *sk)
{
	return sk->sk_devmem_tokens;
}

void rust_helper_cond_resched(void)
{
	cond_resched();
}

void rust_helper_xa_lock_bh(struct xarray *xa)
{
	xa_lock_bh(xa);
}

void rust_helper_xa_unlock_bh(struct xarray *xa)
{
	xa_unlock_bh(xa);
}
