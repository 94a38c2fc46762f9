/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A transport of UCX over the library of bulk transfer: what its parts know of
 * each other.
 */

#ifndef UCT_DEVMEM_H
#define UCT_DEVMEM_H

#include <net/if.h>

#include <ucs/datastruct/list.h>
#include <ucs/datastruct/queue.h>
#include <uct/base/uct_iface.h>
#include <uct/base/uct_md.h>

#include "devmem_bulk.h"

/* Bytes of a request that is copied, at most. */
#define UCT_DEVMEM_COPIED 8192

/* Of all names that UCX knows "devmem". */
extern uct_component_t uct_devmem_component;

/* A memory domain: a device. A handle of memory is a part of its pool. */
struct uct_devmem_md {
	uct_md_t super;
	/* Empty if there is no device. */
	char dev_name[IFNAMSIZ];
	unsigned int ifindex;
	struct dmb_pool *pool;
};

/* A key as the peer gets it, and as it has it. */
struct uct_devmem_rkey {
	struct dmb_key key;
	uint64_t address;
} UCS_S_PACKED;

/* How an interface is reached: by an address, of which UCP takes 31 bytes, */
struct uct_devmem_device_addr {
	uint8_t version;
	uint8_t ip[16];
	/* Of the namespace: 127.0.0.1 is that of another one elsewhere. */
	uint64_t machine;
} UCS_S_PACKED;

/* and two ports. */
struct uct_devmem_iface_addr {
	uint16_t control;
	uint16_t lanes;
} UCS_S_PACKED;

struct uct_devmem_iface {
	uct_base_iface_t super;
	char dev_name[IFNAMSIZ];
	uint64_t machine;
	struct dmb_address here;
	unsigned int lanes;
	struct dmb_landing *landing;
	struct dmb_group *group;
	/* Tells UCX's asynchronous context that somebody connects. */
	int knock_fd;
	ucs_list_link_t eps;
	/* Whose pending requests are made now, and who comes then: either may be destroyed. */
	struct uct_devmem_ep *current;
	ucs_list_link_t *next;
	/* What is put by a copy is packed here. */
	char packed[UCT_DEVMEM_COPIED];
};

struct uct_devmem_ep {
	uct_base_ep_t super;
	ucs_list_link_t list;
	/* Its number in the group. */
	uint64_t end;
	/* What whoever makes a request is told, once it is not UCS_OK. */
	ucs_status_t status;
	/* What waits for room, with marks of flushes and fences between. */
	ucs_queue_head_t pending;
	/* Whether the first of those is being made, and may go before the others. */
	int is_first;
};

/* devmem_ep.c: an event of the group, and a fence. */
void uct_devmem_ep_event(const struct dmb_group_event *event);
ucs_status_t uct_devmem_ep_fence(uct_ep_h tl_ep, unsigned int flags);
/* Whether a request could be made, or would fail for good. */
int uct_devmem_ep_can(struct uct_devmem_ep *ep);
/* Those functions of the interface that are of endpoints. */
extern const uct_iface_ops_t uct_devmem_ep_ops;

/* devmem_pending.c: whether a request is to be made now, or those come first that wait. */
int uct_devmem_ep_is_next(struct uct_devmem_ep *ep);
/* A flush, or a fence, of what waits, too. */
ucs_status_t uct_devmem_pending_flush(struct uct_devmem_ep *ep,
				      uct_completion_t *comp);
ucs_status_t uct_devmem_pending_fence(struct uct_devmem_ep *ep);
/* Ends the flushes among it. */
void uct_devmem_pending_cancel(struct uct_devmem_ep *ep, ucs_status_t status);
/* Makes what waits, of all endpoints. */
unsigned int uct_devmem_dispatch(struct uct_devmem_iface *iface);
/* An endpoint goes, maybe while that is being done. */
void uct_devmem_pending_gone(struct uct_devmem_ep *ep);
ucs_status_t uct_devmem_ep_pending_add(uct_ep_h tl_ep, uct_pending_req_t *req,
				       unsigned int flags);
void uct_devmem_ep_pending_purge(uct_ep_h tl_ep,
				 uct_pending_purge_callback_t cb, void *arg);

#endif
