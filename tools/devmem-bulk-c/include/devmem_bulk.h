/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Bulk transfer between dma-bufs over device-memory TCP, for programs in C.
 *
 * Made by cbindgen of what is in src, whose tests see to it that this is what it
 * would be made now: UPDATE=1 cargo test -p devmem-bulk-c
 *
 * Functions return 0, or a number that is not negative, or a negative errno.
 * What one thread does with an endpoint, or a group, no other one does at the same time; all
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
 * Of a group: the peer of an end is there, and requests can be made.
 */
#define DMB_EVENT_OPEN 5

/*
 * Of a group: what dmb_group_get_bytes() asked for has ended, as DMB_EVENT_DONE.
 */
#define DMB_EVENT_GOT 6

/*
 * There is nobody to connect to.
 */
#define DMB_OVER_UNREACHABLE 259

/*
 * An end of a connection.
 */
struct dmb_endpoint;

/*
 * Ends of connections, and whoever connects, with one descriptor.
 */
struct dmb_group;

/*
 * A dma-buf that payload lands in.
 */
struct dmb_landing;

/*
 * What is transferred from and to: a dma-buf, or ordinary memory.
 */
struct dmb_memory;

/*
 * A part of what was allocated, or of ordinary memory.
 */
struct dmb_part;

/*
 * Memory for transfers by a device, and the keys to it.
 */
struct dmb_pool;

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
 * Where a group listens.
 */
struct dmb_address {
	/*
	 * The address: that of IPv4 in the first four bytes.
	 */
	uint8_t ip[16];
	/*
	 * 4 or 6.
	 */
	uint8_t version;
	/*
	 * Ports.
	 */
	uint16_t control;
	/*
	 * That of lanes, which may be steered.
	 */
	uint16_t lanes;
};

/*
 * Which part of the peer's memory: what a key names, from a byte on.
 */
struct dmb_remote {
	/*
	 * The key.
	 */
	struct dmb_key key;
	/*
	 * The first byte.
	 */
	uint64_t offset;
};

/*
 * What happened to an end of a group, or to a request of it.
 */
