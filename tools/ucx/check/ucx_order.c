// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Looks whether flushes and fences hold for puts for which there was no room, and
 * that endpoints may go while those are made: of two workers of this process, of
 * which one puts to the other's memory.
 *
 * ucx_order [early_]flush|[early_]worker_flush|[early_]fence|flush_when_told|close_next
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ucp/api/ucp.h>

/* More than are under way at once, and a size that UCP has copied. */
#define PUTS 200
#define SMALL 8UL
/* What does not get to its place at once. */
#define LARGE (32UL << 20)
#define LIMIT 60

static ucp_context_h context;
static ucp_worker_h here, there;
static ucp_mem_h memh;
/* What is put, and what it is put to; the last byte of either is the flag. */
static unsigned char *from, *to;
static void *requests[PUTS + 2];
static int count;

static const ucp_request_param_t none;

static void die(const char *what)
{
	fprintf(stderr, "ucx_order: %s\n", what);
	exit(1);
}

static void check(ucs_status_t status, const char *what)
{
	if (status == UCS_OK)
		return;
	fprintf(stderr, "ucx_order: %s: %s\n", what, ucs_status_string(status));
	exit(1);
}

static void progress(void)
{
	static time_t start;

	if (!start)
		start = time(NULL);
	if (time(NULL) - start > LIMIT)
		die("it does not end");
	ucp_worker_progress(here);
	ucp_worker_progress(there);
}

static void wait_for(void *request, const char *what)
{
	ucs_status_t status = UCS_PTR_STATUS(request);

	if (UCS_PTR_IS_PTR(request)) {
		do {
			progress();
			status = ucp_request_check_status(request);
		} while (status == UCS_INPROGRESS);
		ucp_request_free(request);
	}
	check(status, what);
}

static ucp_worker_h worker(void)
{
	ucp_worker_params_t params = {
		.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
		.thread_mode = UCS_THREAD_MODE_SINGLE,
	};
	ucp_worker_h made;

	check(ucp_worker_create(context, &params, &made), "ucp_worker_create");
	return made;
}

static void begin(void)
{
	ucp_params_t params = {
		.field_mask = UCP_PARAM_FIELD_FEATURES,
		.features = UCP_FEATURE_RMA,
	};
	ucp_mem_map_params_t map = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH |
			      UCP_MEM_MAP_PARAM_FIELD_FLAGS,
		.length = 2 * (LARGE + 1),
		.flags = UCP_MEM_MAP_ALLOCATE,
	};
	ucp_mem_attr_t attr = { .field_mask = UCP_MEM_ATTR_FIELD_ADDRESS };

	check(ucp_init(&params, NULL, &context), "ucp_init");
	here = worker();
	there = worker();
	check(ucp_mem_map(context, &map, &memh), "ucp_mem_map");
	check(ucp_mem_query(memh, &attr), "ucp_mem_query");
	from = attr.address;
	to = from + LARGE + 1;
	memset(from, 0x5a, LARGE + 1);
	memset(to, 0, LARGE + 1);
}

static void closed(ucp_ep_h ep)
{
	wait_for(ucp_ep_close_nbx(ep, &none), "ucp_ep_close_nbx");
}

static void end(void)
{
	ucp_mem_unmap(context, memh);
	ucp_worker_destroy(here);
	ucp_worker_destroy(there);
	ucp_cleanup(context);
}

static ucp_ep_h connected(ucp_rkey_h *rkey)
{
	ucp_ep_params_t params = {
		.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
	};
	ucp_address_t *address;
	size_t len;
	void *key;
	ucp_ep_h ep;

	check(ucp_worker_get_address(there, &address, &len),
	      "ucp_worker_get_address");
	params.address = address;
	check(ucp_ep_create(here, &params, &ep), "ucp_ep_create");
	ucp_worker_release_address(there, address);
	check(ucp_rkey_pack(context, memh, &key, &len), "ucp_rkey_pack");
	check(ucp_ep_rkey_unpack(ep, key, rkey), "ucp_ep_rkey_unpack");
	ucp_rkey_buffer_release(key);
	return ep;
}

/* Puts what is where in one place to the same in the other. */
static void put(ucp_ep_h ep, ucp_rkey_h rkey, size_t at, size_t len,
		const ucp_request_param_t *how)
{
	void *request = ucp_put_nbx(ep, from + at, len, (uintptr_t)to + at, rkey,
				    how);

	if (UCS_PTR_IS_ERR(request))
		check(UCS_PTR_STATUS(request), "ucp_put_nbx");
	if (UCS_PTR_IS_PTR(request))
		requests[count++] = request;
}

