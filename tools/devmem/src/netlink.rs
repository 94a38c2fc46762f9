// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Generic netlink with extended acknowledgements.
//!
//! Requests are built from attributes that may be anything, so that a kernel's answer to a bad one
//! can be tested.
//!
//! # Why not by generated code
//!
//! The crates `netlink-bindings` and `netlink-socket2` (0.3.5, MIT or Apache-2.0) have types for all attributes of
//! `netdev` and `ethtool`, and name the one that the kernel refused. They would be used for five requests of one to five
//! attributes each, beside what is here, which has to stay: they build no malformed request, and do not know what the
//! kernel series of this project adds (shared transmit bindings). They take descriptors as numbers, of which nothing says
//! that they are open when the request is sent. For that there are 1.3 MB of source to compile, and a procedural macro;
//! and they say neither which Rust they need, nor that anybody has tried these two families. So they would add code, and
//! take none away.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use netlink_packet_core::NLA_F_NESTED;
use netlink_packet_core::NLA_HEADER_SIZE;
use netlink_packet_core::NLA_TYPE_MASK;
use netlink_packet_core::NetlinkBuffer;
use netlink_packet_core::NlasIterator;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_GENERIC;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::TimeVal;
use nix::sys::time::TimeValLike;

const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
/// Where the attributes of a generic netlink request start, counted as the kernel counts offsets.
pub const FIRST_ATTR: usize = NLMSG_HEADER + GENL_HEADER;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;
const NLMSGERR_ATTR_MISS_TYPE: u16 = 5;
const NLMSGERR_ATTR_MISS_NEST: u16 = 6;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

/// No request of ours takes longer; an answer that never comes is an error.
const TIMEOUT_SECONDS: i64 = 60;

/// Attributes of a request, which lives no longer than the descriptors in it: the kernel looks them up when
/// the request is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs<'fd>(Vec<u8>, PhantomData<&'fd OwnedFd>);

impl<'fd> Attrs<'fd> {
    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The attributes as they are sent, for requests of other families.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds a descriptor.
    pub fn fd(self, kind: u16, fd: BorrowedFd<'fd>) -> Self {
        self.bytes(kind, &fd.as_raw_fd().to_ne_bytes())
    }

    /// Adds a number of 32 bits.
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds a flag: it says something by being there.
    pub fn flag(self, kind: u16) -> Self {
        self.bytes(kind, &[])
    }

    /// Adds a number of 8 bits.
    pub fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    /// Adds a string, with a zero at its end.
    pub fn string(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute made of others.
    pub fn nested(self, kind: u16, inner: &Attrs<'fd>) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Adds an attribute of any content, which may be at most 65531 bytes long.
    ///
    /// # Panics
    ///
    /// If it is longer: there is no room for its length.
    #[track_caller]
    pub fn bytes(self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(NLA_HEADER_SIZE + value.len());
        self.bytes_of_length(length.expect("an attribute too long"), kind, value)
    }

    /// Adds an attribute whose header claims `length`, whatever its content is.
    pub fn bytes_of_length(mut self, length: u16, kind: u16, value: &[u8]) -> Self {
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0
            .resize(self.0.len().next_multiple_of(NLA_HEADER_SIZE), 0);
        self
    }
}

/// Walks the attributes in `bytes`: their types without flags, and their content.
///
/// Ends at the first that is malformed.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    typed_attributes(bytes).map(|(kind, content)| (kind & NLA_TYPE_MASK, content))
}

/// Like [`attributes`], the types with their flags.
fn typed_attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|nla| {
        let nla = nla.ok()?;
        // Unlike `NlaBuffer::kind()`, this keeps the flags.
        let content = NLA_HEADER_SIZE..NLA_HEADER_SIZE + nla.value_length();
        let bytes = nla.into_inner();
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        Some((kind, bytes.get(content)?))
    })
}

/// An attribute of a request, by the way down to it: `[2, 1]` is an attribute of type 1 in one of type 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttrPath {
    /// The types on the way.
    pub types: Vec<u16>,
    /// Which of the attributes of the first type it is (or lies in), counted from 0.
    pub nth: usize,
}

