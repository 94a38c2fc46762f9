// SPDX-License-Identifier: GPL-2.0 OR MIT
/* A UCP of another version, as far as it tells. */

const char *ucp_get_version_string(void);

const char *ucp_get_version_string(void)
{
	return "1.14.0";
}
