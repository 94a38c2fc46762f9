// SPDX-License-Identifier: GPL-2.0

//! Into the memory of a PCI device, where the file stays: for somebody who sees that memory from elsewhere.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::device;
use devmem::vfio;

use crate::args;
use crate::args::KeepArgs;
use crate::binding;
use crate::binding::provider_of;
use crate::transfer;

/// Receives the file, and says where it is.
pub fn run(args: &KeepArgs) -> Result<(), Box<dyn Error>> {
    let (rx, tx) = args.ends.namespaces()?;
    let to = SocketAddr::new(args.ends.addr, args.port);
    let all = Extent {
        offset: 0,
        len: args::mib(args.ends.memory)? as u64,
    };
    let (address, bar) = args
        .device
        .rsplit_once('/')
        .and_then(|(address, bar)| Some((address, bar.parse().ok()?)))
        .ok_or("--device is an address and a BAR, 0000:04:00.0/2")?;
    let memory = vfio::Device::open(address)
        .and_then(|device| DmaBuf::vfio(&device, bar, all))
        .map_err(|err| format!("the memory of {}: {err}", args.device))?;

    let nic = device::Device::prepare(&rx, &args.ends.rx_if)?;
    let binding = binding::bind(&rx, &nic, &args.ends, &memory)?;
    let provider = provider_of(binding.id())?;
    let kept = transfer::accept(&rx, &tx, &args.ends.file, to)?.kept()?;
    let mut pieces = String::new();
    for piece in &kept.pieces {
        writeln!(pieces, "{} {}", piece.offset, piece.len)?;
    }
    fs::write(&args.pieces, pieces)?;

    println!("{:26}{provider}", "provider");
    println!("{:26}{}", "memory", args.device);
    println!("{:26}{}", "bytes received", kept.bytes);
    println!("{:26}{}", "frags", kept.pieces.len());
    println!("{:26}{}", "bytes in host memory", kept.copied);
    match kept.copied {
        0 => Ok(()),
        _ => Err("bytes came in host memory".into()),
    }
}
