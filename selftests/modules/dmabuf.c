// SPDX-License-Identifier: GPL-2.0
/*
 * A dma-buf with any scatterlist
 *
 * Its entries are memory of any length at any place in a page, or nothing but
 * numbers that say where memory would be.
 */

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "devmem_test.h"

#define MAX_SEGMENTS	BIT(19)
/* Longest segment that is memory. */
#define MAX_MEMORY	SZ_1M

struct test_segment {
	struct devmem_test_segment spec;
	/* Pages from alloc_pages_exact(), or NULL. */
	void *memory;
};

struct test_dmabuf {
	struct devmem_test_dmabuf spec;
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

static int test_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	const struct test_dmabuf *test = dmabuf->priv;

	return -test->spec.attach_error;
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

static struct sg_table *test_map(struct dma_buf_attachment *attachment,
				 enum dma_data_direction direction)
{
	struct test_dmabuf *test = attachment->dmabuf->priv;
	struct sg_table *sgt;
	int err;

	if (test->spec.map_error)
		return ERR_PTR(-test->spec.map_error);
	if (!(test->spec.flags & DEVMEM_TEST_MEMORY))
		return &test->numbers;

	sgt = kzalloc_obj(*sgt);
	if (!sgt)
		return ERR_PTR(-ENOMEM);

	err = sg_alloc_table(sgt, test->spec.num_segments, GFP_KERNEL);
	if (err)
		goto err_free;

	err = map_memory(test, attachment->dev, sgt, direction);
	if (err)
		goto err_free_table;

	return sgt;

err_free_table:
	sg_free_table(sgt);
err_free:
	kfree(sgt);
	return ERR_PTR(err);
}

static void test_unmap(struct dma_buf_attachment *attachment,
		       struct sg_table *sgt, enum dma_data_direction direction)
{
	const struct test_dmabuf *test = attachment->dmabuf->priv;

	if (!(test->spec.flags & DEVMEM_TEST_MEMORY))
		return;
	dma_unmap_sgtable(attachment->dev, sgt, direction, 0);
	sg_free_table(sgt);
	kfree(sgt);
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
	kfree(test);
}

static void test_release(struct dma_buf *dmabuf)
{
	test_free(dmabuf->priv);
}

static const struct dma_buf_ops test_ops = {
	.attach		= test_attach,
	.map_dma_buf	= test_map,
	.unmap_dma_buf	= test_unmap,
	.release	= test_release,
};

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
	    spec->map_error < 0 || spec->map_error > MAX_ERRNO)
		return ERR_PTR(-EINVAL);

	test = kzalloc_obj(*test);
	if (!test)
		return ERR_PTR(-ENOMEM);
	test->spec = *spec;
	test->segments = kvzalloc_objs(*test->segments, spec->num_segments);
	err = test->segments ? read_segments(test) : -ENOMEM;
	if (!err && !(spec->flags & DEVMEM_TEST_MEMORY))
		err = make_numbers(test);
	if (err) {
		test_free(test);
		return ERR_PTR(err);
	}
	return test;
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

	info.ops = &test_ops;
	info.size = spec->size;
	info.flags = O_RDWR;
	info.priv = test;
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		test_free(test);
		return PTR_ERR(dmabuf);
	}

	fd = dma_buf_fd(dmabuf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}
