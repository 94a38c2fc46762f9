// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The component, and its memory domains: one for each device that can send from
 * device memory.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/udmabuf.h>

#include <ucs/debug/memtrack_int.h>
#include <ucs/sys/sock.h>
#include <ucs/sys/string.h>
#include <ucs/sys/sys.h>

#include "devmem.h"

static ucs_config_field_t uct_devmem_md_config_table[] = {
	{ "", "", NULL, ucs_offsetof(struct uct_devmem_md_config, super),
	  UCS_CONFIG_TYPE_TABLE(uct_md_config_table) },

	{ "COPY", "n",
	  "Use devices that cannot send from device memory, too: the CPU copies.",
	  ucs_offsetof(struct uct_devmem_md_config, copy),
	  UCS_CONFIG_TYPE_BOOL },

	{ NULL }
};

/* How much udmabuf makes at once; 0 if there is none. */
size_t uct_devmem_max_alloc(void)
{
	const char *limit = "/sys/module/udmabuf/parameters/size_limit_mb";
	long mib;

	if (access("/dev/udmabuf", R_OK | W_OK))
		return 0;
	if (ucs_read_file_number(&mib, 1, "%s", limit) != UCS_OK)
		mib = 64;
	return (size_t)mib << 20;
}

/* A dma-buf of pages of a memfd, or a negative errno. */
int uct_devmem_dmabuf(size_t size, int *memfd)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC,
					 .size = size };
	int device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	int fd;

	if (device < 0)
		return -errno;
	*memfd = memfd_create("ucx", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*memfd < 0 || ftruncate(*memfd, size) ||
	    fcntl(*memfd, F_ADD_SEALS, F_SEAL_SHRINK)) {
		fd = -errno;
	} else {
		create.memfd = *memfd;
		fd = ioctl(device, UDMABUF_CREATE, &create);
		if (fd < 0)
			fd = -errno;
	}
	if (fd < 0 && *memfd >= 0)
		close(*memfd);
	close(device);
	return fd;
}

/* Whether a device can send from device memory: 0, or a negative errno. */
static int uct_devmem_probe(unsigned int ifindex)
{
	struct dmb_memory *memory;
	int memfd, fd, ret;

	fd = uct_devmem_dmabuf(ucs_get_page_size(), &memfd);
	if (fd < 0)
		return fd;
	ret = dmb_memory_new(fd, ifindex, &memory);
	close(fd);
	close(memfd);
	if (ret)
		return ret;
	ret = dmb_memory_is_bound(memory) ? 0 : -EOPNOTSUPP;
	dmb_memory_free(memory);
	return ret;
}

/* The devices that can be used; else it is told why there is none. */
static unsigned int uct_devmem_devices(uct_md_resource_desc_t *devices,
				       unsigned int most)
{
	struct uct_devmem_md_config config;
	struct if_nameindex *all, *one;
	unsigned int count = 0;
	char why[512] = "";
	ucs_status_t status;
	size_t len;
	int ret;

	all = if_nameindex();
	if (!all)
		return 0;
	status = ucs_config_parser_fill_opts(&config, uct_devmem_md_config_table,
					     UCS_DEFAULT_ENV_PREFIX, "DEVMEM_",
					     0);
	if (status != UCS_OK)
		goto out;
	for (one = all; one->if_index && count < most; one++) {
		if (!ucs_netif_is_active(one->if_name, AF_INET) &&
		    !ucs_netif_is_active(one->if_name, AF_INET6))
			continue;
		ret = config.copy ? 0 : uct_devmem_probe(one->if_index);
		if (!ret) {
			ucs_strncpy_zero(devices[count++].md_name, one->if_name,
					 UCT_MD_NAME_MAX);
			continue;
		}
		len = strlen(why);
		snprintf(why + len, sizeof(why) - len, "%s%s: %s",
			 len ? ", " : "", one->if_name,
			 ret == -ENOENT ? "no /dev/udmabuf" : strerror(-ret));
	}
	ucs_config_parser_release_opts(&config, uct_devmem_md_config_table);
	if (!count)
		ucs_warn("devmem: no device can send from device memory (%s)",
			 why[0] ? why : "none is up");
out:
	if_freenameindex(all);
	return count;
}

