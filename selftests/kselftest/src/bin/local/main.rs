// SPDX-License-Identifier: GPL-2.0

//! Device memory between processes of one machine: what is sent from local bindings, by lo, netkit and veth, and by channels,
//! which need none.

mod bindings;
mod copied;
mod elsewhere;
mod fences;
mod goes;
mod passed;
mod streams;

use std::io;
use std::net::TcpStream;
use std::process::ExitCode;

use devmem::DmaBuf;
use devmem::Extent;
use devmem::diag;
use devmem::diag::Held;
use devmem::diag::Holder;
use devmem::dmabuf::Mapping;
use devmem::netns::Netns;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::fixture::Sending;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Got;
use devmem_testlib::probe::Probe;
use devmem_testlib::probe::soon;
use devmem_testlib::probe::tcp_info;
use devmem_testlib::runner;
use devmem_testlib::tests;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use devmem_testlib::tx::Completions;
use devmem_testlib::tx::extent;

const PAGE: u64 = 4096;
/// More than what a call may bring.
const ALL: usize = 1 << 20;
/// Bytes of a net_iov of a local binding.
const EDGE: u64 = 1 << 31;

/// The parts of the dma-buf that a call told of, and their tokens.
fn parts(got: &Got) -> (Vec<Extent>, Vec<u32>) {
    let part = |frag: &devmem::cmsg::DmabufCmsg| extent(frag.frag_offset, frag.frag_size.into());
    (
        got.frags().map(part).collect(),
        got.frags().map(|frag| frag.frag_token).collect(),
    )
}

/// Joins parts that follow each other.
fn joined(parts: &[Extent]) -> Vec<Extent> {
    let mut all: Vec<Extent> = Vec::new();
    for part in parts {
        match all.last_mut() {
            Some(last) if last.offset + last.len == part.offset => last.len += part.len,
            _ => all.push(*part),
        }
    }
    all
}

/// Receives so many bytes, all in device memory of this binding.
#[track_caller]
fn told(id: u32, probe: &mut Probe<'_>, bytes: u64) -> (Vec<Extent>, Vec<u32>) {
    let (mut all, mut tokens) = (Vec::new(), Vec::new());
    while tx::total(&all) < bytes {
        let got = probe.call(&Call::new(ALL));
        assert!(!got.is_empty(), "the stream ended");
        assert_eq!(got.frags().count(), got.pieces.len(), "{got:?}");
        assert!(got.frags().all(|frag| frag.dmabuf_id == id), "{got:?}");
        let (parts, told) = parts(&got);
        all.extend(parts);
        tokens.extend(told);
    }
    (joined(&all), tokens)
}

#[track_caller]
fn returns(socket: &TcpStream, tokens: &[u32]) -> io::Result<()> {
    for &start in tokens {
        assert_eq!(dontneed(socket, &[TokenRange { start, count: 1 }])?, 1);
    }
    Ok(())
}

/// Waits until nothing of what was sent is the sender's TCP's any more.
fn acknowledged(socket: &TcpStream) -> io::Result<()> {
    soon("all to be acknowledged", || {
        Ok(traffic::unacknowledged(socket)? == 0)
    });
    // Who is about to free it has the socket locked.
    tcp_info(socket).map(drop)
}

/// Checks that a sender waits for its completions: readers have what it has sent, and nobody else.
#[track_caller]
fn nothing_completes(socket: &TcpStream, completions: &mut Completions) -> io::Result<()> {
    acknowledged(socket)?;
    completions.read(socket)?;
    assert_eq!(completions.done, [], "completions");
    Ok(())
}

/// A probe of the receiving end.
fn probe<'b>(bench: &'b Sending, map: &'b Mapping) -> Probe<'b> {
    Probe::new(&bench.connection.rx, &[(bench.binding.id(), map)]).quiet()
}

/// Memory of nothing, of so many net_iovs. As large a segment has no room in a scatterlist.
fn nothing_of(niovs: u64) -> io::Result<OddDmaBuf> {
    let segment = |n| Segment {
        addr: n * EDGE,
        len: EDGE,
    };
    Shape::new(&(0..niovs).map(segment).collect::<Vec<_>>()).of_nothing()
}

/// What stands for the memory of nothing where it is not looked at.
fn unseen() -> io::Result<Mapping> {
    DmaBuf::udmabuf(PAGE as usize)?.map()
}

/// The sockets at the receiving end that hold something.
fn holders(ns: &Netns) -> io::Result<Vec<Holder>> {
    let mut all = ns.run(|| Ok(diag::holders()?))?;
    all.retain(|holder| holder.local.port() == Sending::PORT);
    Ok(all)
}

/// Checks that there is one, and what it holds of this binding: tokens, and bytes that are not read. Tokens stand for
/// no buffers.
#[track_caller]
fn assert_holds(ns: &Netns, id: u32, tokens: u32, queued: u64) -> io::Result<()> {
    let all = holders(ns)?;
    let [holder] = all.as_slice() else {
        panic!("one socket was expected: {all:?}");
    };
    let numbers = |held: &Held| (held.id, held.tokens, held.bytes, held.queued);
    let told: Vec<_> = holder.held.iter().map(numbers).collect();
    assert_eq!(told, [(Some(id), tokens, 0, queued)]);
    Ok(())
}

/// What is told of an abort, once.
#[track_caller]
fn assert_aborted(socket: &TcpStream) -> io::Result<()> {
    let error = socket.take_error()?.map(|err| err.raw_os_error());
    assert_eq!(error, Some(Some(libc::ECONNABORTED)));
    Ok(())
}

fn main() -> ExitCode {
    runner::run(tests![
        streams::told_where_it_is,
        streams::a_stream,
        streams::peeked,
        goes::the_reader_goes,
        streams::any_exporter,
        streams::far_into_the_memory,
        streams::runs,
        streams::larger_packets,
        goes::the_owner_goes,
        goes::the_namespace_goes,
        goes::the_device_goes,
        elsewhere::forwarded_to_a_nic,
        elsewhere::before_xdp,
        elsewhere::of_the_other_kind,
        streams::bounded,
        goes::flushed,
        goes::what_a_reader_holds,
        bindings::bindings,
        bindings::by_an_ifb,
        bindings::by_a_leased_queue,
        bindings::told_of,
        bindings::write_only,
        copied::an_ordinary_reader,
        copied::a_copied_stream,
        copied::before_the_fence,
        copied::woken_by_the_fence,
        copied::told_meanwhile,
        copied::told_apart,
        copied::that_cannot_be_copied,
        copied::revoked_meanwhile,
        copied::ended_before_the_fence,
        copied::spliced,
        copied::half_by_another,
        fences::another_fence,
        fences::only_the_end,
        fences::taken_by_another,
        fences::shut_down_by_the_reader,
        passed::shared_with_another_process,
        passed::a_channel,
        passed::a_channel_in_any_memory,
        passed::a_channel_whose_reader_is_killed,
    ])
}
