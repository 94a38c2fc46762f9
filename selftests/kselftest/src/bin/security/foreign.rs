// SPDX-License-Identifier: GPL-2.0

//! Sending from bindings of others, whose ids are easy to guess.

use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::num::NonZero;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use devmem::BindTx;
use devmem::Sender;
use devmem::TxBinding;
use devmem::netdev::Netdev;
use devmem::send::enable_zerocopy;
use devmem::uring;
use devmem_testlib::Outcome;
use devmem_testlib::child::Child;
use devmem_testlib::child::NOBODY;
use devmem_testlib::child::SOMEBODY;
use devmem_testlib::child::Talk;
use devmem_testlib::child::become_user;
use devmem_testlib::child::enter;
use devmem_testlib::child::enter_user;
use devmem_testlib::child::let_root_in;
use devmem_testlib::netkit::Netkit;
use devmem_testlib::provider;
use devmem_testlib::report::observe;
use devmem_testlib::trace::REFUSED as TRACED;
use devmem_testlib::trace::Trace;
use devmem_testlib::tx;
use devmem_testlib::tx::Call;
use devmem_testlib::tx::extent;
use devmem_testlib::tx::outcome;
use nix::sched::CloneFlags;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use nix::unistd::setresuid;

use crate::PAGE;
use crate::PART;
use crate::Stage;

/// No binding has it.
const NO_ID: u32 = 0x7fff_fff0;

/// What comes out of sending from somebody else's binding, as from none at all.
const REFUSED: &str = "EINVAL";

impl Stage {
    /// One whose receivers take next to nothing.
    fn with_small_windows() -> io::Result<Self> {
        let stage = Self::new()?;
        setsockopt(&stage.listener, sockopt::RcvBuf, &0)?;
        Ok(stage)
    }

    /// A child that binds the memory after `become_somebody`, tells the id, and holds it until told.
    fn binder(&self, become_somebody: fn() -> io::Result<()>) -> io::Result<Child> {
        Child::start(|talk| {
            enter(&self.pair.tx.ns)?;
            become_somebody()?;
            let binding = BindTx::new(self.pair.tx.ifindex).bind(&self.memory)?;
            talk.tell(binding.id())?;
            talk.wait_for_the_end()
        })
    }

    /// A child that connects, and sends from the binding that it is told.
    fn sender(
        &self,
        become_somebody: impl FnOnce(&mut Talk) -> io::Result<()>,
    ) -> io::Result<Child> {
        Child::start(|talk| {
            let socket = self.connect_in_child()?;
            become_somebody(talk)?;
            let id = talk.hear_number()?;
            talk.tell(outcome(&Call::new(id, &[PART]).send(&socket)))?;
            talk.wait_for_the_end()
        })
    }

    /// What a sender gets that is told this binding. Everything it sent is as it should be.
    #[track_caller]
    fn send_from(&self, mut sender: Child, id: u32) -> io::Result<String> {
        sender.talk().tell(id)?;
        let outcome = sender.talk().hear()?;
        let (rx, _) = self.listener.accept()?;
        if outcome == PART.len.to_string() {
            tx::expect(&rx, &[PART])?;
        }
        sender.end()?;
        tx::expect_end(&rx)?;
        Ok(outcome)
    }
}

fn as_root() -> io::Result<()> {
    Ok(())
}

fn as_nobody() -> io::Result<()> {
    become_user(NOBODY)
}

fn as_somebody() -> io::Result<()> {
    become_user(SOMEBODY)
}

/// Becomes the root of a user namespace of its own, who outside is this user.
fn as_root_inside(talk: &mut Talk, outside: u32) -> io::Result<()> {
    become_user(outside)?;
    enter_user(talk, CloneFlags::empty())?;
    Ok(setresuid(0.into(), 0.into(), 0.into())?)
}

