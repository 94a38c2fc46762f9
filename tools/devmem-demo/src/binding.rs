// SPDX-License-Identifier: GPL-2.0

//! What the kernel tells about a binding.

use std::error::Error;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use devmem::provider;

/// How long the kernel may take to free a binding once everything is closed.
const RELEASE: Duration = Duration::from_secs(5);

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
