// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Looks whether what UCP transfers is what was sent: puts, gets and tagged messages
 * of many sizes and at odd offsets, endpoints that come and go, a peer that is
 * killed, stands still, or is busy, and one that says hello wrongly.
 *
 * ucx_check serve PORT
 * ucx_check ADDRESS PORT data|many|killed|forced|busy|twice
 *
 * The memory is what UCX_ALLOC_PRIO says, the transports are those of UCX_TLS. What
 * UCX_CHECK_DLOPEN names is loaded before UCX is used.
 */

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <ucp/api/ucp.h>

#define SIZE (64UL << 20)
/* What is kept for sizes up to that, at odd offsets. */
#define SLACK 4096UL
#define TAG 23
#define MANY 1000
/* Seconds for which no end of a connection is taken for dead. */
#define BUSY 12
#define BUSY_FOR_LONG 40

static const size_t sizes[] = {
	1, 7, 8, 255, 4095, 4096, 8191, 8192, 8193, 65535, 65536, 1048575,
	1048577, 4UL << 20, 16777213, SIZE, 0,
};

/* What the two tell each other by a connection of their own. */
struct hello {
	uint64_t address;
	uint64_t rkey_len;
	uint64_t worker_len;
	uint64_t pid;
	uint64_t control_port;
};

struct order {
	uint64_t what;
	uint64_t offset;
	uint64_t length;
	uint64_t seed;
};

enum { RECEIVE = 1, COMPARE, FILL, COMPUTE, END };

static ucp_context_h context;
static ucp_worker_h worker;
static ucp_mem_h memh;
static unsigned char *memory;
static int peer_failed;

static void die(const char *what)
{
	fprintf(stderr, "ucx_check: %s\n", what);
	exit(1);
}

static void check(ucs_status_t status, const char *what)
{
	if (status == UCS_OK)
		return;
	fprintf(stderr, "ucx_check: %s: %s\n", what, ucs_status_string(status));
	exit(1);
}

static void tell(int fd, const void *what, size_t len)
{
	if (send(fd, what, len, MSG_NOSIGNAL) != (ssize_t)len)
		die("the peer does not listen");
}

/* Makes progress meanwhile: else nothing gets into this end's memory. */
static int hear(int fd, void *to, size_t len)
{
	size_t got = 0;
	ssize_t ret;

	while (got < len) {
		ucp_worker_progress(worker);
		ret = recv(fd, (char *)to + got, len - got, MSG_DONTWAIT);
		if (!ret || (ret < 0 && errno != EAGAIN && errno != EINTR))
			return -1;
		got += ret < 0 ? 0 : ret;
	}
	return 0;
}

/* The port to which lanes come, if that is told. */
static int lane_port(void)
{
	const char *port = getenv("UCX_DEVMEM_LANE_PORT");

	return port ? atoi(port) : 0;
}

static int port_of(int fd)
{
	struct sockaddr_in at = { 0 };
	socklen_t len = sizeof(at);

	return getsockname(fd, (struct sockaddr *)&at, &len) ? 0 : ntohs(at.sin_port);
}

/* The other one at which this process listens, if it uses no tcp of UCX. */
static int control_port(void)
{
	int fd, port, listens;
	socklen_t len;

	for (fd = 0; fd < 1024; fd++) {
		len = sizeof(listens);
		if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len) ||
		    !listens)
			continue;
		port = port_of(fd);
		if (port && port != lane_port())
			return port;
	}
	return 0;
}

static unsigned char byte(uint64_t seed, size_t at)
{
	return (seed * 131 + at + (at >> 8) * 7 + (at >> 16) * 13) & 0xff;
}

static void fill(size_t offset, size_t length, uint64_t seed)
{
	size_t i;

	for (i = 0; i < length; i++)
		memory[offset + i] = byte(seed, i);
}

static void compare(size_t offset, size_t length, uint64_t seed)
{
	size_t i;

	for (i = 0; i < length; i++)
		if (memory[offset + i] != byte(seed, i)) {
			fprintf(stderr, "ucx_check: byte %zu of %zu is %#x, not %#x\n",
				i, length, memory[offset + i], byte(seed, i));
			exit(1);
		}
}

