// SPDX-License-Identifier: GPL-2.0

//! How much of it a user can have: transmit bindings, and buffers of a queue that others share.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::TxBinding;
use devmem::netns::Netns;
use devmem::token::TokenRange;
use devmem::token::dontneed;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Child;
use devmem_testlib::child::NOBODY;
use devmem_testlib::child::SOMEBODY;
use devmem_testlib::child::become_user;
use devmem_testlib::child::enter;
use devmem_testlib::child::enter_user;
use devmem_testlib::child::let_in;
use devmem_testlib::child::let_root_in;
use devmem_testlib::child::unshare_user;
use devmem_testlib::fixture::Receiving;
use devmem_testlib::machine;
use devmem_testlib::pair::Ip;
use devmem_testlib::pair::Joint;
use devmem_testlib::probe::Call;
use devmem_testlib::probe::Probe;
use devmem_testlib::provider;
use devmem_testlib::provider::Parameters;
use devmem_testlib::report::diag;
use devmem_testlib::report::observe;
use devmem_testlib::traffic;
use devmem_testlib::traffic::Reader;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;
use nix::unistd::setresgid;
use nix::unistd::setresuid;

use crate::BINDINGS_LIMIT;
use crate::PAGE;
use crate::PORT;
use crate::closed;

/// Bindings that a user may have in these tests.
const BINDINGS: usize = 4;
/// Bindings that a test tries to make.
const TRIES: usize = 2 * BINDINGS;
/// Tokens that a socket may have on the module.
const TOKENS: usize = 20;

/// `user.max_devmem_tx_bindings` of the initial user namespace at [`BINDINGS`], until this is dropped.
struct Limit(String);

impl Limit {
    fn set() -> io::Result<Self> {
        let before = fs::read_to_string(BINDINGS_LIMIT)?;
        fs::write(BINDINGS_LIMIT, BINDINGS.to_string())?;
        Ok(Self(before))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(err) = fs::write(BINDINGS_LIMIT, &self.0) {
            diag(format_args!("{BINDINGS_LIMIT} stays changed: {err}"));
        }
    }
}

