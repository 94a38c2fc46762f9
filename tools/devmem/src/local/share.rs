// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Passing a dma-buf, and the number that stands for it.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFlags;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use super::wire;
use super::wire::LEN;
use super::wire::Record;
use super::wire::wrong;
use crate::dmabuf::DmaBuf;
use crate::netdev::TxBinding;
use crate::poll;

/// How a descriptor that came becomes memory.
pub(super) type Open = fn(OwnedFd) -> io::Result<DmaBuf>;

/// A dma-buf, and the number of the binding that a sender on this machine sends from: what
/// [`Frag::dmabuf_id`](crate::Frag::dmabuf_id) means.
///
/// The number is what the peer says it is, and nobody else: who has several peers keeps what they shared apart, or a peer
/// passes its memory for that of another.
#[derive(Debug)]
pub struct Share {
    id: NonZero<u32>,
    memory: DmaBuf,
}

impl Share {
    /// Passes the memory of a binding to who has the other end of an AF_UNIX socket, by one message, and waits for
    /// room for that. Who receives it can read all of the memory, and write to it if the descriptor lets one.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the socket is of another family; those of `sendmsg()`, of
    /// which `ETOOMANYREFS` is about descriptors that nobody has received yet.
    pub fn send(socket: impl AsFd, binding: &TxBinding, memory: &DmaBuf) -> io::Result<()> {
        let socket = socket.as_fd();
        check_family(socket)?;
        let record = Record::Memory {
            id: binding.number(),
            size: memory.size() as u64,
        };
        loop {
            match wire::send(socket, &record.encode(), Some(memory.as_fd())) {
                Ok(LEN) => return Ok(()),
                // No buffer is as small as that.
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    poll::ready(socket, PollFlags::POLLOUT, None)?;
                }
                Err(err) => return Err(err),
            }
        }
    }

    /// Waits for what the peer passes, and takes no more than that from the socket.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the socket is of another family;
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the peer is gone; [`InvalidData`](io::ErrorKind::InvalidData)
    /// if it passes something else, and [`Unsupported`](io::ErrorKind::Unsupported) if it does so by another version of
    /// the message; those of `recvmsg()`. What came with it is closed then. The next message would be read from
    /// somewhere: only another socket is of use after that.
    pub fn receive(socket: impl AsFd) -> io::Result<Self> {
        receive(socket.as_fd(), None, DmaBuf::from_fd)
    }

    /// Like [`receive`](Self::receive), but no longer than a while, however little comes at once. A peer that has a file
    /// system of its own (FUSE) can pass a file of that, and have the kernel wait for it when that is looked at or closed.
    ///
    /// # Errors
    ///
    /// As there, and [`TimedOut`](io::ErrorKind::TimedOut).
    pub fn receive_timeout(socket: impl AsFd, timeout: Duration) -> io::Result<Self> {
        receive(socket.as_fd(), poll::end_of(timeout), DmaBuf::from_fd)
    }

    /// The number, which frags in this memory have.
    pub fn id(&self) -> u32 {
        self.id.get()
    }

    /// The memory.
    pub fn memory(&self) -> &DmaBuf {
        &self.memory
    }

    /// What came of a record and the descriptors with it.
    pub(super) fn new(
        id: NonZero<u32>,
        size: u64,
        descriptors: Vec<OwnedFd>,
        open: Open,
    ) -> io::Result<Self> {
        let Ok([descriptor]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return Err(wrong("not one descriptor came"));
        };
        let memory = open(descriptor).map_err(|err| wrong(err.to_string()))?;
        if memory.size() as u64 != size {
            return Err(wrong(format!(
                "a dma-buf of {} bytes, not {size}",
                memory.size()
            )));
        }
        Ok(Self { id, memory })
    }
}

fn check_family(socket: BorrowedFd<'_>) -> io::Result<()> {
    match socket_domain(socket)? {
        AddressFamily::UNIX => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket is not of AF_UNIX",
        )),
    }
}

