// SPDX-License-Identifier: GPL-2.0
/*
 * For `make coverage`: keeps the profile of devmem_provider.ko when that is unloaded.
 *
 * LLVM's counters and their description lie in sections __llvm_prf_* of the module and
 * are gone with it. Whenever the module has run its exit function, a new directory in
 * debugfs, devmem_coverage/<n>, gets a file with the content of each of these sections,
 * up to the end of the memory that holds it, and its address in <section>.address.
 */

#include <linux/debugfs.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/sysfs.h>

static const char profiled[] = "devmem_provider";
static const char prefix[] = "__llvm_prf_";

struct section {
	struct list_head list;
	struct debugfs_blob_wrapper blob;
	u64 address;
	char address_name[32];
};

static LIST_HEAD(sections);
static struct dentry *root;
static unsigned int unloads;

/* The end of the memory of @mod that @address is in. */
static unsigned long end_of_memory(struct module *mod, unsigned long address)
{
	for_each_mod_mem_type(type) {
		if (within_module_mem_type(address, mod, type))
			return (unsigned long)mod->mem[type].base + mod->mem[type].size;
	}
	return address;
}

static int keep_section(struct module *mod, struct dentry *dir,
			const struct bin_attribute *attr)
{
	unsigned long start = (unsigned long)attr->private;
	struct section *section;

	section = kzalloc_obj(*section);
	if (!section)
		return -ENOMEM;
	section->address = start;
	section->blob.size = end_of_memory(mod, start) - start;
	section->blob.data = kvmemdup(attr->private, section->blob.size, GFP_KERNEL);
	if (!section->blob.data) {
		kfree(section);
		return -ENOMEM;
	}
	snprintf(section->address_name, sizeof(section->address_name), "%s.address",
		 attr->attr.name);
	list_add(&section->list, &sections);
	debugfs_create_x64(section->address_name, 0400, dir, &section->address);
	debugfs_create_blob(attr->attr.name, 0400, dir, &section->blob);
	return 0;
}

static int keep_profile(struct notifier_block *nb, unsigned long state, void *data)
{
	struct module *mod = data;
	const struct attribute_group *group;
	const struct bin_attribute *const *attr;
	struct dentry *dir;
	char name[16];

	if (state != MODULE_STATE_GOING || strcmp(mod->name, profiled))
		return NOTIFY_DONE;
	/* Refused for its parameters: it never ran */
	if (!mod->sect_attrs)
		return NOTIFY_DONE;
	snprintf(name, sizeof(name), "%u", unloads++);
	dir = debugfs_create_dir(name, root);
	/* The first member of a struct which is private to kernel/module/sysfs.c. */
	group = (const struct attribute_group *)mod->sect_attrs;
	for (attr = group->bin_attrs; *attr; attr++) {
		if (strstarts((*attr)->attr.name, prefix) && keep_section(mod, dir, *attr))
			pr_err("WARNING: no memory to keep %s\n", (*attr)->attr.name);
	}
	return NOTIFY_OK;
}

static struct notifier_block notifier = {
	.notifier_call = keep_profile,
};

static int __init coverage_init(void)
{
	int err;

	root = debugfs_create_dir("devmem_coverage", NULL);
	err = register_module_notifier(&notifier);
	if (err)
		debugfs_remove(root);
	return err;
}

static void __exit coverage_exit(void)
{
	struct section *section, *next;

	unregister_module_notifier(&notifier);
	debugfs_remove(root);
	list_for_each_entry_safe(section, next, &sections, list) {
		kvfree(section->blob.data);
		kfree(section);
	}
}

module_init(coverage_init);
module_exit(coverage_exit);

MODULE_DESCRIPTION("Keeps the profile of devmem_provider.ko when it is unloaded");
MODULE_LICENSE("GPL");
