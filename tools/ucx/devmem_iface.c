// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The transport, and its interfaces: a device with an address.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "config.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <string.h>
#include <unistd.h>

#include <ucs/async/async.h>
#include <ucs/debug/memtrack_int.h>
#include <ucs/sys/sock.h>
#include <ucs/sys/string.h>
#include <ucs/sys/sys.h>
#include <ucs/sys/uid.h>
#include <ucs/time/time.h>
#include <uct/tcp/tcp.h>

#include "devmem.h"

/* Events that are looked at together. */
#define MOST_EVENTS 64
/* Bytes that a lane has in hand, at least. */
#define LEAST 8192
/* Milliseconds that peers have to say that they close, too, when an interface does. */
#define FAREWELL 1000

struct uct_devmem_iface_config {
	uct_iface_config_t super;
	unsigned int lanes;
	unsigned int lane_port;
	struct {
		unsigned int *values;
		unsigned int count;
	} queues;
	size_t memory;
	unsigned int sharers;
};

static UCS_CONFIG_DEFINE_ARRAY(devmem_queues, sizeof(unsigned int),
			       UCS_CONFIG_TYPE_UINT);

static ucs_config_field_t uct_devmem_iface_config_table[] = {
	{ "", "ALLOC=md,mmap,heap", NULL,
	  ucs_offsetof(struct uct_devmem_iface_config, super),
	  UCS_CONFIG_TYPE_TABLE(uct_iface_config_table) },

	{ "LANES", "1", "Connections of an endpoint that carry data.",
	  ucs_offsetof(struct uct_devmem_iface_config, lanes),
	  UCS_CONFIG_TYPE_UINT },

	{ "LANE_PORT", "0",
	  "Port of all of those, to steer what comes to it: one worker's. 0: any.",
	  ucs_offsetof(struct uct_devmem_iface_config, lane_port),
	  UCS_CONFIG_TYPE_UINT },

	{ "QUEUES", "",
	  "Receive queues to which that port is steered, with commas between.\n"
	  "They are bound to device memory, for what is received to land in.",
	  ucs_offsetof(struct uct_devmem_iface_config, queues),
	  UCS_CONFIG_TYPE_ARRAY(devmem_queues) },

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

static struct uct_devmem_md *uct_devmem_md_of(struct uct_devmem_iface *iface)
{
	return ucs_derived_of(iface->super.md, struct uct_devmem_md);
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
	/*
	 * Nothing is received that a program is told of. But UCP makes progress on
	 * those only that say so, once it has no endpoints of them: that is what ends
	 * the last connection, and what has sleeping workers serve peers.
	 */
	attr->cap.event_flags = UCT_IFACE_FLAG_EVENT_SEND_COMP |
				UCT_IFACE_FLAG_EVENT_RECV |
				UCT_IFACE_FLAG_EVENT_FD;
	attr->cap.put.max_short = UCT_DEVMEM_COPIED;
	attr->cap.put.max_bcopy = UCT_DEVMEM_COPIED;
	attr->cap.put.max_zcopy = SIZE_MAX >> 1;
	attr->cap.put.opt_zcopy_align = 1;
	attr->cap.put.align_mtu = 1;
	attr->cap.put.max_iov = 1;
	attr->cap.get.max_bcopy = UCT_DEVMEM_COPIED;
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
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct uct_devmem_device_addr *here = (void *)addr;

	here->version = iface->here.version;
	memcpy(here->ip, iface->here.ip, sizeof(here->ip));
	here->machine = iface->machine;
	return UCS_OK;
}

static ucs_status_t uct_devmem_get_address(uct_iface_h tl_iface,
					   uct_iface_addr_t *addr)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct uct_devmem_iface_addr *ports = (void *)addr;

	ports->control = iface->here.control;
	ports->lanes = iface->here.lanes;
	return UCS_OK;
}

static int uct_devmem_is_loopback(uint8_t version, const uint8_t *ip)
{
	return version == 4 ? ip[0] == IN_LOOPBACKNET :
			      !memcmp(ip, &in6addr_loopback, 16);
}

/* Loopback leads to loopback of this machine only, and nothing else does. */
static int uct_devmem_is_reachable(const uct_iface_h tl_iface,
				   const uct_device_addr_t *dev_addr,
				   const uct_iface_addr_t *iface_addr)
{
	const struct uct_devmem_device_addr *there = (const void *)dev_addr;
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	int is_loopback;

	if (there->version != iface->here.version)
		return 0;
	is_loopback = uct_devmem_is_loopback(iface->here.version, iface->here.ip);
	if (is_loopback != uct_devmem_is_loopback(there->version, there->ip))
		return 0;
	return !is_loopback || there->machine == iface->machine;
}