fn receive(socket: BorrowedFd<'_>, deadline: Option<Instant>, open: Open) -> io::Result<Share> {
    check_family(socket)?;
    let mut bytes = [0; LEN];
    let mut filled = 0;
    let mut descriptors = Vec::new();
    while filled < LEN {
        match wire::receive(socket, &mut bytes[filled..], false) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((len, more)) => {
                filled += len;
                descriptors.extend(more);
                if descriptors.len() > 1 {
                    return Err(wrong("more than one descriptor came"));
                }
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                poll::ready(socket, PollFlags::POLLIN, deadline)?;
            }
            Err(err) => return Err(err),
        }
        if filled < LEN && deadline.is_some_and(|end| poll::left_until(end).is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    match Record::decode(&bytes)? {
        Record::Memory { id, size } => Share::new(id, size, descriptors, open),
        _ => Err(wrong("a record that is of a channel")),
    }
}

/// The memories that one peer has shared, by their numbers.
#[derive(Debug, Default)]
pub struct Memories(BTreeMap<u32, DmaBuf>);

impl Memories {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if the number stands for another one.
    pub fn add(&mut self, share: Share) -> io::Result<()> {
        match self.0.contains_key(&share.id()) {
            true => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} stands for another memory", share.id),
            )),
            false => {
                self.0.insert(share.id(), share.memory);
                Ok(())
            }
        }
    }

    /// The memory that a number stands for.
    pub fn get(&self, id: u32) -> Option<&DmaBuf> {
        self.0.get(&id)
    }

    /// Forgets one: its binding is gone, and the number may come to stand for another.
    pub fn remove(&mut self, id: u32) -> Option<DmaBuf> {
        self.0.remove(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::IoSlice;
    use std::io::Write;
    use std::mem::MaybeUninit;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use nix::sys::memfd::MFdFlags;
    use rustix::cmsg_space;
    use rustix::net::SendAncillaryBuffer;
    use rustix::net::SendAncillaryMessage;
    use rustix::net::SendFlags;
    use rustix::net::sendmsg;

    use crate::dmabuf::memfd;

    const SIZE: u64 = 1 << 16;

    fn memory() -> DmaBuf {
        DmaBuf::of_memfd(memfd(1 << 16, MFdFlags::empty()).unwrap()).unwrap()
    }

    fn binding(id: u32) -> TxBinding {
        TxBinding::of_another(NonZero::new(id).unwrap())
    }

    fn record(size: u64) -> [u8; LEN] {
        let id = NonZero::new(7).unwrap();
        Record::Memory { id, size }.encode()
    }

    /// Sends whatever it is.
    fn send_raw(socket: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let bytes = &[IoSlice::new(bytes)];
        sendmsg(socket, bytes, &mut control, SendFlags::empty()).unwrap();
    }

    fn take(socket: &UnixStream) -> io::Result<Share> {
        receive(socket.as_fd(), None, DmaBuf::of_memfd)
    }

    /// How many descriptors of it this process has.
    fn links_to(target: &fs::File) -> usize {
        let name = |fd: &std::path::Path| fs::read_link(fd).ok();
        let wanted = name(format!("/proc/self/fd/{}", target.as_raw_fd()).as_ref()).unwrap();
        let fds = fs::read_dir("/proc/self/fd").unwrap();
        fds.filter(|fd| name(&fd.as_ref().unwrap().path()).as_ref() == Some(&wanted))
            .count()
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn memory_and_number_arrive() {
        let (a, b) = UnixStream::pair().unwrap();
        let sent = memory();
        for id in [1, u32::MAX] {
            Share::send(&a, &binding(id), &sent).unwrap();
        }
        (&a).write_all(b"more").unwrap();
        let mut memories = Memories::new();
        for id in [1, u32::MAX] {
            let share = take(&b).unwrap();
            assert_eq!((share.id(), share.memory().size()), (id, 1 << 16));
            rustix::io::pwrite(&sent, &id.to_ne_bytes(), 100).unwrap();
            let mut seen = [0; 4];
            rustix::io::pread(share.memory(), &mut seen, 100).unwrap();
            assert_eq!(seen, id.to_ne_bytes());
            memories.add(share).unwrap();
        }
        assert!(memories.get(1).is_some() && memories.get(2).is_none());
        Share::send(&a, &binding(1), &sent).unwrap();
        let mut byte = [0; 4];
        io::Read::read_exact(&mut &b, &mut byte).unwrap();
        assert_eq!(&byte, b"more", "more was taken than the messages");
        let err = memories.add(take(&b).unwrap()).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::AlreadyExists);
        memories.remove(1).unwrap();
        assert_eq!(memories.len(), 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn what_is_no_dmabuf_is_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        Share::send(&a, &binding(1), &memory()).unwrap();
        let err = Share::receive(&b).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for err in [
            Share::receive(&udp).unwrap_err(),
            Share::send(&udp, &binding(1), &memory()).unwrap_err(),
        ] {
            assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// However many descriptors a peer sends, and however it does that, none is left open here.
    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn no_descriptor_is_left() {
        let path = std::env::temp_dir().join(format!("devmem-share-{}", std::process::id()));
        let marked = fs::File::create(&path).unwrap();
        marked.set_len(SIZE).unwrap();
        let good = record(SIZE);
        for count in [0, 1, 2, 3, 5, 40, 64] {
            let (a, b) = UnixStream::pair().unwrap();
            let descriptors = vec![marked.as_fd(); count];
            send_raw(&a, &good, &descriptors);
            let result = take(&b);
            assert_eq!(result.is_ok(), count == 1, "{count} descriptors");
            if let Err(err) = &result {
                assert_eq!(err.kind(), io::ErrorKind::InvalidData, "{err}");
            }
            drop(result);
            assert_eq!(links_to(&marked), 1, "{count} descriptors");
        }
        // By bits, each with one.
        let (a, b) = UnixStream::pair().unwrap();
        for byte in &good {
            send_raw(&a, &[*byte], &[marked.as_fd()]);
        }
        assert_eq!(take(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // With something that is not a record of one, and with a wrong size.
        for bytes in [
            Record::End.encode(),
            [0; LEN],
            record(SIZE - 1),
            record(u64::MAX),
            record(0),
        ] {
            let (a, b) = UnixStream::pair().unwrap();
            send_raw(&a, &bytes, &[marked.as_fd()]);
            assert_eq!(take(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        // And then nothing more.
        let (a, b) = UnixStream::pair().unwrap();
        send_raw(&a, &good[..LEN - 1], &[marked.as_fd()]);
        drop(a);
        assert_eq!(take(&b).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(links_to(&marked), 1);
        fs::remove_file(path).unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "makes system calls that Miri does not know")]
    fn who_says_little_at_once_does_not_take_longer() {
        const SHORT: Duration = Duration::from_millis(60);
        let (mut a, b) = UnixStream::pair().unwrap();
        let err = Share::receive_timeout(&b, SHORT).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        let writer = thread::spawn(move || {
            for byte in record(SIZE) {
                if a.write_all(&[byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        let err = Share::receive_timeout(&b, SHORT).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        // Had it waited for all of it, it would have missed the descriptor.
        drop(b);
        writer.join().unwrap();
    }
}
