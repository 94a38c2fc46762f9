// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What goes over the control connection, byte by byte. `Documentation/bulk.rst` has the tables.
//!
//! Each kind of frame has one length, all numbers are little-endian, and what has no meaning is zero: there is one way to
//! write a frame, and what is written in another way is none.

use std::fmt;

use super::keys::Key;

/// The first word of a connection.
pub const MAGIC: u32 = u32::from_le_bytes(*b"DMBK");
/// The version of this protocol, the only one so far.
pub const VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// The longest frame.
pub const LONGEST: usize = HEADER + 8 + NOTE;
/// Bytes of a note.
pub const NOTE: usize = 64;
/// Most lanes of a connection.
pub const MAX_LANES: u16 = 64;

/// What one end says to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the table in Documentation/bulk.rst has the fields"
)]
pub enum Frame {
    /// The first one of either end.
    Hello(Hello),
    /// From the beginning of the connection on so many bytes may be sent on a lane.
    Credit { lane: u16, limit: u64 },
    /// Wants to write to the peer's memory.
    Put {
        id: u64,
        key: Key,
        offset: u64,
        len: u64,
    },
    /// Wants to read the peer's memory.
    Get {
        id: u64,
        key: Key,
        offset: u64,
        len: u64,
    },
    /// The next bytes of a lane are the next ones of a put of the end that says this.
    PutData { id: u64, lane: u16, len: u32 },
    /// The next bytes of a lane are the next ones of a get of the other end.
    GetData { id: u64, lane: u16, len: u32 },
    /// Tells the peer's program something, once all puts before it are in place.
    Notify { id: u64, note: [u8; NOTE] },
    /// Gives up a request of its own.
    Cancel { id: u64 },
    /// A request of the other end is over.
    Done { id: u64, status: Status },
    /// There will be no more requests of this end.
    Bye,
    /// The connection is over, and why.
    Error(Fault),
}

/// What an end says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The oldest version that it knows.
    pub lowest: u16,
    /// The newest one.
    pub highest: u16,
    /// How many lanes there are.
    pub lanes: u16,
    /// How many requests of the other end it takes at once.
    pub requests: u32,
    /// Which machine it is on, if it says so.
    pub host: [u8; 16],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// All of it is in place; a note was taken.
    Placed,
    /// There is no such key, or not any more.
    Key,
    /// The key does not go that far.
    Range,
    /// The key is not for that.
    Rights,
    /// The memory could not be written, or read for a get.
    Memory,
    /// The end that asked has given it up.
    Cancelled,
    /// A note whose puts were not all placed.
    Fenced,
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Something is no frame.
    Malformed,
    /// The ends have no version in common.
    Version,
    /// The ends are not agreed on how many lanes there are.
    Lanes,
    /// A frame that makes no sense here.
    Unexpected,
    /// More bytes than there was credit for.
    Overrun,
    /// More requests than the end takes.
    Requests,
    /// A request that there is not, or a number that is not the next one.
    Unknown,
    /// A length that does not fit.
    Length,
    /// The end that says this cannot go on, for a reason of its own.
    Local,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Placed => "all of it is in place",
            Self::Key => "there is no such key, or not any more",
            Self::Range => "the key does not go that far",
            Self::Rights => "the key is not for that",
            Self::Memory => "the memory could not be written, or read",
            Self::Cancelled => "it was given up",
            Self::Fenced => "what was put before it is not all in place",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "something is no frame",
            Self::Version => "no version in common",
            Self::Lanes => "not the same number of lanes, or no such lane",
            Self::Unexpected => "a frame that makes no sense",
            Self::Overrun => "more bytes than there was credit for",
            Self::Requests => "more requests than the end takes",
            Self::Unknown => "no such request, or a number that is not the next one",
            Self::Length => "a length that does not fit",
            Self::Local => "the end cannot go on, for a reason of its own",
        })
    }
}

pub(super) const STATUS: [Status; 7] = [
    Status::Placed,
    Status::Key,
    Status::Range,
    Status::Rights,
    Status::Memory,
    Status::Cancelled,
    Status::Fenced,
];

const FAULTS: [Fault; 9] = [
    Fault::Malformed,
    Fault::Version,
    Fault::Lanes,
    Fault::Unexpected,
    Fault::Overrun,
    Fault::Requests,
    Fault::Unknown,
    Fault::Length,
    Fault::Local,
];

impl Status {
    /// The number that it goes by.
    pub fn code(self) -> u32 {
        code(&STATUS, self)
    }
}

impl Fault {
    /// The number that it goes by.
    pub fn code(self) -> u32 {
        code(&FAULTS, self) + 1
    }
}

fn code<T: PartialEq>(all: &[T], one: T) -> u32 {
    let at = all.iter().position(|other| *other == one);
    // They are all in there.
    at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
}

fn decoded<T: Copy>(all: &[T], code: u32) -> Result<T, Fault> {
    let at = usize::try_from(code).map_err(|_| Fault::Malformed)?;
    all.get(at).copied().ok_or(Fault::Malformed)
}

