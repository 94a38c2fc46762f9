/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inline functions and macros of the kernel, callable from Rust
 */
#ifndef _DEVMEM_PROVIDER_HELPERS_H
#define _DEVMEM_PROVIDER_HELPERS_H

#include <linux/dma-direction.h>
#include <linux/netdevice.h>
#include <linux/types.h>
#include <net/page_pool/types.h>

struct device;
struct genl_info;
struct genlmsghdr;
struct iov_iter;
struct net;
struct net_device;
struct net_devmem_binding;
struct net_devmem_loan;
struct net_devmem_tokens;
struct net_iov;
struct page_pool;
struct percpu_ref;
struct sk_buff;
struct skb_shared_info;
struct sock;
struct xarray;

void rust_helper_spin_lock_bh(spinlock_t *lock);
void rust_helper_spin_unlock_bh(spinlock_t *lock);
int rust_helper_spin_trylock_bh(spinlock_t *lock);

void rust_helper_dma_sync_single_for_cpu(struct device *dev, dma_addr_t addr,
					 size_t size,
					 enum dma_data_direction dir);
void rust_helper_dma_sync_single_for_device(struct device *dev,
					    dma_addr_t addr, size_t size,
					    enum dma_data_direction dir);

bool rust_helper_net_devmem_binding_get(struct net_devmem_binding *binding);
void rust_helper_percpu_ref_get_many(struct percpu_ref *ref, unsigned long nr);
void rust_helper_net_devmem_binding_put(struct net_devmem_binding *binding);

void *rust_helper_page_pool_mp_priv(const struct page_pool *pool);
unsigned int rust_helper_page_pool_order(const struct page_pool *pool);
void rust_helper_page_pool_disable_dma_sync(struct page_pool *pool);
unsigned int rust_helper_page_pool_queue_idx(const struct page_pool *pool);
void rust_helper_page_pool_set_wants_back(struct page_pool *pool,
					  const bool *wants_back);
const bool *rust_helper_page_pool_wants_back(const struct page_pool *pool);
long rust_helper_net_iov_pp_ref_count(struct net_iov *niov);
void rust_helper_net_iov_pp_ref_inc(struct net_iov *niov);

bool rust_helper_netif_device_present(const struct net_device *dev);
bool rust_helper_netdev_need_ops_lock(const struct net_device *dev);
unsigned int rust_helper_real_num_rx_queues(const struct net_device *dev);
void rust_helper_netdev_unlock(struct net_device *dev);
void rust_helper_netdev_hold(struct net_device *dev, netdevice_tracker *tracker);
void rust_helper_netdev_put(struct net_device *dev, netdevice_tracker *tracker);
struct net_device *rust_helper_rx_queue_hw_dev(struct net_device *dev,
					       unsigned int rxq);
unsigned int rust_helper_netmem_tx(const struct net_device *dev);
bool rust_helper_net_devmem_takes_local(const struct net_device *dev);

struct net *rust_helper_genl_info_net(const struct genl_info *info);
void *rust_helper_genlmsg_data(const struct genlmsghdr *gnlh);
int rust_helper_genlmsg_len(const struct genlmsghdr *gnlh);

u32 rust_helper_net_devmem_max_tokens(const struct sk_buff *skb);
netmem_ref rust_helper_net_devmem_loan_token(struct net_devmem_loan *loan);

unsigned int rust_helper_skb_headlen(const struct sk_buff *skb);
bool rust_helper_skb_frags_readable(const struct sk_buff *skb);
struct skb_shared_info *rust_helper_skb_shinfo(const struct sk_buff *skb);
void rust_helper_skb_add_rx_frag_netmem(struct sk_buff *skb, int i,
					netmem_ref netmem, int off, int size,
					unsigned int truesize);

size_t rust_helper_iov_iter_count(const struct iov_iter *i);
size_t rust_helper_iter_iov_addr(const struct iov_iter *i);
size_t rust_helper_iter_iov_len(const struct iov_iter *i);

bool rust_helper_copy_to_iter_full(const void *addr, size_t bytes,
				   struct iov_iter *i);

struct xarray *rust_helper_sk_user_frags(struct sock *sk);
struct net_devmem_tokens *rust_helper_sk_devmem_tokens(struct sock *sk);

void rust_helper_cond_resched(void);

void rust_helper_xa_lock_bh(struct xarray *xa);
void rust_helper_xa_unlock_bh(struct xarray *xa);

#endif /* _DEVMEM_PROVIDER_HELPERS_H */
