// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Bulk transfer between dma-bufs over device-memory TCP: put, get, notify.
//!
//! [`protocol`] is what both ends say, and what they make of it, without any I/O: `Documentation/bulk.rst` describes
//! it.

#![forbid(unsafe_code)]
// Whatever a number is, it is not cut to fit: that would be another place, or another length.
#![warn(clippy::cast_possible_truncation)]
#![warn(clippy::cast_possible_wrap)]
#![warn(clippy::cast_sign_loss)]
// Who calls what can fail has to know how.
#![warn(clippy::missing_errors_doc)]

pub mod protocol;
