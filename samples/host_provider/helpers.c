// SPDX-License-Identifier: GPL-2.0
/*
 * What rust/sys needs of C, for this module
 */

#include "../../rust/sys/bindings/helpers.c"
