// SPDX-License-Identifier: GPL-2.0

//! Who may make requests and see or change settings, with which capabilities and in which namespaces.

use std::fs;
use std::fs::File;
use std::io;
use std::time::Duration;

use devmem::BindRx;
use devmem::BindTx;
use devmem::DmaBuf;
use devmem::Error;
use devmem::netdev::Netdev;
use devmem::netns::Netns;
use devmem::status::BindingStatus;
use devmem::status::Counters;
use devmem::status::Events;
use devmem_testlib::Outcome;
use devmem_testlib::Pair;
use devmem_testlib::child::Child;
use devmem_testlib::child::NOBODY;
use devmem_testlib::child::SOMEBODY;
use devmem_testlib::child::become_user;
use devmem_testlib::child::enter;
use devmem_testlib::child::enter_user;
use devmem_testlib::child::let_root_in;
use devmem_testlib::child::unshare_user;
use devmem_testlib::provider;
use devmem_testlib::report::observe;
use devmem_testlib::skip;
use devmem_testlib::tx::outcome;
use devmem_testlib::wait;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Uid;
use nix::unistd::seteuid;
use nix::unistd::setresuid;

use crate::BINDINGS_LIMIT;
use crate::PAGE;

/// What a request gave: `bound`, or the errno.
fn answer<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "bound".to_owned(),
        Err(err) => match err.errno() {
            Some(errno) => format!("{:?}", Errno::from_raw(errno)),
            None => err.to_string(),
        },
    }
}

/// What a child says that runs `f` in a namespace.
fn from_child(ns: &Netns, f: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    let mut child = Child::start(|talk| {
        enter(ns)?;
        talk.tell(f()?)?;
        talk.wait_for_the_end()
    })?;
    let said = child.talk().hear()?;
    child.end()?;
    Ok(said)
}

#[track_caller]
fn check(what: &str, said: &str, expected: &str) {
    observe(format_args!("{what}: {said}"));
    assert_eq!(said, expected, "{what}");
}

/// `CAP_NET_ADMIN` in the user namespace of the network namespace, which another user namespace does not
/// give.
pub fn bind_rx_needs_rights() -> Outcome {
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    let request = pair.request(&[1]);
    let bind = || answer(request.bind(&memory));

    let said = from_child(&pair.rx.ns, || {
        become_user(NOBODY)?;
        Ok(bind())
    })?;
    check("nobody", &said, "EPERM");
    let said = from_child(&pair.rx.ns, || {
        become_user(NOBODY)?;
        unshare_user(CloneFlags::empty())?;
        Ok(bind())
    })?;
    check("nobody in a user namespace", &said, "EPERM");
    let said = from_child(&pair.rx.ns, || {
        unshare_user(CloneFlags::CLONE_NEWNET)?;
        Ok(bind())
    })?;
    check("root in namespaces of its own", &said, "ENODEV");
    check("root", &from_child(&pair.rx.ns, || Ok(bind()))?, "bound");
    Ok(())
}

/// The root of a container may bind the queues of devices that it was given, each of them once.
pub fn bind_rx_in_a_container() -> Outcome {
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let mut child = Child::start(|talk| {
        become_user(NOBODY)?;
        enter_user(talk, CloneFlags::CLONE_NEWNET)?;
        let ifindex = talk.hear_number()?;
        setresuid(0.into(), 0.into(), 0.into())?;
        let request = BindRx::new(ifindex).queue(1);
        let held = request.bind(&memory);
        let again = request.bind(&memory);
        let beyond = BindRx::new(ifindex).queue(8).bind(&memory);
        let answers = [
            answer(held.as_ref().map_err(|_| Error::Answer("not bound"))),
            answer(again),
            answer(beyond),
        ];
        talk.tell(answers.join(" "))?;
        talk.wait_for_the_end()
    })?;
    let_root_in(&mut child, NOBODY)?;
    let pair = Pair::into_namespace(Netns::of_process(child.pid())?)?;
    child.talk().tell(pair.rx.ifindex)?;
    let said = child.talk().hear()?;
    check("root of a container", &said, "bound EEXIST EINVAL");
    child.end()?;
    Ok(())
}

