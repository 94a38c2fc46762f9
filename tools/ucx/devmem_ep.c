// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Endpoints: ends of a group. UCX destroys none of them while it is called back
 * about what has completed, but may cancel all that is under way.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include <ucs/debug/memtrack_int.h>
#include <uct/base/uct_iov.inl>

#include "devmem.h"

/* A get of bytes, which are unpacked then. */
struct uct_devmem_get {
	uct_completion_t *comp;
	uct_unpack_callback_t unpack;
	void *arg;
	size_t length;
};

static struct uct_devmem_ep *uct_devmem_ep(uct_ep_h tl_ep)
{
	return ucs_derived_of(tl_ep, struct uct_devmem_ep);
}

static struct uct_devmem_iface *uct_devmem_iface_of(struct uct_devmem_ep *ep)
{
	return ucs_derived_of(ep->super.super.iface, struct uct_devmem_iface);
}

/* The endpoint cannot be used any more, and whoever has it is told. */
static void uct_devmem_ep_fail(struct uct_devmem_ep *ep, ucs_status_t status)
{
	struct uct_devmem_iface *iface = uct_devmem_iface_of(ep);
	ucs_log_level_t level;
	ucs_status_t handled;

	if (ep->status != UCS_OK)
		return;
	ep->status = status;
	handled = uct_iface_handle_ep_err(&iface->super.super, &ep->super.super,
					  status);
	level = uct_base_iface_failure_log_level(&iface->super, handled, status);
	ucs_log(level, "devmem: %s: %s",
		status == UCS_ERR_IO_ERROR ? "this end cannot go on" :
					     "the peer is gone",
		ucs_status_string(status));
}

static ucs_status_t uct_devmem_status(uint32_t reason)
{
	switch (reason) {
	case 0:
		return UCS_OK;
	case DMB_OVER_UNREACHABLE:
		return UCS_ERR_UNREACHABLE;
	case DMB_OVER_LOCAL:
		return UCS_ERR_IO_ERROR;
	default:
		return reason < DMB_OVER ? UCS_ERR_REJECTED :
					   UCS_ERR_CONNECTION_RESET;
	}
}

/* A request is over, or all before a flush. */
static void uct_devmem_done(const struct dmb_group_event *event,
			    ucs_status_t status)
{
	uct_completion_t *comp = event->cookie;
	struct uct_devmem_get *get;

	if (event->kind == DMB_EVENT_GOT) {
		get = event->cookie;
		comp = get->comp;
		if (event->bytes)
			get->unpack(get->arg, event->bytes, get->length);
		ucs_free(get);
	}
	if (comp)
		uct_invoke_completion(comp, status);
	else if (status == UCS_ERR_REJECTED)
		/* Nobody else would hear of it. */
		uct_devmem_ep_fail(event->end, status);
}

void uct_devmem_ep_event(const struct dmb_group_event *event)
{
	ucs_status_t status = uct_devmem_status(event->reason);
	struct uct_devmem_ep *ep = event->end;

	switch (event->kind) {
	case DMB_EVENT_DONE:
	case DMB_EVENT_GOT:
		uct_devmem_done(event, status);
		break;
	case DMB_EVENT_OVER:
		if (status != UCS_OK)
			uct_devmem_ep_fail(ep, status);
		else if (ep->status == UCS_OK)
			/* The peer has ended, and whoever asks next is told. */
			ep->status = UCS_ERR_CONNECTION_RESET;
		break;
	}
}

int uct_devmem_ep_can(struct uct_devmem_ep *ep)
{
	return ep->status != UCS_OK ||
	       dmb_group_has_room(uct_devmem_iface_of(ep)->group, ep->end);
}

/* What came of asking. */
static ucs_status_t uct_devmem_asked(int ret)
{
	switch (ret) {
	case 0:
		return UCS_INPROGRESS;
	case -EAGAIN:
		return UCS_ERR_NO_RESOURCE;
	case -ESHUTDOWN:
		return UCS_ERR_CONNECTION_RESET;
	default:
		return UCS_ERR_INVALID_PARAM;
	}
}

static struct dmb_remote uct_devmem_remote(uint64_t address, uct_rkey_t tl_rkey)
{
	const struct uct_devmem_rkey *rkey = (void *)tl_rkey;

	return (struct dmb_remote) {
		.key = rkey->key, .offset = address - rkey->address,
	};
}

