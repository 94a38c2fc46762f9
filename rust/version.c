// SPDX-License-Identifier: GPL-2.0
/*
 * The version that modinfo tells. It is that of Cargo.toml.
 *
 * Here, since the macro module! of Linux 7.3 knows no version.
 */

#include <linux/module.h>

MODULE_VERSION("0.1.0");