impl AttrPath {
    /// Finds what is at `offset` of a request whose attributes are `attrs`.
    fn find(attrs: &[u8], offset: usize) -> Option<Self> {
        let mut types = Vec::new();
        let mut nth = 0;
        let mut level = attrs;
        let mut target = offset.checked_sub(FIRST_ATTR)?;
        loop {
            let mut at = 0;
            let mut seen = Vec::new();
            let (kind, content) = loop {
                let (kind, content) = typed_attributes(level.get(at..)?).next()?;
                let end = at + (NLA_HEADER_SIZE + content.len()).next_multiple_of(4);
                if target < end {
                    break (kind, content);
                }
                seen.push(kind & NLA_TYPE_MASK);
                at = end;
            };
            let (nested, kind) = (kind & NLA_F_NESTED != 0, kind & NLA_TYPE_MASK);
            if types.is_empty() {
                nth = seen.iter().filter(|&&k| k == kind).count();
            }
            types.push(kind);
            if target == at {
                return Some(Self { types, nth });
            }
            // A number may look like an attribute: only nests hold some.
            if !nested {
                return None;
            }
            target = target.checked_sub(at + NLA_HEADER_SIZE)?;
            level = content;
        }
    }
}

/// What the kernel says beside an error number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtAck {
    /// The message.
    pub message: Option<String>,
    /// Where in the request the offending attribute starts, counted from the netlink header.
    pub offset: Option<u32>,
    /// The offending attribute.
    pub attribute: Option<AttrPath>,
    /// Type of an attribute that is missing.
    pub missing: Option<u32>,
    /// Where in the request the nest starts that lacks it, unless it is missing at the top.
    pub missing_in: Option<u32>,
}

impl ExtAck {
    fn parse(tlvs: &[u8], request: &[u8]) -> Self {
        let mut ack = Self::default();
        for (kind, value) in attributes(tlvs) {
            let number = value.try_into().map(u32::from_ne_bytes).ok();
            match kind {
                NLMSGERR_ATTR_MSG => {
                    let text = value.split(|&b| b == 0).next().unwrap_or(value);
                    ack.message = Some(String::from_utf8_lossy(text).into_owned());
                }
                NLMSGERR_ATTR_OFFS => ack.offset = number,
                NLMSGERR_ATTR_MISS_TYPE => ack.missing = number,
                NLMSGERR_ATTR_MISS_NEST => ack.missing_in = number,
                _ => (),
            }
        }
        ack.attribute = ack
            .offset
            .and_then(|offset| AttrPath::find(request.get(FIRST_ATTR..)?, offset.try_into().ok()?));
        ack
    }
}

/// Why a request failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused it.
    Refused {
        /// The error number, positive.
        errno: i32,
        /// What the kernel says about it.
        ack: Box<ExtAck>,
    },
    /// The kernel was built without this generic netlink family.
    NoFamily(String),
    /// The family has no multicast group of this name.
    NoGroup(String),
    /// The kernel had something to tell, and no room for it.
    Lost,
    /// The request or its answer did not get through.
    Io(io::Error),
    /// The kernel's answer is not what it should be.
    Answer(&'static str),
}

