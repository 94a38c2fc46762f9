/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space asks of /dev/devmem_test
 */
#ifndef DEVMEM_TEST_UAPI_H
#define DEVMEM_TEST_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* An entry of a scatterlist. */
struct devmem_test_segment {
	/* With memory: where it begins in its first page; without: its DMA
	 * address.
	 */
	__u64 addr;
	__u64 len;
};

/* Segments are memory, filled with the bytes at @data. */
#define DEVMEM_TEST_MEMORY	1
/* Only who takes memory without struct pages can attach. */
#define DEVMEM_TEST_PEER	2
/* Only who can be told that the memory goes can attach. */
#define DEVMEM_TEST_REVOCABLE	4
/* Who attaches is told that the memory is not where the device would reach it. */
#define DEVMEM_TEST_HOST	8
/* The memory can move, unless it is pinned. */
#define DEVMEM_TEST_MOVES	16
/* The kernel has something to do with the memory until DEVMEM_TEST_IOC_SIGNAL. */
#define DEVMEM_TEST_FENCE	32
/* Pinning fails for who does peer-to-peer only. */
#define DEVMEM_TEST_NO_ROOM	64
/* It moves to where it is pinned, and who is attached is told, as amdgpu and xe do. */
#define DEVMEM_TEST_MOVES_TO_PIN	128
/* The kernel can look at the memory, of one segment, by its CPU. */
#define DEVMEM_TEST_CPU		256

struct devmem_test_dmabuf {
	/* What the dma-buf says that its size is. */
	__u64 size;
	/* Address of an array of struct devmem_test_segment. */
	__u64 segments;
	__u32 num_segments;
	__u32 flags;
	/* Address of the bytes of all segments, one after the other. */
	__u64 data;
	/* Errno with which attaching, mapping, or pinning fails; or 0. The last one
	 * is for memory that can move. Mapping is for a device or the CPU.
	 */
	__s32 attach_error;
	__s32 map_error;
	__s32 pin_error;
	/* 0 */
	__u32 reserved;
};

/* Makes a dma-buf, and returns its file descriptor. */
#define DEVMEM_TEST_IOC_DMABUF	_IOW('D', 0x40, struct devmem_test_dmabuf)

struct devmem_test_fault {
	char function[64];
	/* What it returns instead of doing anything: an errno, or 0 for NULL. */
	__s64 ret;
	/* Which call does so, counted from 1. 0 for all. */
	__u32 nth;
	/* The thread whose calls count, or 0 for all. */
	__u32 tid;
};

/* Has a call of a function fail, until the file is closed. Reading the file then
 * gives "<calls> <failures>", and of each failure where it was called from.
 */
#define DEVMEM_TEST_IOC_FAULT	_IOW('D', 0x41, struct devmem_test_fault)

/* As above for what the kernel's own fault injection does. The argument is the
 * thread, or 0 for all.
 */
#define DEVMEM_TEST_IOC_WATCH	_IOW('D', 0x42, __u32)

/* Starts the counts of what the file tells anew. */
#define DEVMEM_TEST_IOC_FORGET	_IO('D', 0x43)

/* Buffers from the provider of a queue, by the callbacks of page pools. */
#define DEVMEM_TEST_BENCH_DIRECT	0
/* Buffers from page pools, with their caches. */
#define DEVMEM_TEST_BENCH_POOL		1
/* As above, but given back as many at a time as the return of tokens does. */
#define DEVMEM_TEST_BENCH_DIRECT_BULK	2
#define DEVMEM_TEST_BENCH_POOL_BULK	3

/* Cycles as user space counts them, or nanoseconds. */
#define DEVMEM_TEST_CLOCK_CYCLES	0
#define DEVMEM_TEST_CLOCK_NS		1

struct devmem_test_sample {
	/* What taking the buffers took, and giving them back. */
	__u64 take;
	__u64 give;
	/* How many: a provider's last answer may be more than is needed. */
	__u32 buffers;
	__u32 reserved;
};

struct devmem_test_bench {
	__u32 ifindex;
	/* The first queue, and how many: each is bound, and gets a pool. */
	__u32 queue;
	__u32 num_queues;
	__u32 op;
	__u32 clock;
	/* 0 */
	__u32 reserved;
	/* Buffers held aside meanwhile, */
	__u32 held;
	/* one of each so many of a row, the others are given back: 1 for all. */
	__u32 stride;
	/* Buffers that each pool takes, and then gives back, in a sample. */
	__u32 count;
	__u32 num_samples;
	/* Address of an array of struct devmem_test_sample. */
	__u64 samples;
};

