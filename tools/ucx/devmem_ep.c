// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Endpoints: requests, and how they end. Whatever calls back may destroy the
 * endpoint, so that none is looked at after that but through its connection.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include <ucs/debug/memtrack_int.h>
#include <ucs/sys/math.h>

#include "devmem.h"

/* A put or a get that is under way, or one that waits for those before it. */
struct uct_devmem_request {
	ucs_queue_elem_t queue;
	/* Its number; of a flush, that of the first that it does not wait for. */
	uint64_t id;
	uct_completion_t *comp;
	/* Of the interface, if it is a small one, and of a get where it goes. */
	ucs_queue_elem_t *bounce;
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

/* Has a connection looked at when progress is made next. */
static void uct_devmem_conn_ready(struct uct_devmem_conn *conn)
{
	ucs_list_del(&conn->ready);
	ucs_list_add_tail(&conn->iface->ready, &conn->ready);
}

/* Lets go of a connection, unless somebody further up uses it, who does then. */
void uct_devmem_conn_drop(struct uct_devmem_conn *conn)
{
	conn->is_dropped = 1;
	if (conn->in_use)
		return;
	ucs_event_set_del(conn->iface->events, dmb_fd(conn->end));
	dmb_endpoint_free(conn->end);
	ucs_list_del(&conn->ready);
	ucs_list_del(&conn->list);
	ucs_free(conn);
}

/* Tells the peer that there will be no more requests, which is to say the same. */
void uct_devmem_conn_close(struct uct_devmem_conn *conn)
{
	dmb_close(conn->end);
	conn->closing_since = ucs_get_time();
	ucs_list_del(&conn->list);
	ucs_list_add_tail(&conn->iface->closing, &conn->list);
	uct_devmem_conn_ready(conn);
}

/* A connection has been made, by an endpoint or to be served. */
ucs_status_t uct_devmem_attach(struct uct_devmem_iface *iface,
			       struct uct_devmem_ep *ep, int control,
			       const int *lanes, size_t count)
{
	struct uct_devmem_md *md = ucs_derived_of(iface->super.md,
						  struct uct_devmem_md);
	struct uct_devmem_conn *conn;
	int ret;

	conn = ucs_calloc(1, sizeof(*conn), "devmem_conn");
	if (!conn)
		return UCS_ERR_NO_MEMORY;
	ret = dmb_endpoint_new(control, lanes, count, md->registry,
			       iface->landing, &conn->end);
	if (ret) {
		ucs_error("devmem: no endpoint: %s", strerror(-ret));
		goto free;
	}
	conn->iface = iface;
	ucs_list_head_init(&conn->ready);
	ucs_list_head_init(&conn->list);
	if (ucs_event_set_add(iface->events, dmb_fd(conn->end),
			      UCS_EVENT_SET_EVREAD, conn) != UCS_OK) {
		dmb_endpoint_free(conn->end);
		goto free;
	}
	conn->ep = ep;
	if (ep)
		ep->conn = conn;
	else
		ucs_list_add_tail(&iface->served, &conn->list);
	uct_devmem_conn_ready(conn);
	return UCS_OK;
free:
	ucs_free(conn);
	return UCS_ERR_IO_ERROR;
}

/* Tells those who wait for what is over now. */
static void uct_devmem_ep_flushed(struct uct_devmem_conn *conn,
				  ucs_status_t status)
{
	struct uct_devmem_request *flush, *oldest;
	uct_completion_t *comp;

	while (conn->ep && !ucs_queue_is_empty(&conn->ep->flushes)) {
		flush = ucs_queue_head_elem_non_empty(&conn->ep->flushes,
						      struct uct_devmem_request,
						      queue);
		oldest = ucs_queue_head_elem_non_empty(&conn->ep->requests,
						       struct uct_devmem_request,
						       queue);
		if (!ucs_queue_is_empty(&conn->ep->requests) &&
		    oldest->id < flush->id)
			return;
		ucs_queue_pull_non_empty(&conn->ep->flushes);
		comp = flush->comp;
		ucs_free(flush);
		uct_invoke_completion(comp, status);
	}
}

/* A request is over. */
static void uct_devmem_request_end(struct uct_devmem_iface *iface,
				   struct uct_devmem_request *request,
				   ucs_status_t status)
{
	iface->outstanding--;
	if (request->unpack && status == UCS_OK)
		request->unpack(request->arg, request->bounce, request->length);
	if (request->bounce)
		ucs_queue_push(&iface->bounce_free, request->bounce);
	if (request->comp)
		uct_invoke_completion(request->comp, status);
	ucs_free(request);
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
	ucs_log(level, "devmem: the peer is gone: %s", ucs_status_string(status));
}

static ucs_status_t uct_devmem_status(uint32_t reason)
{
	if (!reason)
		return UCS_OK;
	return reason >= DMB_OVER ? UCS_ERR_CONNECTION_RESET :
				    UCS_ERR_REJECTED;
}

static void uct_devmem_done(struct uct_devmem_conn *conn,
			    const struct dmb_event *event)
{
	ucs_status_t status = uct_devmem_status(event->reason);
	struct uct_devmem_request *request;
	struct uct_devmem_ep *ep = conn->ep;
	ucs_queue_iter_t iter;
	int is_told;

	if (!ep)
		return;
	ucs_queue_for_each_safe(request, iter, &ep->requests, queue) {
		if (request->id != event->id)
			continue;
		ucs_queue_del_iter(&ep->requests, iter);
		ep->is_full = 0;
		if (ucs_queue_is_empty(&ep->requests))
			ep->is_fenced = 0;
		is_told = request->comp || event->reason >= DMB_OVER;
		uct_devmem_request_end(conn->iface, request, status);
		/* Of a small put nobody else would hear that it failed. */
		if (status != UCS_OK && !is_told && conn->ep)
			uct_devmem_ep_fail(conn->ep, status);
		uct_devmem_ep_flushed(conn, status == UCS_ERR_CONNECTION_RESET ?
					    status : UCS_OK);
		return;
	}
}

/* The connection is over: by both ends, or by what went wrong. */
static void uct_devmem_over(struct uct_devmem_conn *conn, uint32_t reason)
{
	struct uct_devmem_ep *ep = conn->ep;

	ucs_debug("devmem: connection %p is over, %#x", conn, reason);
	if (ep) {
		conn->ep = NULL;
		ep->conn = NULL;
		if (reason)
			uct_devmem_ep_fail(ep, UCS_ERR_CONNECTION_RESET);
		else if (ep->status == UCS_OK)
			ep->status = UCS_ERR_CONNECTION_RESET;
	}
	uct_devmem_conn_drop(conn);
}

/* Looks at what has happened. The connection may be gone then. */
unsigned int uct_devmem_conn_progress(struct uct_devmem_conn *conn)
{
	struct dmb_event event;
	unsigned int count = 0;
	int ret;

	ucs_list_del(&conn->ready);
	ucs_list_head_init(&conn->ready);
	conn->in_use = 1;
	while (!conn->is_dropped && (ret = dmb_wait(conn->end, 0, &event)) > 0) {
		count++;
		switch (event.kind) {
		case DMB_EVENT_DONE:
			uct_devmem_done(conn, &event);
			break;
		case DMB_EVENT_CLOSING:
			dmb_close(conn->end);
			break;
		case DMB_EVENT_OVER:
			uct_devmem_over(conn, event.reason);
			break;
		}
	}
	if (!conn->is_dropped && ret < 0)
		uct_devmem_over(conn, DMB_OVER_LOCAL);
	if (!conn->is_dropped && conn->ep && !conn->ep->is_open &&
	    !dmb_wait_open(conn->end, 0)) {
		conn->ep->is_open = 1;
		count++;
	}
	conn->in_use = 0;
	if (conn->is_dropped)
		uct_devmem_conn_drop(conn);
	else if (dmb_is_busy(conn->end))
		uct_devmem_conn_ready(conn);
	return count;
}

/* Whether a request could be made, or would fail for good. */
static int uct_devmem_ep_can(struct uct_devmem_ep *ep)
{
	return ep->status != UCS_OK ||
	       (ep->is_open && !ep->is_full && !ep->is_fenced &&
		!ucs_queue_is_empty(&uct_devmem_iface_of(ep)->bounce_free));
}

/* Makes a request of what is filled in already. */
static ucs_status_t uct_devmem_post(struct uct_devmem_ep *ep, int is_put,
				    struct dmb_memory *memory, uint64_t offset,
				    size_t length, uint64_t remote,
				    uct_rkey_t tl_rkey,
				    const struct uct_devmem_request *filled)
{
	const struct uct_devmem_rkey *rkey = (void *)tl_rkey;
	struct uct_devmem_request *request;
	int64_t id;

	if (ep->status != UCS_OK)
		return ep->status;
	if (!ep->is_open || ep->is_fenced)
		return UCS_ERR_NO_RESOURCE;
	request = ucs_malloc(sizeof(*request), "devmem_request");
	if (!request)
		return UCS_ERR_NO_MEMORY;
	*request = *filled;
	id = (is_put ? dmb_put : dmb_get)(ep->conn->end, memory, offset, length,
					  &rkey->key, remote - rkey->address);
	if (id < 0) {
		ucs_free(request);
		ep->is_full = id == -EAGAIN;
		if (id == -EAGAIN)
			return UCS_ERR_NO_RESOURCE;
		return id == -ESHUTDOWN ? UCS_ERR_CONNECTION_RESET :
					  UCS_ERR_INVALID_PARAM;
	}
	request->id = id;
	ucs_queue_push(&ep->requests, &request->queue);
	uct_devmem_iface_of(ep)->outstanding++;
	uct_devmem_conn_ready(ep->conn);
	return UCS_INPROGRESS;
}

static ucs_status_t uct_devmem_zcopy(uct_ep_h tl_ep, int is_put,
				     const uct_iov_t *iov, size_t iovcnt,
				     uint64_t remote, uct_rkey_t rkey,
				     uct_completion_t *comp)
{
	const struct uct_devmem_request request = { .comp = comp };
	const struct uct_devmem_memh *memh = iov->memh;

	UCT_CHECK_IOV_SIZE(iovcnt, 1UL, "zcopy");
	if (!iovcnt || !iov->length)
		return UCS_OK;
	return uct_devmem_post(uct_devmem_ep(tl_ep), is_put,
			       memh->region->memory,
			       (char *)iov->buffer - memh->region->address,
			       iov->length, remote, rkey, &request);
}

static ucs_status_t uct_devmem_ep_put_zcopy(uct_ep_h tl_ep,
					    const uct_iov_t *iov, size_t iovcnt,
					    uint64_t remote, uct_rkey_t rkey,
					    uct_completion_t *comp)
{
	return uct_devmem_zcopy(tl_ep, 1, iov, iovcnt, remote, rkey, comp);
}

static ucs_status_t uct_devmem_ep_get_zcopy(uct_ep_h tl_ep,
					    const uct_iov_t *iov, size_t iovcnt,
					    uint64_t remote, uct_rkey_t rkey,
					    uct_completion_t *comp)
{
	return uct_devmem_zcopy(tl_ep, 0, iov, iovcnt, remote, rkey, comp);
}

/*
 * A request by way of memory of the interface: what is put is packed into it, and
 * what is got is unpacked from there.
 */
static ssize_t uct_devmem_bcopy(uct_ep_h tl_ep, uct_pack_callback_t pack,
				struct uct_devmem_request *request,
				uint64_t remote, uct_rkey_t rkey)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	struct uct_devmem_iface *iface = uct_devmem_iface_of(ep);
	ucs_status_t status;
	void *bounce;

