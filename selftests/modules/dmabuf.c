// SPDX-License-Identifier: GPL-2.0
/*
 * A dma-buf with any scatterlist
 *
 * Its entries are memory of any length at any place in a page, or nothing but
 * numbers that say where memory would be. Who attaches is asked for what exporters
 * of device memory ask for, and looked after: that memory which nobody has mapped
 * is not written to.
 */

#include <linux/crc32.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fcntl.h>
#include <linux/gfp.h>
#include <linux/iosys-map.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "devmem_test.h"

#define MAX_SEGMENTS	BIT(19)
/* Longest segment that is memory. */
#define MAX_MEMORY	SZ_1M

struct test_segment {
	struct devmem_test_segment spec;
	/* Pages from alloc_pages_exact(), or NULL. */
	void *memory;
};

struct test_fence {
	struct dma_fence base;
	spinlock_t lock; /* that of the fence */
};

struct test_dmabuf {
	struct devmem_test_dmabuf spec;
	/* Protects what DEVMEM_TEST_IOC_STATE tells: who waits for a fence has the
	 * reservation lock, in which this one nests.
	 */
	struct mutex lock;
	struct devmem_test_state state;
	/* Written under the reservation lock. */
	bool revoked;
	/* For who waits until nobody has the memory mapped. */
	wait_queue_head_t unmapped;
	/* What the memory held when the last one unmapped it. */
	u32 crc;
	/* What the kernel has to do with the memory, or NULL. */
	struct dma_fence *fence;
	struct test_segment *segments;
	/* What all attachments are told if there is no memory to map: made once, so
	 * that it is no part of what a binding costs.
	 */
	struct sg_table numbers;
};

static size_t memory_size(const struct test_segment *segment)
{
	return segment->spec.addr + segment->spec.len;
}

static u32 memory_crc(const struct test_dmabuf *test)
{
	unsigned int i;
	u32 crc = 0;

	if (!(test->spec.flags & DEVMEM_TEST_MEMORY))
		return 0;
	for (i = 0; i < test->spec.num_segments; i++)
		crc = crc32_le(crc, test->segments[i].memory,
			       memory_size(&test->segments[i]));
	return crc;
}

static int test_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	bool revocable = dma_buf_attach_revocable(attachment);
	struct test_dmabuf *test = dmabuf->priv;
	u32 flags = test->spec.flags;

	if (READ_ONCE(test->revoked))
		return -ENODEV;
	if (test->spec.attach_error)
		return -test->spec.attach_error;
	if (flags & DEVMEM_TEST_PEER && !attachment->peer2peer)
		return -EOPNOTSUPP;
	if (flags & DEVMEM_TEST_REVOCABLE && !revocable)
		return -EOPNOTSUPP;
	if (flags & DEVMEM_TEST_HOST)
		attachment->peer2peer = false;

	mutex_lock(&test->lock);
	test->state.attached++;
	test->state.peers += attachment->peer2peer;
	test->state.revocable += revocable;
	mutex_unlock(&test->lock);
	return 0;
}

static void test_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	struct test_dmabuf *test = dmabuf->priv;

	mutex_lock(&test->lock);
	test->state.attached--;
	test->state.peers -= attachment->peer2peer;
	test->state.revocable -= dma_buf_attach_revocable(attachment);
	mutex_unlock(&test->lock);
}

static int test_pin(struct dma_buf_attachment *attachment)
{
	struct test_dmabuf *test = attachment->dmabuf->priv;

	if (test->spec.pin_error &&
	    (attachment->peer2peer || !(test->spec.flags & DEVMEM_TEST_NO_ROOM)))
		return -test->spec.pin_error;

	mutex_lock(&test->lock);
	test->state.pinned++;
	mutex_unlock(&test->lock);
	/* What is moved to where it is to stay was somewhere else. */
	if (test->spec.flags & DEVMEM_TEST_MOVES_TO_PIN)
		dma_buf_invalidate_mappings(attachment->dmabuf);
	return 0;
}