static void begin(void)
{
	ucp_params_t params = {
		.field_mask = UCP_PARAM_FIELD_FEATURES,
		.features = UCP_FEATURE_RMA | UCP_FEATURE_TAG,
	};
	ucp_worker_params_t worker_params = {
		.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
		.thread_mode = UCS_THREAD_MODE_SINGLE,
	};
	ucp_mem_map_params_t map = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH |
			      UCP_MEM_MAP_PARAM_FIELD_FLAGS,
		.length = SIZE + SLACK,
		.flags = UCP_MEM_MAP_ALLOCATE,
	};
	ucp_mem_attr_t attr = { .field_mask = UCP_MEM_ATTR_FIELD_ADDRESS };
	const char *transport = getenv("UCX_CHECK_DLOPEN");

	if (transport && !dlopen(transport, RTLD_NOW))
		die(dlerror());
	check(ucp_init(&params, NULL, &context), "ucp_init");
	check(ucp_worker_create(context, &worker_params, &worker),
	      "ucp_worker_create");
	check(ucp_mem_map(context, &map, &memh), "ucp_mem_map");
	check(ucp_mem_query(memh, &attr), "ucp_mem_query");
	memory = attr.address;
}

static void end(void)
{
	ucp_mem_unmap(context, memh);
	ucp_worker_destroy(worker);
	ucp_cleanup(context);
}

static void failed(void *arg, ucp_ep_h ep, ucs_status_t status)
{
	printf("# the peer is gone: %s\n", ucs_status_string(status));
	peer_failed = 1;
}

static ucp_ep_h connected(const void *address)
{
	ucp_ep_params_t params = {
		.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
			      UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
			      UCP_EP_PARAM_FIELD_ERR_HANDLER,
		.address = address,
		.err_mode = UCP_ERR_HANDLING_MODE_PEER,
		.err_handler.cb = failed,
	};
	ucp_ep_h ep;

	check(ucp_ep_create(worker, &params, &ep), "ucp_ep_create");
	return ep;
}

static ucs_status_t ended(void *request)
{
	ucs_status_t status;

	if (!UCS_PTR_IS_PTR(request))
		return UCS_PTR_STATUS(request);
	do {
		ucp_worker_progress(worker);
		status = ucp_request_check_status(request);
	} while (status == UCS_INPROGRESS);
	ucp_request_free(request);
	return status;
}

static const ucp_request_param_t none;

static void flush(ucp_ep_h ep)
{
	check(ended(ucp_ep_flush_nbx(ep, &none)), "ucp_ep_flush_nbx");
}

static void disconnected(ucp_ep_h ep, unsigned int flags)
{
	const ucp_request_param_t how = {
		.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
		.flags = flags,
	};

	ended(ucp_ep_close_nbx(ep, &how));
}

/* Does what it is told. */
static void serve(int fd)
{
	struct hello hello = { .pid = getpid(), .control_port = control_port() };
	ucp_address_t *address;
	struct order order;
	size_t len;
	void *rkey;

	check(ucp_rkey_pack(context, memh, &rkey, &len), "ucp_rkey_pack");
	hello.rkey_len = len;
	check(ucp_worker_get_address(worker, &address, &len),
	      "ucp_worker_get_address");
	hello.worker_len = len;
	hello.address = (uintptr_t)memory;
	tell(fd, &hello, sizeof(hello));
	tell(fd, rkey, hello.rkey_len);
	tell(fd, address, hello.worker_len);
	ucp_rkey_buffer_release(rkey);
	ucp_worker_release_address(worker, address);
	while (!hear(fd, &order, sizeof(order)) && order.what != END) {
		switch (order.what) {
		case FILL:
			fill(order.offset, order.length, order.seed);
			break;
		case RECEIVE:
			check(ended(ucp_tag_recv_nbx(worker,
						     memory + order.offset,
						     order.length, TAG, ~0UL,
						     &none)),
			      "ucp_tag_recv_nbx");
			compare(order.offset, order.length, order.seed);
			break;
		case COMPARE:
			compare(order.offset, order.length, order.seed);
			break;
		case COMPUTE:
			/* Without any progress. */
			sleep(order.length);
			break;
		}
		tell(fd, &order, sizeof(order));
	}
}