const HELLO: u16 = 1;
const CREDIT: u16 = 2;
const PUT: u16 = 3;
const GET: u16 = 4;
const PUT_DATA: u16 = 5;
const GET_DATA: u16 = 6;
const NOTIFY: u16 = 7;
const CANCEL: u16 = 8;
const DONE: u16 = 9;
const BYE: u16 = 10;
const ERROR: u16 = 11;

/// How long a frame of this kind is.
fn length_of(kind: u16) -> Result<usize, Fault> {
    let body = match kind {
        HELLO => 32,
        CREDIT => 8,
        PUT | GET => 40,
        PUT_DATA | GET_DATA => 16,
        NOTIFY => 8 + NOTE,
        CANCEL | DONE => 8,
        BYE | ERROR => 0,
        _ => return Err(Fault::Malformed),
    };
    Ok(HEADER + body)
}

impl Frame {
    fn kind(&self) -> u16 {
        match self {
            Self::Hello(_) => HELLO,
            Self::Credit { .. } => CREDIT,
            Self::Put { .. } => PUT,
            Self::Get { .. } => GET,
            Self::PutData { .. } => PUT_DATA,
            Self::GetData { .. } => GET_DATA,
            Self::Notify { .. } => NOTIFY,
            Self::Cancel { .. } => CANCEL,
            Self::Done { .. } => DONE,
            Self::Bye => BYE,
            Self::Error(_) => ERROR,
        }
    }

    /// Appends its bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let begin = to.len();
        let word = match *self {
            Self::Hello(_) => MAGIC,
            Self::Credit { lane, .. } | Self::PutData { lane, .. } | Self::GetData { lane, .. } => {
                lane.into()
            }
            Self::Done { status, .. } => status.code(),
            Self::Error(fault) => fault.code(),
            _ => 0,
        };
        to.extend(self.kind().to_le_bytes());
        // Its length follows, once it is known.
        to.extend([0; 2]);
        to.extend(word.to_le_bytes());
        match *self {
            Self::Hello(hello) => {
                for number in [hello.lowest, hello.highest, hello.lanes, 0] {
                    to.extend(number.to_le_bytes());
                }
                to.extend(u64::from(hello.requests).to_le_bytes());
                to.extend(hello.host);
            }
            Self::Credit { limit, .. } => to.extend(limit.to_le_bytes()),
            Self::Put {
                id,
                key,
                offset,
                len,
            }
            | Self::Get {
                id,
                key,
                offset,
                len,
            } => {
                to.extend(id.to_le_bytes());
                to.extend(key.0);
                to.extend(offset.to_le_bytes());
                to.extend(len.to_le_bytes());
            }
            Self::PutData { id, len, .. } | Self::GetData { id, len, .. } => {
                to.extend(id.to_le_bytes());
                to.extend(u64::from(len).to_le_bytes());
            }
            Self::Notify { id, note } => {
                to.extend(id.to_le_bytes());
                to.extend(note);
            }
            Self::Cancel { id } | Self::Done { id, .. } => to.extend(id.to_le_bytes()),
            Self::Bye | Self::Error(_) => (),
        }
        // Not even the longest one is longer than that.
        let len = u16::try_from(to.len() - begin).unwrap_or(u16::MAX);
        to[begin + 2..begin + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// The first frame of these bytes, and how long it is: `None` if there is only a part of it.
    ///
    /// # Errors
    ///
    /// [`Fault::Malformed`] as soon as it cannot become one.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Fault> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else {
            return Ok(None);
        };
        let mut header = Fields(header);
        let (kind, len, word) = (header.u16()?, header.u16()?, header.u32()?);
        let expected = length_of(kind)?;
        if usize::from(len) != expected {
            return Err(Fault::Malformed);
        }
        let Some(body) = rest.get(..expected - HEADER) else {
            return Ok(None);
        };
        let frame = Self::of(kind, word, Fields(body))?;
        Ok(Some((frame, expected)))
    }

    fn of(kind: u16, word: u32, mut body: Fields<'_>) -> Result<Self, Fault> {
        let lane = || u16::try_from(word).map_err(|_| Fault::Malformed);
        let frame = match kind {
            HELLO => {
                let hello = Hello {
                    lowest: body.u16()?,
                    highest: body.u16()?,
                    lanes: body.u16()?,
                    requests: {
                        body.zero()?;
                        body.small()?
                    },
                    host: body.array()?,
                };
                return match word {
                    MAGIC => Ok(Self::Hello(hello)),
                    _ => Err(Fault::Malformed),
                };
            }
            CREDIT => Self::Credit {
                lane: lane()?,
                limit: body.u64()?,
            },
            PUT_DATA => Self::PutData {
                id: body.u64()?,
                lane: lane()?,
                len: body.small()?,
            },
            GET_DATA => Self::GetData {
                id: body.u64()?,
                lane: lane()?,
                len: body.small()?,
            },
            DONE => Self::Done {
                id: body.u64()?,
                status: decoded(&STATUS, word)?,
            },
            ERROR => Self::Error(decoded(&FAULTS, word.wrapping_sub(1))?),
            // What follows has no word.
            _ if word != 0 => return Err(Fault::Malformed),
            PUT => Self::Put {
                id: body.u64()?,
                key: Key(body.array()?),
                offset: body.u64()?,
                len: body.u64()?,
            },
            GET => Self::Get {
                id: body.u64()?,
                key: Key(body.array()?),
                offset: body.u64()?,
                len: body.u64()?,
            },
            NOTIFY => Self::Notify {
                id: body.u64()?,
                note: body.array()?,
            },
            CANCEL => Self::Cancel { id: body.u64()? },
            _ => Self::Bye,
        };
        Ok(frame)
    }
}