static ucs_status_t
uct_devmem_query_md_resources(uct_component_t *component,
			      uct_md_resource_desc_t **resources,
			      unsigned int *count)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	/* Those that ask twice want to be told the same. */
	static uct_md_resource_desc_t devices[16];
	static unsigned int found;
	static int is_known;

	pthread_mutex_lock(&lock);
	if (!is_known)
		found = uct_devmem_devices(devices, ucs_static_array_size(devices));
	is_known = 1;
	pthread_mutex_unlock(&lock);
	/* Without any device it is there nevertheless, and has no transport. */
	if (!found)
		return uct_md_query_single_md_resource(component, resources,
						       count);
	*resources = ucs_malloc(found * sizeof(**resources), "devmem_resources");
	if (!*resources)
		return UCS_ERR_NO_MEMORY;
	memcpy(*resources, devices, found * sizeof(**resources));
	*count = found;
	return UCS_OK;
}

static ucs_status_t uct_devmem_md_query(uct_md_h tl_md, uct_md_attr_t *attr)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);

	attr->cap.flags = UCT_MD_FLAG_REG | UCT_MD_FLAG_NEED_MEMH |
			  UCT_MD_FLAG_NEED_RKEY | UCT_MD_FLAG_INVALIDATE;
	if (md->max_alloc)
		attr->cap.flags |= UCT_MD_FLAG_ALLOC;
	attr->cap.max_alloc = md->max_alloc;
	attr->cap.max_reg = ULONG_MAX;
	attr->cap.reg_mem_types = UCS_BIT(UCS_MEMORY_TYPE_HOST);
	attr->cap.alloc_mem_types = UCS_BIT(UCS_MEMORY_TYPE_HOST);
	attr->cap.access_mem_types = UCS_BIT(UCS_MEMORY_TYPE_HOST);
	attr->cap.detect_mem_types = 0;
	attr->rkey_packed_size = sizeof(struct uct_devmem_rkey);
	attr->reg_cost = ucs_linear_func_make(1. / UCS_USEC_PER_SEC, 0);
	memset(&attr->local_cpus, 0xff, sizeof(attr->local_cpus));
	return UCS_OK;
}

/* With the lock held. */
static void uct_devmem_region_put(struct uct_devmem_region *region)
{
	if (--region->users)
		return;
	dmb_memory_close(region->memory);
	dmb_memory_free(region->memory);
	if (region->is_allocated) {
		ucs_list_del(&region->list);
		munmap(region->address, region->length);
	}
	ucs_free(region);
}

/* A handle of a part of a region, which has one user more by that. */
static ucs_status_t uct_devmem_memh_new(struct uct_devmem_region *region,
					void *address, size_t length,
					uct_mem_h *memh_p)
{
	struct uct_devmem_memh *memh = ucs_calloc(1, sizeof(*memh), "devmem_memh");

	if (!memh)
		return UCS_ERR_NO_MEMORY;
	memh->region = region;
	memh->address = address;
	memh->length = length;
	region->users++;
	*memh_p = memh;
	return UCS_OK;
}

