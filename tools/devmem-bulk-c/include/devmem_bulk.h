/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Bulk transfer between dma-bufs over device-memory TCP, for programs in C.
 *
 * Made by cbindgen of src/lib.rs, whose tests see to it that this is what it
 * would be made now: UPDATE=1 cargo test -p devmem-bulk-c
 *
 * Functions return 0, or a number that is not negative, or a negative errno.
 * What one thread does with an endpoint no other one does at the same time; all
 * else may be used by several. All pointers have to be valid, but for those
 * that are said to be NULL in some case.
 */

#ifndef DEVMEM_BULK_H
#define DEVMEM_BULK_H

#include <stddef.h>
#include <stdint.h>

/*
 * The peer may read.
 */
#define DMB_READ 1

/*
 * The peer may write.
 */
#define DMB_WRITE 2

/*
 * Bytes of a note.
 */
#define DMB_NOTE 64

/*
 * A request has ended, with `reason`: 0 if it went well.
 */
#define DMB_EVENT_DONE 1

/*
 * The peer has told something.
 */
#define DMB_EVENT_NOTE 2

/*
 * The peer has no more requests, and waits for dmb_close().
 */
#define DMB_EVENT_CLOSING 3

/*
 * The connection is over, with `reason`: 0 if it was closed by both.
 */
#define DMB_EVENT_OVER 4

/*
 * Added to the reasons of requests that ended with the connection.
 */
#define DMB_OVER 256

/*
 * The peer was gone.
 */
#define DMB_OVER_GONE 257

/*
 * This end could not go on.
 */
#define DMB_OVER_LOCAL 258

/*
 * The peer did not keep to the protocol. The fault of the protocol is added.
 */
#define DMB_OVER_BROKEN 512

/*
 * The peer said so. The fault of the protocol is added.
 */
#define DMB_OVER_TOLD 768

/*
 * An end of a connection.
 */
struct dmb_endpoint;

/*
 * A dma-buf that payload lands in.
 */
struct dmb_landing;

/*
 * What is transferred from and to: a dma-buf, or ordinary memory.
 */
struct dmb_memory;

/*
 * Keys.
 */
struct dmb_registry;

/*
 * A key. Who knows it may do what it is for.
 */
struct dmb_key {
	/*
	 * As the peer makes them, or as it is told.
	 */
	uint8_t bytes[16];
};

/*
 * What happened.
 */
struct dmb_event {
	/*
	 * DMB_EVENT_...
	 */
	uint32_t kind;
	/*
	 * Why, if that is said: 0, a status of the protocol, or DMB_OVER_...
	 */
	uint32_t reason;
	/*
	 * Which request.
	 */
	uint64_t id;
	/*
	 * What the peer has told.
	 */
	uint8_t note[DMB_NOTE];
};

/*
 * Whether bytes of a memory are on their way to a peer, 1 or 0: then what is
 * written to it may be what is sent, although the peer has said that it has
 * all of a put, or the key was taken back.
 */
int32_t dmb_memory_is_being_read(const struct dmb_memory *memory);

/*
 * Makes a memory of a dma-buf. It is bound to a device to be sent from, if the
 * number of one is given, and that can do it; if not, the CPU copies what is
 * sent. Make one memory of a dma-buf: two do not know of each other, and what
 * both write at once is neither's.
 */
int32_t dmb_memory_new(int32_t fd, uint32_t ifindex, struct dmb_memory **out);

/*
 * Makes a memory of `len` bytes of ordinary memory, from and to which the CPU
 * copies. They have to be there until dmb_memory_close() has returned.
 */
int32_t dmb_memory_host(void *address, size_t len, struct dmb_memory **out);

/*
 * Whether a memory is bound to a device, which sends from it, 1 or 0. If not, the
 * CPU copies what is sent.
 */
int32_t dmb_memory_is_bound(const struct dmb_memory *memory);

/*
 * Gives ordinary memory back: none of it is accessed any more once this
 * returns. A connection by which it was still to be sent fails. A dma-buf stays
 * as it is.
 */
void dmb_memory_close(const struct dmb_memory *memory);

/*
 * Lets go of a memory, which stays for as long as keys and requests have it.
 */
void dmb_memory_free(struct dmb_memory *memory);

/*
 * Binds a dma-buf to receive queues of a device, for payload of so many
 * endpoints to land in. Flows have to be steered there by other means.
 */