impl Error {
    /// The error number, if the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Io(err) => err.raw_os_error(),
            Self::NoFamily(_) | Self::NoGroup(_) => Some(libc::ENOENT),
            Self::Lost => Some(libc::ENOBUFS),
            Self::Answer(_) => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

/// Its kind is that of the error number, which [`errno_of`] finds in it.
impl From<Error> for io::Error {
    fn from(err: Error) -> Self {
        match err {
            Error::Io(err) => err,
            other => match other.errno() {
                Some(errno) => Self::new(Self::from_raw_os_error(errno).kind(), other),
                None => Self::other(other),
            },
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(err) => Some(err),
            Self::Refused { .. }
            | Self::NoFamily(_)
            | Self::NoGroup(_)
            | Self::Lost
            | Self::Answer(_) => None,
        }
    }
}

/// The error number of an error of this library's, if there is one: that of the system call, or of the answer to
/// a request.
///
/// [`raw_os_error`](io::Error::raw_os_error) tells only of errors that are nothing but a number; those with a
/// message of the kernel's are more.
pub fn errno_of(err: &io::Error) -> Option<i32> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(err);
    while let Some(err) = next {
        if let Some(err) = err.downcast_ref::<Error>() {
            return err.errno();
        }
        let Some(err) = err.downcast_ref::<io::Error>() else {
            next = err.source();
            continue;
        };
        if let Some(errno) = err.raw_os_error() {
            return Some(errno);
        }
        next = match err.get_ref() {
            Some(inner) => Some(inner),
            None => None,
        };
    }
    None
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errno, ack } => {
                write!(f, "{}", io::Error::from_raw_os_error(*errno))?;
                if let Some(message) = &ack.message {
                    write!(f, ": {message}")?;
                }
                if let Some(path) = &ack.attribute {
                    write!(f, " (attribute {:?} number {})", path.types, path.nth)?;
                }
                if let Some(kind) = ack.missing {
                    write!(f, " (attribute {kind} is missing)")?;
                }
                Ok(())
            }
            Self::NoFamily(name) => {
                write!(f, "this kernel has no generic netlink family {name:?}")
            }
            Self::NoGroup(name) => {
                write!(f, "this kernel's family has no multicast group {name:?}")
            }
            Self::Lost => f.write_str("the kernel had no room for what it had to tell"),
            Self::Io(err) => err.fmt(f),
            Self::Answer(what) => f.write_str(what),
        }
    }
}

/// What a family told by itself: a command, and its attributes.
pub type Notification = (u8, Vec<u8>);

/// A generic netlink socket, in the network namespace of the thread that opened it.
pub struct GenericSocket {
    socket: Socket,
    sequence: u32,
    warning: Option<String>,
}