	/* To pack is to have sent: so that has to be possible. */
	if (!uct_devmem_ep_can(ep))
		return UCS_ERR_NO_RESOURCE;
	if (ep->status != UCS_OK)
		return ep->status;
	bounce = ucs_queue_pull_non_empty(&iface->bounce_free);
	request->bounce = bounce;
	if (pack)
		request->length = pack(bounce, request->arg);
	status = request->length ?
		 uct_devmem_post(ep, !!pack, iface->bounce_memory,
				 bounce - iface->bounce, request->length, remote,
				 rkey, request) : UCS_OK;
	if (status != UCS_INPROGRESS)
		ucs_queue_push(&iface->bounce_free, request->bounce);
	return UCS_STATUS_IS_ERR(status) ? status : request->length;
}

static ssize_t uct_devmem_ep_put_bcopy(uct_ep_h tl_ep, uct_pack_callback_t pack,
				       void *arg, uint64_t remote,
				       uct_rkey_t rkey)
{
	struct uct_devmem_request request = { .arg = arg };

	return uct_devmem_bcopy(tl_ep, pack, &request, remote, rkey);
}

static size_t uct_devmem_pack_short(void *to, void *arg)
{
	const struct iovec *from = arg;

	memcpy(to, from->iov_base, from->iov_len);
	return from->iov_len;
}

