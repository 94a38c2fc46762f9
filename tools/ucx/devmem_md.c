// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The component, and its memory domains: one for each device that can send from
 * device memory.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <ucs/debug/memtrack_int.h>
#include <ucs/sys/sock.h>
#include <ucs/sys/string.h>
#include <ucs/time/time.h>

#include "devmem.h"

struct uct_devmem_md_config {
	uct_md_config_t super;
	int copy;
};

static ucs_config_field_t uct_devmem_md_config_table[] = {
	{ "", "", NULL, ucs_offsetof(struct uct_devmem_md_config, super),
	  UCS_CONFIG_TYPE_TABLE(uct_md_config_table) },

	{ "COPY", "n",
	  "Use devices that cannot send from device memory, too: the CPU copies.\n"
	  "It is looked at once, in the environment.",
	  ucs_offsetof(struct uct_devmem_md_config, copy),
	  UCS_CONFIG_TYPE_BOOL },

	{ NULL }
};

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

	/* Else UCP would take the transport, and no connection of it could be made. */
	ret = dmb_can_connect();
	if (ret) {
		ucs_warn("devmem: no io_uring here: %s", strerror(-ret));
		return 0;
	}
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
		ret = config.copy ? 0 : dmb_can_send(one->if_index);
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
	static uct_md_resource_desc_t devices[64];
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

static struct uct_devmem_md *uct_devmem_md(uct_md_h tl_md)
{
	return ucs_derived_of(tl_md, struct uct_devmem_md);
}

static ucs_status_t uct_devmem_md_query(uct_md_h tl_md, uct_md_attr_t *attr)
{
	attr->cap.flags = UCT_MD_FLAG_REG | UCT_MD_FLAG_ALLOC |
			  UCT_MD_FLAG_NEED_MEMH | UCT_MD_FLAG_NEED_RKEY |
			  UCT_MD_FLAG_INVALIDATE;
	/* What is more than udmabuf makes is ordinary memory, whose limit is another. */
	attr->cap.max_alloc = SIZE_MAX;
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

static ucs_status_t uct_devmem_mem_alloc(uct_md_h tl_md, size_t *length_p,
					 void **address_p,
					 ucs_memory_type_t mem_type,
					 unsigned int flags, const char *name,
					 uct_mem_h *memh_p)
{
	int ret = dmb_pool_alloc(uct_devmem_md(tl_md)->pool, length_p, address_p,
				 (struct dmb_part **)memh_p);

	if (!ret)
		return UCS_OK;
	uct_md_log_mem_reg_error(flags, "devmem: no %zu bytes of memory: %s",
				 *length_p, strerror(-ret));
	return UCS_ERR_NO_MEMORY;
}

/* What is allocated here is device memory, whoever registers it. */
static ucs_status_t uct_devmem_mem_reg(uct_md_h tl_md, void *address,
				       size_t length, unsigned int flags,
				       uct_mem_h *memh_p)
{
	int ret = dmb_pool_part(uct_devmem_md(tl_md)->pool, address, length,
				(struct dmb_part **)memh_p);

	if (!ret)
		return UCS_OK;
	uct_md_log_mem_reg_error(flags, "devmem: memory is not registered: %s",
				 strerror(-ret));
	return UCS_ERR_INVALID_PARAM;
}

static ucs_status_t uct_devmem_mem_free(uct_md_h tl_md, uct_mem_h memh)
{
	dmb_part_free(uct_devmem_md(tl_md)->pool, memh);
	return UCS_OK;
}

static ucs_status_t
uct_devmem_mem_dereg(uct_md_h tl_md, const uct_md_mem_dereg_params_t *params)
{
	struct dmb_pool *pool = uct_devmem_md(tl_md)->pool;
	int ret;

	UCT_MD_MEM_DEREG_CHECK_PARAMS(params, 1);

	if (!(UCT_MD_MEM_DEREG_FIELD_VALUE(params, flags, FIELD_FLAGS, 0) &
	      UCT_MD_MEM_DEREG_FLAG_INVALIDATE)) {
		dmb_part_free(pool, params->memh);
		return UCS_OK;
	}
	/* Whoever waits for that may be gone later, and counts without a lock. */
	ret = dmb_part_recall(pool, params->memh);
	if (ret)
		ucs_warn("devmem: memory that is invalidated may still be sent: %s",
			 strerror(-ret));
	uct_invoke_completion(params->comp, UCS_OK);
	return UCS_OK;
}

static ucs_status_t
uct_devmem_mkey_pack(uct_md_h tl_md, uct_mem_h memh,
		     const uct_md_mkey_pack_params_t *params, void *buffer)
{
	struct uct_devmem_rkey *rkey = buffer;
	uint64_t address;
	int ret;

	ret = dmb_part_key(uct_devmem_md(tl_md)->pool, memh, &rkey->key, &address);

	if (ret) {
		ucs_error("devmem: no key: %s", strerror(-ret));
		return UCS_ERR_IO_ERROR;
	}
	rkey->address = address;
	return UCS_OK;
}

static void uct_devmem_md_close(uct_md_h tl_md)
{
	dmb_pool_free(uct_devmem_md(tl_md)->pool);
	ucs_free(uct_devmem_md(tl_md));
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
	/* There is none in the domain that is there without devices. */
	md->ifindex = if_nametoindex(md_name);
	if (md->ifindex)
		ucs_strncpy_zero(md->dev_name, md_name, sizeof(md->dev_name));
	if (dmb_pool_new(md->ifindex, &md->pool)) {
		ucs_free(md);
		return UCS_ERR_IO_ERROR;
	}
	md->super.ops = &uct_devmem_md_ops;
	md->super.component = &uct_devmem_component;
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
