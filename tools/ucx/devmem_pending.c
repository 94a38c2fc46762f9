// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What waits for room. Flushes and fences that come meanwhile are of that, too: they
 * wait among it, as requests of the transport's own.
 */

#include "config.h"

#include <ucs/debug/memtrack_int.h>

#include "devmem.h"

/* A flush, whose turn is when all that was before it has been made, or a fence. */
struct uct_devmem_mark {
	uct_pending_req_t req;
	struct uct_devmem_ep *ep;
	/* NULL of a fence. */
	uct_completion_t *comp;
};

static struct uct_devmem_iface *uct_devmem_iface_of(struct uct_devmem_ep *ep)
{
	return ucs_derived_of(ep->super.super.iface, struct uct_devmem_iface);
}

/* A flush of what has been made. */
static ucs_status_t uct_devmem_flush(struct uct_devmem_ep *ep,
				     uct_completion_t *comp)
{
	if (ep->status != UCS_OK)
		return ep->status;
	return dmb_group_flush(uct_devmem_iface_of(ep)->group, ep->end, comp) ?
	       UCS_INPROGRESS : UCS_OK;
}

static ucs_status_t uct_devmem_flush_now(uct_pending_req_t *req)
{
	struct uct_devmem_mark *mark =
		ucs_container_of(req, struct uct_devmem_mark, req);
	uct_completion_t *comp = mark->comp;
	ucs_status_t status = uct_devmem_flush(mark->ep, comp);

	ucs_free(mark);
	if (status != UCS_INPROGRESS)
		uct_invoke_completion(comp, status);
	return UCS_OK;
}

static ucs_status_t uct_devmem_fence_now(uct_pending_req_t *req)
{
	struct uct_devmem_mark *mark =
		ucs_container_of(req, struct uct_devmem_mark, req);
	struct uct_devmem_ep *ep = mark->ep;

	ucs_free(mark);
	dmb_group_fence(uct_devmem_iface_of(ep)->group, ep->end);
	return UCS_OK;
}

static int uct_devmem_is_mark(uct_pending_req_priv_queue_t *priv)
{
	uct_pending_req_t *req = ucs_container_of(priv, uct_pending_req_t, priv);

	return req->func == uct_devmem_flush_now ||
	       req->func == uct_devmem_fence_now;
}

static ucs_status_t uct_devmem_mark(struct uct_devmem_ep *ep,
				    uct_pending_callback_t func,
				    uct_completion_t *comp)
{
	struct uct_devmem_mark *mark = ucs_malloc(sizeof(*mark), "devmem_mark");

	if (!mark)
		return UCS_ERR_NO_MEMORY;
	mark->req.func = func;
	mark->ep = ep;
	mark->comp = comp;
	uct_pending_req_queue_push(&ep->pending, &mark->req);
	return UCS_OK;
}

ucs_status_t uct_devmem_pending_flush(struct uct_devmem_ep *ep,
				      uct_completion_t *comp)
{
	ucs_status_t status = UCS_OK;

	if (ucs_queue_is_empty(&ep->pending))
		return uct_devmem_flush(ep, comp);
	if (comp)
		status = uct_devmem_mark(ep, uct_devmem_flush_now, comp);
	return status == UCS_OK ? UCS_INPROGRESS : status;
}

ucs_status_t uct_devmem_pending_fence(struct uct_devmem_ep *ep)
{
	if (!ucs_queue_is_empty(&ep->pending))
		return uct_devmem_mark(ep, uct_devmem_fence_now, NULL);
	dmb_group_fence(uct_devmem_iface_of(ep)->group, ep->end);
	return UCS_OK;
}

/* What came of a mark that has no turn any more. */
static void uct_devmem_mark_over(uct_pending_req_t *req, void *arg)
{
	struct uct_devmem_mark *mark =
		ucs_container_of(req, struct uct_devmem_mark, req);
	uct_completion_t *comp = mark->comp;

	ucs_free(mark);
	if (comp)
		uct_invoke_completion(comp, *(ucs_status_t *)arg);
}

void uct_devmem_pending_cancel(struct uct_devmem_ep *ep, ucs_status_t status)
{
	uct_pending_req_priv_queue_t *priv;

	uct_pending_queue_purge(priv, &ep->pending, uct_devmem_is_mark(priv),
				uct_devmem_mark_over, &status);
}

void uct_devmem_ep_pending_purge(uct_ep_h tl_ep,
				 uct_pending_purge_callback_t cb, void *arg)
{
	struct uct_devmem_ep *ep = ucs_derived_of(tl_ep, struct uct_devmem_ep);
	uct_pending_req_priv_queue_t *priv;

	/* Nobody else knows of marks. */
	uct_pending_queue_purge(priv, &ep->pending, !uct_devmem_is_mark(priv),
				cb, arg);
}

ucs_status_t uct_devmem_ep_pending_add(uct_ep_h tl_ep, uct_pending_req_t *req,
				       unsigned int flags)
{
	struct uct_devmem_ep *ep = ucs_derived_of(tl_ep, struct uct_devmem_ep);

	if (ucs_queue_is_empty(&ep->pending) && uct_devmem_ep_can(ep))
		return UCS_ERR_BUSY;
	uct_pending_req_queue_push(&ep->pending, req);
	return UCS_OK;
}

/*
 * What is asked for while others wait is not to overtake them. That goes for what a
 * program asks for when it is told of the one that is made, too, so that this one may
 * ask once.
 */
int uct_devmem_ep_is_next(struct uct_devmem_ep *ep)
{
	int is_next = ep->is_first || ucs_queue_is_empty(&ep->pending);

	ep->is_first = 0;
	return is_next;
}

/* Makes what waits, until there is no room, or the endpoint is gone. */
static unsigned int uct_devmem_ep_dispatch(struct uct_devmem_iface *iface,
					   struct uct_devmem_ep *ep)
{
	uct_pending_req_priv_queue_t *priv;
	unsigned int count = 0;
	uct_pending_req_t *req;
	ucs_status_t status;

	while (!ucs_queue_is_empty(&ep->pending) && uct_devmem_ep_can(ep)) {
		priv = ucs_queue_pull_elem_non_empty(&ep->pending,
						     uct_pending_req_priv_queue_t,
						     queue_elem);
		req = ucs_container_of(priv, uct_pending_req_t, priv);
		ep->is_first = 1;
		status = req->func(req);
		if (iface->current != ep)
			break;
		ep->is_first = 0;
		if (status == UCS_OK) {
			count++;
			continue;
		}
		ucs_queue_push_head(&ep->pending, &priv->queue_elem);
		if (UCS_STATUS_IS_ERR(status))
			break;
		count++;
	}
	return count;
}

unsigned int uct_devmem_dispatch(struct uct_devmem_iface *iface)
{
	unsigned int count = 0;
	ucs_list_link_t *link;

	for (link = iface->eps.next; link != &iface->eps; link = iface->next) {
		iface->next = link->next;
		iface->current = ucs_container_of(link, struct uct_devmem_ep,
						  list);
		count += uct_devmem_ep_dispatch(iface, iface->current);
	}
	iface->current = NULL;
	return count;
}

void uct_devmem_pending_gone(struct uct_devmem_ep *ep)
{
	struct uct_devmem_iface *iface = uct_devmem_iface_of(ep);

	if (iface->current == ep)
		iface->current = NULL;
	if (iface->next == &ep->list)
		iface->next = ep->list.next;
}