static void test_unpin(struct dma_buf_attachment *attachment)
{
	struct test_dmabuf *test = attachment->dmabuf->priv;

	mutex_lock(&test->lock);
	WARN_ON(!test->state.pinned);
	test->state.pinned--;
	mutex_unlock(&test->lock);
}

static int map_memory(const struct test_dmabuf *test, struct device *dev,
		      struct sg_table *sgt, enum dma_data_direction direction)
{
	const struct test_segment *segment = test->segments;
	struct scatterlist *sg;
	unsigned int i;

	for_each_sgtable_sg(sgt, sg, i) {
		sg_set_page(sg, virt_to_page(segment->memory), segment->spec.len,
			    segment->spec.addr);
		segment++;
	}
	return dma_map_sgtable(dev, sgt, direction, 0);
}

static struct sg_table *make_table(const struct test_dmabuf *test,
				   struct device *dev,
				   enum dma_data_direction direction)
{
	struct sg_table *sgt;
	int err;

	sgt = kzalloc_obj(*sgt);
	if (!sgt)
		return ERR_PTR(-ENOMEM);

	err = sg_alloc_table(sgt, test->spec.num_segments, GFP_KERNEL);
	if (err)
		goto err_free;

	err = map_memory(test, dev, sgt, direction);
	if (err)
		goto err_free_table;

	return sgt;

err_free_table:
	sg_free_table(sgt);
err_free:
	kfree(sgt);
	return ERR_PTR(err);
}

static struct sg_table *test_map(struct dma_buf_attachment *attachment,
				 enum dma_data_direction direction)
{
	struct test_dmabuf *test = attachment->dmabuf->priv;
	struct sg_table *sgt = &test->numbers;

	if (test->revoked)
		return ERR_PTR(-ENODEV);
	if (test->spec.map_error)
		return ERR_PTR(-test->spec.map_error);
	if (test->spec.flags & DEVMEM_TEST_MEMORY)
		sgt = make_table(test, attachment->dev, direction);
	if (IS_ERR(sgt))
		return sgt;

	mutex_lock(&test->lock);
	test->state.mapped++;
	mutex_unlock(&test->lock);
	return sgt;
}

static void test_unmap(struct dma_buf_attachment *attachment,
		       struct sg_table *sgt, enum dma_data_direction direction)
{
	struct test_dmabuf *test = attachment->dmabuf->priv;

	if (test->spec.flags & DEVMEM_TEST_MEMORY) {
		dma_unmap_sgtable(attachment->dev, sgt, direction, 0);
		sg_free_table(sgt);
		kfree(sgt);
	}

	mutex_lock(&test->lock);
	WARN_ON(!test->state.mapped);
	test->state.mapped--;
	if (!test->state.mapped)
		test->crc = memory_crc(test);
	mutex_unlock(&test->lock);
	wake_up(&test->unmapped);
}

static int test_begin_cpu_access(struct dma_buf *dmabuf,
				 enum dma_data_direction direction)
{
	struct test_dmabuf *test = dmabuf->priv;

	mutex_lock(&test->lock);
	test->state.cpu_accesses++;
	mutex_unlock(&test->lock);
	return 0;
}

static int test_end_cpu_access(struct dma_buf *dmabuf,
			       enum dma_data_direction direction)
{
	struct test_dmabuf *test = dmabuf->priv;

	mutex_lock(&test->lock);
	WARN_ON(!test->state.cpu_accesses);
	test->state.cpu_accesses--;
	mutex_unlock(&test->lock);
	return 0;
}

/* Nobody looks at what a device still has to do with. */
static int test_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct test_dmabuf *test = dmabuf->priv;
	const struct test_segment *segment = test->segments;

	if (test->revoked)
		return -ENODEV;
	if (test->spec.map_error)
		return -test->spec.map_error;
	if (WARN_ON(!test->state.cpu_accesses ||
		    (test->fence && !dma_fence_is_signaled(test->fence))))
		return -EPERM;

	mutex_lock(&test->lock);
	test->state.cpu_mappings++;
	test->state.cpu_mapped++;
	mutex_unlock(&test->lock);
	iosys_map_set_vaddr(map, segment->memory + segment->spec.addr);
	return 0;
}