/// Nobody's memory is for the same user, also in a user namespace, and for no other: not for root either.
pub fn who_may_send() -> Outcome {
    let stage = Stage::new()?;
    let mut binder = stage.binder(as_nobody)?;
    let id = binder.talk().hear_number()?;
    let own = PART.len.to_string();

    let check = |who: &str, sender: Child, expected: &str| -> Outcome {
        let outcome = stage.send_from(sender, id)?;
        observe(format_args!("{who}: {outcome}"));
        assert_eq!(outcome, expected, "{who}");
        Ok(())
    };
    check("the same user", stage.sender(|_| as_nobody())?, &own)?;
    check("another user", stage.sender(|_| as_somebody())?, REFUSED)?;
    check("root", stage.sender(|_| as_root())?, REFUSED)?;

    let mut inside = stage.sender(|talk| as_root_inside(talk, NOBODY))?;
    let_root_in(&mut inside, NOBODY)?;
    check("the same user in a user namespace", inside, &own)?;
    let mut inside = stage.sender(|talk| as_root_inside(talk, SOMEBODY))?;
    let_root_in(&mut inside, SOMEBODY)?;
    check("another user in a user namespace", inside, REFUSED)?;
    binder.end()?;

    // Root's memory is not for the root of a user namespace, but for a process that was root once.
    let mut binder = stage.binder(as_root)?;
    let id = binder.talk().hear_number()?;
    let mut inside = stage.sender(|talk| as_root_inside(talk, NOBODY))?;
    let_root_in(&mut inside, NOBODY)?;
    let answer = stage.send_from(inside, id)?;
    observe(format_args!("root of a user namespace: {answer}"));
    assert_eq!(answer, REFUSED);
    binder.end()?;

    let child = Child::start(|talk| {
        let socket = stage.connect_in_child()?;
        let binding = BindTx::new(stage.pair.tx.ifindex).bind(&stage.memory)?;
        as_nobody()?;
        let id = talk.hear_number()?;
        assert_eq!(id, 0, "its own binding is meant");
        talk.tell(outcome(&Call::new(binding.id(), &[PART]).send(&socket)))?;
        talk.wait_for_the_end()
    })?;
    assert_eq!(stage.send_from(child, 0)?, own, "after giving up rights");
    Ok(())
}

