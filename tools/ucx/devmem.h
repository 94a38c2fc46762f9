/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A transport of UCX over the library of bulk transfer: what its parts know of
 * each other.
 */

#ifndef UCT_DEVMEM_H
#define UCT_DEVMEM_H

#include <net/if.h>
#include <pthread.h>
#include <sys/socket.h>

#include <ucs/datastruct/list.h>
#include <ucs/datastruct/queue.h>
#include <ucs/sys/event_set.h>
#include <ucs/time/time.h>
#include <uct/base/uct_iface.h>
#include <uct/base/uct_md.h>

#include "devmem_bulk.h"

/* Of all names that UCX knows "devmem". */
extern uct_component_t uct_devmem_component;

struct uct_devmem_md_config {
	uct_md_config_t super;
	int copy;
};

/* A memory domain: all that is bound to a device, and the keys to it. */
struct uct_devmem_md {
	uct_md_t super;
	/* Empty if there is no device. */
	char dev_name[IFNAMSIZ];
	unsigned int ifindex;
	size_t max_alloc;
	struct dmb_registry *registry;
	/* Protects the list, and how many use what is in it. */
	pthread_mutex_t lock;
	ucs_list_link_t allocated;
};

/* Memory that is allocated here, or that was somebody else's before. */
struct uct_devmem_region {
	ucs_list_link_t list;
	struct dmb_memory *memory;
	char *address;
	size_t length;
	unsigned int users;
	int is_allocated;
};

/* What a handle of memory is: a part of a region. */
struct uct_devmem_memh {
	struct uct_devmem_region *region;
	char *address;
	size_t length;
	int has_key;
	struct dmb_key key;
};

/* A key as the peer gets it, and as it has it. */
struct uct_devmem_rkey {
	struct dmb_key key;
	uint64_t address;
} UCS_S_PACKED;

struct uct_devmem_iface_config {
	uct_iface_config_t super;
	unsigned int lanes;
	unsigned int lane_port;
	char *queues;
	size_t memory;
	unsigned int sharers;
};

/* How an interface is reached: by an address, of which UCP takes 31 bytes, */
struct uct_devmem_device_addr {
	uint8_t family;
	uint8_t ip[16];
	/* Of the namespace: 127.0.0.1 is that of another one elsewhere. */
	uint64_t machine;
} UCS_S_PACKED;

/* and two ports. */
struct uct_devmem_iface_addr {
	uint16_t control_port;
	uint16_t lane_port;
} UCS_S_PACKED;

struct uct_devmem_iface {
	uct_base_iface_t super;
	char dev_name[IFNAMSIZ];
	struct uct_devmem_device_addr address;
	struct uct_devmem_iface_addr ports;
	struct sockaddr_storage ip;
	socklen_t ip_len;
	unsigned int lanes;
	int control_fd;
	int lane_fd;
	ucs_sys_event_set_t *events;
	/* Whether somebody has connected, and what of that is not whole yet. */
	int knocked;
	ucs_list_link_t callers;
	ucs_list_link_t stash;
	ucs_list_link_t eps;
	/* Connections in which something is to be done. */
	ucs_list_link_t ready;
	/* Those without an endpoint: of peers that are served, and that close. */
	ucs_list_link_t served;
	ucs_list_link_t closing;
	unsigned int outstanding;
	/* Parts that small requests are copied to. */
	void *bounce;
	struct dmb_memory *bounce_memory;
	ucs_queue_head_t bounce_free;
	struct dmb_landing *landing;
};

/* A connection, of an endpoint for as long as that is there, or of a peer's. */
struct uct_devmem_conn {
	struct uct_devmem_iface *iface;
	struct uct_devmem_ep *ep;
	struct dmb_endpoint *end;
	ucs_list_link_t ready;
	ucs_list_link_t list;
	ucs_time_t closing_since;
	/* Whether it is being used further up, and is freed there. */
	int in_use;
	int is_dropped;
};

struct uct_devmem_ep {
	uct_base_ep_t super;
	ucs_list_link_t list;
	struct uct_devmem_conn *conn;
	/* What whoever makes a request is told, once it is not UCS_OK. */
	ucs_status_t status;
	int is_open;
	int is_full;
	int is_fenced;
	/* Requests in the order of their numbers. */
	ucs_queue_head_t requests;
	ucs_queue_head_t flushes;
	ucs_queue_head_t pending;
};

/* devmem_ep.c */
ucs_status_t uct_devmem_attach(struct uct_devmem_iface *iface,
			       struct uct_devmem_ep *ep, int control,
			       const int *lanes, size_t count);
void uct_devmem_conn_close(struct uct_devmem_conn *conn);
unsigned int uct_devmem_ep_dispatch(struct uct_devmem_ep *ep);
unsigned int uct_devmem_conn_progress(struct uct_devmem_conn *conn);
void uct_devmem_conn_drop(struct uct_devmem_conn *conn);
/* Those of the interface that are of endpoints. */
extern const uct_iface_ops_t uct_devmem_ep_ops;

/* devmem_connect.c */
#define UCT_DEVMEM_MAX_LANES 64
ucs_status_t uct_devmem_listen(struct uct_devmem_iface *iface,
			       unsigned int lane_port);
void uct_devmem_listen_end(struct uct_devmem_iface *iface);
ucs_status_t uct_devmem_connect(struct uct_devmem_ep *ep,
				const struct uct_devmem_device_addr *there,
				const struct uct_devmem_iface_addr *ports);
void uct_devmem_answer(struct uct_devmem_iface *iface);

/* devmem_md.c */
size_t uct_devmem_max_alloc(void);
int uct_devmem_dmabuf(size_t size, int *memfd);

/* Bytes of a small request. */
#define UCT_DEVMEM_BOUNCE 8192
#define UCT_DEVMEM_BOUNCES 64

#endif