/* Measures what buffers cost. -ENODATA if a queue is not bound, -ENOSPC if there are
 * not as many buffers.
 */
#define DEVMEM_TEST_IOC_BENCH	_IOW('D', 0x44, struct devmem_test_bench)

/* Our own, in our read-only data, */
#define DEVMEM_TEST_OPS_GOOD		0
/* there, too, but naming no module, */
#define DEVMEM_TEST_OPS_OF_NOBODY	1
/* on the heap, */
#define DEVMEM_TEST_OPS_WRITABLE	2
/* on the heap, naming a module that is there, too, and says that it has them. */
#define DEVMEM_TEST_OPS_FORGED		3

struct devmem_test_ops {
	__u32 ifindex;
	__u32 queue;
	__u32 kind;
};

/* Makes a page pool with ops of a memory provider for a queue that is not bound, and
 * ends it.
 */
#define DEVMEM_TEST_IOC_OPS	_IOW('D', 0x45, struct devmem_test_ops)

struct devmem_test_state {
	/* The dma-buf. */
	__s32 fd;
	/* How many are attached, have the memory pinned, and have it mapped. */
	__u32 attached;
	__u32 pinned;
	__u32 mapped;
	/* How many of those that are attached take memory without struct pages, and
	 * can be told that it goes.
	 */
	__u32 peers;
	__u32 revocable;
	/* How often it moved. */
	__u32 moves;
	/* Whether the bytes of the memory, which nobody has mapped any more, are others
	 * than when the last one unmapped it.
	 */
	__u32 written;
	/* How often the CPU may look at it, and how often it has it mapped. */
	__u32 cpu_accesses;
	__u32 cpu_mappings;
	/* How often that was done. */
	__u32 cpu_mapped;
	/* Whether it was taken back. */
	__u32 revoked;
};

/* Tells what is with a dma-buf of ours. -EINVAL if it is none. */
#define DEVMEM_TEST_IOC_STATE	_IOWR('D', 0x46, struct devmem_test_state)

/* The argument of these two is a pointer to the file descriptor of a dma-buf of ours.
 *
 * What the kernel had to do with the memory is done. -EINVAL if there was nothing.
 */
#define DEVMEM_TEST_IOC_SIGNAL	_IOW('D', 0x47, __s32)

/* Moves the memory, of which all who have it mapped are told. -EINVAL if it does not
 * move, -EBUSY if it is pinned.
 */
#define DEVMEM_TEST_IOC_MOVE	_IOW('D', 0x48, __s32)

/* Takes the memory back for good, as vfio-pci does: who has it mapped is told, and then
 * waited for. The argument is a pointer to the file descriptor of a dma-buf of ours.
 * -ETIME if somebody has it mapped after five seconds. Nobody can attach any more,
 * -ENODEV.
 */
#define DEVMEM_TEST_IOC_REVOKE	_IOW('D', 0x49, __s32)

/* Registers a family of generic netlink, and unregisters it: both wait for the requests
 * that are being served, whatever family these are about.
 */
#define DEVMEM_TEST_IOC_FAMILY	_IO('D', 0x4a)

struct devmem_test_pci {
	__u32 ifindex;
	__u32 what;
};

/* The NIC is suspended, as if the machine was, */
#define DEVMEM_TEST_PCI_SUSPEND	0
/* it is resumed, */
#define DEVMEM_TEST_PCI_RESUME	1
/* or its driver is told of an error, the NIC is reset, and the driver recovers. */
#define DEVMEM_TEST_PCI_RECOVER	2

/* Has that happen to a NIC on PCI. -EOPNOTSUPP if it is none, or its driver cannot. */
#define DEVMEM_TEST_IOC_PCI	_IOW('D', 0x4b, struct devmem_test_pci)

/* The kernel has something else to do with the memory, until DEVMEM_TEST_IOC_SIGNAL. What
 * it had to do before that is done then. The argument is as there.
 */
#define DEVMEM_TEST_IOC_GO_ON	_IOW('D', 0x4c, __s32)

#endif /* DEVMEM_TEST_UAPI_H */