static unsigned int uct_devmem_iface_progress(uct_iface_h tl_iface)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct dmb_group_event event;
	unsigned int count = 0;

	while (count < MOST_EVENTS && dmb_group_wait(iface->group, 0, &event) > 0) {
		uct_devmem_ep_event(&event);
		count++;
	}
	return count + uct_devmem_dispatch(iface);
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

static ucs_status_t uct_devmem_expect(struct uct_devmem_iface *iface)
{
	ucs_async_context_t *async = iface->super.worker->async;

	/* UCP has a handler of its own for that of the group. */
	iface->knock_fd = fcntl(dmb_group_fd(iface->group), F_DUPFD_CLOEXEC, 0);
	if (iface->knock_fd < 0)
		return UCS_ERR_IO_ERROR;
	return ucs_async_set_event_handler(async->mode, iface->knock_fd,
					   UCS_EVENT_SET_EVREAD,
					   uct_devmem_knock, iface, async);
}

static void uct_devmem_progress_disable(uct_iface_h tl_iface,
					unsigned int flags)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);

	if (dmb_group_is_serving(iface->group))
		return;
	uct_base_iface_progress_disable(tl_iface, flags);
	ucs_async_modify_handler(iface->knock_fd, UCS_EVENT_SET_EVREAD);
}

static ucs_status_t uct_devmem_iface_flush(uct_iface_h tl_iface,
					   unsigned int flags,
					   uct_completion_t *comp)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct uct_devmem_ep *ep;

	if (comp)
		return UCS_ERR_UNSUPPORTED;
	ucs_list_for_each(ep, &iface->eps, list)
		if (!ucs_queue_is_empty(&ep->pending))
			return UCS_INPROGRESS;
	return dmb_group_has_requests(iface->group) ? UCS_INPROGRESS : UCS_OK;
}

static ucs_status_t uct_devmem_iface_fence(uct_iface_h tl_iface,
					   unsigned int flags)
{
	struct uct_devmem_ep *ep;
	ucs_status_t status;

	ucs_list_for_each(ep, &uct_devmem_iface(tl_iface)->eps, list) {
		status = uct_devmem_ep_fence(&ep->super.super, flags);
		if (status != UCS_OK)
			return status;
	}
	return UCS_OK;
}

static ucs_status_t uct_devmem_event_fd_get(uct_iface_h tl_iface, int *fd_p)
{
	*fd_p = dmb_group_fd(uct_devmem_iface(tl_iface)->group);
	return UCS_OK;
}

static ucs_status_t uct_devmem_event_arm(uct_iface_h tl_iface,
					 unsigned int events)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);
	struct uct_devmem_ep *ep;

	/* Nothing more may happen that would have these made. */
	ucs_list_for_each(ep, &iface->eps, list)
		if (!ucs_queue_is_empty(&ep->pending) && uct_devmem_ep_can(ep))
			return UCS_ERR_BUSY;
	return dmb_group_is_busy(iface->group) ? UCS_ERR_BUSY : UCS_OK;
}

static ucs_status_t uct_devmem_find_address(struct uct_devmem_iface *iface)
{
	struct sockaddr_storage ip, mask;
	struct sockaddr *addr = (struct sockaddr *)&ip;
	size_t bytes;

	if (ucs_netif_get_addr(iface->dev_name, AF_INET, addr,
			       (struct sockaddr *)&mask) != UCS_OK &&
	    ucs_netif_get_addr(iface->dev_name, AF_INET6, addr,
			       (struct sockaddr *)&mask) != UCS_OK)
		return UCS_ERR_NO_DEVICE;
	ucs_sockaddr_inet_addr_sizeof(addr, &bytes);
	iface->here.version = addr->sa_family == AF_INET ? 4 : 6;
	memcpy(iface->here.ip, ucs_sockaddr_get_inet_addr(addr), bytes);
	iface->machine = ucs_get_system_id() ^
			 ucs_sys_get_ns(UCS_SYS_NS_TYPE_NET);
	return UCS_OK;
}

/* Binds device memory to the queues, if there are any, and listens. */
static int uct_devmem_listen(struct uct_devmem_iface *iface,
			     const struct uct_devmem_iface_config *config)
{
	struct uct_devmem_md *md = uct_devmem_md_of(iface);
	int ret = 0;

	iface->here.lanes = config->lane_port;
	if (config->queues.count)
		ret = dmb_landing_alloc(config->memory, md->ifindex,
					config->queues.values,
					config->queues.count, config->sharers,
					&iface->landing);
	if (!ret)
		ret = dmb_group_new(&iface->here, md->pool, iface->landing,
				    &iface->group);
	if (ret != -EADDRINUSE && ret != -EEXIST && ret != -EBUSY)
		return ret;
	/* The port, or the queue, is another worker's, of whoever has the same options. */
	ucs_warn("devmem: %s lands in host memory: UCX_DEVMEM_LANE_PORT or UCX_DEVMEM_QUEUES is in use",
		 iface->dev_name);
	dmb_landing_free(iface->landing);
	iface->landing = NULL;
	iface->here.lanes = 0;
	return dmb_group_new(&iface->here, md->pool, NULL, &iface->group);
}

