/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DEVMEM_TEST_H
#define DEVMEM_TEST_H

#include <linux/err.h>
#include <linux/types.h>

#include "uapi.h"

struct devmem_test_injection;
struct net_device;
struct page_pool;
struct seq_file;

int devmem_test_make_dmabuf(const struct devmem_test_dmabuf *spec);
int devmem_test_state(struct devmem_test_state *state);
int devmem_test_signal(int fd);
int devmem_test_go_on(int fd);
int devmem_test_move(int fd);
int devmem_test_revoke(int fd);
int devmem_test_bench(const struct devmem_test_bench *spec);
int devmem_test_ops(const struct devmem_test_ops *spec);
int devmem_test_come_and_go(void);
int devmem_test_init_fails(void);

#ifdef CONFIG_PCI
int devmem_test_pci(const struct devmem_test_pci *spec);
#else
static inline int devmem_test_pci(const struct devmem_test_pci *spec)
{
	return -EOPNOTSUPP;
}
#endif

struct page_pool *devmem_test_create_pool(struct net_device *dev, u32 queue,
					  u32 size);

#if defined(CONFIG_X86_64) && defined(CONFIG_KRETPROBES)
struct devmem_test_injection *
devmem_test_inject(const struct devmem_test_fault *spec);
struct devmem_test_injection *devmem_test_watch(u32 tid);
void devmem_test_show(struct seq_file *seq,
		      const struct devmem_test_injection *injection);
void devmem_test_forget(struct devmem_test_injection *injection);
void devmem_test_stop(struct devmem_test_injection *injection);
void devmem_test_fault_exit(void);
#else
static inline struct devmem_test_injection *
devmem_test_inject(const struct devmem_test_fault *spec)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline struct devmem_test_injection *devmem_test_watch(u32 tid)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline void
devmem_test_show(struct seq_file *seq,
		 const struct devmem_test_injection *injection)
{
}

static inline void devmem_test_forget(struct devmem_test_injection *injection)
{
}

static inline void devmem_test_stop(struct devmem_test_injection *injection)
{
}

static inline void devmem_test_fault_exit(void)
{
}
#endif

#endif /* DEVMEM_TEST_H */