/// Why a user gets no more bindings.
type Reason = (Errno, &'static str);

const TOO_MANY: Reason = (
    Errno::ENOSPC,
    "Too many TX bindings, see user.max_devmem_tx_bindings",
);
const TOO_MUCH: Reason = (
    Errno::ENOBUFS,
    "Too much memory in TX bindings, see RLIMIT_MEMLOCK",
);

/// Makes bindings until that fails, which it may do for one reason only.
fn bind_many(request: &BindTx, memory: &DmaBuf, reason: Reason) -> io::Result<Vec<TxBinding>> {
    let mut bindings = Vec::new();
    for _ in 0..TRIES {
        match request.bind(memory) {
            Ok(binding) => bindings.push(binding),
            Err(Error::Refused { errno, ack }) => {
                let message = ack.message.as_deref();
                assert_eq!(
                    (Errno::from_raw(errno), message),
                    (reason.0, Some(reason.1))
                );
                break;
            }
            Err(err) => return Err(err.into()),
        }
    }
    Ok(bindings)
}

/// A child that makes as many bindings as it can, each time it is told to, and tells how many it has then. It
/// drops one when it is told so.
fn binder(
    pair: &Pair,
    memory: &DmaBuf,
    reason: Reason,
    become_somebody: impl FnOnce() -> io::Result<()>,
) -> io::Result<Child> {
    Child::start(|talk| {
        enter(&pair.tx.ns)?;
        become_somebody()?;
        let mut bindings = Vec::new();
        while let Ok(order) = talk.hear() {
            match order.as_str() {
                "drop" => drop(bindings.pop()),
                _ => bindings.extend(bind_many(&pair.tx.request_tx(), memory, reason)?),
            }
            talk.tell(bindings.len())?;
        }
        Ok(())
    })
}

fn ask(child: &mut Child, order: &str) -> io::Result<usize> {
    child.talk().tell(order)?;
    Ok(child.talk().hear_number()? as usize)
}

#[track_caller]
fn check(what: &str, got: usize, expected: usize) {
    observe(format_args!("{what}: {got}"));
    assert_eq!(got, expected, "{what}");
}

/// The limit is for all processes of a user, and for each user, but not for network administrators.
pub fn bindings_of_a_user() -> Outcome {
    let _limit = Limit::set()?;
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    let mut first = binder(&pair, &memory, TOO_MANY, || become_user(NOBODY))?;
    let mut second = binder(&pair, &memory, TOO_MANY, || become_user(NOBODY))?;
    let mut other = binder(&pair, &memory, TOO_MANY, || become_user(SOMEBODY))?;
    let mut root = binder(&pair, &memory, TOO_MANY, || Ok(()))?;

    check("nobody", ask(&mut first, "bind")?, BINDINGS);
    check("nobody, once more", ask(&mut second, "bind")?, 0);
    check("somebody", ask(&mut other, "bind")?, BINDINGS);
    check("root", ask(&mut root, "bind")?, TRIES);

    // One that is freed makes room for another one, whichever process that was of.
    ask(&mut first, "drop")?;
    provider::wait_for("room for another binding", || {
        Ok(ask(&mut second, "bind")? == 1)
    });
    check(
        "nobody, at the limit",
        ask(&mut first, "bind")?,
        BINDINGS - 1,
    );
    for child in [first, second, other, root] {
        child.end()?;
    }
    Ok(())
}

/// Processes that bind at the same time get not one binding more.
pub fn bindings_made_at_once() -> Outcome {
    const ROUNDS: usize = 5;
    let _limit = Limit::set()?;
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    for _ in 0..ROUNDS {
        let before = provider::bindings()?.map_or(0, |list| list.len());
        let mut children = (0..4)
            .map(|_| binder(&pair, &memory, TOO_MANY, || become_user(NOBODY)))
            .collect::<io::Result<Vec<_>>>()?;
        for child in &mut children {
            child.talk().tell("bind")?;
        }
        let mut sum = 0;
        for child in &mut children {
            sum += child.talk().hear_number()? as usize;
        }
        assert_eq!(sum, BINDINGS);
        for child in children {
            child.end()?;
        }
        provider::wait_for("the bindings to go", || {
            Ok(provider::bindings()?.map_or(0, |list| list.len()) == before)
        });
    }
    Ok(())
}

/// User namespaces give who made them no more bindings, whatever users there are inside. They may have a
/// limit of their own.
pub fn bindings_by_user_namespaces() -> Outcome {
    const SUBORDINATE: u32 = 100_000;
    let _limit = Limit::set()?;
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    let inside = |maker: u32, map: &str, uid: u32, limit: Option<usize>| -> io::Result<Child> {
        let mut child = Child::start(|talk| {
            enter(&pair.tx.ns)?;
            if maker != 0 {
                become_user(maker)?;
            }
            enter_user(talk, CloneFlags::empty())?;
            setresgid(uid.into(), uid.into(), uid.into())?;
            setresuid(uid.into(), uid.into(), uid.into())?;
            if let Some(limit) = limit {
                fs::write(BINDINGS_LIMIT, limit.to_string())?;
            }
            let bindings = bind_many(&pair.tx.request_tx(), &memory, TOO_MANY)?;
            talk.tell(bindings.len())?;
            talk.wait_for_the_end()
        })?;
        let_in(&mut child, map)?;
        Ok(child)
    };

    let map = format!("0 {NOBODY} 1\n1 {SUBORDINATE} 2\n");
    let mut root = inside(NOBODY, &map, 0, None)?;
    let got = root.talk().hear_number()? as usize;
    check("root inside", got, BINDINGS);
    let mut another = inside(NOBODY, &map, 1, None)?;
    let got = another.talk().hear_number()? as usize;
    check("another user inside", got, 0);
    let mut outside = binder(&pair, &memory, TOO_MANY, || become_user(NOBODY))?;
    check("its maker", ask(&mut outside, "bind")?, 0);

    // Inside of these root may set limits, but what the maker has left is what there is.
    let map = format!("0 {SUBORDINATE} 2\n");
    let mut tight = inside(0, &map, 0, Some(1))?;
    let got = tight.talk().hear_number()? as usize;
    check("in a container with a limit of its own", got, 1);
    let mut wide = inside(0, &map, 0, Some(TRIES))?;
    let got = wide.talk().hear_number()? as usize;
    check("in another one that root made", got, BINDINGS - 1);
    for child in [root, another, outside, tight, wide] {
        child.end()?;
    }
    Ok(())
}

/// Memory that a user may have locked.
const LOCKED: usize = 256 * PAGE;
/// What it binds: twice as much, with two pages more each time, as zerocopy sends have it, fits.
const PART: usize = 100 * PAGE;

/// Becomes a user who may have no more than [`LOCKED`], in a child.
fn become_limited_user(uid: u32) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED as u64, LOCKED as u64)?;
    become_user(uid)
}

