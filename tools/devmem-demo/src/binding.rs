// SPDX-License-Identifier: GPL-2.0

//! The receiver's binding, and what the kernel tells about it.

use std::error::Error;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::BindRx;
use devmem::Binding;
use devmem::DmaBuf;
use devmem::device::Device;
use devmem::netns::Netns;
use devmem::provider;

use crate::args::Ends;

/// How long the kernel may take to free a binding once everything is closed.
const RELEASE: Duration = Duration::from_secs(5);

/// Binds the receiver's queue.
pub fn bind(
    rx: &Netns,
    device: &Device<'_>,
    ends: &Ends,
    memory: &DmaBuf,
) -> Result<Binding, Box<dyn Error>> {
    let request = BindRx::new(device.ifindex()).queue(ends.queue);
    rx.run(|| Ok(request.bind(memory)))?
        .map_err(|err| format!("binding queue {} of {}: {err}", ends.queue, ends.rx_if).into())
}

/// The provider that serves a binding.
pub fn provider_of(id: u32) -> Result<String, Box<dyn Error>> {
    provider::bindings()?
        .into_iter()
        .find(|binding| binding.id == id)
        .map(|binding| binding.provider)
        .ok_or_else(|| format!("the kernel does not list binding {id}").into())
}

/// Buffers of an unbound binding that nobody has returned after a while; none if the kernel freed it.
pub fn in_use_at_the_end(id: u32) -> Result<Option<u64>, Box<dyn Error>> {
    let start = Instant::now();
    loop {
        let left = provider::bindings()?
            .into_iter()
            .find(|binding| binding.id == id);
        match left {
            None => return Ok(None),
            Some(binding) if start.elapsed() > RELEASE => return Ok(Some(binding.in_use)),
            Some(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