static ucs_status_t uct_devmem_begin(struct uct_devmem_iface *iface,
				     const struct uct_devmem_iface_config *config)
{
	ucs_status_t status = uct_devmem_find_address(iface);
	int ret;

	if (status != UCS_OK)
		return status;
	ret = uct_devmem_listen(iface, config);
	if (!ret)
		return UCS_OK;
	ucs_error("devmem: cannot listen on %s, or bind memory to its queues: %s",
		  iface->dev_name, strerror(-ret));
	return UCS_ERR_IO_ERROR;
}

static void uct_devmem_iface_close(uct_iface_h tl_iface)
{
	struct uct_devmem_iface *iface = uct_devmem_iface(tl_iface);

	if (iface->knock_fd >= 0) {
		ucs_async_remove_handler(iface->knock_fd, 1);
		close(iface->knock_fd);
	}
	uct_base_iface_progress_disable(tl_iface, UCT_PROGRESS_SEND |
						  UCT_PROGRESS_RECV);
	/* So that peers do not take it for a failure. */
	dmb_group_free(iface->group, FAREWELL);
	dmb_landing_free(iface->landing);
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
	if (!config->lanes || config->lanes > 64 || config->lane_port > UINT16_MAX) {
		ucs_error("devmem: from 1 to 64 lanes, and a port");
		return UCS_ERR_INVALID_PARAM;
	}
	if (config->queues.count &&
	    config->memory / 4 / ucs_max(config->sharers, 1) / config->lanes < LEAST) {
		ucs_error("devmem: UCX_DEVMEM_MEMORY is not %d bytes for each lane of SHARERS",
			  4 * LEAST);
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
	ucs_list_head_init(&iface->eps);
	iface->knock_fd = -1;
	status = uct_devmem_begin(iface, config);
	if (status == UCS_OK)
		status = uct_devmem_expect(iface);
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

static int uct_devmem_fits;

/* Where UCP is: beside UCS, of which it is a version. */
static void *uct_devmem_ucp(char *path, size_t size)
{
	void *ucs = dlopen("libucs.so.0", RTLD_LAZY | RTLD_NOLOAD);
	struct link_map *map;
	const char *end;

	if (!ucs)
		return NULL;
	if (!dlinfo(ucs, RTLD_DI_LINKMAP, &map)) {
		end = strrchr(map->l_name, '/');
		ucs_snprintf_safe(path, size, "%.*slibucp.so.0",
				  end ? (int)(end + 1 - map->l_name) : 0,
				  map->l_name);
	}
	dlclose(ucs);
	return dlopen(path, RTLD_LAZY | RTLD_LOCAL);
}

/*
 * Other versions have other tables, and the same names of libraries. It is UCP that
 * tells, which many programs load later than this: so it is asked for here.
 */
static int uct_devmem_is_for_this(void)
{
	char path[PATH_MAX] = "libucp.so.0";
	void *ucp = uct_devmem_ucp(path, sizeof(path));
	const char *(*version)(void);

	if (!ucp) {
		ucs_warn("devmem: nothing tells which UCX this is: there is no %s",
			 path);
		return 0;
	}
	version = (const char *(*)(void))dlsym(ucp, "ucp_get_version_string");
	if (version && !strcmp(version(), UCX_VERSION))
		/* It stays where it is for whoever loads it. */
		return 1;
	ucs_warn("devmem: this is not UCX " UCX_VERSION ", for which the transport is");
	dlclose(ucp);
	return 0;
}

/* When the library is loaded, and when it is unloaded. */
static void UCS_F_CTOR uct_devmem_init(void)
{
	uct_devmem_fits = uct_devmem_is_for_this();
	if (!uct_devmem_fits)
		return;
	uct_component_register(&uct_devmem_component);
	uct_tl_register(&uct_devmem_component, &UCT_TL_NAME(devmem));
}

static void UCS_F_DTOR uct_devmem_cleanup(void)
{
	if (!uct_devmem_fits)
		return;
	uct_tl_unregister(&UCT_TL_NAME(devmem));
	uct_component_unregister(&uct_devmem_component);
}