static void test_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct test_dmabuf *test = dmabuf->priv;

	mutex_lock(&test->lock);
	WARN_ON(!test->state.cpu_mappings);
	test->state.cpu_mappings--;
	mutex_unlock(&test->lock);
}

static void test_free(struct test_dmabuf *test)
{
	unsigned int i;

	for (i = 0; test->segments && i < test->spec.num_segments; i++)
		if (test->segments[i].memory)
			free_pages_exact(test->segments[i].memory,
					 memory_size(&test->segments[i]));
	sg_free_table(&test->numbers);
	kvfree(test->segments);
	dma_fence_put(test->fence);
	mutex_destroy(&test->lock);
	kfree(test);
}

static void test_release(struct dma_buf *dmabuf)
{
	struct test_dmabuf *test = dmabuf->priv;

	/* Each has to end. */
	if (test->fence)
		dma_fence_signal(test->fence);
	test_free(test);
}

/* For who compares what a device wrote, also after it was taken back. */
static int test_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	const struct test_dmabuf *test = dmabuf->priv;
	unsigned long at = vma->vm_start;
	unsigned int i;

	if (!(test->spec.flags & DEVMEM_TEST_MEMORY) ||
	    !(vma->vm_flags & VM_SHARED) || vma->vm_pgoff)
		return -EINVAL;

	for (i = 0; i < test->spec.num_segments; i++) {
		const struct test_segment *segment = &test->segments[i];
		size_t len = segment->spec.len;
		int err;

		if (segment->spec.addr || !PAGE_ALIGNED(len) || len > vma->vm_end - at)
			return -EINVAL;
		err = remap_pfn_range(vma, at, page_to_pfn(virt_to_page(segment->memory)),
				      len, vma->vm_page_prot);
		if (err)
			return err;
		at += len;
	}
	return at == vma->vm_end ? 0 : -EINVAL;
}

static const struct dma_buf_ops test_ops = {
	.attach		= test_attach,
	.detach		= test_detach,
	.map_dma_buf	= test_map,
	.unmap_dma_buf	= test_unmap,
	.mmap		= test_mmap,
	.release	= test_release,
};

static const struct dma_buf_ops test_moving_ops = {
	.attach		= test_attach,
	.detach		= test_detach,
	.pin		= test_pin,
	.unpin		= test_unpin,
	.map_dma_buf	= test_map,
	.unmap_dma_buf	= test_unmap,
	.mmap		= test_mmap,
	.release	= test_release,
};

static const struct dma_buf_ops test_cpu_ops = {
	.attach			= test_attach,
	.detach			= test_detach,
	.map_dma_buf		= test_map,
	.unmap_dma_buf		= test_unmap,
	.begin_cpu_access	= test_begin_cpu_access,
	.end_cpu_access		= test_end_cpu_access,
	.mmap			= test_mmap,
	.vmap			= test_vmap,
	.vunmap			= test_vunmap,
	.release		= test_release,
};

static const struct dma_buf_ops *test_ops_of(const struct devmem_test_dmabuf *spec)
{
	if (spec->flags & DEVMEM_TEST_MOVES)
		return &test_moving_ops;
	return spec->flags & DEVMEM_TEST_CPU ? &test_cpu_ops : &test_ops;
}

static const char *test_fence_name(struct dma_fence *fence)
{
	return "devmem_test";
}

static const struct dma_fence_ops test_fence_ops = {
	.get_driver_name	= test_fence_name,
	.get_timeline_name	= test_fence_name,
};

static struct dma_fence *test_fence_new(void)
{
	struct test_fence *fence;

	fence = kzalloc_obj(*fence);
	if (!fence)
		return NULL;
	spin_lock_init(&fence->lock);
	dma_fence_init(&fence->base, &test_fence_ops, &fence->lock,
		       dma_fence_context_alloc(1), 1);
	return &fence->base;
}