static void tell_order(int fd, int what, size_t offset, size_t length,
		       uint64_t seed)
{
	const struct order order = {
		.what = what, .offset = offset, .length = length, .seed = seed,
	};

	tell(fd, &order, sizeof(order));
}

static void answered(int fd)
{
	struct order order;

	if (hear(fd, &order, sizeof(order)))
		die("the peer has found something");
}

static void data(int fd, ucp_ep_h ep, ucp_rkey_h rkey, uint64_t there)
{
	size_t i, from, to, len;

	for (i = 0; sizes[i]; i++) {
		len = sizes[i];
		from = i * 13 % SLACK;
		to = i * 29 % SLACK;
		fill(from, len, 3 * i);
		check(ended(ucp_put_nbx(ep, memory + from, len, there + to, rkey,
					&none)), "ucp_put_nbx");
		flush(ep);
		tell_order(fd, COMPARE, to, len, 3 * i);
		answered(fd);

		tell_order(fd, FILL, to, len, 3 * i + 1);
		answered(fd);
		check(ended(ucp_get_nbx(ep, memory + from, len, there + to, rkey,
					&none)), "ucp_get_nbx");
		flush(ep);
		compare(from, len, 3 * i + 1);

		fill(from, len, 3 * i + 2);
		tell_order(fd, RECEIVE, to, len, 3 * i + 2);
		check(ended(ucp_tag_send_nbx(ep, memory + from, len, TAG, &none)),
		      "ucp_tag_send_nbx");
		answered(fd);
		printf("# %zu bytes: put, got, sent\n", len);
	}
}

static void many(const void *address, uint64_t there, const void *packed)
{
	ucp_rkey_h rkey;
	ucp_ep_h ep;
	int i;

	for (i = 0; i < MANY; i++) {
		ep = connected(address);
		check(ucp_ep_rkey_unpack(ep, packed, &rkey), "ucp_ep_rkey_unpack");
		check(ended(ucp_put_nbx(ep, memory, 100, there, rkey, &none)),
		      "ucp_put_nbx");
		flush(ep);
		ucp_rkey_destroy(rkey);
		disconnected(ep, 0);
	}
	printf("# %d endpoints came and went\n", MANY);
}

/* Puts until the peer is killed, and some time after that. */
static void killed(ucp_ep_h ep, ucp_rkey_h rkey, uint64_t there, pid_t pid)
{
	time_t start = time(NULL);
	ucs_status_t status;
	int rounds = 0;

	do {
		status = ended(ucp_put_nbx(ep, memory, 4UL << 20, there, rkey,
					   &none));
		if (++rounds == 10)
			kill(pid, SIGKILL);
		if (time(NULL) - start > 60)
			die("nobody tells that the peer is gone");
	} while (status == UCS_OK);
	printf("# puts fail: %s\n", ucs_status_string(status));
	while (!peer_failed && time(NULL) - start <= 60)
		ucp_worker_progress(worker);
	if (!peer_failed)
		die("the handler is not called");
}

/* Has the endpoint closed by force, while a flush waits for a peer that stands still. */
static void forced(ucp_ep_h ep, ucp_rkey_h rkey, uint64_t there, pid_t pid)
{
	time_t start = time(NULL);
	void *put, *flushed;

	/* Until there is a connection. */
	check(ended(ucp_put_nbx(ep, memory, 4UL << 20, there, rkey, &none)),
	      "ucp_put_nbx");
	flush(ep);
	kill(pid, SIGSTOP);
	put = ucp_put_nbx(ep, memory, SIZE, there, rkey, &none);
	flushed = ucp_ep_flush_nbx(ep, &none);
	if (!UCS_PTR_IS_PTR(put) || !UCS_PTR_IS_PTR(flushed))
		die("nothing has to wait");
	disconnected(ep, UCP_EP_CLOSE_FLAG_FORCE);
	while (ucp_request_check_status(flushed) == UCS_INPROGRESS) {
		ucp_worker_progress(worker);
		if (time(NULL) - start > 20)
			die("the flush does not end");
	}
	printf("# put: %s, flush: %s\n",
	       ucs_status_string(ucp_request_check_status(put)),
	       ucs_status_string(ucp_request_check_status(flushed)));
	if (ucp_request_check_status(put) == UCS_OK)
		die("what is canceled is said to be done");
	ucp_request_free(put);
	ucp_request_free(flushed);
	kill(pid, SIGCONT);
}

