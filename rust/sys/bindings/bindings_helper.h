/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for rust/sys/bindings/mod.rs
 */

#include <linux/dma-buf.h>
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
const unsigned int RUST_CONST_HELPER_NET_DEVMEM_TOKEN_BASE = NET_DEVMEM_TOKEN_BASE;
const size_t RUST_CONST_HELPER_DMABUF_CMSG_LEN = CMSG_LEN(sizeof(struct dmabuf_cmsg));
const size_t RUST_CONST_HELPER_DMABUF_CMSG_SPACE = CMSG_SPACE(sizeof(struct dmabuf_cmsg));