static ucs_status_t uct_devmem_mem_alloc(uct_md_h tl_md, size_t *length_p,
					 void **address_p,
					 ucs_memory_type_t mem_type,
					 unsigned int flags, const char *name,
					 uct_mem_h *memh_p)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);
	struct uct_devmem_region *region;
	ucs_status_t status = UCS_ERR_NO_MEMORY;
	int memfd, fd, ret;

	region = ucs_calloc(1, sizeof(*region), "devmem_region");
	if (!region)
		return status;
	region->is_allocated = 1;
	region->length = ucs_align_up(*length_p, ucs_get_page_size());
	fd = uct_devmem_dmabuf(region->length, &memfd);
	if (fd < 0) {
		ucs_error("no dma-buf of %zu bytes: %s", region->length,
			  strerror(-fd));
		goto free;
	}
	region->address = mmap(NULL, region->length, PROT_READ | PROT_WRITE,
			       MAP_SHARED, memfd, 0);
	if (region->address == MAP_FAILED)
		goto close;
	ret = dmb_memory_new(fd, md->ifindex, &region->memory);
	if (ret) {
		ucs_error("the dma-buf cannot be bound to %s: %s", md->dev_name,
			  strerror(-ret));
		goto unmap;
	}
	status = uct_devmem_memh_new(region, region->address, region->length,
				     memh_p);
	if (status != UCS_OK)
		goto memory;
	pthread_mutex_lock(&md->lock);
	ucs_list_add_tail(&md->allocated, &region->list);
	pthread_mutex_unlock(&md->lock);
	close(fd);
	close(memfd);
	*address_p = region->address;
	*length_p = region->length;
	return UCS_OK;

memory:
	dmb_memory_free(region->memory);
unmap:
	munmap(region->address, region->length);
close:
	close(fd);
	close(memfd);
free:
	ucs_free(region);
	return status;
}

/* What is allocated here is device memory, whoever registers it. */
static ucs_status_t uct_devmem_mem_reg(uct_md_h tl_md, void *address,
				       size_t length, unsigned int flags,
				       uct_mem_h *memh_p)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);
	struct uct_devmem_region *region;
	ucs_status_t status;
	char *start = address;

	pthread_mutex_lock(&md->lock);
	ucs_list_for_each(region, &md->allocated, list) {
		if (start < region->address ||
		    start + length > region->address + region->length)
			continue;
		status = uct_devmem_memh_new(region, address, length, memh_p);
		goto out;
	}
	status = UCS_ERR_NO_MEMORY;
	region = ucs_calloc(1, sizeof(*region), "devmem_region");
	if (!region)
		goto out;
	region->address = address;
	region->length = length;
	if (!dmb_memory_host(address, length, &region->memory)) {
		status = uct_devmem_memh_new(region, address, length, memh_p);
		if (status == UCS_OK)
			goto out;
		dmb_memory_free(region->memory);
	}
	ucs_free(region);
out:
	pthread_mutex_unlock(&md->lock);
	return status;
}

static ucs_status_t uct_devmem_mem_free(uct_md_h tl_md, uct_mem_h tl_memh)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);
	struct uct_devmem_memh *memh = tl_memh;

	if (memh->has_key)
		dmb_revoke(md->registry, &memh->key);
	pthread_mutex_lock(&md->lock);
	uct_devmem_region_put(memh->region);
	pthread_mutex_unlock(&md->lock);
	ucs_free(memh);
	return UCS_OK;
}

static ucs_status_t
uct_devmem_mem_dereg(uct_md_h tl_md, const uct_md_mem_dereg_params_t *params)
{
	UCT_MD_MEM_DEREG_CHECK_PARAMS(params, 1);

	uct_devmem_mem_free(tl_md, params->memh);
	/* Nothing is written by the key any more. */
	if (UCT_MD_MEM_DEREG_FIELD_VALUE(params, flags, FIELD_FLAGS, 0) &
	    UCT_MD_MEM_DEREG_FLAG_INVALIDATE)
		uct_invoke_completion(params->comp, UCS_OK);
	return UCS_OK;
}