/*
 * Two that compute: this end once it has connected, and the peer while more comes
 * for it than its sockets take.
 */
static void computing(int fd, ucp_ep_h ep, ucp_rkey_h rkey, uint64_t there)
{
	sleep(BUSY);
	check(ended(ucp_put_nbx(ep, memory, 1, there, rkey, &none)),
	      "ucp_put_nbx");
	flush(ep);
	printf("# an end that has connected may be busy\n");
	fill(0, SIZE, 1);
	tell_order(fd, COMPUTE, 0, BUSY_FOR_LONG, 0);
	sleep(1);
	check(ended(ucp_put_nbx(ep, memory, SIZE, there, rkey, &none)),
	      "ucp_put_nbx");
	flush(ep);
	answered(fd);
	tell_order(fd, COMPARE, 0, SIZE, 1);
	answered(fd);
	printf("# a peer may be busy\n");
}

static int connect_to(const char *address, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), i;

	if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
		die("no address of IPv4");
	for (i = 0; i < 100; i++) {
		if (!connect(fd, (struct sockaddr *)&to, sizeof(to)))
			return fd;
		usleep(100000);
	}
	die("nobody serves");
	return -1;
}

/* As an end of the library says it, whose lanes come from these ports. */
static int greet(const char *address, int port, uint16_t lanes, uint16_t from)
{
	const uint16_t rest[3] = { lanes, from, from };
	int fd = connect_to(address, port);

	tell(fd, "DMBL", 4);
	tell(fd, rest, sizeof(*rest) * (1 + lanes));
	return fd;
}

/* Names one lane twice: it is not listened to, and others are nevertheless. */
static void twice(const char *address, int control)
{
	int lane = connect_to(address, lane_port());
	char said;

	if (recv(greet(address, control, 2, port_of(lane)), &said, 1, 0) > 0)
		die("a lane is taken for two");
	lane = connect_to(address, lane_port());
	if (recv(greet(address, control, 1, port_of(lane)), &said, 1, 0) != 1)
		die("nobody answers any more");
}

static int wait_for_one(int port)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1, one;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&at, sizeof(at)) || listen(fd, 1))
		die("cannot listen");
	one = accept(fd, NULL, NULL);
	close(fd);
	return one;
}

static void client(int fd, const char *to, const char *what)
{
	struct hello hello;
	void *packed, *address;
	ucp_rkey_h rkey;
	ucp_ep_h ep;

	if (hear(fd, &hello, sizeof(hello)))
		die("the peer says nothing");
	packed = malloc(hello.rkey_len);
	address = malloc(hello.worker_len);
	if (!packed || !address || hear(fd, packed, hello.rkey_len) ||
	    hear(fd, address, hello.worker_len))
		die("the peer says little");
	if (!strcmp(what, "many")) {
		many(address, hello.address, packed);
	} else if (!strcmp(what, "twice")) {
		twice(to, hello.control_port);
	} else {
		ep = connected(address);
		check(ucp_ep_rkey_unpack(ep, packed, &rkey), "ucp_ep_rkey_unpack");
		if (!strcmp(what, "killed"))
			killed(ep, rkey, hello.address, hello.pid);
		else if (!strcmp(what, "forced"))
			forced(ep, rkey, hello.address, hello.pid);
		else if (!strcmp(what, "busy"))
			computing(fd, ep, rkey, hello.address);
		else
			data(fd, ep, rkey, hello.address);
		ucp_rkey_destroy(rkey);
		if (strcmp(what, "forced"))
			disconnected(ep, peer_failed ? UCP_EP_CLOSE_FLAG_FORCE : 0);
	}
	free(packed);
	free(address);
	if (!peer_failed)
		tell_order(fd, END, 0, 0, 0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && !strcmp(argv[1], "serve")) {
		begin();
		serve(wait_for_one(atoi(argv[2])));
	} else if (argc == 4) {
		begin();
		client(connect_to(argv[1], atoi(argv[2])), argv[1], argv[3]);
	} else {
		fprintf(stderr, "usage: ucx_check serve PORT\n"
			"       ucx_check ADDRESS PORT data|many|killed|forced|busy|twice\n");
		return 2;
	}
	end();
	return 0;
}
