// SPDX-License-Identifier: GPL-2.0 OR MIT
/* To be loaded before UCX, which is of another version then, as far as it tells. */

const char *ucp_get_version_string(void);

const char *ucp_get_version_string(void)
{
	return "1.14.0";
}