static ucs_status_t uct_devmem_ep_put_short(uct_ep_h tl_ep, const void *buffer,
					    unsigned int length, uint64_t remote,
					    uct_rkey_t rkey)
{
	struct iovec from = { .iov_base = (void *)buffer, .iov_len = length };
	ssize_t ret;

	UCT_CHECK_LENGTH(length, 0, UCT_DEVMEM_BOUNCE, "put_short");
	ret = uct_devmem_ep_put_bcopy(tl_ep, uct_devmem_pack_short, &from,
				      remote, rkey);
	return ret < 0 ? ret : UCS_OK;
}

static ucs_status_t uct_devmem_ep_get_bcopy(uct_ep_h tl_ep,
					    uct_unpack_callback_t unpack,
					    void *arg, size_t length,
					    uint64_t remote, uct_rkey_t rkey,
					    uct_completion_t *comp)
{
	struct uct_devmem_request request = {
		.comp = comp, .unpack = unpack, .arg = arg, .length = length,
	};
	ssize_t ret;

	UCT_CHECK_LENGTH(length, 0, UCT_DEVMEM_BOUNCE, "get_bcopy");
	ret = uct_devmem_bcopy(tl_ep, NULL, &request, remote, rkey);
	if (ret < 0)
		return ret;
	return length ? UCS_INPROGRESS : UCS_OK;
}

