// SPDX-License-Identifier: GPL-2.0

//! Netlink requests as bytes, well-formed ones and spoilt ones.

use devmem::netdev::cmd;
use devmem::netdev::dmabuf;
use devmem::netdev::page_pool;
use devmem::netdev::queue;

use crate::input::Base;
use crate::input::Edit;
use crate::input::Family;
use crate::input::KindFlags;
use crate::input::Number;
use crate::input::Request;
use crate::input::SmallKind;
use crate::input::Value;

const NLMSG_HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLA_HEADER: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_F_NET_BYTEORDER: u16 = 1 << 14;

const CMD_DEV_GET: u8 = 1;
const CMD_PAGE_POOL_STATS_GET: u8 = 9;
const CMD_NAPI_GET: u8 = 11;
const CMD_QSTATS_GET: u8 = 12;
/// Changes how the device runs, which is no business of ours.
const CMD_NAPI_SET: u8 = 14;

const GENL_ID_CTRL: u16 = 16;
/// Types below this are netlink's own.
const FIRST_FAMILY: u8 = 16;

/// Requests grow no longer than this: repeating can double them.
const MAX_ATTRS: usize = 64;

/// A queue which nothing is bound to.
const FREE_QUEUE: u32 = 2;
/// A limit that a reader gets to.
const TOKENS: u32 = 4;

/// An attribute.
#[derive(Clone, Debug)]
struct Attr {
    kind: u16,
    /// What is wrong with the length that it claims.
    error: i8,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Nest(Vec<Attr>),
}

impl Attr {
    fn u32(kind: u16, value: u32) -> Self {
        Self::bytes(kind, value.to_ne_bytes().to_vec())
    }

    fn bytes(kind: u16, bytes: Vec<u8>) -> Self {
        Self {
            kind,
            error: 0,
            content: Content::Bytes(bytes),
        }
    }

    fn nest(kind: u16, attrs: Vec<Attr>) -> Self {
        Self {
            kind: kind | NLA_F_NESTED,
            error: 0,
            content: Content::Nest(attrs),
        }
    }

    fn queue(id: u32, kind: u32) -> Vec<Self> {
        vec![Self::u32(queue::ID, id), Self::u32(queue::TYPE, kind)]
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; NLA_HEADER]);
        match &self.content {
            Content::Bytes(bytes) => out.extend(bytes),
            Content::Nest(attrs) => attrs.iter().for_each(|attr| attr.encode(out)),
        }
        let length = ((out.len() - start) as u16).wrapping_add_signed(self.error.into());
        out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        out[start + 2..start + 4].copy_from_slice(&self.kind.to_ne_bytes());
        out.resize(out.len().next_multiple_of(NLA_HEADER), 0);
    }
}

fn count(attrs: &[Attr]) -> usize {
    let inner = |attr: &Attr| match &attr.content {
        Content::Bytes(_) => 0,
        Content::Nest(attrs) => count(attrs),
    };
    attrs.iter().map(|attr| 1 + inner(attr)).sum()
}

/// Finds an attribute: the list that it is in, and its place there.
fn find(attrs: &mut Vec<Attr>, mut index: usize) -> Option<(&mut Vec<Attr>, usize)> {
    for at in 0..attrs.len() {
        if index == 0 {
            return Some((attrs, at));
        }
        index -= 1;
        let within = match &attrs[at].content {
            Content::Bytes(_) => 0,
            Content::Nest(inner) => count(inner),
        };
        if index < within {
            return match &mut attrs[at].content {
                Content::Bytes(_) => None,
                Content::Nest(inner) => find(inner, index),
            };
        }
        index -= within;
    }
    None
}

/// A request that is being made.
struct Draft<'a> {
    attrs: Vec<Attr>,
    command: u8,
    flags: u16,
    version: u8,
    family: u16,
    error: i8,
    cut: Option<u8>,
    tail: &'a [u8],
}

/// The bytes of a request to `family`, where `number` knows the numbers.
pub fn encode(request: &Request, family: u16, number: impl Fn(Number) -> u32) -> Vec<u8> {
    let (command, dump, attrs) = base(request.base, &number);
    let mut draft = Draft {
        attrs,
        command,
        flags: NLM_F_REQUEST | if dump { NLM_F_DUMP } else { NLM_F_ACK },
        version: 1,
        family,
        error: 0,
        cut: None,
        tail: &[],
    };
    for edit in &request.edits {
        draft.apply(edit, &number);
    }
    draft.encode()
}