/// What is sent from is pinned, and counts as memory that who binds it has locked, for all processes of a user. Not for
/// who could bind receive queues as well.
pub fn memory_of_a_user() -> Outcome {
    let memory = DmaBuf::udmabuf(PART)?;
    let larger = DmaBuf::udmabuf(LOCKED + PAGE)?;
    let pair = Pair::new()?;
    let bind_as = |uid, memory| binder(&pair, memory, TOO_MUCH, || become_limited_user(uid));
    let mut first = bind_as(NOBODY, &memory)?;
    let mut second = bind_as(NOBODY, &memory)?;
    let mut other = bind_as(SOMEBODY, &memory)?;
    let mut greedy = bind_as(SOMEBODY + 1, &larger)?;
    let mut inside = binder(&pair, &memory, TOO_MUCH, || {
        become_limited_user(SOMEBODY + 2)?;
        unshare_user(CloneFlags::empty())
    })?;
    let mut root = binder(&pair, &larger, TOO_MUCH, || {
        setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED as u64, LOCKED as u64)?;
        Ok(())
    })?;

    check("nobody", ask(&mut first, "bind")?, 2);
    check("nobody, once more", ask(&mut second, "bind")?, 0);
    check("somebody", ask(&mut other, "bind")?, 2);
    check("somebody, more at once", ask(&mut greedy, "bind")?, 0);
    check("in a user namespace", ask(&mut inside, "bind")?, 2);
    check("root", ask(&mut root, "bind")?, TRIES);

    // It counts as long as it is there, whoever may bind then.
    ask(&mut first, "drop")?;
    provider::wait_for("room for another binding", || {
        Ok(ask(&mut second, "bind")? == 1)
    });
    check("nobody, at the limit", ask(&mut first, "bind")?, 1);
    for child in [first, second, other, greedy, inside, root] {
        child.end()?;
    }
    Ok(())
}

/// What is sent to the same machine only counts as well, in both ways, though no device has it mapped.
pub fn local_memory_of_a_user() -> Outcome {
    let _limit = Limit::set()?;
    let memory = DmaBuf::udmabuf(PART)?;
    let page = DmaBuf::udmabuf(PAGE)?;
    let pair = Pair::local(Joint::Lo)?;
    let mut first = binder(&pair, &memory, TOO_MUCH, || become_limited_user(NOBODY))?;
    let mut second = binder(&pair, &memory, TOO_MUCH, || become_limited_user(NOBODY))?;
    let mut other = binder(&pair, &page, TOO_MANY, || become_user(SOMEBODY))?;

    check("nobody", ask(&mut first, "bind")?, 2);
    check("somebody", ask(&mut other, "bind")?, BINDINGS);
    ask(&mut first, "drop")?;
    provider::wait_for("room for another binding", || {
        Ok(ask(&mut second, "bind")? != 0)
    });
    for child in [first, second, other] {
        child.end()?;
    }
    Ok(())
}

