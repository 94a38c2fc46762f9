// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The transport, and its interfaces: a device with an address.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <ucs/async/async.h>
#include <ucs/debug/memtrack_int.h>
#include <ucs/sys/sock.h>
#include <ucs/sys/string.h>
#include <ucs/sys/sys.h>
#include <ucs/sys/uid.h>
#include <uct/tcp/tcp.h>

#include "devmem.h"

/* Events that are looked at together. */
#define MOST_EVENTS 16
/* Seconds that peers have to say that they close, too. */
#define FAREWELL 5

static ucs_config_field_t uct_devmem_iface_config_table[] = {
	{ "", "ALLOC=md,mmap,heap", NULL,
	  ucs_offsetof(struct uct_devmem_iface_config, super),
	  UCS_CONFIG_TYPE_TABLE(uct_iface_config_table) },

	{ "LANES", "1", "Connections of an endpoint that carry data.",
	  ucs_offsetof(struct uct_devmem_iface_config, lanes),
	  UCS_CONFIG_TYPE_UINT },

	{ "LANE_PORT", "0",
	  "Port of all of those, to steer what comes to it. 0: any.",
	  ucs_offsetof(struct uct_devmem_iface_config, lane_port),
	  UCS_CONFIG_TYPE_UINT },

	{ "QUEUES", "",
	  "Receive queues to which that port is steered, with commas between.\n"
	  "They are bound to device memory, for what is received to land in.",
	  ucs_offsetof(struct uct_devmem_iface_config, queues),
	  UCS_CONFIG_TYPE_STRING },

	{ "MEMORY", "32m", "Size of the memory that is bound to the queues.",
	  ucs_offsetof(struct uct_devmem_iface_config, memory),
	  UCS_CONFIG_TYPE_MEMUNITS },

	{ "SHARERS", "8", "Endpoints that this memory is divided among.",
	  ucs_offsetof(struct uct_devmem_iface_config, sharers),
	  UCS_CONFIG_TYPE_UINT },

	{ NULL }
};

static struct uct_devmem_iface *uct_devmem_iface(uct_iface_h tl_iface)
{
	return ucs_derived_of(tl_iface, struct uct_devmem_iface);
}

static ucs_status_t
uct_devmem_query_devices(uct_md_h tl_md, uct_tl_device_resource_t **devices,
			 unsigned int *count)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);

	*devices = NULL;
	*count = 0;
	if (!md->ifindex)
		return UCS_OK;
	return uct_single_device_resource(tl_md, md->dev_name,
					  UCT_DEVICE_TYPE_NET,
					  UCS_SYS_DEVICE_ID_UNKNOWN, devices,
					  count);
}

static ucs_status_t uct_devmem_iface_query(uct_iface_h tl_iface,
					   uct_iface_attr_t *attr)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	ucs_status_t status;

	uct_base_iface_query(&iface->super, attr);
	status = uct_tcp_netif_caps(iface->dev_name, &attr->latency.c,
				    &attr->bandwidth.shared);
	if (status != UCS_OK)
		return status;
	attr->iface_addr_len = sizeof(struct uct_devmem_iface_addr);
	attr->device_addr_len = sizeof(struct uct_devmem_device_addr);
	attr->cap.flags = UCT_IFACE_FLAG_PUT_SHORT | UCT_IFACE_FLAG_PUT_BCOPY |
			  UCT_IFACE_FLAG_PUT_ZCOPY | UCT_IFACE_FLAG_GET_BCOPY |
			  UCT_IFACE_FLAG_GET_ZCOPY | UCT_IFACE_FLAG_PENDING |
			  UCT_IFACE_FLAG_CONNECT_TO_IFACE |
			  UCT_IFACE_FLAG_CB_SYNC |
			  UCT_IFACE_FLAG_EP_CHECK | UCT_IFACE_FLAG_EP_KEEPALIVE |
			  UCT_IFACE_FLAG_ERRHANDLE_PEER_FAILURE;
	attr->cap.event_flags = UCT_IFACE_FLAG_EVENT_SEND_COMP |
				UCT_IFACE_FLAG_EVENT_RECV |
				UCT_IFACE_FLAG_EVENT_FD;
	attr->cap.put.max_short = UCT_DEVMEM_BOUNCE;
	attr->cap.put.max_bcopy = UCT_DEVMEM_BOUNCE;
	attr->cap.put.max_zcopy = SIZE_MAX >> 1;
	attr->cap.put.opt_zcopy_align = 1;
	attr->cap.put.align_mtu = 1;
	attr->cap.put.max_iov = 1;
	attr->cap.get.max_bcopy = UCT_DEVMEM_BOUNCE;
	attr->cap.get.max_zcopy = SIZE_MAX >> 1;
	attr->cap.get.opt_zcopy_align = 1;
	attr->cap.get.align_mtu = 1;
	attr->cap.get.max_iov = 1;
	attr->overhead = 50. / UCS_USEC_PER_SEC;
	return UCS_OK;
}