fn base(base: Base, number: &impl Fn(Number) -> u32) -> (u8, bool, Vec<Attr>) {
    let rx = number(Number::RxDevice);
    let binding = || Attr::u32(dmabuf::ID, number(Number::RxBinding));
    match base {
        Base::BindRx | Base::BindLimited => {
            let mut attrs = vec![
                Attr::u32(dmabuf::IFINDEX, rx),
                Attr::u32(dmabuf::FD, number(Number::RxMemory)),
                Attr::nest(dmabuf::QUEUES, Attr::queue(FREE_QUEUE, queue::TYPE_RX)),
            ];
            if base == Base::BindLimited {
                attrs.push(Attr::u32(dmabuf::MAX_TOKENS, TOKENS));
            }
            (cmd::BIND_RX, false, attrs)
        }
        Base::BindTx | Base::BindShared => {
            let mut attrs = vec![
                Attr::u32(dmabuf::IFINDEX, rx),
                Attr::u32(dmabuf::FD, number(Number::TxMemory)),
            ];
            if base == Base::BindShared {
                attrs.push(Attr::bytes(dmabuf::SHARED, Vec::new()));
            }
            (cmd::BIND_TX, false, attrs)
        }
        Base::Queue => {
            let mut attrs = Attr::queue(1, queue::TYPE_RX);
            attrs.push(Attr::u32(queue::IFINDEX, rx));
            (cmd::QUEUE_GET, false, attrs)
        }
        Base::Queues => (cmd::QUEUE_GET, true, vec![Attr::u32(queue::IFINDEX, rx)]),
        Base::PagePool => (
            cmd::PAGE_POOL_GET,
            false,
            vec![Attr::u32(page_pool::ID, number(Number::Small(1)))],
        ),
        Base::PagePools => (cmd::PAGE_POOL_GET, true, Vec::new()),
        Base::PagePoolStats => {
            let info = vec![Attr::u32(page_pool::ID, number(Number::Small(1)))];
            (CMD_PAGE_POOL_STATS_GET, false, vec![Attr::nest(1, info)])
        }
        Base::Device => (CMD_DEV_GET, false, vec![Attr::u32(1, rx)]),
        Base::Napis => (CMD_NAPI_GET, true, vec![Attr::u32(1, rx)]),
        Base::QueueStats => (CMD_QSTATS_GET, true, vec![Attr::u32(1, rx)]),
        Base::Binding => (cmd::DMABUF_GET, false, vec![binding()]),
        Base::Bindings => (cmd::DMABUF_GET, true, vec![Attr::u32(dmabuf::IFINDEX, rx)]),
        Base::Flush => (cmd::DMABUF_FLUSH, false, vec![binding()]),
    }
}

fn kind_number(kind: SmallKind) -> u16 {
    match kind {
        SmallKind::One => 1,
        SmallKind::Two => 2,
        SmallKind::Three => 3,
        SmallKind::Four => 4,
        SmallKind::Five => 5,
        SmallKind::Any(kind) => kind,
    }
}

fn content(value: &Value, number: &impl Fn(Number) -> u32) -> Content {
    match value {
        Value::U32(n) => Content::Bytes(number(*n).to_ne_bytes().to_vec()),
        Value::U64(n) => Content::Bytes(u64::from(number(*n)).to_ne_bytes().to_vec()),
        Value::U8(n) => Content::Bytes(vec![*n]),
        Value::Bytes(bytes) => Content::Bytes(bytes.clone()),
        Value::Empty => Content::Bytes(Vec::new()),
        Value::Queue(id, kind) => Content::Nest(Attr::queue(number(*id), number(*kind))),
    }
}

impl<'a> Draft<'a> {
    /// The attribute of this number, counted around.
    fn find(&mut self, index: u8) -> Option<(&mut Vec<Attr>, usize)> {
        let all = count(&self.attrs);
        let index = usize::from(index).checked_rem(all)?;
        find(&mut self.attrs, index)
    }

    fn attr(&mut self, index: u8, change: impl FnOnce(&mut Attr)) {
        if let Some((list, at)) = self.find(index) {
            change(&mut list[at]);
        }
    }

