/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for rust/sys/bindings/mod.rs
 */

#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/net.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/skbuff_ref.h>
#include <linux/uio.h>
#include <linux/xarray.h>
#include <net/devmem.h>
#include <net/genetlink.h>
#include <net/netdev_netlink.h>
#include <net/netdev_queues.h>
#include <net/page_pool/helpers.h>
#include <net/page_pool/memory_provider.h>
#include <net/sock.h>
#include <net/xdp.h>
#include <uapi/linux/netdev.h>

#include "helpers.h"

/* Constants that bindgen does not see behind their macros. */
const unsigned int RUST_CONST_HELPER_FMODE_READ = (unsigned int)FMODE_READ;
const unsigned int RUST_CONST_HELPER_FMODE_WRITE = (unsigned int)FMODE_WRITE;
const unsigned int RUST_CONST_HELPER_MAX_SKB_FRAGS = MAX_SKB_FRAGS;
const unsigned int RUST_CONST_HELPER_MSG_CMSG_COMPAT = MSG_CMSG_COMPAT;
const unsigned int RUST_CONST_HELPER_NET_DEVMEM_LOCAL_SHIFT = NET_DEVMEM_LOCAL_SHIFT;
const unsigned long RUST_CONST_HELPER_NET_DEVMEM_RUN = NET_DEVMEM_RUN;
const unsigned int RUST_CONST_HELPER_NET_DEVMEM_RUN_MAX = NET_DEVMEM_RUN_MAX;
const unsigned int RUST_CONST_HELPER_NET_DEVMEM_TOKEN_BASE = NET_DEVMEM_TOKEN_BASE;
const size_t RUST_CONST_HELPER_DMABUF_CMSG_LEN = CMSG_LEN(sizeof(struct dmabuf_cmsg));
const size_t RUST_CONST_HELPER_DMABUF_CMSG_SPACE = CMSG_SPACE(sizeof(struct dmabuf_cmsg));

/* Sizes of what rust/sys has the members of, and the kernel crate describes. */
const size_t RUST_CONST_HELPER_SIZEOF_DMA_BUF = sizeof(struct dma_buf);
const size_t RUST_CONST_HELPER_SIZEOF_DMA_BUF_ATTACH_OPS = sizeof(struct dma_buf_attach_ops);
const size_t RUST_CONST_HELPER_SIZEOF_DMA_BUF_ATTACHMENT = sizeof(struct dma_buf_attachment);
const size_t RUST_CONST_HELPER_SIZEOF_FILE = sizeof(struct file);
const size_t RUST_CONST_HELPER_SIZEOF_GENL_INFO = sizeof(struct genl_info);
const size_t RUST_CONST_HELPER_SIZEOF_IOV_ITER = sizeof(struct iov_iter);
const size_t RUST_CONST_HELPER_SIZEOF_MSGHDR = sizeof(struct msghdr);
const size_t RUST_CONST_HELPER_SIZEOF_NETLINK_EXT_ACK = sizeof(struct netlink_ext_ack);
const size_t RUST_CONST_HELPER_SIZEOF_NETMEM_DESC = sizeof(struct netmem_desc);
const size_t RUST_CONST_HELPER_SIZEOF_NLATTR = sizeof(struct nlattr);
const size_t RUST_CONST_HELPER_SIZEOF_PERCPU_REF = sizeof(struct percpu_ref);
const size_t RUST_CONST_HELPER_SIZEOF_SK_BUFF = sizeof(struct sk_buff);
const size_t RUST_CONST_HELPER_SIZEOF_SKB_FRAG = sizeof(skb_frag_t);
const size_t RUST_CONST_HELPER_SIZEOF_SKB_SHARED_INFO = sizeof(struct skb_shared_info);
const size_t RUST_CONST_HELPER_SIZEOF_SPINLOCK = sizeof(spinlock_t);