static int fill(struct test_segment *segment, const void __user **data)
{
	const struct devmem_test_segment *spec = &segment->spec;

	if (spec->addr >= PAGE_SIZE || !spec->len || spec->len > MAX_MEMORY)
		return -EINVAL;

	segment->memory = alloc_pages_exact(memory_size(segment),
					    GFP_KERNEL | __GFP_ZERO);
	if (!segment->memory)
		return -ENOMEM;
	if (copy_from_user(segment->memory + spec->addr, *data, spec->len))
		return -EFAULT;
	*data += spec->len;
	return 0;
}

static int read_segments(struct test_dmabuf *test)
{
	const struct devmem_test_segment __user *from;
	const void __user *data;
	unsigned int i;
	int err;

	from = u64_to_user_ptr(test->spec.segments);
	data = u64_to_user_ptr(test->spec.data);
	for (i = 0; i < test->spec.num_segments; i++) {
		struct test_segment *segment = &test->segments[i];

		if (copy_from_user(&segment->spec, &from[i], sizeof(*from)))
			return -EFAULT;
		if (overflows_type(segment->spec.len, unsigned int))
			return -EINVAL;
		if (!(test->spec.flags & DEVMEM_TEST_MEMORY))
			continue;
		err = fill(segment, &data);
		if (err)
			return err;
	}
	return 0;
}

static int make_numbers(struct test_dmabuf *test)
{
	const struct test_segment *segment = test->segments;
	struct scatterlist *sg;
	unsigned int i;
	int err;

	/* There is no table without entries, only one without mapped ones. */
	err = sg_alloc_table(&test->numbers, max(test->spec.num_segments, 1),
			     GFP_KERNEL);
	if (err)
		return err;

	test->numbers.nents = test->spec.num_segments;
	for_each_sgtable_dma_sg(&test->numbers, sg, i) {
		sg_dma_address(sg) = segment->spec.addr;
		sg_dma_len(sg) = segment->spec.len;
		segment++;
	}
	return 0;
}

static struct test_dmabuf *test_new(const struct devmem_test_dmabuf *spec)
{
	struct test_dmabuf *test;
	int err;

	if (spec->num_segments > MAX_SEGMENTS)
		return ERR_PTR(-EINVAL);
	/* An error is a number that ERR_PTR() takes. */
	if (spec->attach_error < 0 || spec->attach_error > MAX_ERRNO ||
	    spec->map_error < 0 || spec->map_error > MAX_ERRNO ||
	    spec->pin_error < 0 || spec->pin_error > MAX_ERRNO)
		return ERR_PTR(-EINVAL);
	if (spec->flags & DEVMEM_TEST_CPU &&
	    (!(spec->flags & DEVMEM_TEST_MEMORY) || spec->num_segments != 1))
		return ERR_PTR(-EINVAL);

	test = kzalloc_obj(*test);
	if (!test)
		return ERR_PTR(-ENOMEM);
	mutex_init(&test->lock);
	init_waitqueue_head(&test->unmapped);
	test->spec = *spec;
	test->segments = kvzalloc_objs(*test->segments, spec->num_segments);
	err = test->segments ? read_segments(test) : -ENOMEM;
	if (!err && !(spec->flags & DEVMEM_TEST_MEMORY))
		err = make_numbers(test);
	if (!err && spec->flags & DEVMEM_TEST_FENCE) {
		test->fence = test_fence_new();
		if (!test->fence)
			err = -ENOMEM;
	}
	if (err) {
		test_free(test);
		return ERR_PTR(err);
	}
	return test;
}

static int add_fence(struct dma_buf *dmabuf, struct dma_fence *fence)
{
	int err;

	dma_resv_lock(dmabuf->resv, NULL);
	err = dma_resv_reserve_fences(dmabuf->resv, 1);
	if (!err)
		dma_resv_add_fence(dmabuf->resv, fence, DMA_RESV_USAGE_KERNEL);
	dma_resv_unlock(dmabuf->resv);
	return err;
}