/// Everybody may, for devices that are in the same network namespace, and memory that it has.
pub fn bind_tx_is_open() -> Outcome {
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    let said = from_child(&pair.tx.ns, || {
        become_user(NOBODY)?;
        let bind = |ifindex| answer(BindTx::new(ifindex).bind(&memory));
        let null = File::open("/dev/null")?;
        let not_a_dmabuf = answer(BindTx::new(pair.tx.ifindex).bind(&null));
        Ok([bind(pair.tx.ifindex), bind(NO_IFINDEX), not_a_dmabuf].join(" "))
    })?;
    check("nobody", &said, "bound ENODEV EINVAL");
    let said = from_child(&pair.tx.ns, || {
        become_user(NOBODY)?;
        unshare_user(CloneFlags::CLONE_NEWNET)?;
        Ok(answer(BindTx::new(pair.tx.ifindex).bind(&memory)))
    })?;
    check("nobody in namespaces of its own", &said, "ENODEV");
    Ok(())
}

/// No device has it.
const NO_IFINDEX: u32 = 0x7fff_fff0;

/// A netlink socket acts in the namespace where it was opened. For bind-rx, both who opened it and who uses
/// it need the rights.
pub fn netlink_sockets_passed_on() -> Outcome {
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    let request = pair.request(&[1]).attrs(&memory);

    let said = from_child(&pair.rx.ns, || {
        let mut roots = Netdev::open()?;
        become_user(NOBODY)?;
        Ok(answer(roots.bind_rx(&request)))
    })?;
    check("root's socket, used by nobody", &said, "EPERM");
    let said = from_child(&pair.rx.ns, || {
        seteuid(Uid::from_raw(NOBODY))?;
        let mut nobodys = Netdev::open()?;
        seteuid(Uid::from_raw(0))?;
        Ok(answer(nobodys.bind_rx(&request)))
    })?;
    check("nobody's socket, used by root", &said, "EPERM");
    let said = from_child(&pair.rx.ns, || {
        let mut there = Netdev::open()?;
        enter(&pair.tx.ns)?;
        become_user(NOBODY)?;
        let attrs = BindTx::new(pair.rx.ifindex).attrs(&memory);
        Ok(answer(there.bind_tx(&attrs)))
    })?;
    check("a socket of another namespace", &said, "bound");
    Ok(())
}

/// Everybody sees which queues and page pools of its network namespace have device memory, and whose id that
/// has.
pub fn what_queries_tell() -> Outcome {
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::new()?;
    let binding = pair.bind(&[1], &memory)?;
    let look = || -> io::Result<String> {
        become_user(NOBODY)?;
        let mut netdev = Netdev::open()?;
        let queues = netdev.queues(pair.rx.ifindex);
        let queues = queues.map_or_else(
            |err| answer::<()>(Err(err)),
            |list| {
                let bound = list.iter().filter(|q| q.dmabuf == Some(binding.id()));
                format!("{} queues", bound.count())
            },
        );
        let pools = netdev.page_pools()?;
        let pools = pools.iter().filter(|p| p.dmabuf == Some(binding.id()));
        Ok(format!("{queues}, {} page pools", pools.count()))
    };
    let said = from_child(&pair.rx.ns, look)?;
    check("in the namespace", &said, "1 queues, 1 page pools");
    let said = from_child(&pair.tx.ns, look)?;
    // Each end is the first device of its namespace, and may have the same number.
    assert!(
        said == "0 queues, 0 page pools" || said == "ENODEV, 0 page pools",
        "elsewhere: {said}"
    );
    Ok(())
}