/* Ends the connection at once, and all that was under way, also what waited for it. */
static void uct_devmem_ep_cancel(struct uct_devmem_ep *ep)
{
	struct uct_devmem_conn *conn = ep->conn;
	struct uct_devmem_request *request;
	uct_completion_t *comp;

	ep->status = UCS_ERR_CANCELED;
	if (conn) {
		conn->ep = NULL;
		ep->conn = NULL;
		uct_devmem_conn_drop(conn);
	}
	ucs_queue_for_each_extract(request, &ep->requests, queue, 1) {
		uct_devmem_request_end(uct_devmem_iface_of(ep), request,
				       UCS_ERR_CANCELED);
	}
	ucs_queue_for_each_extract(request, &ep->flushes, queue, 1) {
		comp = request->comp;
		ucs_free(request);
		uct_invoke_completion(comp, UCS_ERR_CANCELED);
	}
}

static ucs_status_t uct_devmem_ep_flush(uct_ep_h tl_ep, unsigned int flags,
					uct_completion_t *comp)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	struct uct_devmem_request *flush;

	if (flags & UCT_FLUSH_FLAG_CANCEL) {
		uct_devmem_ep_cancel(ep);
		return UCS_OK;
	}
	if (ucs_queue_is_empty(&ep->requests))
		return UCS_OK;
	if (!comp)
		return UCS_INPROGRESS;
	flush = ucs_calloc(1, sizeof(*flush), "devmem_flush");
	if (!flush)
		return UCS_ERR_NO_MEMORY;
	flush->id = ucs_queue_tail_elem_non_empty(&ep->requests,
						  struct uct_devmem_request,
						  queue)->id + 1;
	flush->comp = comp;
	ucs_queue_push(&ep->flushes, &flush->queue);
	return UCS_INPROGRESS;
}