impl fmt::Debug for GenericSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenericSocket")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl AsFd for GenericSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl GenericSocket {
    /// Opens a socket that is told reasons with errors.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: those of `socket()`, `bind()` and `setsockopt()`.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(TIMEOUT_SECONDS))
            .map_err(io::Error::from)?;
        Ok(Self {
            socket,
            sequence: 0,
            warning: None,
        })
    }

    /// The number of a family.
    ///
    /// # Errors
    ///
    /// [`Error::NoFamily`] if the kernel has none of this name; those of [`request`](Self::request).
    pub fn family(&mut self, name: &str) -> Result<u16, Error> {
        self.family_reply(name)?
            .iter()
            .flat_map(|message| attributes(message))
            .find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID)
            .and_then(|(_, id)| id.try_into().map(u16::from_ne_bytes).ok())
            .ok_or(Error::Answer("the family's answer has no id"))
    }

    /// The number of a family's multicast group.
    ///
    /// # Errors
    ///
    /// [`Error::NoGroup`] if the family has none of this name; those of [`family`](Self::family).
    pub fn group(&mut self, family: &str, name: &str) -> Result<u32, Error> {
        self.family_reply(family)?
            .iter()
            .flat_map(|message| attributes(message))
            .filter(|(kind, _)| *kind == CTRL_ATTR_MCAST_GROUPS)
            .flat_map(|(_, groups)| attributes(groups))
            .find_map(|(_, group)| group_id(group, name))
            .ok_or_else(|| Error::NoGroup(name.to_owned()))
    }

    /// From now on what is told to a multicast group is told to this socket, too, which waits for nothing any more: it
    /// is not for requests.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: those of `setsockopt()` and `fcntl()`.
    pub fn join(&mut self, group: u32) -> Result<(), Error> {
        self.socket.add_membership(group)?;
        Ok(self.socket.set_non_blocking(true)?)
    }

    /// What was told by a family, if there is something.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] if the kernel had no room for something; [`Error::Io`]: those of `recv()`; [`Error::Answer`] if
    /// it is malformed.
    pub fn try_notifications(&mut self, family: u16) -> Result<Option<Vec<Notification>>, Error> {
        let datagram = match self.socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => return Err(Error::Lost),
            Err(err) => return Err(err.into()),
        };
        let messages = Messages(&datagram).filter_map(|message| {
            let told = |message: NetlinkBuffer<&[u8]>| {
                let body = message.payload();
                let command = *body.first()?;
                let attrs = body.get(GENL_HEADER..)?.to_vec();
                (message.message_type() == family).then_some((command, attrs))
            };
            message.map(told).transpose()
        });
        Ok(Some(messages.collect::<Result<_, _>>()?))
    }

    fn family_reply(&mut self, name: &str) -> Result<Vec<Vec<u8>>, Error> {
        let attrs = Attrs::new().string(CTRL_ATTR_FAMILY_NAME, name);
        match self.request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &attrs) {
            Err(Error::Refused {
                errno: libc::ENOENT,
                ..
            }) => Err(Error::NoFamily(name.to_owned())),
            other => other,
        }
    }

    /// What the kernel said beside its success, if the last request had one.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Sends a request, and gives the attributes of each message of the answer.
    ///
    /// # Errors
    ///
    /// - [`Error::Refused`], with what the kernel says about it;
    /// - [`Error::Io`]: those of `send()` and `recv()`, [`WouldBlock`](io::ErrorKind::WouldBlock) if no answer has come
    ///   for a minute, [`InvalidInput`](io::ErrorKind::InvalidInput) if the request is longer than its header can say;
    /// - [`Error::Answer`] if the answer is malformed.
    pub fn request(
        &mut self,
        family: u16,
        command: u8,
        attrs: &Attrs,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.transact(family, command, NLM_F_ACK, attrs)
    }

    /// Like [`request`](Self::request), for a list.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn dump(&mut self, family: u16, command: u8, attrs: &Attrs) -> Result<Vec<Vec<u8>>, Error> {
        self.transact(family, command, NLM_F_DUMP, attrs)
    }

    fn transact(
        &mut self,
        family: u16,
        command: u8,
        flags: u16,
        attrs: &Attrs,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.sequence += 1;
        self.warning = None;
        let request = encode(family, command, flags | NLM_F_REQUEST, self.sequence, attrs)
            .ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        self.socket.send(&request, 0)?;

        let mut answer = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for message in Messages(&datagram) {
                let message = message?;
                let body = message.payload();

                if message.sequence_number() != self.sequence {
                    continue;
                }
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        self.warning =
                            finish(message.message_type(), message.flags(), body, &request)?;
                        return Ok(answer);
                    }
                    _ => answer.push(body.get(GENL_HEADER..).unwrap_or(&[]).to_vec()),
                }
            }
        }
    }
}

/// The messages of a datagram. Ends after one that is malformed.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<NetlinkBuffer<&'a [u8]>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.0);
        if rest.is_empty() {
            return None;
        }
        let Ok(message) = NetlinkBuffer::new_checked(rest) else {
            return Some(Err(Error::Answer("a malformed netlink message")));
        };
        let next = usize::try_from(message.length()).ok();
        let next = next.and_then(|next| next.checked_next_multiple_of(4));
        self.0 = next.and_then(|next| rest.get(next..)).unwrap_or(&[]);
        Some(Ok(message))
    }
}

/// The number of a multicast group, if this is its name.
fn group_id(group: &[u8], name: &str) -> Option<u32> {
    let find = |kind| attributes(group).find_map(|(k, value)| (k == kind).then_some(value));
    let is_it = find(CTRL_ATTR_MCAST_GRP_NAME)?.strip_suffix(&[0])? == name.as_bytes();
    let id = find(CTRL_ATTR_MCAST_GRP_ID)?;
    is_it.then(|| id.try_into().map(u32::from_ne_bytes).ok())?
}