/// What is left of a frame.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of 64 bits that is one of 32.
    fn small(&mut self) -> Result<u32, Fault> {
        u32::try_from(self.u64()?).map_err(|_| Fault::Malformed)
    }

    fn zero(&mut self) -> Result<(), Fault> {
        match self.u16()? {
            0 => Ok(()),
            _ => Err(Fault::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind, and what its bytes are: these do not change without another version.
    #[test]
    fn the_format_is_what_it_was() {
        let key = Key(*b"0123456789abcdef");
        let hello = Hello {
            lowest: 1,
            highest: 2,
            lanes: 3,
            requests: 4,
            host: *b"FEDCBA9876543210",
        };
        let mut note = [0; NOTE];
        note[..4].copy_from_slice(b"note");
        let all: [(Frame, &str); 11] = [
            (
                Frame::Hello(hello),
                "0100 2800 444d424b 0100 0200 0300 0000 0400000000000000 46454443424139383736353433323130",
            ),
            (
                Frame::Credit { lane: 5, limit: 6 },
                "0200 1000 05000000 0600000000000000",
            ),
            (
                Frame::Put {
                    id: 7,
                    key,
                    offset: 8,
                    len: 9,
                },
                "0300 3000 00000000 0700000000000000 30313233343536373839616263646566 0800000000000000 0900000000000000",
            ),
            (
                Frame::Get {
                    id: 7,
                    key,
                    offset: 8,
                    len: 9,
                },
                "0400 3000 00000000 0700000000000000 30313233343536373839616263646566 0800000000000000 0900000000000000",
            ),
            (
                Frame::PutData {
                    id: 7,
                    lane: 5,
                    len: 10,
                },
                "0500 1800 05000000 0700000000000000 0a00000000000000",
            ),
            (
                Frame::GetData {
                    id: 7,
                    lane: 5,
                    len: 10,
                },
                "0600 1800 05000000 0700000000000000 0a00000000000000",
            ),
            (
                Frame::Notify { id: 7, note },
                &format!(
                    "0700 5000 00000000 0700000000000000 6e6f7465 {}",
                    "00".repeat(60)
                ),
            ),
            (
                Frame::Cancel { id: 7 },
                "0800 1000 00000000 0700000000000000",
            ),
            (
                Frame::Done {
                    id: 7,
                    status: Status::Fenced,
                },
                "0900 1000 06000000 0700000000000000",
            ),
            (Frame::Bye, "0a00 0800 00000000"),
            (Frame::Error(Fault::Local), "0b00 0800 09000000"),
        ];
        for (frame, hex) in all {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let got: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(got, hex.replace(' ', ""), "{frame:?}");
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, bytes.len()))));
            assert!(bytes.len() <= LONGEST);
        }
    }

    #[test]
    fn codes_are_what_they_were() {
        assert_eq!(STATUS.map(Status::code), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(FAULTS.map(Fault::code), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    /// Every byte of every frame is looked at: there is one way to write it.
    #[test]
    fn what_has_no_meaning_is_zero() {
        for (hex, at) in [
            ("0100280000000000", 4),
            ("0200100000000100", 6),
            ("0300300001000000", 4),
            ("0a000800ff000000", 4),
            ("0b00080000000000", 4),
            ("0b0008000a000000", 4),
            ("0900100007000000", 4),
            ("0c00080000000000", 0),
            ("0000080000000000", 0),
            ("0a00090000000000", 2),
            ("0a00070000000000", 2),
        ] {
            let mut bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
                .collect();
            bytes.resize(LONGEST, 0);
            assert_eq!(
                Frame::decode(&bytes),
                Err(Fault::Malformed),
                "{hex} at {at}"
            );
        }
        // A number of requests, and a length, of more than 32 bits.
        let mut bytes = Vec::new();
        Frame::PutData {
            id: 1,
            lane: 1,
            len: u32::MAX,
        }
        .encode(&mut bytes);
        assert!(Frame::decode(&bytes).is_ok());
        bytes[20] = 1;
        assert_eq!(Frame::decode(&bytes), Err(Fault::Malformed));
    }
}