struct dmb_group_event {
	/*
	 * DMB_EVENT_OPEN, DMB_EVENT_DONE, DMB_EVENT_GOT or DMB_EVENT_OVER.
	 */
	uint32_t kind;
	/*
	 * As of dmb_event.
	 */
	uint32_t reason;
	/*
	 * What dmb_group_connect() was given.
	 */
	void *end;
	/*
	 * What the request, or the flush, was.
	 */
	void *cookie;
	/*
	 * What was got, until the next call: NULL if it failed.
	 */
	const void *bytes;
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
 * any more. Who does not call it for 30 s may lose the connection. Nothing wakes
 * it up but events: a program that waits for something else, too, or has other
 * threads make requests, calls it for a few milliseconds at a time.
 */
int32_t dmb_wait(struct dmb_endpoint *endpoint,
		 int64_t milliseconds,
		 struct dmb_event *out);

/*
 * Makes a group that listens at an address: for lanes at a port of it, or at any
 * if that is 0. The address then has both ports. Peers use the keys of the pool.
 * `landing` is NULL if nothing lands in device memory. -EADDRINUSE if somebody else
 * listens for lanes there.
 */
int32_t dmb_group_new(struct dmb_address *at,
		      const struct dmb_pool *pool,
		      const struct dmb_landing *landing,
		      struct dmb_group **out);

/*
 * Takes no peers any more, and ends all connections as they expect it: those that do
 * not say the same within so many milliseconds are left.
 */
void dmb_group_free(struct dmb_group *group,
		    uint64_t milliseconds);

/*
 * A descriptor to poll, which stays the group's: there is something to read when
 * there is something for dmb_group_wait().
 */
int32_t dmb_group_fd(const struct dmb_group *group);

/*
 * Whether there is more to do, or to tell, that is not polled for, 1 or 0.
 */
int32_t dmb_group_is_busy(const struct dmb_group *group);

/*
 * Whether any request is under way, or was not told of, 1 or 0.
 */
int32_t dmb_group_has_requests(const struct dmb_group *group);

/*
 * Whether any peer that has connected is served, or is about to be, 1 or 0.
 */
int32_t dmb_group_is_serving(const struct dmb_group *group);

/*
 * Begins to connect to another group, by so many lanes, 1 to 64. Returns the number
 * of the end. DMB_EVENT_OPEN tells that it is there, DMB_EVENT_OVER that it is not:
 * with DMB_OVER_LOCAL if this process has no descriptors, or memory, for it.
 */
int64_t dmb_group_connect(struct dmb_group *group,
			  const struct dmb_address *to,
			  uint16_t lanes,
			  void *cookie);

/*
 * Puts `len` bytes from an address of a part to what `to` names. -EAGAIN if there
 * is no room for it now.
 */
int32_t dmb_group_put(struct dmb_group *group,
		      uint64_t end,
		      const struct dmb_part *part,
		      uint64_t address,
		      uint64_t len,
		      const struct dmb_remote *to,
		      void *cookie);

/*
 * Gets `len` bytes of what `from` names to an address of a part. Returns as
 * dmb_group_put() does.
 */
int32_t dmb_group_get(struct dmb_group *group,
		      uint64_t end,
		      const struct dmb_part *part,
		      uint64_t address,
		      uint64_t len,
		      const struct dmb_remote *from,
		      void *cookie);

/*
 * Puts bytes that are copied before this returns. Returns as dmb_group_put() does.
 */
int32_t dmb_group_put_bytes(struct dmb_group *group,
			    uint64_t end,
			    const void *bytes,
			    size_t len,
			    const struct dmb_remote *to,
			    void *cookie);

/*
 * Gets bytes, which DMB_EVENT_GOT has. Returns as dmb_group_put() does.
 */
int32_t dmb_group_get_bytes(struct dmb_group *group,
			    uint64_t end,
			    size_t len,
			    const struct dmb_remote *from,
			    void *cookie);

/*
 * Whether there is room for a request now, 1 or 0.
 */
int32_t dmb_group_has_room(const struct dmb_group *group, uint64_t end);

/*
 * Whether requests of an end are under way, or not all was told of them, 1 or 0. If
 * so, and if there is a cookie, DMB_EVENT_DONE has that after all of them, with what
 * the first one failed for that did.
 */
int32_t dmb_group_flush(struct dmb_group *group,
			uint64_t end,
			void *cookie);

/*
 * Requests of an end wait, for room, until those that are under way are over.
 */
void dmb_group_fence(struct dmb_group *group, uint64_t end);

/*
 * Ends a connection: at once if something is under way. Returns 1 with that, or with
 * what was not told of, one by one, and 0 when nothing is left, also not of the end.
 */
int32_t dmb_group_cancel(struct dmb_group *group,
			 uint64_t end,
			 struct dmb_group_event *out);

/*
 * Waits for an event of an end that was connected here, no longer than so many
 * milliseconds. Returns 1 with an event, and 0 if there was none. Peers that have
 * connected are served meanwhile.
 */
int32_t dmb_group_wait(struct dmb_group *group,
		       uint64_t milliseconds,
		       struct dmb_group_event *out);

/*
 * Makes a pool for a device, by its number, without any memory. Without a device,
 * 0, the CPU copies.
 */
int32_t dmb_pool_new(uint32_t ifindex,
		     struct dmb_pool **out);

/*
 * Lets go of a pool, of which there are no parts any more.
 */
void dmb_pool_free(struct dmb_pool *pool);

/*
 * Allocates memory, in whole pages, and gives the part that is all of it. It is
 * a dma-buf that is bound to the device, if udmabuf makes one of that size and the
 * device sends from it; if not, the CPU copies. A child of fork() shares its bytes.
 */
int32_t dmb_pool_alloc(const struct dmb_pool *pool,
		       size_t *len,
		       void **address,
		       struct dmb_part **out);

/*
 * Makes a part of bytes of the program's: of what was allocated here, or of
 * ordinary memory, from and to which the CPU copies. They have to be there until
 * dmb_part_free() has returned.
 */
int32_t dmb_pool_part(const struct dmb_pool *pool,
		      void *address,
		      size_t len,
		      struct dmb_part **out);

/*
 * The key by which peers read and write a part, and the address at which that
 * begins. There is one from the first time on that it is asked for.
 */
int32_t dmb_part_key(const struct dmb_pool *pool,
		     const struct dmb_part *part,
		     struct dmb_key *key,
		     uint64_t *address);

/*
 * Takes the key of a part back, and lets go of it: nothing is written there by
 * peers any more once this returns. What is allocated goes with its last part. What
 * peers were told is coming may still be sent.
 */
void dmb_part_free(const struct dmb_pool *pool,
		   struct dmb_part *part);

/*
 * Lets go of a part as dmb_part_free() does, and has nothing of it be sent any more:
 * peers that get some of it, and have not got all, are reset. Waits for the device
 * to be done with it: -ETIMEDOUT if that takes more than 5 s. No put of this end may
 * be about it.
 */
int32_t dmb_part_recall(const struct dmb_pool *pool,
			struct dmb_part *part);

/*
 * Whether ends of connections can be made here: 0; or why not: -EPERM or -ENOSYS
 * where io_uring is not allowed.
 */
int32_t dmb_can_connect(void);

/*
 * Whether a device can send from device memory, by its number: 0; or why not:
 * -ENOENT if there is no udmabuf, -EOPNOTSUPP if the device cannot.
 */
int32_t dmb_can_send(uint32_t ifindex);

/*
 * How many bytes at most are allocated as a dma-buf at once.
 */
size_t dmb_udmabuf_limit(void);

/*
 * Allocates memory and binds it to receive queues of a device, as
 * dmb_landing_new() does with a dma-buf.
 */
int32_t dmb_landing_alloc(size_t len,
			  uint32_t ifindex,
			  const uint32_t *queues,
			  size_t count,
			  uint32_t endpoints,
			  struct dmb_landing **out);

#endif /* DEVMEM_BULK_H */
