// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * How endpoints get their connections, as bulk.rst has it: who connects says first,
 * on the control connection, from which ports its lanes come.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "config.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <ucs/debug/memtrack_int.h>
#include <ucs/sys/sock.h>

#include "devmem.h"

/* Seconds for all of the words of who connects to come. */
#define PATIENCE 10
/* How often it is tried to reach a peer, for 15 seconds altogether. */
#define TRIES 3

/* Whoever has connected, with a control connection or with a lane. */
struct uct_devmem_caller {
	ucs_list_link_t list;
	int fd;
	struct sockaddr_storage from;
	ucs_time_t since;
};

struct uct_devmem_hello {
	char magic[4];
	uint16_t lanes;
	uint16_t ports[UCT_DEVMEM_MAX_LANES];
} UCS_S_PACKED;

static size_t uct_devmem_hello_size(unsigned int lanes)
{
	return ucs_offsetof(struct uct_devmem_hello, ports) +
	       lanes * sizeof(uint16_t);
}

static const char uct_devmem_magic[4] = { 'D', 'M', 'B', 'L' };

static uint16_t uct_devmem_port(int fd)
{
	struct sockaddr_storage address;
	socklen_t len = sizeof(address);
	uint16_t port = 0;

	if (!getsockname(fd, (struct sockaddr *)&address, &len))
		ucs_sockaddr_get_port((struct sockaddr *)&address, &port);
	return port;
}

/* A socket of the interface's address, from a port if that is not 0. */
static int uct_devmem_socket(struct uct_devmem_iface *iface, uint16_t port)
{
	struct sockaddr_storage from = iface->ip;
	int on = 1, tries = TRIES, fd;

	fd = socket(from.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	ucs_sockaddr_set_port((struct sockaddr *)&from, port);
	if ((port && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on))) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &tries, sizeof(tries)) ||
	    bind(fd, (struct sockaddr *)&from, iface->ip_len)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* As connect(), which goes on when a signal comes. */
static int uct_devmem_finish(int fd, const struct sockaddr *to, socklen_t to_len)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLOUT };
	socklen_t len = sizeof(errno);

	if (!connect(fd, to, to_len))
		return 0;
	if (errno != EINTR)
		return -1;
	while (poll(&pollfd, 1, -1) < 0 && errno == EINTR)
		;
	return getsockopt(fd, SOL_SOCKET, SO_ERROR, &errno, &len) || errno ? -1 : 0;
}

static int uct_devmem_connect_one(struct uct_devmem_iface *iface, uint16_t from,
				  const struct sockaddr *to)
{
	int fd = uct_devmem_socket(iface, from);

	if (fd < 0 || !uct_devmem_finish(fd, to, iface->ip_len))
		return fd;
	/* There is one of that port already: what it gets is not steered. */
	if (from && errno == EADDRNOTAVAIL) {
		close(fd);
		return uct_devmem_connect_one(iface, 0, to);
	}
	ucs_error("devmem: connect(): %m");
	close(fd);
	return -1;
}

/*
 * Where lanes come from, so that what is got by them is steered, too: the port to
 * which those of others come. Of two that connect to each other one does, lest it be
 * the same connection.
 */
static uint16_t uct_devmem_lane_from(struct uct_devmem_iface *iface,
				     const struct uct_devmem_device_addr *there,
				     const struct uct_devmem_iface_addr *ports)
{
	int order = memcmp(iface->address.ip, there->ip, sizeof(there->ip));

	if (!order)
		order = iface->ports.lane_port - ports->lane_port;
	return iface->landing && order < 0 ? iface->ports.lane_port : 0;
}

ucs_status_t uct_devmem_connect(struct uct_devmem_ep *ep,
				const struct uct_devmem_device_addr *there,
				const struct uct_devmem_iface_addr *ports)
{
	struct uct_devmem_iface *iface = ucs_derived_of(ep->super.super.iface,
							struct uct_devmem_iface);
	struct uct_devmem_hello hello;
	ucs_status_t status = UCS_ERR_UNREACHABLE;
	uint16_t lane_from = uct_devmem_lane_from(iface, there, ports);
	size_t size = uct_devmem_hello_size(iface->lanes);
	struct sockaddr_storage to = iface->ip;
	int fds[1 + UCT_DEVMEM_MAX_LANES];
	unsigned int n;

	ucs_sockaddr_set_inet_addr((struct sockaddr *)&to, there->ip);
	memcpy(hello.magic, uct_devmem_magic, sizeof(hello.magic));
	hello.lanes = htole16(iface->lanes);
	for (n = 0; n <= iface->lanes; n++) {
		ucs_sockaddr_set_port((struct sockaddr *)&to,
				      n ? ports->lane_port : ports->control_port);
		fds[n] = uct_devmem_connect_one(iface, n ? lane_from : 0,
						(struct sockaddr *)&to);
		if (fds[n] < 0)
			goto close;
		if (n)
			hello.ports[n - 1] = htole16(uct_devmem_port(fds[n]));
	}
	if (send(fds[0], &hello, size, MSG_NOSIGNAL) == size)
		status = uct_devmem_attach(iface, ep, fds[0], fds + 1,
					   iface->lanes);
close:
	while (n--)
		close(fds[n]);
	return status;
}

static void uct_devmem_caller_free(struct uct_devmem_caller *caller)
{
	close(caller->fd);
	ucs_list_del(&caller->list);
	ucs_free(caller);
}

