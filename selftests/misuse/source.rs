// SPDX-License-Identifier: GPL-2.0

//! What memory there is, and for which device, the wrappers alone can say.

use kernel::device::Device;

use crate::sys::{
    area::Segment,
    source::{
        CpuSource,
        Direction,
        Source, //
    },
};

struct Anywhere(kernel::sync::aref::ARef<Device>);

impl Source for Anywhere { //~ E0200
    type Backing = ();

    fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        core::iter::once(Segment { addr: 0, len: 4096 })
    }

    fn size(&self) -> u64 {
        4096
    }

    fn device(&self) -> Option<&Device> {
        Some(&self.0)
    }

    fn direction(&self) -> Direction {
        Direction::FromDevice
    }

    fn backing(&self) {}
}

impl CpuSource for Anywhere { //~ E0200
    fn bytes(_: &(), _: u64, _: u64) -> Option<*const u8> {
        Some(core::ptr::dangling())
    }

    unsafe fn sync_for_cpu(&self, _: Segment) {} //~ unsafe_code

    unsafe fn sync_for_device(&self, _: Segment) {} //~ unsafe_code
}