/// How large the memory of a transmit binding is, and what is done with it, is told to its owner and to the
/// administrator; that there is one, to everybody in its network namespace. Events tell nobody more than that. Of receive
/// bindings everybody is told all.
pub fn what_is_told_of_bindings() -> Outcome {
    let memory = DmaBuf::udmabuf(64 * PAGE)?;
    let pair = Pair::sending()?;
    if let Err(Error::NoGroup(_)) = Events::open() {
        return skip("this kernel tells nothing of bindings");
    }
    let rx = pair.bind(&[1], &memory)?;
    let tx = pair.tx.bind_tx(&memory)?;

    let told = |status: &BindingStatus| match (status.buffers, status.in_use) {
        (Some(_), Some(_)) => "all",
        (None, None) if status.peer_to_peer.is_none() && status.counters == Counters::default() => {
            "little"
        }
        _ => "something",
    };
    let ask = |netdev: &mut Netdev, id| -> io::Result<String> {
        let one = netdev.binding(id);
        let one = one.as_ref().map_or_else(|_| "nothing", told);
        let list = netdev.bindings()?;
        let listed = list.iter().find(|status| status.id == id);
        Ok(format!("{one} {}", listed.map_or("nothing", told)))
    };
    let nobody = |id| {
        become_user(NOBODY)?;
        ask(&mut Netdev::open()?, id)
    };

    let root = pair.tx.ns.run(|| ask(&mut Netdev::open()?, tx.id()))?;
    check("to root", &root, "all all");
    let said = from_child(&pair.tx.ns, || nobody(tx.id()))?;
    check("to others", &said, "little little");
    let said = from_child(&pair.rx.ns, || nobody(rx.id()))?;
    check("of a receive binding", &said, "all all");
    let said = from_child(&pair.rx.ns, || nobody(tx.id()))?;
    check("elsewhere", &said, "nothing nothing");

    let said = from_child(&pair.tx.ns, || {
        become_user(NOBODY)?;
        let mut events = Events::open()?;
        let own = BindTx::new(pair.tx.ifindex).bind(&memory)?;
        let said = ask(&mut Netdev::open()?, own.id())?;
        let event = events.next_timeout(wait::patience(Duration::from_secs(5)))?;
        let event = event.map_or("nothing", |event| told(&event.binding));
        Ok(format!("{said}, by an event {event}"))
    })?;
    check("to its owner", &said, "all all, by an event little");

    let mut binder = Child::start(|talk| {
        enter(&pair.tx.ns)?;
        become_user(SOMEBODY)?;
        let binding = BindTx::new(pair.tx.ifindex).bind(&memory)?;
        talk.tell(binding.id())?;
        talk.wait_for_the_end()
    })?;
    let theirs = binder.talk().hear_number()?;
    let root = pair.tx.ns.run(|| ask(&mut Netdev::open()?, theirs))?;
    check("of somebody's to root", &root, "all all");
    // Who opened the socket may read what comes.
    let said = from_child(&pair.tx.ns, || {
        seteuid(Uid::from_raw(NOBODY))?;
        let mut nobodys = Netdev::open()?;
        seteuid(Uid::from_raw(0))?;
        ask(&mut nobodys, theirs)
    })?;
    check("of somebody's by nobody's socket", &said, "little little");
    binder.end()?;
    Ok(())
}

/// The list of bindings, the choice of a provider and the limit of bindings are root's, in the initial
/// namespaces. Parameters of the module are set when it is loaded.
pub fn settings_are_roots() -> Outcome {
    const LIST: &str = "/sys/kernel/debug/net_devmem/bindings";
    const CHOICE: &str = "/proc/sys/net/core/devmem_provider";
    const PARAMETERS: &str = "/sys/module/devmem_provider/parameters";
    let errno = |result: io::Result<()>| outcome(&result.map(|()| 0));
    let touch = || {
        let look = errno(fs::read(LIST).map(drop));
        let choose = errno(fs::write(CHOICE, "builtin"));
        let limit = errno(fs::write(BINDINGS_LIMIT, "1000000"));
        format!("{look} {choose} {limit}")
    };
    let here = Netns::current()?;

    let said = from_child(&here, || {
        become_user(NOBODY)?;
        Ok(touch())
    })?;
    check("nobody", &said, "EACCES EACCES EACCES");
    let said = from_child(&here, || {
        become_user(NOBODY)?;
        unshare_user(CloneFlags::CLONE_NEWNET)?;
        Ok(touch())
    })?;
    // The limit is that of its own user namespace, and what there is outside is none the more.
    check("nobody in namespaces of its own", &said, "EACCES ENOENT 0");
    assert!(!fs::exists(PARAMETERS)?, "{PARAMETERS} is there");
    assert_eq!(devmem::provider::serving()?, provider::under_test().name());
    Ok(())
}