/* Until there is a connection. */
static void connect_fully(ucp_ep_h ep, ucp_rkey_h rkey)
{
	wait_for(ucp_put_nbx(ep, from + LARGE - 1, 1, (uintptr_t)to + LARGE - 1,
			     rkey, &none), "ucp_put_nbx");
	wait_for(ucp_ep_flush_nbx(ep, &none), "ucp_ep_flush_nbx");
}

static void compare(size_t len)
{
	if (memcmp(from, to, len))
		die("what is said to be in place is not");
}

static void put_many(ucp_ep_h ep, ucp_rkey_h rkey)
{
	int i;

	for (i = 0; i < PUTS; i++)
		put(ep, rkey, i * SMALL, SMALL, &none);
	if (!count)
		die("no put has to wait");
}

/* A flush of an endpoint, or of all of the worker. */
static void flush(ucp_ep_h ep, ucp_rkey_h rkey, int is_of_worker)
{
	put_many(ep, rkey);
	wait_for(is_of_worker ? ucp_worker_flush_nbx(here, &none) :
				ucp_ep_flush_nbx(ep, &none), "what is waited for");
	compare(PUTS * SMALL);
}

/* The flush that a program asks for when it is told of a put of those that waited. */
static void *flush_then;

static void told(void *request, ucs_status_t status, void *arg)
{
	if (!flush_then)
		flush_then = ucp_ep_flush_nbx(arg, &none);
}

static void flush_when_told(ucp_ep_h ep, ucp_rkey_h rkey)
{
	const ucp_request_param_t how = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK |
				UCP_OP_ATTR_FIELD_USER_DATA,
		.cb.send = told,
		.user_data = ep,
	};
	int i;

	for (i = 0; i < PUTS; i++)
		put(ep, rkey, i * SMALL, SMALL, &how);
	while (!flush_then)
		progress();
	wait_for(flush_then, "ucp_ep_flush_nbx");
	compare(PUTS * SMALL);
}

/* A small one that is not to overtake a large one, behind many for which there is room. */
static void fence(ucp_ep_h ep, ucp_rkey_h rkey)
{
	const unsigned char *flag = to + LARGE;
	int i;

	for (i = 0; i < 64; i++)
		put(ep, rkey, i * SMALL, SMALL, &none);
	put(ep, rkey, 0, LARGE, &none);
	check(ucp_worker_fence(here), "ucp_worker_fence");
	put(ep, rkey, LARGE, 1, &none);
	if (*flag)
		die("it is there at once");
	while (!*flag)
		progress();
	compare(LARGE + 1);
}

/* The endpoint that is destroyed when a put of the other one is told of. */
static ucp_ep_h other;

static void close_other(void *request, ucs_status_t status, void *arg)
{
	if (!other)
		return;
	if (ucp_ep_close_nbx(other, &none))
		die("it is not closed at once");
	other = NULL;
}

static void close_next(ucp_ep_h ep, ucp_rkey_h rkey)
{
	const ucp_request_param_t how = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK,
		.cb.send = close_other,
	};
	ucp_rkey_h other_rkey;

	int i;

	/* The next one of the transport's: connected, and nothing is under way. */
	other = connected(&other_rkey);
	connect_fully(other, other_rkey);
	ucp_rkey_destroy(other_rkey);
	for (i = 0; i < PUTS; i++)
		put(ep, rkey, i * SMALL, SMALL, &how);
	if (!other)
		die("no put has to wait");
	while (other)
		progress();
	wait_for(ucp_ep_flush_nbx(ep, &none), "ucp_ep_flush_nbx");
	compare(PUTS * SMALL);
}

int main(int argc, char **argv)
{
	const char *test = argc == 2 ? argv[1] : "";
	ucp_rkey_h rkey;
	ucp_ep_h ep;
	int i;

	setvbuf(stdout, NULL, _IOLBF, 0);
	begin();
	ep = connected(&rkey);
	/* Early ones have all wait for the connection. */
	if (!strncmp(test, "early_", 6))
		test += 6;
	else
		connect_fully(ep, rkey);
	if (!strcmp(test, "flush") || !strcmp(test, "worker_flush")) {
		flush(ep, rkey, *test == 'w');
	} else if (!strcmp(test, "flush_when_told")) {
		flush_when_told(ep, rkey);
	} else if (!strcmp(test, "fence")) {
		fence(ep, rkey);
	} else if (!strcmp(test, "close_next")) {
		close_next(ep, rkey);
	} else {
		fprintf(stderr, "usage: ucx_order TEST\n");
		return 2;
	}
	for (i = 0; i < count; i++)
		wait_for(requests[i], "a request");
	ucp_rkey_destroy(rkey);
	closed(ep);
	end();
	printf("# %s: all is in place\n", argv[1]);
	return 0;
}
