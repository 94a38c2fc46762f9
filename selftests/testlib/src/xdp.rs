// SPDX-License-Identifier: GPL-2.0

//! XDP programs.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;

use crate::bpf;

const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Header split allows only programs that know of multi-buffer packets.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// `r0 = XDP_PASS; exit`.
const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// Has the stack run a program that passes everything a device of the calling thread's namespace receives, until this is
/// dropped.
pub fn attach(ifindex: u32) -> io::Result<OwnedFd> {
    let program = bpf::load(BPF_PROG_TYPE_XDP, BPF_F_XDP_HAS_FRAGS, &PROGRAM)?;
    bpf::link(&program, ifindex, BPF_XDP, XDP_FLAGS_SKB_MODE)
}

/// Has the driver run it, until this is dropped.
pub fn attach_to_driver(ifindex: u32) -> io::Result<OwnedFd> {
    let program = bpf::load(BPF_PROG_TYPE_XDP, BPF_F_XDP_HAS_FRAGS, &PROGRAM)?;
    bpf::link(&program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
}

/// Has the driver pass on to an AF_XDP socket what the first queue receives, until this is dropped.
pub fn redirect(ifindex: u32, socket: &impl AsFd) -> io::Result<OwnedFd> {
    let program = bpf::redirecting(BPF_PROG_TYPE_XDP, socket)?;
    bpf::link(&program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
}
