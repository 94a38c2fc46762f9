// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Puts a file's worth of bytes to a program that serves them ("devmem-cat
 * serve"), and gets them back.
 *
 * bulk ADDRESS CONTROL_PORT LANE_PORT KEY INTERFACE, with the key in hex.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/udmabuf.h>

#include "../include/devmem_bulk.h"

#define SIZE 1048576

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* A dma-buf of ordinary pages, and where they can be read and written. */
static int dmabuf(unsigned char **bytes)
{
	struct udmabuf_create create = { .size = 2 * SIZE };
	int memfd = memfd_create("bulk", MFD_ALLOW_SEALING);
	int device = open("/dev/udmabuf", O_RDWR);
	int fd;

	if (memfd < 0 || device < 0 || ftruncate(memfd, 2 * SIZE) ||
	    fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		die("memory");
	create.memfd = memfd;
	fd = ioctl(device, UDMABUF_CREATE, &create);
	if (fd < 0)
		die("UDMABUF_CREATE");
	*bytes = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		      memfd, 0);
	if (*bytes == MAP_FAILED)
		die("mmap");
	return fd;
}

static int connected(const char *address, const char *port, uint16_t *from)
{
	struct sockaddr_in to = { .sin_family = AF_INET }, here;
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t len = sizeof(here);

	to.sin_port = htons(atoi(port));
	if (fd < 0 || inet_pton(AF_INET, address, &to.sin_addr) != 1 ||
	    connect(fd, (struct sockaddr *)&to, sizeof(to)) ||
	    getsockname(fd, (struct sockaddr *)&here, &len))
		die(address);
	*from = ntohs(here.sin_port);
	return fd;
}

/* Waits for a request to end, which has to go well. */
static void done(struct dmb_endpoint *endpoint, int64_t id)
{
	struct dmb_event event;

	if (id < 0) {
		fprintf(stderr, "refused: %s\n", strerror(-id));
		exit(1);
	}
	while (dmb_wait(endpoint, -1, &event) > 0) {
		if (event.kind != DMB_EVENT_DONE || event.id != (uint64_t)id)
			continue;
		if (!event.reason)
			return;
		fprintf(stderr, "failed: %#x\n", event.reason);
		exit(1);
	}
	die("no answer");
}

int main(int argc, char **argv)
{
	struct dmb_registry *registry;
	struct dmb_endpoint *endpoint;
	unsigned char preamble[8], *bytes;
	struct dmb_memory *memory;
	struct dmb_event event;
	struct dmb_key key;
	int control, lane, fd, i;
	uint16_t port;

	if (argc != 6 || strlen(argv[4]) != 32) {
		fprintf(stderr, "usage: %s ADDRESS CONTROL_PORT LANE_PORT KEY INTERFACE\n",
			argv[0]);
		return 2;
	}
	for (i = 0; i < 16; i++)
		if (sscanf(argv[4] + 2 * i, "%2hhx", &key.bytes[i]) != 1)
			return 2;
	control = connected(argv[1], argv[2], &port);
	lane = connected(argv[1], argv[3], &port);
	/* Which lanes are this connection's, see bulk.rst: one. */
	memcpy(preamble, "DMBL\1\0", 6);
	preamble[6] = port & 0xff;
	preamble[7] = port >> 8;
	if (write(control, preamble, sizeof(preamble)) != sizeof(preamble))
		die("write");

	fd = dmabuf(&bytes);
	for (i = 0; i < SIZE; i++)
		bytes[i] = i % 251;
	if (dmb_memory_new(fd, if_nametoindex(argv[5]), &memory) ||
	    dmb_registry_new(&registry) ||
	    dmb_endpoint_new(control, &lane, 1, registry, NULL, &endpoint) ||
	    dmb_wait_open(endpoint, 10000))
		die("devmem_bulk");
	done(endpoint, dmb_put(endpoint, memory, 0, SIZE, &key, 0));
	done(endpoint, dmb_get(endpoint, memory, SIZE, SIZE, &key, 0));
	dmb_close(endpoint);
	while (dmb_wait(endpoint, -1, &event) > 0)
		;
	dmb_endpoint_free(endpoint);
	dmb_memory_free(memory);
	dmb_registry_free(registry);
	if (memcmp(bytes, bytes + SIZE, SIZE)) {
		fprintf(stderr, "what came back is not what was put\n");
		return 1;
	}
	printf("%d bytes there and back\n", SIZE);
	return 0;
}