static ucs_status_t uct_devmem_zcopy(uct_ep_h tl_ep, int is_put,
				     const uct_iov_t *iov, size_t iovcnt,
				     uint64_t address, uct_rkey_t rkey,
				     uct_completion_t *comp)
{
	const struct dmb_remote remote = uct_devmem_remote(address, rkey);
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	struct dmb_group *group = uct_devmem_iface_of(ep)->group;
	uintptr_t here;
	int ret;

	UCT_CHECK_IOV_SIZE(iovcnt, 1UL, "zcopy");
	if (!iovcnt || !uct_iov_get_length(iov))
		return UCS_OK;
	if (iov->count != 1)
		return UCS_ERR_UNSUPPORTED;
	if (ep->status != UCS_OK)
		return ep->status;
	if (!uct_devmem_ep_is_next(ep))
		return UCS_ERR_NO_RESOURCE;
	here = (uintptr_t)iov->buffer;
	if (is_put)
		ret = dmb_group_put(group, ep->end, iov->memh, here, iov->length,
				    &remote, comp);
	else
		ret = dmb_group_get(group, ep->end, iov->memh, here, iov->length,
				    &remote, comp);
	return uct_devmem_asked(ret);
}

static ucs_status_t uct_devmem_ep_put_zcopy(uct_ep_h tl_ep, const uct_iov_t *iov,
					    size_t iovcnt, uint64_t address,
					    uct_rkey_t rkey,
					    uct_completion_t *comp)
{
	return uct_devmem_zcopy(tl_ep, 1, iov, iovcnt, address, rkey, comp);
}

static ucs_status_t uct_devmem_ep_get_zcopy(uct_ep_h tl_ep, const uct_iov_t *iov,
					    size_t iovcnt, uint64_t address,
					    uct_rkey_t rkey,
					    uct_completion_t *comp)
{
	return uct_devmem_zcopy(tl_ep, 0, iov, iovcnt, address, rkey, comp);
}

static ssize_t uct_devmem_put(struct uct_devmem_ep *ep, const void *from,
			      size_t length, uint64_t address, uct_rkey_t rkey)
{
	const struct dmb_remote remote = uct_devmem_remote(address, rkey);
	int ret;

	if (!length)
		return 0;
	ret = dmb_group_put_bytes(uct_devmem_iface_of(ep)->group, ep->end, from,
				  length, &remote, NULL);
	return ret ? uct_devmem_asked(ret) : length;
}

static ssize_t uct_devmem_ep_put_bcopy(uct_ep_h tl_ep, uct_pack_callback_t pack,
				       void *arg, uint64_t address,
				       uct_rkey_t rkey)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	char *packed = uct_devmem_iface_of(ep)->packed;

	if (ep->status != UCS_OK)
		return ep->status;
	/* To pack is to have sent: so that has to be possible. */
	if (!uct_devmem_ep_is_next(ep) || !uct_devmem_ep_can(ep))
		return UCS_ERR_NO_RESOURCE;
	return uct_devmem_put(ep, packed, pack(packed, arg), address, rkey);
}

static ucs_status_t uct_devmem_ep_put_short(uct_ep_h tl_ep, const void *buffer,
					    unsigned int length, uint64_t address,
					    uct_rkey_t rkey)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	ssize_t ret;

	UCT_CHECK_LENGTH(length, 0, UCT_DEVMEM_COPIED, "put_short");
	if (ep->status != UCS_OK)
		return ep->status;
	if (!uct_devmem_ep_is_next(ep))
		return UCS_ERR_NO_RESOURCE;
	ret = uct_devmem_put(ep, buffer, length, address, rkey);
	return ret < 0 ? ret : UCS_OK;
}

static ucs_status_t uct_devmem_ep_get_bcopy(uct_ep_h tl_ep,
					    uct_unpack_callback_t unpack,
					    void *arg, size_t length,
					    uint64_t address, uct_rkey_t rkey,
					    uct_completion_t *comp)
{
	const struct dmb_remote remote = uct_devmem_remote(address, rkey);
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	struct uct_devmem_get *get;
	int ret;

	UCT_CHECK_LENGTH(length, 0, UCT_DEVMEM_COPIED, "get_bcopy");
	if (!length)
		return UCS_OK;
	if (ep->status != UCS_OK)
		return ep->status;
	if (!uct_devmem_ep_is_next(ep))
		return UCS_ERR_NO_RESOURCE;
	get = ucs_malloc(sizeof(*get), "devmem_get");
	if (!get)
		return UCS_ERR_NO_MEMORY;
	*get = (struct uct_devmem_get) {
		.comp = comp, .unpack = unpack, .arg = arg, .length = length,
	};
	ret = dmb_group_get_bytes(uct_devmem_iface_of(ep)->group, ep->end, length,
				  &remote, get);
	if (ret)
		ucs_free(get);
	return uct_devmem_asked(ret);
}

