// SPDX-License-Identifier: GPL-2.0

//! Carries a sequence out on the provider that serves.
//!
//! Whether an operation does anything, and what it names, depends on nothing but the sequence and what was seen so
//! far. So the sequence takes the same course on both providers, up to the first difference.

mod receive;

use std::array;
use std::collections::BTreeMap;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::time::Instant;

use devmem::Error;
use devmem::Extent;
use devmem::dmabuf::CpuRead;
use devmem::netdev::Netdev;
use devmem::netdev::dmabuf;
use devmem::netdev::queue;
use devmem::netlink::Attrs;
use devmem::provider;
use devmem::token::MAX_RANGES;
use devmem::token::MAX_TOKENS;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Provider;
use devmem_testlib::sockopt;
use devmem_testlib::traffic;
use devmem_testlib::tx;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::Pid;
use nix::unistd::fork;

use crate::arena::Arenas;
use crate::flow::Flow;
use crate::flow::acknowledged;
use crate::flow::soon;
use crate::leftovers::Leftovers;
use crate::op::BindingRef;
use crate::op::Choice;
use crate::op::Device;
use crate::op::End;
use crate::op::FLOWS;
use crate::op::Flag;
use crate::op::How;
use crate::op::Ip;
use crate::op::Memory;
use crate::op::OWNERS;
use crate::op::Op;
use crate::op::Range;
use crate::op::TokenRef;
use crate::saw::Failed;
use crate::saw::Saw;
use crate::saw::Transcript;
use crate::world::SEGMENT;
use crate::world::World;

/// No more buffers than this are in use at a time: each queue has more of them posted.
const BUFFERS: u32 = 180;
/// Bytes in a receive queue, at the most: the window stays open.
const UNREAD: u64 = 48 << 10;
/// The same, and for a segment, when the receive buffer has been made smaller.
const UNREAD_SMALL: u64 = 4000;
const PAGE: u32 = 4096;
const TCP_INQ: i32 = 36;

/// A binding that was made.
#[derive(Debug)]
struct Bound {
    /// Its number.
    id: u32,
    /// The size of its buffers.
    buffer_size: u64,
    /// Which of the memories it has.
    place: Option<usize>,
}

/// The netlink sockets of an owner of bindings, in each of the namespaces.
#[derive(Default)]
struct Owner {
    receiver: Option<Netdev>,
    sender: Option<Netdev>,
}

/// A sequence that is being carried out.
struct Session<'w> {
    world: &'w World,
    arenas: &'w mut Arenas,
    flows: [Option<Flow>; FLOWS as usize],
    bound: Vec<Bound>,
    /// The memories that are being read.
    views: BTreeMap<usize, CpuRead<'w>>,
    /// How often each memory was bound. What is bound twice, two may write to.
    uses: BTreeMap<usize, u32>,
    owners: [Owner; OWNERS as usize],
    child: Option<Pid>,
    first_token: u32,
    /// Buffers of connections that only the other process has.
    orphaned: u32,
    /// Whether bindings were unbound that the other process has still: it is killed, and they go.
    unbound_at_kill: bool,
    faults: Vec<String>,
}

fn first_token(provider: &str) -> u32 {
    [Provider::Builtin, Provider::Module]
        .into_iter()
        .find(|known| known.name() == provider)
        .map_or(1, Provider::first_token)
}

/// Carries a sequence out on the provider of this name.
pub fn run(
    world: &World,
    arenas: &mut Arenas,
    leftovers: &mut Leftovers,
    provider: &str,
    ops: &[Op],
) -> io::Result<Transcript> {
    provider::select(provider)?;
    leftovers.begin()?;
    let mut session = Session {
        world,
        arenas,
        flows: array::from_fn(|_| None),
        bound: Vec::new(),
        views: BTreeMap::new(),
        uses: BTreeMap::new(),
        owners: array::from_fn(|_| Owner::default()),
        child: None,
        first_token: first_token(provider),
        orphaned: 0,
        unbound_at_kill: false,
        faults: Vec::new(),
    };
    let mut transcript = Transcript::default();
    for (number, op) in ops.iter().enumerate() {
        let start = Instant::now();
        transcript.steps.push(session.step(op)?);
        transcript.spent.push(start.elapsed());
        let faults = session.faults.drain(..).map(|fault| (number, fault));
        transcript.faults.extend(faults);
    }
    let start = Instant::now();
    let faults = session.end(leftovers)?;
    transcript.spent.push(start.elapsed());
    let faults = faults.into_iter().map(|fault| (ops.len(), fault));
    transcript.faults.extend(faults);
    Ok(transcript)
}