static ucs_status_t uct_devmem_get_device_address(uct_iface_h tl_iface,
						  uct_device_addr_t *addr)
{
	memcpy(addr, &uct_devmem_iface(tl_iface)->address,
	       sizeof(struct uct_devmem_device_addr));
	return UCS_OK;
}

static ucs_status_t uct_devmem_get_address(uct_iface_h tl_iface,
					   uct_iface_addr_t *addr)
{
	memcpy(addr, &uct_devmem_iface(tl_iface)->ports,
	       sizeof(struct uct_devmem_iface_addr));
	return UCS_OK;
}

static int uct_devmem_is_reachable(const uct_iface_h tl_iface,
				   const uct_device_addr_t *dev_addr,
				   const uct_iface_addr_t *iface_addr)
{
	const struct uct_devmem_device_addr *there = (const void *)dev_addr;
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct sockaddr_storage remote = iface->ip;
	int is_loopback;

	if (there->family != iface->address.family)
		return 0;
	/* Loopback leads to loopback of this machine only, and nothing else does. */
	ucs_sockaddr_set_inet_addr((struct sockaddr *)&remote, there->ip);
	is_loopback = ucs_sockaddr_is_inaddr_loopback((struct sockaddr *)&iface->ip);
	if (is_loopback != ucs_sockaddr_is_inaddr_loopback((struct sockaddr *)&remote))
		return 0;
	return !is_loopback || there->machine == iface->address.machine;
}

static void uct_devmem_event(void *data, ucs_event_set_types_t events, void *arg)
{
	struct uct_devmem_iface *iface = arg;
	struct uct_devmem_conn *conn = data;

	if (!conn) {
		iface->knocked = 1;
		return;
	}
	ucs_list_del(&conn->ready);
	ucs_list_add_tail(&iface->ready, &conn->ready);
}

/* Peers that do not say that they close are left. */
static void uct_devmem_leave(struct uct_devmem_iface *iface, double seconds)
{
	ucs_time_t before = ucs_get_time() - ucs_time_from_sec(seconds);
	struct uct_devmem_conn *conn, *next;

	ucs_list_for_each_safe(conn, next, &iface->closing, list) {
		if (conn->closing_since <= before)
			uct_devmem_conn_drop(conn);
	}
}

static unsigned int uct_devmem_iface_progress(uct_iface_h tl_iface)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct uct_devmem_conn *conn, *last;
	unsigned int events = MOST_EVENTS, count = 0;
	struct uct_devmem_ep *ep, *next;

	ucs_event_set_wait(iface->events, &events, 0, uct_devmem_event, iface);
	if (iface->knocked)
		uct_devmem_answer(iface);
	/* Those that become ready meanwhile have their turn next time. */
	if (!ucs_list_is_empty(&iface->ready)) {
		last = ucs_list_tail(&iface->ready, struct uct_devmem_conn, ready);
		do {
			conn = ucs_list_head(&iface->ready,
					     struct uct_devmem_conn, ready);
			count += uct_devmem_conn_progress(conn);
		} while (conn != last && !ucs_list_is_empty(&iface->ready));
	}
	ucs_list_for_each_safe(ep, next, &iface->eps, list)
		count += uct_devmem_ep_dispatch(ep);
	if (!ucs_list_is_empty(&iface->closing))
		uct_devmem_leave(iface, FAREWELL);
	return count;
}

/*
 * UCP makes no progress on an interface of which it has no endpoints, and peers are
 * to be served: once there is one progress stays enabled.
 */
static void uct_devmem_knock(int fd, ucs_event_set_types_t events, void *arg)
{
	struct uct_devmem_iface *iface = arg;

	ucs_async_modify_handler(fd, 0);
	uct_base_iface_progress_enable(&iface->super.super,
				       UCT_PROGRESS_SEND | UCT_PROGRESS_RECV |
				       UCT_PROGRESS_THREAD_SAFE);
}

static void uct_devmem_progress_disable(uct_iface_h tl_iface,
					unsigned int flags)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);

	if (!ucs_list_is_empty(&iface->served) ||
	    !ucs_list_is_empty(&iface->callers))
		return;
	uct_base_iface_progress_disable(tl_iface, flags);
	ucs_async_modify_handler(iface->control_fd, UCS_EVENT_SET_EVREAD);
}

static ucs_status_t uct_devmem_iface_flush(uct_iface_h tl_iface,
					   unsigned int flags,
					   uct_completion_t *comp)
{
	if (comp)
		return UCS_ERR_UNSUPPORTED;
	return uct_devmem_iface(tl_iface)->outstanding ? UCS_INPROGRESS : UCS_OK;
}