/* Ends the connection, and all that is under way; orderly, if that is nothing. */
static void uct_devmem_ep_cancel(struct uct_devmem_ep *ep)
{
	struct dmb_group *group = uct_devmem_iface_of(ep)->group;
	struct dmb_group_event event;
	ucs_status_t status;

	ep->status = UCS_ERR_CANCELED;
	while (dmb_group_cancel(group, ep->end, &event)) {
		status = uct_devmem_status(event.reason);
		if (status == UCS_ERR_CONNECTION_RESET)
			status = UCS_ERR_CANCELED;
		uct_devmem_done(&event, status);
	}
	uct_devmem_pending_cancel(ep, UCS_ERR_CANCELED);
}

static ucs_status_t uct_devmem_ep_flush(uct_ep_h tl_ep, unsigned int flags,
					uct_completion_t *comp)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);

	if (flags & UCT_FLUSH_FLAG_CANCEL) {
		uct_devmem_ep_cancel(ep);
		return UCS_OK;
	}
	if (ep->status != UCS_OK)
		return ep->status;
	return uct_devmem_pending_flush(ep, comp);
}

/* What comes is not to overtake what came: it waits until that is in place. */
ucs_status_t uct_devmem_ep_fence(uct_ep_h tl_ep, unsigned int flags)
{
	return uct_devmem_pending_fence(uct_devmem_ep(tl_ep));
}

/* The sockets ask whether the peer is there. */
static ucs_status_t uct_devmem_ep_check(uct_ep_h tl_ep, unsigned int flags,
					uct_completion_t *comp)
{
	UCT_EP_KEEPALIVE_CHECK_PARAM(flags, comp);
	return uct_devmem_ep(tl_ep)->status;
}

/* It is connected later on: until then there is no room for requests. */
static ucs_status_t uct_devmem_ep_create(const uct_ep_params_t *params,
					 uct_ep_h *ep_p)
{
	struct uct_devmem_iface *iface = ucs_derived_of(params->iface,
							struct uct_devmem_iface);
	const struct uct_devmem_device_addr *there;
	const struct uct_devmem_iface_addr *ports;
	struct dmb_address to = { 0 };
	struct uct_devmem_ep *ep;
	ucs_status_t status;
	int64_t end;

	UCT_EP_PARAMS_CHECK_DEV_IFACE_ADDRS(params);
	there = (const void *)params->dev_addr;
	ports = (const void *)params->iface_addr;
	ep = ucs_calloc(1, sizeof(*ep), "devmem_ep");
	if (!ep)
		return UCS_ERR_NO_MEMORY;
	status = UCS_CLASS_INIT(uct_base_ep_t, &ep->super, &iface->super);
	if (status != UCS_OK)
		goto free;
	memcpy(to.ip, there->ip, sizeof(to.ip));
	to.version = there->version;
	to.control = ports->control;
	to.lanes = ports->lanes;
	end = dmb_group_connect(iface->group, &to, iface->lanes, ep);
	if (end < 0) {
		ucs_error("devmem: cannot connect: %s", strerror(-end));
		status = UCS_ERR_UNREACHABLE;
		goto cleanup;
	}
	ep->end = end;
	ucs_queue_head_init(&ep->pending);
	ucs_list_add_tail(&iface->eps, &ep->list);
	*ep_p = &ep->super.super;
	return UCS_OK;

cleanup:
	UCS_CLASS_CLEANUP(uct_base_ep_t, &ep->super);
free:
	ucs_free(ep);
	return status;
}

static void uct_devmem_ep_destroy(uct_ep_h tl_ep)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);

	uct_devmem_ep_cancel(ep);
	uct_devmem_ep_pending_purge(tl_ep, ucs_empty_function_do_assert_void, NULL);
	uct_devmem_pending_gone(ep);
	ucs_list_del(&ep->list);
	UCS_CLASS_CLEANUP(uct_base_ep_t, &ep->super);
	ucs_free(ep);
}

const uct_iface_ops_t uct_devmem_ep_ops = {
	.ep_put_short = uct_devmem_ep_put_short,
	.ep_put_bcopy = uct_devmem_ep_put_bcopy,
	.ep_put_zcopy = uct_devmem_ep_put_zcopy,
	.ep_get_bcopy = uct_devmem_ep_get_bcopy,
	.ep_get_zcopy = uct_devmem_ep_get_zcopy,
	.ep_pending_add = uct_devmem_ep_pending_add,
	.ep_pending_purge = uct_devmem_ep_pending_purge,
	.ep_flush = uct_devmem_ep_flush,
	.ep_fence = uct_devmem_ep_fence,
	.ep_check = uct_devmem_ep_check,
	.ep_create = uct_devmem_ep_create,
	.ep_destroy = uct_devmem_ep_destroy,
};
