// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Says what components UCT has, and which version UCP is: it is not linked with
 * that, and loads it as programs do whose plugins need it.
 */

#include <dlfcn.h>
#include <stdio.h>

#include <uct/api/uct.h>

int main(void)
{
	void *ucp = dlopen("libucp.so.0", RTLD_NOW | RTLD_LOCAL);
	uct_component_attr_t attr = {
		.field_mask = UCT_COMPONENT_ATTR_FIELD_NAME,
	};
	uct_component_h *components;
	const char *(*version)(void);
	unsigned int i, count;

	if (!ucp) {
		fprintf(stderr, "ucx_later: %s\n", dlerror());
		return 1;
	}
	version = (const char *(*)(void))dlsym(ucp, "ucp_get_version_string");
	if (!version || uct_query_components(&components, &count) != UCS_OK)
		return 1;
	printf("UCX %s\n", version());
	for (i = 0; i < count; i++) {
		if (uct_component_query(components[i], &attr) != UCS_OK)
			return 1;
		printf("component %s\n", attr.name);
	}
	uct_release_component_list(components);
	return 0;
}