/// A request, unless it is too long for there to be room for its length.
fn encode(family: u16, command: u8, flags: u16, sequence: u32, attrs: &Attrs) -> Option<Vec<u8>> {
    const VERSION: u8 = 1;
    let len = FIRST_ATTR + attrs.0.len();
    let mut out = Vec::with_capacity(len);
    out.extend(u32::try_from(len).ok()?.to_ne_bytes());
    out.extend(family.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    // The port is for the kernel to fill in.
    out.extend(0u32.to_ne_bytes());
    out.extend([command, VERSION, 0, 0]);
    out.extend(&attrs.0);
    Some(out)
}

/// Reads the message that ends an answer; with success there may be a warning.
fn finish(kind: u16, flags: u16, body: &[u8], request: &[u8]) -> Result<Option<String>, Error> {
    let code = body
        .get(..4)
        .and_then(|code| code.try_into().map(i32::from_ne_bytes).ok())
        .ok_or(Error::Answer("a truncated acknowledgement"))?;
    // An error repeats the request, or just its header when capped; the end of a dump does not.
    let repeated = match kind {
        NLMSG_DONE => 0,
        _ if flags & NLM_F_CAPPED != 0 => NLMSG_HEADER,
        _ => request.len().next_multiple_of(4),
    };
    let tlvs = match flags & NLM_F_ACK_TLVS {
        0 => &[],
        _ => body.get(4 + repeated..).unwrap_or(&[]),
    };
    let ack = ExtAck::parse(tlvs, request);
    if code >= 0 {
        return Ok(ack.message);
    }
    Err(Error::Refused {
        errno: code.saturating_neg(),
        ack: Box::new(ack),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(id: u32) -> Attrs<'static> {
        Attrs::new().u32(3, 0).u32(1, id)
    }

    fn request() -> (Attrs<'static>, Vec<u8>) {
        let attrs = Attrs::new()
            .u32(1, 9)
            .nested(2, &queue(4))
            .nested(2, &queue(5))
            .u8(7, 1);
        let request = encode(30, 13, 5, 1, &attrs).unwrap();
        (attrs, request)
    }

    /// The offset of the `n`th occurrence of a whole attribute in a request.
    fn offset_of(request: &[u8], attr: &Attrs, n: usize) -> usize {
        request
            .windows(attr.0.len())
            .enumerate()
            .filter(|(_, w)| *w == attr.0)
            .nth(n)
            .unwrap()
            .0
    }

    #[test]
    fn an_offset_leads_to_its_attribute() {
        let (attrs, request) = request();
        for (attr, n, types, nth) in [
            (Attrs::new().u32(1, 9), 0, vec![1], 0),
            (Attrs::new().nested(2, &queue(4)), 0, vec![2], 0),
            (Attrs::new().u32(1, 5), 0, vec![2, 1], 1),
            (Attrs::new().u32(3, 0), 1, vec![2, 3], 1),
            (Attrs::new().u8(7, 1), 0, vec![7], 0),
        ] {
            let offset = offset_of(&request, &attr, n);
            assert_eq!(
                AttrPath::find(&attrs.0, offset),
                Some(AttrPath { types, nth })
            );
        }
    }

    #[test]
    fn a_number_is_not_taken_for_an_attribute() {
        // As an attribute, it would be an empty one of type 0.
        let attrs = Attrs::new().u32(1, 4);
        assert_eq!(AttrPath::find(&attrs.0, FIRST_ATTR + NLA_HEADER_SIZE), None);
    }

    #[test]
    fn a_refusal_carries_its_reasons() {
        let (_, request) = request();
        let at = offset_of(&request, &Attrs::new().u32(1, 5), 0);
        let tlvs = Attrs::new()
            .string(1, "no such queue")
            .u32(2, at.try_into().unwrap());
        let mut body = (-22i32).to_ne_bytes().to_vec();
        body.extend(&request[..NLMSG_HEADER]);
        body.extend(tlvs.0);

        let flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let Err(Error::Refused { errno, ack }) = finish(NLMSG_ERROR, flags, &body, &request) else {
            panic!("not refused");
        };
        assert_eq!(errno, 22);
        assert_eq!(ack.message.as_deref(), Some("no such queue"));
        assert_eq!(
            ack.attribute,
            Some(AttrPath {
                types: vec![2, 1],
                nth: 1
            })
        );
    }

    #[test]
    fn an_uncapped_refusal_repeats_the_request() {
        let (_, request) = request();
        let mut body = (-1i32).to_ne_bytes().to_vec();
        body.extend(&request);
        body.extend(Attrs::new().u32(5, 3).0);
        let Err(Error::Refused { ack, .. }) = finish(NLMSG_ERROR, NLM_F_ACK_TLVS, &body, &request)
        else {
            panic!("not refused");
        };
        assert_eq!(ack.missing, Some(3));
    }

    #[test]
    fn an_error_number_is_not_lost() {
        use std::error::Error as _;

        let refused = || Error::Refused {
            errno: libc::EEXIST,
            ack: Box::default(),
        };
        assert!(refused().source().is_none());
        let err = io::Error::from(refused());
        assert_eq!(err.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(errno_of(&err), Some(libc::EEXIST));
        assert_eq!(errno_of(&io::Error::other(err)), Some(libc::EEXIST));

        let plain = || io::Error::from_raw_os_error(libc::EPERM);
        let err = Error::Io(plain());
        assert_eq!(err.errno(), Some(libc::EPERM));
        assert!(err.source().is_some_and(|source| source.is::<io::Error>()));
        let err = io::Error::from(err);
        assert_eq!(err.raw_os_error(), Some(libc::EPERM));
        assert_eq!(errno_of(&io::Error::other(plain())), Some(libc::EPERM));

        let none = io::Error::from(Error::Answer("nothing"));
        assert_eq!((none.kind(), errno_of(&none)), (io::ErrorKind::Other, None));
        assert_eq!(errno_of(&io::ErrorKind::TimedOut.into()), None);
    }

    #[test]
    fn a_group_is_found_by_its_name() {
        let group = |id, name| Attrs::new().u32(2, id).string(1, name);
        assert_eq!(group_id(group(5, "dmabuf").as_bytes(), "dmabuf"), Some(5));
        assert_eq!(group_id(group(5, "dmabufs").as_bytes(), "dmabuf"), None);
        assert_eq!(
            group_id(Attrs::new().string(1, "dmabuf").as_bytes(), "dmabuf"),
            None
        );
    }

    #[test]
    fn messages_of_a_datagram() {
        let one = encode(30, 18, 0, 0, &Attrs::new().u32(1, 9)).unwrap();
        let two = encode(30, 19, 0, 0, &Attrs::new().u8(1, 9)).unwrap();
        let datagram = [one.as_slice(), &two].concat();
        let commands = Messages(&datagram).map(|message| message.unwrap().payload()[0]);
        assert_eq!(commands.collect::<Vec<_>>(), [18, 19]);

        let cut = &datagram[..datagram.len() - 4];
        let seen = Messages(cut).map(|message| message.is_ok());
        assert_eq!(seen.collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn zero_is_success() {
        let zero = finish(NLMSG_ERROR, 0, &[0; 20], &request().1);
        assert!(matches!(zero, Ok(None)), "{zero:?}");
        assert!(finish(NLMSG_ERROR, 0, &[0; 3], &request().1).is_err());
    }

    #[test]
    fn success_with_a_warning() {
        let mut body = vec![0; 4 + NLMSG_HEADER];
        body.extend(Attrs::new().string(1, "but slowly").0);
        let flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let answer = finish(NLMSG_ERROR, flags, &body, &request().1);
        assert_eq!(answer.unwrap().as_deref(), Some("but slowly"));
    }

    #[test]
    #[should_panic = "too long"]
    fn an_attribute_without_room_for_its_length() {
        let _ = Attrs::new().bytes(1, &[0; 65532]);
    }

    proptest! {
        #[test]
        fn attributes_come_back(list in proptest::collection::vec(
            (0..0x4000u16, proptest::collection::vec(any::<u8>(), 0..50)), 0..20)) {
            let attrs = list.iter().fold(Attrs::new(), |a, (kind, value)| a.bytes(*kind, value));
            let back: Vec<_> = attributes(&attrs.0).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(back, list);
        }

        #[test]
        fn any_offset_is_survived(offset in 0..200usize, bytes: Vec<u8>) {
            let (attrs, _) = request();
            if let Some(path) = AttrPath::find(&attrs.0, offset) {
                prop_assert!(path.types.len() <= 2);
            }
            let _ = AttrPath::find(&bytes, offset);
            let _ = ExtAck::parse(&bytes, &bytes);
        }
    }
}