static ucs_status_t uct_devmem_iface_fence(uct_iface_h tl_iface,
					   unsigned int flags)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct uct_devmem_ep *ep;

	ucs_list_for_each(ep, &iface->eps, list)
		uct_devmem_ep_ops.ep_fence(&ep->super.super, flags);
	return UCS_OK;
}

static ucs_status_t uct_devmem_event_fd_get(uct_iface_h tl_iface, int *fd_p)
{
	return ucs_event_set_fd_get(uct_devmem_iface(tl_iface)->events, fd_p);
}

static ucs_status_t uct_devmem_event_arm(uct_iface_h tl_iface,
					 unsigned int events)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);

	return ucs_list_is_empty(&iface->ready) && !iface->knocked ?
	       UCS_OK : UCS_ERR_BUSY;
}

/* Binds device memory to queues, "4,5" say. */
static ucs_status_t uct_devmem_land(struct uct_devmem_iface *iface,
				    const struct uct_devmem_iface_config *config)
{
	size_t size = ucs_align_up(config->memory, ucs_get_page_size());
	struct uct_devmem_md *md = ucs_derived_of(iface->super.md,
						  struct uct_devmem_md);
	const char *at = config->queues;
	int memfd, fd, ret = -EINVAL;
	uint32_t queues[64];
	size_t count = 0;
	char *end;

	if (!*at)
		return UCS_OK;
	do {
		queues[count++] = strtoul(at, &end, 10);
		if (end == at || (*end && *end != ','))
			goto error;
		at = end + 1;
	} while (*end && count < ucs_static_array_size(queues));
	fd = uct_devmem_dmabuf(size, &memfd);
	ret = fd;
	if (fd < 0)
		goto error;
	ret = dmb_landing_new(fd, md->ifindex, queues, count, config->sharers,
			      &iface->landing);
	close(fd);
	close(memfd);
	if (!ret)
		return UCS_OK;
error:
	ucs_error("devmem: memory cannot be bound to queues %s of %s: %s",
		  config->queues, iface->dev_name, strerror(-ret));
	return UCS_ERR_INVALID_PARAM;
}

static ucs_status_t uct_devmem_bounces(struct uct_devmem_iface *iface)
{
	size_t size = UCT_DEVMEM_BOUNCES * UCT_DEVMEM_BOUNCE, at;

	ucs_queue_head_init(&iface->bounce_free);
	iface->bounce = ucs_malloc(size, "devmem_bounce");
	if (!iface->bounce)
		return UCS_ERR_NO_MEMORY;
	if (dmb_memory_host(iface->bounce, size, &iface->bounce_memory))
		return UCS_ERR_NO_MEMORY;
	for (at = 0; at < size; at += UCT_DEVMEM_BOUNCE)
		ucs_queue_push(&iface->bounce_free, iface->bounce + at);
	return UCS_OK;
}

static ucs_status_t uct_devmem_find_address(struct uct_devmem_iface *iface)
{
	struct sockaddr *ip = (struct sockaddr *)&iface->ip;
	struct sockaddr_storage mask;
	size_t len, bytes;

	if (ucs_netif_get_addr(iface->dev_name, AF_INET, ip,
			       (struct sockaddr *)&mask) != UCS_OK &&
	    ucs_netif_get_addr(iface->dev_name, AF_INET6, ip,
			       (struct sockaddr *)&mask) != UCS_OK)
		return UCS_ERR_NO_DEVICE;
	ucs_sockaddr_sizeof(ip, &len);
	ucs_sockaddr_inet_addr_sizeof(ip, &bytes);
	iface->ip_len = len;
	iface->address.family = ip->sa_family;
	memcpy(iface->address.ip, ucs_sockaddr_get_inet_addr(ip), bytes);
	iface->address.machine = ucs_get_system_id() ^
				 ucs_sys_get_ns(UCS_SYS_NS_TYPE_NET);
	return UCS_OK;
}

static void uct_devmem_iface_close(uct_iface_h tl_iface)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	ucs_time_t end = ucs_get_time() + ucs_time_from_sec(1);
	struct uct_devmem_conn *conn, *next;

	if (iface->control_fd >= 0)
		ucs_async_remove_handler(iface->control_fd, 1);
	uct_base_iface_progress_disable(tl_iface, UCT_PROGRESS_SEND |
						  UCT_PROGRESS_RECV);
	/* So that peers do not take it for a failure. */
	ucs_list_for_each_safe(conn, next, &iface->served, list)
		uct_devmem_conn_close(conn);
	while (!ucs_list_is_empty(&iface->closing) && ucs_get_time() < end)
		uct_devmem_iface_progress(tl_iface);
	uct_devmem_leave(iface, 0);
	uct_devmem_listen_end(iface);
	ucs_event_set_cleanup(iface->events);
	dmb_landing_free(iface->landing);
	if (iface->bounce_memory)
		dmb_memory_close(iface->bounce_memory);
	dmb_memory_free(iface->bounce_memory);
	ucs_free(iface->bounce);
	UCS_CLASS_CLEANUP(uct_base_iface_t, &iface->super);
	ucs_free(iface);
}

