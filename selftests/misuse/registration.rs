// SPDX-License-Identifier: GPL-2.0

//! A provider is registered for as long as its module is there, and by a module that cannot fail to load later.

use kernel::{
    prelude::*,
    ThisModule, //
};

use crate::{
    netlink,
    sys::{
        devmem::{
            DevmemProvider,
            MemoryProvider,
            ProviderModule,
            Registration, //~ E0603
            RxBound,
        },
        dma_buf::Mapping,
        genetlink::RxBindRequest, //
    },
};

struct AnotherModules;

impl MemoryProvider for AnotherModules {
    type Source = Mapping;
}

#[vtable]
impl DevmemProvider for AnotherModules {
    const NAME: &'static CStr = c"another";

    fn bind_rx<'a>(request: &'a RxBindRequest<'_>) -> Result<RxBound<'a>> {
        netlink::bind_rx::<Self>(request)
    }
}

struct FailsLater;

impl kernel::Module for FailsLater {
    fn init(module: &'static ThisModule) -> Result<Self> {
        <ProviderModule<AnotherModules> as kernel::Module>::init(module)?; //~ E0271
        Err(EINVAL)
    }
}