int devmem_test_make_dmabuf(const struct devmem_test_dmabuf *spec)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct test_dmabuf *test;
	struct dma_buf *dmabuf;
	int fd;

	test = test_new(spec);
	if (IS_ERR(test))
		return PTR_ERR(test);

	info.ops = test_ops_of(spec);
	info.size = spec->size;
	info.flags = O_RDWR;
	info.priv = test;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		test_free(test);
		return PTR_ERR(dmabuf);
	}
	if (test->fence) {
		int err = add_fence(dmabuf, test->fence);

		if (err) {
			dma_buf_put(dmabuf);
			return err;
		}
	}

	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

static struct dma_buf *test_get(int fd)
{
	struct dma_buf *dmabuf = dma_buf_get(fd);

	if (IS_ERR(dmabuf))
		return dmabuf;
	if (dmabuf->ops->release != test_release) {
		dma_buf_put(dmabuf);
		return ERR_PTR(-EINVAL);
	}
	return dmabuf;
}

int devmem_test_state(struct devmem_test_state *state)
{
	struct dma_buf *dmabuf = test_get(state->fd);
	int fd = state->fd;
	struct test_dmabuf *test;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	test = dmabuf->priv;

	mutex_lock(&test->lock);
	*state = test->state;
	/* Before the first one unmapped it, there is nothing to compare with. */
	state->written = !state->mapped && test->crc &&
			 test->crc != memory_crc(test);
	state->revoked = READ_ONCE(test->revoked);
	mutex_unlock(&test->lock);
	state->fd = fd;

	dma_buf_put(dmabuf);
	return 0;
}

int devmem_test_signal(int fd)
{
	struct dma_buf *dmabuf = test_get(fd);
	const struct test_dmabuf *test;
	int err = -EINVAL;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	test = dmabuf->priv;

	if (test->fence && !dma_fence_is_signaled(test->fence)) {
		dma_fence_signal(test->fence);
		err = 0;
	}

	dma_buf_put(dmabuf);
	return err;
}

int devmem_test_go_on(int fd)
{
	struct dma_buf *dmabuf = test_get(fd);
	struct dma_fence *fence, *old;
	struct test_dmabuf *test;
	int err = -ENOMEM;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	test = dmabuf->priv;

	fence = test_fence_new();
	if (fence)
		err = add_fence(dmabuf, fence);
	if (err) {
		dma_fence_put(fence);
		goto out_put;
	}

	dma_resv_lock(dmabuf->resv, NULL);
	old = test->fence;
	test->fence = fence;
	dma_resv_unlock(dmabuf->resv);
	if (old) {
		dma_fence_signal(old);
		dma_fence_put(old);
	}
out_put:
	dma_buf_put(dmabuf);
	return err;
}

int devmem_test_move(int fd)
{
	struct dma_buf *dmabuf = test_get(fd);
	struct test_dmabuf *test;
	int err = 0;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	test = dmabuf->priv;

	/* Nobody pins it meanwhile. */
	dma_resv_lock(dmabuf->resv, NULL);
	mutex_lock(&test->lock);
	if (dmabuf->ops != &test_moving_ops)
		err = -EINVAL;
	else if (test->state.pinned)
		err = -EBUSY;
	else
		test->state.moves++;
	mutex_unlock(&test->lock);
	if (!err)
		dma_buf_invalidate_mappings(dmabuf);
	dma_resv_unlock(dmabuf->resv);

	dma_buf_put(dmabuf);
	return err;
}

int devmem_test_revoke(int fd)
{
	struct dma_buf *dmabuf = test_get(fd);
	struct test_dmabuf *test;
	int err = 0;

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	test = dmabuf->priv;

	dma_resv_lock(dmabuf->resv, NULL);
	WRITE_ONCE(test->revoked, true);
	dma_buf_invalidate_mappings(dmabuf);
	dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP, false,
			      MAX_SCHEDULE_TIMEOUT);
	dma_resv_unlock(dmabuf->resv);

	if (!wait_event_timeout(test->unmapped, !READ_ONCE(test->state.mapped),
				5 * HZ))
		err = -ETIME;

	dma_buf_put(dmabuf);
	return err;
}