fn call<T: Into<u64>>(result: io::Result<T>) -> Saw {
    Saw::Call(result.map(Into::into).map_err(failed))
}

fn done(result: io::Result<()>) -> Saw {
    call(result.map(|()| 0_u64))
}

fn failed(err: io::Error) -> Failed {
    Failed(err.raw_os_error().unwrap_or(0))
}

impl Session<'_> {
    /// Notes what must not be.
    fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    fn step(&mut self, op: &Op) -> io::Result<Saw> {
        match *op {
            Op::BindRx {
                owner,
                device,
                ref queues,
                memory,
                page_size,
            } => self.bind_rx(owner, device, queues, memory, page_size),
            Op::BindTx {
                owner,
                device,
                memory,
            } => self.bind_tx(owner, device, memory),
            Op::Unbind { owner } => self.unbind(owner),
            Op::Connect { flow, ip, queue } => self.connect(flow, ip, queue),
            Op::Steer { flow, queue } => Ok(done(self.world.steer(flow % FLOWS, queue))),
            Op::Kill => self.kill(),
            Op::Fork => self.fork(),
            Op::Send { flow, .. }
            | Op::SendMemory { flow, .. }
            | Op::Completions { flow }
            | Op::Receive { flow, .. }
            | Op::Read { flow, .. }
            | Op::Return { flow, .. }
            | Op::Set { flow, .. }
            | Op::Shutdown { flow, .. }
            | Op::Close { flow, .. }
            | Op::Reset { flow } => {
                // Out of the session while it is worked with.
                let flow = flow % FLOWS;
                let Some(mut taken) = self.flows[usize::from(flow)].take() else {
                    return Ok(Saw::Nothing);
                };
                let saw = self.step_of_flow(flow, &mut taken, op);
                let closed = matches!(
                    op,
                    Op::Close {
                        end: End::Receiver,
                        ..
                    }
                );
                if !closed {
                    self.flows[usize::from(flow)] = Some(taken);
                }
                saw
            }
        }
    }

    fn step_of_flow(&mut self, number: u8, flow: &mut Flow, op: &Op) -> io::Result<Saw> {
        match *op {
            Op::Send { bytes, .. } => self.send(flow, bytes),
            Op::SendMemory {
                binding,
                ref ranges,
                ref flags,
                ..
            } => self.send_memory(flow, binding, ranges, flags),
            Op::Completions { .. } => self.completions(flow),
            Op::Receive {
                ref flags,
                ref data,
                control,
                ..
            } => self.receive(number, flow, Flag::bits(flags), data, control),
            Op::Read { bytes, .. } => self.read(flow, bytes),
            Op::Return { ref ranges, .. } => self.give_back(flow, ranges),
            Op::Set { option, value, .. } => Ok(self.set(flow, option, value)),
            Op::Shutdown { end, how, .. } => self.shutdown(flow, end, how),
            Op::Close { end, .. } => self.close(flow, end),
            Op::Reset { .. } => self.reset(flow),
            _ => unreachable!("{op:?} is not about a connection"),
        }
    }

    fn owner(&mut self, owner: u8, device: Device) -> io::Result<&mut Netdev> {
        let owner = &mut self.owners[usize::from(owner % OWNERS)];
        let slot = match device {
            Device::Sender => &mut owner.sender,
            Device::Receiver | Device::Missing => &mut owner.receiver,
        };
        if slot.is_none() {
            *slot = Some(self.world.beside(device, || Ok(Netdev::open()?))?);
        }
        slot.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn bind_rx(
        &mut self,
        owner: u8,
        device: Device,
        queues: &[u32],
        memory: Memory,
        page_size: Option<u32>,
    ) -> io::Result<Saw> {
        let mut attrs = self.bind_attrs(device, memory);
        for &id in queues {
            let nest = Attrs::new()
                .u32(queue::TYPE, queue::TYPE_RX)
                .u32(queue::ID, id);
            attrs = attrs.nested(dmabuf::QUEUES, &nest);
        }
        if let Some(size) = page_size {
            attrs = attrs.u32(dmabuf::RX_PAGE_SIZE, size);
        }
        let result = self.owner(owner, device)?.bind_rx(&attrs);
        self.note_binding(result, memory, page_size.unwrap_or(PAGE))
    }

    fn bind_tx(&mut self, owner: u8, device: Device, memory: Memory) -> io::Result<Saw> {
        let attrs = self.bind_attrs(device, memory);
        let result = self.owner(owner, device)?.bind_tx(&attrs);
        self.note_binding(result, memory, PAGE)
    }

    fn bind_attrs(&self, device: Device, memory: Memory) -> Attrs<'static> {
        Attrs::new()
            .u32(dmabuf::IFINDEX, self.world.ifindex(device))
            .u32(dmabuf::FD, self.world.fd(memory) as u32)
    }

    fn note_binding(
        &mut self,
        result: Result<u32, Error>,
        memory: Memory,
        buffer_size: u32,
    ) -> io::Result<Saw> {
        let id = match result {
            Ok(id) => id,
            Err(err) => {
                let errno = err.errno().ok_or(err)?;
                return Ok(Saw::Call(Err(Failed(errno))));
            }
        };
        let place = self.world.place(memory);
        if let Some(place) = place {
            *self.uses.entry(place).or_insert(0) += 1;
            // netdevsim is a device whose memory is coherent: reading begins once, not for each call.
            if let std::collections::btree_map::Entry::Vacant(entry) = self.views.entry(place) {
                entry.insert(self.world.lent(place).map.begin_read()?);
            }
        }
        self.bound.push(Bound {
            id,
            buffer_size: buffer_size.into(),
            place,
        });
        Ok(Saw::Call(Ok(0)))
    }

    fn unbind(&mut self, owner: u8) -> io::Result<Saw> {
        drop(mem::take(&mut self.owners[usize::from(owner % OWNERS)]));
        self.unbound_at_kill |= self.child.is_some();
        Ok(Saw::Nothing)
    }

    /// The memory of a binding, if nobody else writes to it.
    fn view(&self, binding: usize) -> Option<&CpuRead<'_>> {
        let place = self.bound[binding].place?;
        self.views
            .get(&place)
            .filter(|_| self.uses.get(&place) == Some(&1))
    }

    fn connect(&mut self, flow: u8, ip: Ip, queue: u32) -> io::Result<Saw> {
        let flow = flow % FLOWS;
        if self.flows[usize::from(flow)].is_some() {
            return Ok(Saw::Nothing);
        }
        let steered = self.world.steer(flow, queue);
        if steered.is_ok() {
            let (rx, tx) = self.world.connect(flow, ip)?;
            self.flows[usize::from(flow)] = Some(Flow::new(rx, tx)?);
        }
        Ok(done(steered))
    }

    /// Buffers that are in use, at the most.
    fn in_use(&self, flow: &Flow) -> u32 {
        let of = |flow: &Flow| flow.queued + flow.held.len() as u32;
        self.orphaned + of(flow) + self.flows.iter().flatten().map(of).sum::<u32>()
    }

    /// How many bytes the flow can take now, up to `bytes`.
    fn room(&self, flow: &Flow, bytes: u64) -> u64 {
        let most = if flow.small { UNREAD_SMALL } else { UNREAD };
        let unread = flow.sent - flow.read;
        let buffers = bytes.div_ceil(PAGE.into()) as u32 + 1;
        if self.in_use(flow) + buffers > BUFFERS {
            return 0;
        }
        bytes.min(most.saturating_sub(unread))
    }

    fn send(&mut self, flow: &mut Flow, bytes: u32) -> io::Result<Saw> {
        let mut left = self.room(flow, bytes.into());
        if left == 0 || flow.tx.is_none() {
            return Ok(Saw::Nothing);
        }
        let mut sent = 0;
        while left > 0 {
            let len = left.min(SEGMENT.into()) as usize;
            let result = flow
                .tx
                .as_ref()
                .map_or(Ok(0), |tx| traffic_send(tx, traffic::bytes(flow.sent, len)));
            match result {
                Ok(now) => {
                    sent += now;
                    left -= now;
                    let pattern = flow.sent;
                    self.arrive(flow, now, pattern)?;
                    if now < len as u64 {
                        break;
                    }
                }
                Err(err) if sent == 0 => return Ok(call::<u64>(Err(err))),
                Err(_) => break,
            }
        }
        Ok(Saw::Call(Ok(sent)))
    }

    /// Notes what was sent, and waits until it is there.
    fn arrive(&mut self, flow: &mut Flow, bytes: u64, pattern: u64) -> io::Result<()> {
        flow.add(bytes, pattern);
        flow.queued += bytes.div_ceil(PAGE.into()) as u32;
        self.wait_arrival(flow)
    }

    fn wait_arrival(&mut self, flow: &Flow) -> io::Result<()> {
        if !flow.wait_arrival()? {
            self.fault(format!("the first {} bytes have not arrived", flow.sent));
        }
        Ok(())
    }

    fn send_memory(
        &mut self,
        flow: &mut Flow,
        binding: BindingRef,
        ranges: &[(u64, u64)],
        flags: &[Flag],
    ) -> io::Result<Saw> {
        let extents: Vec<_> = ranges
            .iter()
            .map(|&(offset, len)| Extent { offset, len })
            .collect();
        let total = tx::total(&extents);
        let Some(socket) = &flow.tx else {
            return Ok(Saw::Nothing);
        };
        if self.room(flow, total) < total {
            return Ok(Saw::Nothing);
        }
        let id = match binding {
            BindingRef::Number(number) => number,
            BindingRef::Made(number) => match pick(&self.bound, number) {
                Some(bound) => bound.id,
                None => return Ok(Saw::Nothing),
            },
        };
        let result = tx::Call::new(id, &extents)
            .flags(Flag::bits(flags))
            .send(socket);
        if let Ok(sent) = result {
            flow.calls += 1;
            let mut left = sent as u64;
            for extent in extents {
                let now = left.min(extent.len);
                flow.add(now, extent.offset);
                left -= now;
            }
            flow.queued += (sent as u32).div_ceil(PAGE);
            self.wait_arrival(flow)?;
        }
        Ok(call(result.map(|sent| sent as u64)))
    }

    fn completions(&mut self, flow: &mut Flow) -> io::Result<Saw> {
        let Some(tx) = &flow.tx else {
            return Ok(Saw::Nothing);
        };
        let mut copied = false;
        let (calls, completed) = (flow.calls, &mut flow.completed);
        let all = soon(|| {
            for completion in devmem::completion::read(tx)?.into_iter().flatten() {
                *completed += completion.count as u32;
                copied |= completion.copied;
            }
            Ok(*completed >= calls)
        })?;
        if !all || *completed > calls {
            self.fault(format!("{} completions of {calls} calls", flow.completed));
        }
        Ok(Saw::Completed {
            calls: flow.completed,
            copied,
        })
    }

    fn give_back(&mut self, flow: &mut Flow, ranges: &[Range]) -> io::Result<Saw> {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|range| TokenRange {
                start: self.token(flow, range.token),
                count: range.count,
            })
            .collect();
        let wraps = |range: &TokenRange| {
            range.count != 0 && range.start.checked_add(range.count - 1).is_none()
        };
        // Such a range goes on with 0.
        let tokens: Vec<_> = match ranges.len() > MAX_RANGES {
            true => Vec::new(),
            false => ranges
                .iter()
                .flat_map(|range| (0..range.count).map(|i| range.start.wrapping_add(i)))
                .take(MAX_TOKENS as usize)
                .collect(),
        };
        let mut expected = 0;
        for token in tokens {
            if let Some(held) = flow.held.remove(&token) {
                self.check_held(flow, token, held)?;
                flow.returned.push(token);
                expected += 1;
            }
        }
        let result = dontneed(&flow.rx, &ranges);
        if let Ok(returned) = result {
            if returned != expected {
                self.fault(format!("{returned} tokens returned of {expected}"));
            }
            if ranges.iter().any(wraps) {
                self.give_back_the_rest(flow)?;
            }
        }
        Ok(call(result))
    }

    /// Only one provider has tokens where a range goes on that wraps: let both have none.
    fn give_back_the_rest(&mut self, flow: &mut Flow) -> io::Result<()> {
        let tokens: Vec<_> = flow.held.keys().copied().collect();
        for tokens in tokens.chunks(MAX_RANGES) {
            let one = |&start| TokenRange { start, count: 1 };
            let ranges: Vec<_> = tokens.iter().map(one).collect();
            let returned = dontneed(&flow.rx, &ranges)?;
            if returned as usize != tokens.len() {
                self.fault(format!("{returned} tokens returned of {}", tokens.len()));
            }
        }
        flow.held.clear();
        flow.returned.extend(tokens);
        Ok(())
    }

    /// The number of a token, from 1: the same on both providers.
    fn number(&self, token: u32) -> u32 {
        token.wrapping_sub(self.first_token - 1)
    }

    fn token(&self, flow: &Flow, token: TokenRef) -> u32 {
        let held = |flow: &Flow, number| {
            let held: Vec<_> = flow.held.keys().copied().collect();
            pick(&held, number).copied()
        };
        // They count from the first that there is, which has number 1.
        let nth = |number: u32| self.first_token - 1 + number;
        match token {
            TokenRef::Number(number) if number < 1 << 16 => nth(number),
            TokenRef::Number(number) => number,
            TokenRef::Held(number) => held(flow, number).unwrap_or_else(|| nth(number.into())),
            TokenRef::Returned(number) => pick(&flow.returned, number)
                .copied()
                .unwrap_or_else(|| nth(number.into())),
            TokenRef::Foreign(number) => self
                .flows
                .iter()
                .flatten()
                .find_map(|flow| held(flow, number))
                .unwrap_or_else(|| nth(number.into())),
        }
    }

    fn set(&mut self, flow: &mut Flow, option: Choice, value: i32) -> Saw {
        let (level, name) = match option {
            Choice::RcvLowat => (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
            Choice::RcvBuf => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Choice::PeekOff => (libc::SOL_SOCKET, libc::SO_PEEK_OFF),
            Choice::Inq => (libc::IPPROTO_TCP, TCP_INQ),
            Choice::Timestamps => (libc::SOL_SOCKET, libc::SO_TIMESTAMPING),
            Choice::ZeroCopy => (libc::SOL_SOCKET, libc::SO_ZEROCOPY),
        };
        flow.small |= option == Choice::RcvBuf;
        match (option, &flow.tx) {
            (Choice::ZeroCopy, None) => Saw::Nothing,
            (Choice::ZeroCopy, Some(tx)) => done(sockopt::set(tx, level, name, value)),
            (Choice::Timestamps, _) => {
                let flags = libc::SOF_TIMESTAMPING_RX_SOFTWARE | libc::SOF_TIMESTAMPING_SOFTWARE;
                let flags = if value == 0 { 0 } else { flags };
                done(sockopt::set(&flow.rx, level, name, flags))
            }
            _ => done(sockopt::set(&flow.rx, level, name, value)),
        }
    }

    fn shutdown(&mut self, flow: &mut Flow, end: End, how: How) -> io::Result<Saw> {
        let direction = match how {
            How::Read => Shutdown::Read,
            How::Write => Shutdown::Write,
            How::Both => Shutdown::Both,
        };
        let socket = match (end, &flow.tx) {
            (End::Receiver, _) => &flow.rx,
            (End::Peer, None) => return Ok(Saw::Nothing),
            (End::Peer, Some(tx)) => tx,
        };
        let result = socket.shutdown(direction);
        // What comes next depends on the states of both ends.
        if how != How::Read && result.is_ok() && !acknowledged(socket)? {
            self.fault("the end of the stream was not acknowledged");
        }
        Ok(done(result))
    }

    fn close(&mut self, flow: &mut Flow, end: End) -> io::Result<Saw> {
        match end {
            End::Receiver => {
                self.check_all_held(flow)?;
                flow.reset_at_close()?;
                if flow.shared {
                    self.orphaned += flow.queued + flow.held.len() as u32;
                }
            }
            End::Peer => {
                drop(flow.tx.take());
                if !flow.shared {
                    self.wait_end(flow)?;
                }
            }
        }
        Ok(Saw::Nothing)
    }

    fn reset(&mut self, flow: &mut Flow) -> io::Result<Saw> {
        flow.reset_at_close()?;
        if flow.tx.take().is_some() && !flow.shared && !flow.wait_reset()? {
            self.fault("the reset has not arrived");
        }
        Ok(Saw::Nothing)
    }

    fn wait_end(&mut self, flow: &Flow) -> io::Result<()> {
        if !flow.wait_end()? {
            self.fault("the end of the stream has not arrived");
        }
        Ok(())
    }

    fn fork(&mut self) -> io::Result<Saw> {
        if self.child.is_some() {
            return Ok(Saw::Nothing);
        }
        // SAFETY: This process has one thread.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                self.child = Some(child);
                self.flows
                    .iter_mut()
                    .flatten()
                    .for_each(|flow| flow.shared = true);
            }
            ForkResult::Child => {
                // SAFETY: Takes no pointers.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                loop {
                    nix::unistd::pause();
                }
            }
        }
        Ok(Saw::Call(Ok(0)))
    }

    fn kill(&mut self) -> io::Result<Saw> {
        let Some(child) = self.child.take() else {
            return Ok(Saw::Nothing);
        };
        kill(child, Signal::SIGKILL)?;
        waitpid(child, None)?;
        self.orphaned = 0;
        let mut flows = mem::replace(&mut self.flows, array::from_fn(|_| None));
        flows
            .iter_mut()
            .flatten()
            .for_each(|flow| flow.shared = false);
        // Its bindings go as its sockets do: queues are reset, and what they have just then is lost. A
        // segment that resets a connection is not sent again. So these connections end here.
        let lossy = mem::take(&mut self.unbound_at_kill);
        for slot in &mut flows {
            let Some(flow) = slot.take_if(|flow| flow.tx.is_none()) else {
                continue;
            };
            if lossy {
                self.check_all_held(&flow)?;
            } else {
                self.wait_end(&flow)?;
                *slot = Some(flow);
            }
        }
        self.flows = flows;
        Ok(Saw::Call(Ok(0)))
    }

    fn check_all_held(&mut self, flow: &Flow) -> io::Result<()> {
        for (&token, &held) in &flow.held {
            self.check_held(flow, token, held)?;
        }
        Ok(())
    }

    /// Puts everything back as it was before, and tells what must not be.
    fn end(mut self, leftovers: &mut Leftovers) -> io::Result<Vec<String>> {
        self.kill()?;
        for flow in mem::replace(&mut self.flows, array::from_fn(|_| None))
            .iter()
            .flatten()
        {
            self.check_all_held(flow)?;
            flow.reset_at_close()?;
        }
        self.owners = array::from_fn(|_| Owner::default());
        if let Some(left) = leftovers.wait_no_buffers()? {
            self.fault(left);
        }
        Ok(self.faults)
    }
}

fn pick<T>(list: &[T], number: u8) -> Option<&T> {
    list.get(usize::from(number).checked_rem(list.len())?)
}

/// One call of `send()`.
fn traffic_send(socket: &TcpStream, bytes: &[u8]) -> io::Result<u64> {
    // SAFETY: `bytes` is readable for its length.
    let sent = unsafe {
        libc::send(
            socket.as_fd().as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL,
        )
    };
    u64::try_from(sent).map_err(|_| io::Error::last_os_error())
}