static ucs_status_t uct_devmem_iface_new(uct_md_h md, uct_worker_h worker,
					 const uct_iface_params_t *params,
					 const uct_iface_config_t *tl_config,
					 uct_iface_h *iface_p)
{
	const struct uct_devmem_iface_config *config =
		ucs_derived_of(tl_config, struct uct_devmem_iface_config);
	uct_iface_ops_t ops = uct_devmem_ep_ops;
	struct uct_devmem_iface *iface;
	ucs_status_t status;

	UCT_CHECK_PARAM(params->field_mask & UCT_IFACE_PARAM_FIELD_OPEN_MODE,
			"UCT_IFACE_PARAM_FIELD_OPEN_MODE is not defined");
	if (!(params->open_mode & UCT_IFACE_OPEN_MODE_DEVICE))
		return UCS_ERR_UNSUPPORTED;
	if (ucs_derived_of(worker, uct_priv_worker_t)->thread_mode ==
	    UCS_THREAD_MODE_MULTI) {
		ucs_error("devmem: a worker is for one thread at a time");
		return UCS_ERR_INVALID_PARAM;
	}
	if (!config->lanes || config->lanes > UCT_DEVMEM_MAX_LANES ||
	    config->lane_port > UINT16_MAX) {
		ucs_error("devmem: from 1 to %d lanes, and a port",
			  UCT_DEVMEM_MAX_LANES);
		return UCS_ERR_INVALID_PARAM;
	}
	ops.iface_flush = uct_devmem_iface_flush;
	ops.iface_fence = uct_devmem_iface_fence;
	ops.iface_progress_enable = uct_base_iface_progress_enable;
	ops.iface_progress_disable = uct_devmem_progress_disable;
	ops.iface_progress = uct_devmem_iface_progress;
	ops.iface_event_fd_get = uct_devmem_event_fd_get;
	ops.iface_event_arm = uct_devmem_event_arm;
	ops.iface_close = uct_devmem_iface_close;
	ops.iface_query = uct_devmem_iface_query;
	ops.iface_get_device_address = uct_devmem_get_device_address;
	ops.iface_get_address = uct_devmem_get_address;
	ops.iface_is_reachable = uct_devmem_is_reachable;

	iface = ucs_calloc(1, sizeof(*iface), "devmem_iface");
	if (!iface)
		return UCS_ERR_NO_MEMORY;
	status = UCS_CLASS_INIT(uct_base_iface_t, &iface->super, &ops,
				&uct_base_iface_internal_ops, md, worker, params,
				tl_config);
	if (status != UCS_OK) {
		ucs_free(iface);
		return status;
	}
	ucs_strncpy_zero(iface->dev_name, params->mode.device.dev_name,
			 sizeof(iface->dev_name));
	iface->lanes = config->lanes;
	iface->control_fd = -1;
	iface->lane_fd = -1;
	ucs_list_head_init(&iface->callers);
	ucs_list_head_init(&iface->stash);
	ucs_list_head_init(&iface->eps);
	ucs_list_head_init(&iface->ready);
	ucs_list_head_init(&iface->served);
	ucs_list_head_init(&iface->closing);
	status = ucs_event_set_create(&iface->events);
	if (status != UCS_OK) {
		UCS_CLASS_CLEANUP(uct_base_iface_t, &iface->super);
		ucs_free(iface);
		return status;
	}
	status = uct_devmem_find_address(iface);
	if (status == UCS_OK)
		status = uct_devmem_bounces(iface);
	if (status == UCS_OK)
		status = uct_devmem_land(iface, config);
	if (status == UCS_OK)
		status = uct_devmem_listen(iface, config->lane_port);
	if (status == UCS_OK)
		status = ucs_async_set_event_handler(iface->super.worker->async->mode,
						     iface->control_fd,
						     UCS_EVENT_SET_EVREAD,
						     uct_devmem_knock, iface,
						     iface->super.worker->async);
	if (status == UCS_OK)
		*iface_p = &iface->super.super;
	else
		uct_devmem_iface_close(&iface->super.super);
	return status;
}

static UCT_TL_DEFINE_ENTRY(&uct_devmem_component, devmem,
			   uct_devmem_query_devices, uct_devmem_iface, "DEVMEM_",
			   uct_devmem_iface_config_table,
			   struct uct_devmem_iface_config);

/* When the library is loaded, and when it is unloaded. */
UCT_SINGLE_TL_INIT(&uct_devmem_component, devmem, ctor, {}, {});