/// A socket that was never connected.
fn unconnected() -> io::Result<OwnedFd> {
    // SAFETY: Takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel just made this file descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Fills the send buffer of a socket whose peer does not read.
fn stuff(mut socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    loop {
        match socket.write(&[0; 1 << 16]) {
            Err(err) if err.kind() == ErrorKind::WouldBlock => return Ok(()),
            other => other?,
        };
    }
}

/// Whatever else is wrong, the answer for a foreign binding is that for one that does not exist.
pub fn no_oracle() -> Outcome {
    let stage = Stage::with_small_windows()?;
    let mut child = Child::start(|talk| {
        let socket = stage.connect_in_child()?;
        let full = stage.connect_in_child()?;
        stuff(&full)?;
        let lonely = unconnected()?;
        enable_zerocopy(&lonely)?;
        as_nobody()?;
        while let Ok(id) = talk.hear_number() {
            let call = Call::new(id, &[PART]);
            let beyond = Call::new(id, &[extent(1 << 40, 1)]);
            let answers = [
                outcome(&beyond.send(&socket)),
                outcome(&call.send(&full)),
                outcome(&call.send(&lonely)),
            ];
            talk.tell(answers.join(" "))?;
        }
        Ok(())
    })?;
    let connections = [stage.listener.accept()?, stage.listener.accept()?];

    let here = stage.pair.tx.bind_tx(&stage.memory)?;
    let elsewhere = stage.pair.rx.bind_tx(&stage.memory)?;
    for (what, id) in [
        ("no binding", NO_ID),
        ("a binding to this device", here.id()),
        ("a binding to another device", elsewhere.id()),
    ] {
        child.talk().tell(id)?;
        let answers = child.talk().hear()?;
        observe(format_args!("{what}: {answers}"));
        assert_eq!(answers, "EINVAL EINVAL EINVAL", "{what}");
    }
    child.end()?;
    drop(connections);
    Ok(())
}

/// Who is refused does not learn why, but root does, by a tracepoint.
pub fn refusals_are_traced() -> Outcome {
    let stage = Stage::new()?;
    let sending = stage.pair.tx.bind_tx(&stage.memory)?;
    let receiving = stage.pair.bind(&[1], &stage.memory)?;
    let refusals = Trace::watch(&[TRACED])?;
    let mut child = Child::start(|talk| {
        let socket = stage.connect_in_child()?;
        as_nobody()?;
        while let Ok(id) = talk.hear_number() {
            talk.tell(outcome(&Call::new(id, &[PART]).send(&socket)))?;
        }
        Ok(())
    })?;
    let connection = stage.listener.accept()?;
    let mut expected = Vec::new();
    for (id, reason) in [
        (NO_ID, "no_binding user=65534 owner=-1"),
        (receiving.id(), "receive_binding user=65534 owner=0"),
        (sending.id(), "not_owner user=65534 owner=0"),
    ] {
        child.talk().tell(id)?;
        let answer = child.talk().hear()?;
        observe(format_args!("{reason}: {answer}"));
        assert_eq!(answer, REFUSED, "{reason}");
        expected.push(format!("{TRACED}: dmabuf_id={id} reason={reason}"));
    }
    child.end()?;
    drop(connection);
    assert_eq!(refusals.told()?, expected);

    // Of what is not refused it tells nothing.
    let connection = stage.pair.connect(&stage.listener)?;
    enable_zerocopy(&connection.tx)?;
    let call = Call::new(sending.id(), &[PART]);
    assert_eq!(outcome(&call.send(&connection.tx)), PART.len.to_string());
    tx::expect(&connection.rx, &[PART])?;
    assert_eq!(refusals.told()?, expected);
    Ok(())
}

/// Who binds may let everybody send, in user namespaces, too. Who is told no id is as far from it as ever.
pub fn shared_bindings() -> Outcome {
    let stage = Stage::new()?;
    let own = PART.len.to_string();
    let ifindex = stage.pair.tx.ifindex;
    // Nobody shares what root has not.
    let mut binder = Child::start(|talk| {
        enter(&stage.pair.tx.ns)?;
        as_nobody()?;
        let shared = BindTx::new(ifindex).shared().bind(&stage.memory)?;
        let private = BindTx::new(ifindex).bind(&stage.memory)?;
        talk.tell(shared.id())?;
        talk.tell(private.id())?;
        talk.wait_for_the_end()
    })?;
    let shared = binder.talk().hear_number()?;
    let private = binder.talk().hear_number()?;
    for (who, become_somebody) in [
        ("its user", as_nobody as fn() -> _),
        ("another user", as_somebody),
        ("root", as_root),
    ] {
        let answer = stage.send_from(stage.sender(|_| become_somebody())?, shared)?;
        observe(format_args!("{who}: {answer}"));
        assert_eq!(answer, own, "{who}");
    }
    let mut inside = stage.sender(|talk| as_root_inside(talk, SOMEBODY))?;
    let_root_in(&mut inside, SOMEBODY)?;
    let answer = stage.send_from(inside, shared)?;
    observe(format_args!("another user in a user namespace: {answer}"));
    assert_eq!(answer, own);

    // It is this binding that is shared, and not all that this user has.
    let answer = stage.send_from(stage.sender(|_| as_somebody())?, private)?;
    observe(format_args!("one that is not shared: {answer}"));
    assert_eq!(answer, REFUSED);

    // The library sends from it, too, and unbinds nothing.
    let id = NonZero::new(shared).expect("an id");
    let connection = stage.pair.connect(&stage.listener)?;
    let mut sender = Sender::new(&connection.tx)?;
    for _ in 0..2 {
        let sent = sender.send(&TxBinding::of_another(id), PART);
        sent.map_err(io::Error::from)?;
        tx::expect(&connection.rx, &[PART])?;
    }
    drop(sender);
    // Once it is gone, it is gone for all.
    binder.end()?;
    provider::all_buffers_back(shared);
    let answer = outcome(&Call::new(shared, &[PART]).send(&connection.tx));
    observe(format_args!("afterwards: {answer}"));
    assert_eq!(answer, REFUSED);
    Ok(())
}

/// Who shares by the netkit of a container shares with who sends by that, and not by the device behind it.
pub fn shared_with_a_container() -> Outcome {
    // What is sent by the netkit gets past all checks, and then waits for a connection.
    const MAY_SEND: &str = "EAGAIN";
    let own: &str = &PART.len.to_string();
    let stage = Stage::new()?;
    let netkit = Netkit::new(&stage.pair.tx, 1)?;
    let bind = |request: BindTx| stage.pair.tx.ns.run(|| Ok(request.bind(&stage.memory)?));
    let shared = bind(BindTx::new(netkit.ifindex).shared())?;
    let private = bind(BindTx::new(netkit.ifindex))?;

    for (who, become_somebody, expected) in [
        (
            "who made it",
            as_root as fn() -> _,
            [MAY_SEND, own, MAY_SEND, own],
        ),
        (
            "another user",
            as_nobody,
            [MAY_SEND, REFUSED, REFUSED, REFUSED],
        ),
    ] {
        let mut child = Child::start(|talk| {
            let outside = stage.connect_in_child()?;
            let inside = netkit.connect()?;
            enable_zerocopy(&inside)?;
            become_somebody()?;
            let answers = [&shared, &private].map(|binding| {
                let call = Call::new(binding.id(), &[PART]);
                let inside = outcome(&call.send(&inside));
                format!("{inside} {}", outcome(&call.send(&outside)))
            });
            talk.tell(answers.join(" "))?;
            talk.wait_for_the_end()
        })?;
        let answers = child.talk().hear()?;
        observe(format_args!("{who}: {answers}"));
        assert_eq!(answers, expected.join(" "), "{who}");
        child.end()?;
        drop(stage.listener.accept()?);
    }
    Ok(())
}

/// Who shares by a netkit shares with nobody when that is gone: not with another one at its address, either.
pub fn shared_by_a_netkit_that_is_gone() -> Outcome {
    const TRIES: usize = 20;
    let stage = Stage::new()?;
    let ns = &stage.pair.tx.ns;
    let netkit = Netkit::new(&stage.pair.tx, 1)?;
    let request = BindTx::new(netkit.ifindex).shared();
    let shared = ns.run(|| Ok(request.bind(&stage.memory)?))?;
    drop(netkit);
    for _ in 0..TRIES {
        let another = Netkit::new(&stage.pair.tx, 1)?;
        let socket = ns.run(|| another.connect())?;
        enable_zerocopy(&socket)?;
        let answer = outcome(&Call::new(shared.id(), &[PART]).send(&socket));
        assert_eq!(answer, "ENODEV");
    }
    Ok(())
}

/// A binding is whose request it was, and not whose netlink socket.
pub fn bound_by_a_socket_passed_on() -> Outcome {
    let stage = Stage::new()?;
    let mut binder = Child::start(|talk| {
        enter(&stage.pair.tx.ns)?;
        let mut roots = Netdev::open()?;
        as_nobody()?;
        let attrs = BindTx::new(stage.pair.tx.ifindex).attrs(&stage.memory);
        talk.tell(roots.bind_tx(&attrs)?)?;
        talk.wait_for_the_end()
    })?;
    let id = binder.talk().hear_number()?;
    let own: &str = &PART.len.to_string();
    for (who, become_somebody, expected) in [
        ("who asked", as_nobody as fn() -> _, own),
        ("who opened the socket", as_root, REFUSED),
    ] {
        let answer = stage.send_from(stage.sender(|_| become_somebody())?, id)?;
        observe(format_args!("{who}: {answer}"));
        assert_eq!(answer, expected, "{who}");
    }
    binder.end()?;
    Ok(())
}

/// Who is given a TCP socket has no right to the memory of who made it.
pub fn sockets_passed_on() -> Outcome {
    let stage = Stage::new()?;
    let binding = stage.pair.tx.bind_tx(&stage.memory)?;
    let connection = stage.pair.connect(&stage.listener)?;
    enable_zerocopy(&connection.tx)?;
    let call = Call::new(binding.id(), &[PART]);
    // The child inherits both sockets, that of the binding, too.
    let mut child = Child::start(|talk| {
        as_nobody()?;
        talk.tell(outcome(&call.send(&connection.tx)))?;
        talk.wait_for_the_end()
    })?;
    let answer = child.talk().hear()?;
    child.end()?;
    observe(format_args!("the heir: {answer}"));
    assert_eq!(answer, REFUSED);

    // Nor does it do any harm to who has.
    assert_eq!(outcome(&call.send(&connection.tx)), PART.len.to_string());
    tx::expect(&connection.rx, &[PART])?;
    Ok(())
}

/// io_uring sends with the rights of who makes the request.
pub fn by_io_uring() -> Outcome {
    let stage = Stage::new()?;
    let binding = stage.pair.tx.bind_tx(&stage.memory)?;
    let send = |become_somebody: fn() -> io::Result<()>| -> io::Result<String> {
        let mut child = Child::start(|talk| {
            enter(&stage.pair.tx.ns)?;
            let socket = TcpStream::connect(stage.address()?)?;
            let mut sender = uring::Sender::new(&socket)?;
            become_somebody()?;
            let sent = sender.send(&binding, PART);
            talk.tell(outcome(
                &sent.map(|()| PART.len as usize).map_err(Into::into),
            ))?;
            talk.wait_for_the_end()
        })?;
        let answer = child.talk().hear()?;
        let (rx, _) = stage.listener.accept()?;
        if answer == PART.len.to_string() {
            tx::expect(&rx, &[PART])?;
        }
        child.end()?;
        Ok(answer)
    };
    for (who, become_somebody, expected) in [
        ("root", as_root as fn() -> _, PART.len.to_string()),
        ("nobody", as_nobody, REFUSED.to_owned()),
    ] {
        let answer = send(become_somebody)?;
        observe(format_args!("{who}: {answer}"));
        assert_eq!(answer, expected, "{who}");
    }
    Ok(())
}

/// The memory of a receive binding cannot be sent, not even by who bound it.
pub fn receive_binding_sent_from() -> Outcome {
    let stage = Stage::new()?;
    let binding = stage.pair.bind(&[1], &stage.memory)?;
    let back = stage.pair.rx.bind_tx(&stage.memory)?;
    let connection = stage.pair.connect(&stage.listener)?;
    for socket in [&connection.tx, &connection.rx] {
        enable_zerocopy(socket)?;
        let answer = outcome(&Call::new(binding.id(), &[PART]).send(socket));
        observe(&answer);
        assert_eq!(answer, "EINVAL");
    }
    // It is not the device: a transmit binding of the same memory goes.
    let call = Call::new(back.id(), &[PART]);
    assert_eq!(outcome(&call.send(&connection.rx)), PART.len.to_string());
    tx::expect(&connection.tx, &[PART])?;
    Ok(())
}

/// Nobody guesses ids, and wants to see root's memory.
pub fn another_users_memory_is_not_read() -> Outcome {
    const IDS: u32 = 64;
    let stage = Stage::new()?;
    let secret = stage.pair.tx.bind_tx(&stage.memory)?;
    let mut spy = Child::start(|talk| {
        let mut socket = stage.connect_in_child()?;
        as_nobody()?;
        let last = BindTx::new(stage.pair.tx.ifindex).bind(&stage.memory)?.id();
        let found = (last.saturating_sub(IDS)..last)
            .filter(|&id| Call::new(id, &[PART]).send(&socket).is_ok())
            .count();
        socket.write_all(b"!")?;
        talk.tell(found)?;
        talk.wait_for_the_end()
    })?;
    let found = spy.talk().hear_number()?;
    let (mut rx, _) = stage.listener.accept()?;
    observe(format_args!("{found} bindings found"));
    assert_eq!(found, 0);
    let mut last = [0];
    rx.read_exact(&mut last)?;
    assert_eq!(&last, b"!", "something else was sent");
    spy.end()?;
    drop(secret);
    Ok(())
}

/// What is sent to a peer that does not read holds the memory, as long as the sender likes.
pub fn another_users_memory_is_not_pinned() -> Outcome {
    let stage = Stage::with_small_windows()?;
    let mut child = Child::start(|talk| {
        let socket = stage.connect_in_child()?;
        as_nobody()?;
        let id = talk.hear_number()?;
        let whole = extent(0, (64 * PAGE) as u64);
        socket.set_nonblocking(true)?;
        // Until the window of the peer is full, and then some.
        let sent = (0..1000)
            .map_while(|_| Call::new(id, &[whole]).send(&socket).ok())
            .count();
        talk.tell(sent)?;
        talk.wait_for_the_end()
    })?;
    let (rx, _) = stage.listener.accept()?;
    let binding = stage.pair.tx.bind_tx(&stage.memory)?;
    let id = binding.id();
    child.talk().tell(id)?;
    let sent = child.talk().hear_number()?;

    drop(binding);
    observe(format_args!("{sent} calls sent something"));
    assert_eq!(sent, 0, "calls that sent something");
    provider::all_buffers_back(id);
    child.end()?;
    drop(rx);
    Ok(())
}