/// Also of who makes himself an administrator: everybody can have a namespace, and devices there for that.
pub fn local_memory_in_a_container() -> Outcome {
    let memory = DmaBuf::udmabuf(PART)?;
    let mut child = Child::start(|talk| {
        become_limited_user(NOBODY)?;
        enter_user(talk, CloneFlags::CLONE_NEWNET)?;
        setresuid(0.into(), 0.into(), 0.into())?;
        let lo = BindTx::new(Netns::current()?.ifindex("lo")?).local();
        talk.tell(bind_many(&lo, &memory, TOO_MUCH)?.len())?;
        talk.wait_for_the_end()
    })?;
    let_root_in(&mut child, NOBODY)?;
    let got = child.talk().hear_number()? as usize;
    check("root of a container", got, 2);
    child.end()?;
    Ok(())
}

/// The root of a container has power over its devices, and its queues.
pub fn memory_of_a_container() -> Outcome {
    let memory = DmaBuf::udmabuf(LOCKED + PAGE)?;
    let mut child = Child::start(|talk| {
        become_limited_user(NOBODY)?;
        enter_user(talk, CloneFlags::CLONE_NEWNET)?;
        let ifindex = talk.hear_number()?;
        setresuid(0.into(), 0.into(), 0.into())?;
        talk.tell(bind_many(&BindTx::new(ifindex), &memory, TOO_MUCH)?.len())?;
        talk.wait_for_the_end()
    })?;
    let_root_in(&mut child, NOBODY)?;
    let pair = Pair::into_namespace(Netns::of_process(child.pid())?)?;
    child.talk().tell(pair.rx.ifindex)?;
    let got = child.talk().hear_number()? as usize;
    check("root of a container", got, TRIES);
    child.end()?;
    Ok(())
}

fn limit_tokens() -> io::Result<Parameters> {
    Parameters::set(c"max_tokens=20")
}

fn give_back_one(bench: &Receiving, token: u32) -> io::Result<()> {
    let range = TokenRange {
        start: token,
        count: 1,
    };
    assert_eq!(dontneed(&bench.connection.rx, &[range])?, 1);
    Ok(())
}

/// A socket at its limit gets nothing more, and loses nothing.
pub fn tokens_of_a_socket() -> Outcome {
    const SEGMENTS: usize = 30;
    let _parameters = limit_tokens()?;
    let bench = Receiving::new()?;
    let mut probe = bench.probe().quiet();
    bench.send(&[100; SEGMENTS])?;

    let got = probe.receive(&Call::new(1 << 16));
    let limit = if closed() { TOKENS } else { SEGMENTS };
    observe(format_args!("{} tokens", got.frags().count()));
    assert_eq!(got.frags().count(), limit);
    if closed() {
        probe
            .call(&Call::new(1 << 16))
            .assert_fails(Errno::ENOBUFS as i32);
        // One token for one.
        let mut held = probe.take_held();
        give_back_one(&bench, held.swap_remove(7))?;
        probe.receive(&Call::new(1 << 16)).assert_frags(&[100]);
        probe
            .call(&Call::new(1 << 16))
            .assert_fails(Errno::ENOBUFS as i32);
        for token in held {
            give_back_one(&bench, token)?;
        }
        let rest = [100; SEGMENTS - TOKENS - 1];
        probe.receive(&Call::new(1 << 16)).assert_frags(&rest);
    }
    // Other sockets have limits of their own, and so does this one again.
    let other = bench
        .pair
        .connect_to_queue(Ip::V4, PORT + 1, Receiving::QUEUE)?;
    traffic::send(&other.tx, 0, 4096, 4096)?;
    let mut reader = Reader::new(&other.rx, &bench.map, bench.binding.id());
    reader.read_until(4096)?;
    reader.assert_all_device_memory();
    probe.give_back();
    bench.send(&[500])?;
    probe.receive(&Call::new(1 << 16)).assert_frags(&[500]);
    probe.give_back();
    Ok(())
}