int32_t dmb_landing_new(int32_t fd,
			uint32_t ifindex,
			const uint32_t *queues,
			size_t count,
			uint32_t endpoints,
			struct dmb_landing **out);

/*
 * Lets go of a landing, which stays for as long as endpoints have it.
 */
void dmb_landing_free(struct dmb_landing *landing);

/*
 * Makes a registry of keys, without any.
 */
int32_t dmb_registry_new(struct dmb_registry **out);

/*
 * Lets go of a registry, which stays for as long as endpoints have it.
 */
void dmb_registry_free(struct dmb_registry *registry);

/*
 * Makes a key for a part of a memory, for DMB_READ, DMB_WRITE or both, and for
 * so many milliseconds: for ever if that is 0. It is written to `key`.
 */
int32_t dmb_register(const struct dmb_registry *registry,
		     const struct dmb_memory *memory,
		     uint64_t offset,
		     uint64_t len,
		     uint32_t rights,
		     uint64_t milliseconds,
		     struct dmb_key *key);

/*
 * Takes a key back: nothing is written by it any more once this returns.
 * -ENOENT if there is none, or if it has expired, whose writing has ended then,
 * too.
 */
int32_t dmb_revoke(const struct dmb_registry *registry,
		   const struct dmb_key *key);

/*
 * Makes an end of connections of TCP that are made: the control connection,
 * and lanes. The descriptors stay the caller's, and may be closed. `landing`
 * is NULL if nothing lands in device memory; if it is for several endpoints this
 * one gets its part. -EINVAL if that is too small for so many lanes.
 */
int32_t dmb_endpoint_new(int32_t control,
			 const int32_t *lanes,
			 size_t count,
			 const struct dmb_registry *registry,
			 const struct dmb_landing *landing,
			 struct dmb_endpoint **out);

/*
 * Ends the connection, if it has not ended, and lets go of it. That may take 5 s,
 * until the peer has what was being sent. Lanes whose descriptors the caller
 * still has stay open.
 */
void dmb_endpoint_free(struct dmb_endpoint *endpoint);

/*
 * A descriptor to poll, which stays the endpoint's: there is something to read
 * when something has happened. What that is only dmb_wait() tells, until which
 * there stays something to read.
 */
int32_t dmb_fd(const struct dmb_endpoint *endpoint);

/*
 * Whether there is more to do, or to tell, without anything that can be polled
 * for, 1 or 0: then whoever polls calls dmb_wait() first. So he does after he
 * has made requests, whatever this says.
 */
int32_t dmb_is_busy(const struct dmb_endpoint *endpoint);

/*
 * Waits until the peer is there, no longer than so many milliseconds.
 */
int32_t dmb_wait_open(struct dmb_endpoint *endpoint, uint64_t milliseconds);

/*
 * Puts `len` bytes from `from` of a memory on to `to` of what the key names.
 * Returns the number of the request, or -EAGAIN if there are too many.
 */
int64_t dmb_put(struct dmb_endpoint *endpoint,
		const struct dmb_memory *memory,
		uint64_t from,
		uint64_t len,
		const struct dmb_key *key,
		uint64_t to);

/*
 * Gets `len` bytes from `from` on of what the key names to `to` of a memory.
 * Returns as dmb_put() does.
 */
int64_t dmb_get(struct dmb_endpoint *endpoint,
		const struct dmb_memory *memory,
		uint64_t to,
		uint64_t len,
		const struct dmb_key *key,
		uint64_t from);

/*
 * Tells the peer's program something, DMB_NOTE bytes, once all that was put
 * before is in place. Returns as dmb_put() does.
 */
int64_t dmb_notify(struct dmb_endpoint *endpoint, const uint8_t *note);

/*
 * Gives up a request. It ends when the peer answers, one way or another.
 */
void dmb_cancel(struct dmb_endpoint *endpoint, uint64_t request);

/*
 * There will be no more requests of this end. The connection is over when the
 * peer says the same.
 */
void dmb_close(struct dmb_endpoint *endpoint);

/*
 * Waits for an event, no longer than so many milliseconds: for ever if that is
 * negative. Returns 1 with an event, and 0 if there was none, or will be none
 * any more. Who does not call it for 30 s may lose the connection.
 */
int32_t dmb_wait(struct dmb_endpoint *endpoint,
		 int64_t milliseconds,
		 struct dmb_event *out);

#endif /* DEVMEM_BULK_H */