/* Takes those who have connected. */
static void uct_devmem_accept(int listener, ucs_list_link_t *to)
{
	struct uct_devmem_caller *caller;
	struct sockaddr_storage from;
	socklen_t len;
	int fd;

	for (;;) {
		len = sizeof(from);
		fd = accept4(listener, (struct sockaddr *)&from, &len,
			     SOCK_CLOEXEC);
		if (fd < 0)
			return;
		caller = ucs_malloc(sizeof(*caller), "devmem_caller");
		if (!caller) {
			close(fd);
			return;
		}
		caller->fd = fd;
		caller->from = from;
		caller->since = ucs_get_time();
		ucs_list_add_tail(to, &caller->list);
	}
}

/* The lane that comes from a port of the peer's: the last one that did. */
static struct uct_devmem_caller *
uct_devmem_lane(struct uct_devmem_iface *iface,
		const struct sockaddr_storage *peer, uint16_t port)
{
	struct uct_devmem_caller *lane, *last = NULL;
	struct sockaddr_storage from = *peer;
	ucs_status_t status;

	ucs_sockaddr_set_port((struct sockaddr *)&from, port);
	ucs_list_for_each(lane, &iface->stash, list) {
		if (!ucs_sockaddr_cmp((struct sockaddr *)&lane->from,
				      (struct sockaddr *)&from, &status))
			last = lane;
	}
	return last;
}

/* Whether a caller has said all, so that it can go: 0 if more is to come. */
static int uct_devmem_hear(struct uct_devmem_iface *iface,
			   struct uct_devmem_caller *caller)
{
	struct uct_devmem_caller *lanes[UCT_DEVMEM_MAX_LANES];
	int fds[UCT_DEVMEM_MAX_LANES];
	struct uct_devmem_hello hello;
	unsigned int i, j, count;
	ssize_t got;

	got = recv(caller->fd, &hello, sizeof(hello), MSG_PEEK | MSG_DONTWAIT);
	if (got < 0)
		return errno != EAGAIN && errno != EINTR;
	if (!got)
		return 1;
	if (got < uct_devmem_hello_size(0))
		return 0;
	count = le16toh(hello.lanes);
	if (memcmp(hello.magic, uct_devmem_magic, sizeof(hello.magic)) ||
	    !count || count > UCT_DEVMEM_MAX_LANES)
		return 1;
	if (got < uct_devmem_hello_size(count))
		return 0;
	for (i = 0; i < count; i++) {
		for (j = 0; j < i; j++)
			if (hello.ports[j] == hello.ports[i])
				return 1;
		lanes[i] = uct_devmem_lane(iface, &caller->from,
					   le16toh(hello.ports[i]));
		if (!lanes[i])
			return 0;
		fds[i] = lanes[i]->fd;
	}
	recv(caller->fd, &hello, uct_devmem_hello_size(count), 0);
	uct_devmem_attach(iface, NULL, caller->fd, fds, count);
	for (i = 0; i < count; i++)
		uct_devmem_caller_free(lanes[i]);
	return 1;
}

static void uct_devmem_forget(ucs_list_link_t *callers, ucs_time_t before)
{
	struct uct_devmem_caller *caller, *next;

	ucs_list_for_each_safe(caller, next, callers, list) {
		if (caller->since < before)
			uct_devmem_caller_free(caller);
	}
}

/* Somebody has connected, or has said something. */
void uct_devmem_answer(struct uct_devmem_iface *iface)
{
	ucs_time_t before = ucs_get_time() - ucs_time_from_sec(PATIENCE);
	struct uct_devmem_caller *caller, *next;

	iface->knocked = 0;
	uct_devmem_accept(iface->lane_fd, &iface->stash);
	uct_devmem_accept(iface->control_fd, &iface->callers);
	ucs_list_for_each_safe(caller, next, &iface->callers, list) {
		if (uct_devmem_hear(iface, caller))
			uct_devmem_caller_free(caller);
	}
	uct_devmem_forget(&iface->callers, before);
	uct_devmem_forget(&iface->stash, before);
	/* What they say later nobody else tells of. */
	iface->knocked = !ucs_list_is_empty(&iface->callers);
}

/* A socket that listens there, and its port. */
static int uct_devmem_listener(struct uct_devmem_iface *iface, uint16_t *port)
{
	struct sockaddr_storage at = iface->ip;
	int on = 1, fd;

	fd = socket(at.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fd;
	ucs_sockaddr_set_port((struct sockaddr *)&at, *port);
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&at, iface->ip_len) ||
	    listen(fd, ucs_socket_max_conn()) ||
	    ucs_event_set_add(iface->events, fd, UCS_EVENT_SET_EVREAD, NULL) !=
	    UCS_OK) {
		close(fd);
		return -1;
	}
	*port = uct_devmem_port(fd);
	return fd;
}

ucs_status_t uct_devmem_listen(struct uct_devmem_iface *iface,
			       unsigned int lane_port)
{
	uint16_t control_port = 0, port = lane_port;

	iface->control_fd = uct_devmem_listener(iface, &control_port);
	iface->lane_fd = uct_devmem_listener(iface, &port);
	if (iface->control_fd < 0 || iface->lane_fd < 0) {
		ucs_error("devmem: cannot listen on %s: %m", iface->dev_name);
		uct_devmem_listen_end(iface);
		return UCS_ERR_IO_ERROR;
	}
	iface->ports.control_port = control_port;
	iface->ports.lane_port = port;
	return UCS_OK;
}

void uct_devmem_listen_end(struct uct_devmem_iface *iface)
{
	uct_devmem_forget(&iface->callers, UCS_TIME_INFINITY);
	uct_devmem_forget(&iface->stash, UCS_TIME_INFINITY);
	ucs_close_fd(&iface->control_fd);
	ucs_close_fd(&iface->lane_fd);
}