/* What comes is not to overtake what came: it waits until that is in place. */
static ucs_status_t uct_devmem_ep_fence(uct_ep_h tl_ep, unsigned int flags)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);

	ep->is_fenced = !ucs_queue_is_empty(&ep->requests);
	return UCS_OK;
}

/* The sockets ask whether the peer is there. */
static ucs_status_t uct_devmem_ep_check(uct_ep_h tl_ep, unsigned int flags,
					uct_completion_t *comp)
{
	UCT_EP_KEEPALIVE_CHECK_PARAM(flags, comp);
	return uct_devmem_ep(tl_ep)->status;
}

static ucs_status_t uct_devmem_ep_pending_add(uct_ep_h tl_ep,
					      uct_pending_req_t *req,
					      unsigned int flags)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);

	if (uct_devmem_ep_can(ep))
		return UCS_ERR_BUSY;
	uct_pending_req_queue_push(&ep->pending, req);
	return UCS_OK;
}

/* Makes requests that had to wait. */
unsigned int uct_devmem_ep_dispatch(struct uct_devmem_ep *ep)
{
	uct_pending_req_priv_queue_t *priv;
	unsigned int count = 0;

	uct_pending_queue_dispatch(priv, &ep->pending,
				   uct_devmem_ep_can(ep) && ++count);
	return count;
}

static void uct_devmem_ep_pending_purge(uct_ep_h tl_ep,
					uct_pending_purge_callback_t cb,
					void *arg)
{
	struct uct_devmem_ep *ep = uct_devmem_ep(tl_ep);
	uct_pending_req_priv_queue_t *priv;

	uct_pending_queue_purge(priv, &ep->pending, 1, cb, arg);
}

static ucs_status_t uct_devmem_ep_create(const uct_ep_params_t *params,
					 uct_ep_h *ep_p)
{
	struct uct_devmem_iface *iface = ucs_derived_of(params->iface,
							struct uct_devmem_iface);
	struct uct_devmem_ep *ep;
	ucs_status_t status;

	UCT_EP_PARAMS_CHECK_DEV_IFACE_ADDRS(params);
	ep = ucs_calloc(1, sizeof(*ep), "devmem_ep");
	if (!ep)
		return UCS_ERR_NO_MEMORY;
	status = UCS_CLASS_INIT(uct_base_ep_t, &ep->super, &iface->super);
	if (status != UCS_OK)
		goto free;
	ucs_queue_head_init(&ep->requests);
	ucs_queue_head_init(&ep->flushes);
	ucs_queue_head_init(&ep->pending);
	status = uct_devmem_connect(ep, (const void *)params->dev_addr,
				    (const void *)params->iface_addr);
	if (status != UCS_OK)
		goto cleanup;
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
	struct uct_devmem_conn *conn = ep->conn;

	/* The peer is told, if there is nothing that would have to end first. */
	if (conn && ucs_queue_is_empty(&ep->requests) && !conn->is_dropped) {
		conn->ep = NULL;
		ep->conn = NULL;
		uct_devmem_conn_close(conn);
	}
	uct_devmem_ep_cancel(ep);
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