static ucs_status_t
uct_devmem_mkey_pack(uct_md_h tl_md, uct_mem_h tl_memh,
		     const uct_md_mkey_pack_params_t *params, void *buffer)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);
	struct uct_devmem_memh *memh = tl_memh;
	struct uct_devmem_rkey *rkey = buffer;
	int ret = 0;

	pthread_mutex_lock(&md->lock);
	if (!memh->has_key)
		ret = dmb_register(md->registry, memh->region->memory,
				   memh->address - memh->region->address,
				   memh->length, DMB_READ | DMB_WRITE, 0,
				   &memh->key);
	memh->has_key = !ret;
	pthread_mutex_unlock(&md->lock);
	if (ret)
		return UCS_ERR_IO_ERROR;
	rkey->key = memh->key;
	rkey->address = (uintptr_t)memh->address;
	return UCS_OK;
}

static void uct_devmem_md_close(uct_md_h tl_md)
{
	struct uct_devmem_md *md = ucs_derived_of(tl_md, struct uct_devmem_md);

	dmb_registry_free(md->registry);
	pthread_mutex_destroy(&md->lock);
	ucs_free(md);
}

static uct_md_ops_t uct_devmem_md_ops = {
	.close = uct_devmem_md_close,
	.query = uct_devmem_md_query,
	.mem_alloc = uct_devmem_mem_alloc,
	.mem_free = uct_devmem_mem_free,
	.mem_reg = uct_devmem_mem_reg,
	.mem_dereg = uct_devmem_mem_dereg,
	.mkey_pack = uct_devmem_mkey_pack,
	.detect_memory_type = ucs_empty_function_return_unsupported,
};

static ucs_status_t uct_devmem_md_open(uct_component_t *component,
				       const char *md_name,
				       const uct_md_config_t *config,
				       uct_md_h *md_p)
{
	struct uct_devmem_md *md = ucs_calloc(1, sizeof(*md), "devmem_md");

	if (!md)
		return UCS_ERR_NO_MEMORY;
	if (dmb_registry_new(&md->registry)) {
		ucs_free(md);
		return UCS_ERR_IO_ERROR;
	}
	md->ifindex = if_nametoindex(md_name);
	if (md->ifindex)
		ucs_strncpy_zero(md->dev_name, md_name, sizeof(md->dev_name));
	md->max_alloc = md->ifindex ? uct_devmem_max_alloc() : 0;
	md->super.ops = &uct_devmem_md_ops;
	md->super.component = &uct_devmem_component;
	pthread_mutex_init(&md->lock, NULL);
	ucs_list_head_init(&md->allocated);
	*md_p = &md->super;
	return UCS_OK;
}

static ucs_status_t uct_devmem_rkey_unpack(uct_component_t *component,
					   const void *buffer,
					   uct_rkey_t *rkey_p, void **handle_p)
{
	struct uct_devmem_rkey *rkey = ucs_malloc(sizeof(*rkey), "devmem_rkey");

	if (!rkey)
		return UCS_ERR_NO_MEMORY;
	memcpy(rkey, buffer, sizeof(*rkey));
	*rkey_p = (uintptr_t)rkey;
	*handle_p = NULL;
	return UCS_OK;
}

static ucs_status_t uct_devmem_rkey_release(uct_component_t *component,
					    uct_rkey_t rkey, void *handle)
{
	ucs_free((void *)rkey);
	return UCS_OK;
}

uct_component_t uct_devmem_component = {
	.name = "devmem",
	.query_md_resources = uct_devmem_query_md_resources,
	.md_open = uct_devmem_md_open,
	.cm_open = (void *)ucs_empty_function_return_unsupported,
	.rkey_unpack = uct_devmem_rkey_unpack,
	.rkey_ptr = (void *)ucs_empty_function_return_unsupported,
	.rkey_release = uct_devmem_rkey_release,
	.md_config = {
		.name = "Device memory over TCP, memory domain",
		.prefix = "DEVMEM_",
		.table = uct_devmem_md_config_table,
		.size = sizeof(struct uct_devmem_md_config),
	},
	.cm_config = UCS_CONFIG_EMPTY_GLOBAL_LIST_ENTRY,
	.tl_list = UCT_COMPONENT_TL_LIST_INITIALIZER(&uct_devmem_component),
	.md_vfs_init = (void *)ucs_empty_function,
};