    fn apply(&mut self, edit: &'a Edit, number: &impl Fn(Number) -> u32) {
        match edit {
            Edit::Remove(index) => {
                if let Some((list, at)) = self.find(*index) {
                    list.remove(at);
                }
            }
            Edit::Repeat(index) => {
                let few = count(&self.attrs) < MAX_ATTRS;
                if let Some((list, at)) = self.find(*index).filter(|_| few) {
                    list.insert(at, list[at].clone());
                }
            }
            Edit::Kind(index, kind, flags) => self.attr(*index, |attr| {
                let old = attr.kind & (NLA_F_NESTED | NLA_F_NET_BYTEORDER);
                attr.kind = match flags {
                    KindFlags::Same => kind_number(*kind) | old,
                    KindFlags::None => kind_number(*kind),
                    KindFlags::Nested => kind_number(*kind) | NLA_F_NESTED,
                    KindFlags::NetByteOrder => kind_number(*kind) | NLA_F_NET_BYTEORDER,
                };
            }),
            Edit::Length(index, error) => self.attr(*index, |attr| attr.error = *error),
            Edit::Value(index, value) => {
                let content = content(value, number);
                self.attr(*index, |attr| attr.content = content);
            }
            Edit::Nest(index, kind) => self.attr(*index, |attr| {
                *attr = Attr::nest(kind_number(*kind), vec![attr.clone()]);
            }),
            Edit::Insert(index, kind, value) => {
                let content = content(value, number);
                let nested = match content {
                    Content::Bytes(_) => 0,
                    Content::Nest(_) => NLA_F_NESTED,
                };
                let new = Attr {
                    kind: kind_number(*kind) | nested,
                    error: 0,
                    content,
                };
                match self.find(*index) {
                    Some((list, at)) => list.insert(at, new),
                    None => self.attrs.push(new),
                }
            }
            Edit::Command(command) if *command != CMD_NAPI_SET => self.command = *command,
            Edit::Command(_) => (),
            Edit::Flags(flags) => self.flags ^= flags,
            Edit::Version(version) => self.version = *version,
            Edit::Family(family) => {
                self.family = match family {
                    Family::Control => GENL_ID_CTRL,
                    Family::Reserved(kind) => u16::from(kind % FIRST_FAMILY),
                    Family::Unknown => u16::MAX,
                };
            }
            Edit::TotalLength(error) => self.error = *error,
            Edit::Cut(len) => self.cut = Some(*len),
            Edit::Tail(bytes) => self.tail = bytes,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; NLMSG_HEADER];
        out.extend([self.command, self.version, 0, 0]);
        self.attrs.iter().for_each(|attr| attr.encode(&mut out));
        out.extend(self.tail);
        let length = (out.len() as u32).wrapping_add_signed(self.error.into());
        out[..4].copy_from_slice(&length.to_ne_bytes());
        out[4..6].copy_from_slice(&self.family.to_ne_bytes());
        out[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        if let Some(len) = self.cut {
            out.truncate(len.into());
        }
        out
    }
}

/// Whether what the kernel answered says that something was bound.
pub fn says_bound(answer: &[u8], family: u16) -> bool {
    let kind = answer.get(4..6);
    let command = answer.get(NLMSG_HEADER);
    kind == Some(&family.to_ne_bytes())
        && command.is_some_and(|command| [cmd::BIND_RX, cmd::BIND_TX].contains(command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Netlink;

    const FAMILY: u16 = 30;

    fn number(number: Number) -> u32 {
        match number {
            Number::Small(n) => n.into(),
            Number::RxDevice => 7,
            _ => 9,
        }
    }

    fn request(base: Base, edits: Vec<Edit>) -> Request {
        Request {
            base,
            socket: Netlink::Rx,
            edits,
        }
    }

    #[test]
    fn without_edits_it_is_what_the_library_makes() {
        let attrs = Attr::nest(dmabuf::QUEUES, Attr::queue(2, 0));
        let mut nest = Vec::new();
        attrs.encode(&mut nest);
        let bytes = encode(&request(Base::BindRx, Vec::new()), FAMILY, number);
        assert_eq!(bytes.len(), 20 + 8 + 8 + nest.len());
        assert_eq!(bytes[..4], (bytes.len() as u32).to_ne_bytes());
        assert_eq!(bytes[20..28], [8, 0, 1, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[36..], nest);
        assert_eq!(nest[..8], [20, 0, 2, 0x80, 8, 0, 1, 0]);
    }

    #[test]
    fn attributes_in_nests_are_counted() {
        // 0: device, 1: file descriptor, 2: the queue, 3: its number, 4: its type.
        let edits = vec![Edit::Remove(3)];
        let bytes = encode(&request(Base::BindRx, edits), FAMILY, number);
        assert_eq!(bytes[36..], [12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn headers_can_lie() {
        let edits = vec![Edit::Length(0, -3), Edit::TotalLength(5), Edit::Cut(24)];
        let bytes = encode(&request(Base::Device, edits), FAMILY, number);
        assert_eq!(bytes.len(), 24);
        assert_eq!(bytes[..4], 33_u32.to_ne_bytes());
        assert_eq!(bytes[20..22], [5, 0]);
    }

    #[test]
    fn edits_of_nothing_are_survived() {
        let edits = vec![
            Edit::Remove(0),
            Edit::Remove(0),
            Edit::Repeat(1),
            Edit::Length(9, 1),
        ];
        let bytes = encode(&request(Base::Device, edits), FAMILY, number);
        assert_eq!(bytes.len(), 20);
    }
}
