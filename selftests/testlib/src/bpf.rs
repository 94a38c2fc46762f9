// SPDX-License-Identifier: GPL-2.0

//! BPF programs of a few instructions.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const MAP_DELETE_ELEM: i32 = 3;
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const LINK_CREATE: i32 = 28;

const PROG_TYPE_SOCKET_FILTER: u32 = 1;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_SK_SKB: u32 = 14;
const PROG_TYPE_SK_MSG: u32 = 16;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PERF_EVENT_ARRAY: u32 = 4;
const MAP_TYPE_SOCKMAP: u32 = 15;
const MAP_TYPE_XSKMAP: u32 = 17;
const ATTACH_SK_SKB_STREAM_PARSER: u32 = 4;
const ATTACH_SK_SKB_STREAM_VERDICT: u32 = 5;
const ATTACH_SK_MSG_VERDICT: u32 = 7;
const ATTACH_SK_SKB_VERDICT: u32 = 38;
const ATTACH_TCX_INGRESS: u32 = 46;

/// What a verdict on what a socket receives or sends says: let it pass.
const SK_PASS: i32 = 1;

/// The head of `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of `union bpf_attr` for attaching one to a device.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for attaching one to a map.
#[repr(C)]
struct ProgAttach {
    target_fd: u32,
    prog_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for a new map.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The head of `union bpf_attr` for an entry of a map.
#[repr(C)]
struct MapEntry {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// An instruction: operation, registers, offset, number.
const fn insn(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (number as u32 as u64) << 32
}

const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_NE: u8 = 0x55;
const LOAD_WORD: u8 = 0x61;
const LOAD_BYTE: u8 = 0x71;
const STORE_BYTE: u8 = 0x72;
const STORE_DOUBLE: u8 = 0x7a;
const STORE_REG: u8 = 0x7b;
const LOAD_NUMBER: u8 = 0x18;
/// What [`LOAD_NUMBER`] loads, in the place of the second register: a map, or the address of its first value.
const OF_MAP: u8 = 1;
const OF_VALUE: u8 = 2;
const PERF_EVENT_OUTPUT: i32 = 25;
const SKB_LOAD_BYTES: i32 = 26;
const SKB_STORE_BYTES: i32 = 9;
const CSUM_LEVEL: i32 = 135;
const REDIRECT_MAP: i32 = 51;
/// What a program for ingress says: nothing, others may.
const TCX_NEXT: i32 = -1;

/// The two instructions that load a number of 64 bits, or what it stands for.
const fn load_number(to: u8, of: u8, number: u64) -> [u64; 2] {
    [
        insn(LOAD_NUMBER, to, of, 0, number as i32),
        // A map's value begins at 0 there.
        insn(0, 0, 0, 0, (number >> 32) as i32),
    ]
}

/// Loads a program.
pub(crate) fn load(prog_type: u32, flags: u32, program: &[u64]) -> io::Result<OwnedFd> {
    bpf_fd(
        PROG_LOAD,
        &ProgLoad {
            prog_type,
            insn_cnt: program.len() as u32,
            insns: program.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            prog_flags: flags,
            ..Default::default()
        },
    )
}

/// Attaches a program to a device of the calling thread's namespace, until the result is dropped.
pub(crate) fn link(
    program: &OwnedFd,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    bpf_fd(
        LINK_CREATE,
        &LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_ifindex: ifindex,
            attach_type,
            flags,
        },
    )
}

/// Loads an XDP program that passes what the first queue receives to an AF_XDP socket, and all else to the stack.
pub(crate) fn redirecting(prog_type: u32, socket: &impl AsFd) -> io::Result<OwnedFd> {
    /// Where `struct xdp_md` has the queue.
    const QUEUE: i16 = 16;
    const XDP_PASS: i32 = 2;
    let map = bpf_fd(
        MAP_CREATE,
        &MapCreate {
            map_type: MAP_TYPE_XSKMAP,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            flags: 0,
        },
    )?;
    let value = socket.as_fd().as_raw_fd() as u32;
    entry(MAP_UPDATE_ELEM, &map, (&raw const value) as u64)?;
    let mut program = vec![insn(LOAD_WORD, 2, 1, QUEUE, 0)];
    program.extend(load_number(1, OF_MAP, map.as_raw_fd() as u64));
    program.extend([
        insn(MOV, 3, 0, 0, XDP_PASS),
        insn(CALL, 0, 0, 0, REDIRECT_MAP),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    load(prog_type, 0, &program)
}

/// Has a device receive all 40 bytes of TCP options as payload, until the result is dropped.
///
/// It makes the headers of TCP over IPv4 that have as many shorter, once the device has split them off.
pub fn options_to_payload(ifindex: u32) -> io::Result<OwnedFd> {
    /// Where a frame has the length of its TCP header, in the upper half of the byte.
    const AT: i32 = 14 + 20 + 12;
    const LONGEST: i32 = 0xf0;
    const SHORTEST: i32 = 0x50;
    let program = [
        insn(MOV_REG, 6, 1, 0, 0),
        insn(MOV, 2, 0, 0, AT),
        insn(MOV_REG, 3, 10, 0, 0),
        insn(ADD, 3, 0, 0, -8),
        insn(MOV, 4, 0, 0, 1),
        insn(CALL, 0, 0, 0, SKB_LOAD_BYTES),
        insn(JUMP_NE, 0, 0, 10, 0),
        insn(LOAD_BYTE, 1, 10, -8, 0),
        insn(JUMP_NE, 1, 0, 8, LONGEST),
        insn(STORE_BYTE, 10, 0, -8, SHORTEST),
        insn(MOV_REG, 1, 6, 0, 0),
        insn(MOV, 2, 0, 0, AT),
        insn(MOV_REG, 3, 10, 0, 0),
        insn(ADD, 3, 0, 0, -8),
        insn(MOV, 4, 0, 0, 1),
        insn(MOV, 5, 0, 0, 0),
        insn(CALL, 0, 0, 0, SKB_STORE_BYTES),
        insn(MOV, 0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
    ];
    let program = load(PROG_TYPE_SCHED_CLS, 0, &program)?;
    link(&program, ifindex, ATTACH_TCX_INGRESS, 0)
}

/// A program that takes all messages for so long.
pub(crate) fn message_length(len: i32) -> io::Result<OwnedFd> {
    let program = [insn(MOV, 0, 0, 0, len), insn(EXIT, 0, 0, 0, 0)];
    load(PROG_TYPE_SOCKET_FILTER, 0, &program)
}

/// Has a device not know of any checksum that it received whether it is right, until the result is dropped.
pub fn forget_checksums(ifindex: u32) -> io::Result<OwnedFd> {
    const CSUM_LEVEL_RESET: i32 = 3;
    let program = [
        insn(MOV, 2, 0, 0, CSUM_LEVEL_RESET),
        insn(CALL, 0, 0, 0, CSUM_LEVEL),
        insn(MOV, 0, 0, 0, TCX_NEXT),
        insn(EXIT, 0, 0, 0, 0),
    ];
    let program = load(PROG_TYPE_SCHED_CLS, 0, &program)?;
    link(&program, ifindex, ATTACH_TCX_INGRESS, 0)
}

/// What a program was answered that output events with more or less of a packet.
#[derive(Debug)]
pub struct Outputs {
    answers: OwnedFd,
    sizes: usize,
    _link: OwnedFd,
}

impl Outputs {
    /// No answer yet.
    pub const NONE: i64 = i64::MIN;

    /// Has a device output an event with so many bytes of the packet, for each of these sizes, when it receives
    /// one whose frame has this length. Nobody listens to them.
    pub fn of_packets(ifindex: u32, frame: usize, sizes: &[usize]) -> io::Result<Self> {
        /// Where `struct __sk_buff` has the length.
        const LEN: i16 = 0;
        const DATA: i16 = -8;
        const CURRENT_CPU: u64 = 0xffff_ffff;
        let map = |map_type, value_size| {
            bpf_fd(
                MAP_CREATE,
                &MapCreate {
                    map_type,
                    key_size: 4,
                    value_size,
                    max_entries: 1,
                    flags: 0,
                },
            )
        };
        let events = map(MAP_TYPE_PERF_EVENT_ARRAY, 4)?;
        let answers = map(MAP_TYPE_ARRAY, 8 * sizes.len() as u32)?;

        let mut output = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            let flags = (size as u64) << 32 | CURRENT_CPU;
            output.push(insn(MOV_REG, 1, 6, 0, 0));
            output.extend(load_number(2, OF_MAP, events.as_raw_fd() as u64));
            output.extend(load_number(3, 0, flags));
            output.push(insn(MOV_REG, 4, 10, 0, 0));
            output.push(insn(ADD, 4, 0, 0, DATA.into()));
            output.push(insn(MOV, 5, 0, 0, 8));
            output.push(insn(CALL, 0, 0, 0, PERF_EVENT_OUTPUT));
            output.extend(load_number(1, OF_VALUE, answers.as_raw_fd() as u64));
            output.push(insn(STORE_REG, 1, 0, 8 * i as i16, 0));
        }
        let mut program = vec![
            insn(MOV_REG, 6, 1, 0, 0),
            insn(STORE_DOUBLE, 10, 0, DATA, 0),
            insn(LOAD_WORD, 2, 6, LEN, 0),
            insn(JUMP_NE, 2, 0, output.len() as i16, frame as i32),
        ];
        program.extend(output);
        program.push(insn(MOV, 0, 0, 0, TCX_NEXT));
        program.push(insn(EXIT, 0, 0, 0, 0));
        let program = load(PROG_TYPE_SCHED_CLS, 0, &program)?;
        let outputs = Self {
            answers,
            sizes: sizes.len(),
            _link: link(&program, ifindex, ATTACH_TCX_INGRESS, 0)?,
        };
        outputs.forget()?;
        Ok(outputs)
    }

    /// What it was answered for each size, for the last such packet: 0, a negative errno, or [`Self::NONE`].
    pub fn answers(&self) -> io::Result<Vec<i64>> {
        let mut answers = vec![0_i64; self.sizes];
        entry(MAP_LOOKUP_ELEM, &self.answers, answers.as_mut_ptr() as u64)?;
        Ok(answers)
    }

    /// Forgets them.
    pub fn forget(&self) -> io::Result<()> {
        let none = vec![Self::NONE; self.sizes];
        entry(MAP_UPDATE_ELEM, &self.answers, none.as_ptr() as u64)
    }
}

/// A sockmap, with programs that let everything pass.
#[derive(Debug)]
pub struct SockMap {
    map: OwnedFd,
    _programs: Vec<OwnedFd>,
}

impl SockMap {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        Self::with(PROG_TYPE_SK_SKB, &[(ATTACH_SK_SKB_VERDICT, SK_PASS)])
    }

    /// An empty one, whose program sees what sockets send.
    pub fn of_senders() -> io::Result<Self> {
        Self::with(PROG_TYPE_SK_MSG, &[(ATTACH_SK_MSG_VERDICT, SK_PASS)])
    }

    /// An empty one that puts together messages of so many bytes.
    pub fn of_messages(len: i32) -> io::Result<Self> {
        Self::with(
            PROG_TYPE_SK_SKB,
            &[
                (ATTACH_SK_SKB_STREAM_PARSER, len),
                (ATTACH_SK_SKB_STREAM_VERDICT, SK_PASS),
            ],
        )
    }

    /// An empty one, with programs that give the same answer to everything.
    fn with(prog_type: u32, programs: &[(u32, i32)]) -> io::Result<Self> {
        let map = bpf_fd(
            MAP_CREATE,
            &MapCreate {
                map_type: MAP_TYPE_SOCKMAP,
                key_size: 4,
                value_size: 4,
                max_entries: 1,
                flags: 0,
            },
        )?;
        let mut loaded = Vec::new();
        for &(attach_type, answer) in programs {
            let program = [insn(MOV, 0, 0, 0, answer), insn(EXIT, 0, 0, 0, 0)];
            let program = load(prog_type, 0, &program)?;
            bpf(
                PROG_ATTACH,
                &ProgAttach {
                    target_fd: map.as_raw_fd() as u32,
                    prog_fd: program.as_raw_fd() as u32,
                    attach_type,
                    flags: 0,
                },
            )?;
            loaded.push(program);
        }
        Ok(Self {
            map,
            _programs: loaded,
        })
    }

    /// Has the program see what a socket receives, or sends.
    pub fn add(&self, socket: &impl AsFd) -> io::Result<()> {
        let value = socket.as_fd().as_raw_fd() as u32;
        entry(MAP_UPDATE_ELEM, &self.map, (&raw const value) as u64)
    }

    /// From now on it does not. It would after a while, too, when the map is gone.
    pub fn remove(&self) -> io::Result<()> {
        entry(MAP_DELETE_ELEM, &self.map, 0)
    }
}

/// Reads, writes or deletes the first entry of a map. What is read or written is at an address with as much
/// memory as the map's values are long.
fn entry(command: i32, map: &OwnedFd, value: u64) -> io::Result<()> {
    let key = 0_u32;
    bpf(
        command,
        &MapEntry {
            map_fd: map.as_raw_fd() as u32,
            padding: 0,
            key: (&raw const key) as u64,
            value,
            flags: 0,
        },
    )?;
    Ok(())
}

/// A bpf() command that answers with a file descriptor.
fn bpf_fd<T>(command: i32, attr: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: The kernel just made this file descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: i32, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is the head of the command's attributes and readable for its size, what it points
    // to lives as long as the callers' arguments, and the kernel takes the rest as zero.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<T>()) };
    match ret {
        0.. => Ok(ret as i32),
        _ => Err(io::Error::last_os_error()),
    }
}