/// Each peek gives another token for the same bytes.
pub fn tokens_by_peeking() -> Outcome {
    const PEEKS: usize = 3 * TOKENS;
    let _parameters = limit_tokens()?;
    let bench = Receiving::new()?;
    let mut probe = bench.probe().quiet();
    bench.send(&[100])?;
    let peek = Call::new(1 << 16).flags(libc::MSG_PEEK);
    let peeks = (0..PEEKS)
        .take_while(|_| probe.call(&peek).result == Ok(100))
        .count();
    observe(format_args!("{peeks} peeks"));
    assert_eq!(peeks, if closed() { TOKENS } else { PEEKS });
    if closed() {
        probe.call(&peek).assert_fails(Errno::ENOBUFS as i32);
    }
    probe.give_back();
    probe.position = 0;
    probe.receive(&Call::new(1 << 16)).assert_frags(&[100]);
    probe.give_back();
    Ok(())
}

/// Reads without returning tokens, until that fails; where it is only that nothing has come, until nothing more
/// will. Tells how many tokens that are, and the last error.
fn hoard(
    probe: &mut Probe<'_>,
    no_more: impl Fn() -> io::Result<bool>,
) -> io::Result<(usize, Errno)> {
    loop {
        let got = probe.call(&Call::new(1 << 16));
        match got.result.map_err(Errno::from_raw) {
            Ok(_) => (),
            Err(Errno::EAGAIN) if !no_more()? => (),
            Err(errno) => return Ok((probe.held().len(), errno)),
        }
    }
}

/// Somebody keeps what it reads from a queue that is shared, of 64 buffers more than the device has.
pub fn another_users_flow_goes_on() -> Outcome {
    const LEN: u64 = 1 << 20;
    const BUFFERS: usize = 1024;
    let _parameters = limit_tokens()?;
    let memory = DmaBuf::udmabuf(BUFFERS * PAGE)?;
    let map = memory.map()?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    let hoarder = pair.connect_to_queue(Ip::V4, PORT, 1)?;
    let honest = pair.connect_to_queue(Ip::V4, PORT + 1, 1)?;
    // Longer than a sender waits before it sends again what was lost.
    let silence = Duration::from_millis(1500).mul_f64(machine::slowness());
    hoarder
        .rx
        .set_read_timeout(Some(Duration::from_millis(100)))?;

    thread::scope(|scope| -> Outcome {
        let len = 2 * (BUFFERS * PAGE) as u64;
        let flood = traffic::send_in(scope, &hoarder.tx, 0, len, 1 << 16);
        let mut probe = Probe::new(&hoarder.rx, &[(binding.id(), &map)]).quiet();
        // The module's limit is an error; on the C code the device has no buffer any more.
        let no_more = || Ok(!closed() && pair.rx.counter("rx1_no_buffer")? > 0);
        let (held, errno) = hoard(&mut probe, no_more)?;
        observe(format_args!("the hoarder gets {errno:?}"));

        if closed() {
            assert_eq!((held, errno), (TOKENS, Errno::ENOBUFS));
            let sender = traffic::send_in(scope, &honest.tx, 0, LEN, 1 << 16);
            let mut reader = Reader::new(&honest.rx, &map, binding.id());
            reader.read_until(LEN)?;
            reader.assert_all_device_memory();
            sender.join().expect("the sender's thread")?;
        } else {
            assert_eq!(errno, Errno::EAGAIN);
            assert!(held > BUFFERS / 2, "{held} buffers");
            // What the stack drops comes back to the device. So both keep what they get, until there is none.
            honest.rx.set_read_timeout(Some(silence))?;
            let mut victim = Probe::new(&honest.rx, &[(binding.id(), &map)]).quiet();
            let mut sent = 0;
            loop {
                traffic::send(&honest.tx, sent, 4096, 4096)?;
                sent += 4096;
                hoard(&mut probe, no_more)?;
                if victim.call(&Call::new(1 << 16)).result == Err(Errno::EAGAIN as i32) {
                    break;
                }
                assert!(sent < LEN, "the other flow goes on");
            }
        }
        hoarder.rx.shutdown(Shutdown::Both)?;
        // It may have been reset by then: there is nobody to read what it sends.
        let _ = hoarder.tx.shutdown(Shutdown::Both);
        // How much of it went out does not matter.
        let _ = flood.join().expect("the sender's thread");
        Ok(())
    })
}
