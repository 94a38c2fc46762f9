// SPDX-License-Identifier: GPL-2.0

//! Device-memory TCP: a memory provider that receives into dma-bufs.
//!
//! Registers with the core of device memory, which from then on has new bindings served from here:
//!
//! - [`netlink`]: bind-rx requests,
//! - [`binding`]: a dma-buf bound to receive queues, and its page pools,
//! - [`skb_frag`]: what user space receives, and gives back.
//!
//! Beneath these is plain logic that also compiles without a kernel, for its tests: [`area`],
//! [`free_list`], [`token`], [`window`]. All that is unsafe is in [`sys`], which wraps the C side
//! in [`bindings`]. The compiler sees to that.
//!
//! C header: [`include/net/devmem.h`](srctree/include/net/devmem.h)

#![deny(unsafe_code)]

use kernel::{
    module::this_module,
    prelude::*, //
};

use crate::{
    binding::DmaBufBinding,
    sys::devmem::{
        DevmemOps,
        MemoryProviderOps,
        Registration, //
    },
};

mod area;
mod binding;
#[expect(unsafe_code)]
mod bindings;
mod free_list;
mod netlink;
mod skb_frag;
#[expect(unsafe_code)]
mod sys;
mod token;
mod window;

module! {
    type: DevmemProvider,
    name: "devmem_provider",
    authors: ["devmem_provider developers"],
    description: "Device memory provider for device-memory TCP",
    license: "GPL",
    imports_ns: ["DMA_BUF", "NETDEV_INTERNAL"],
}

static MEMORY_PROVIDER_OPS: MemoryProviderOps<DmaBufBinding> =
    MemoryProviderOps::new(this_module::<DevmemProvider>());

static DEVMEM_OPS: DevmemOps<DmaBufBinding> = DevmemOps::new(
    c"devmem_provider",
    this_module::<DevmemProvider>(),
    &MEMORY_PROVIDER_OPS,
);

struct DevmemProvider {
    _registration: Registration<DmaBufBinding>,
}

impl kernel::Module for DevmemProvider {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _registration: Registration::new()?,
        })
    }
}
