// SPDX-License-Identifier: GPL-2.0

//! BPF programs of a few instructions.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const LINK_CREATE: i32 = 28;

const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_SK_SKB: u32 = 14;
const MAP_TYPE_SOCKMAP: u32 = 15;
const ATTACH_SK_SKB_STREAM_PARSER: u32 = 4;
const ATTACH_SK_SKB_STREAM_VERDICT: u32 = 5;
const ATTACH_SK_SKB_VERDICT: u32 = 38;
const ATTACH_TCX_INGRESS: u32 = 46;

/// What a verdict on a packet for a socket says: let it pass.
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
struct MapUpdate {
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
const LOAD_BYTE: u8 = 0x71;
const STORE_BYTE: u8 = 0x72;
const SKB_LOAD_BYTES: i32 = 26;
const SKB_STORE_BYTES: i32 = 9;
const CSUM_LEVEL: i32 = 135;
/// What a program for ingress says: nothing, others may.
const TCX_NEXT: i32 = -1;

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

/// A sockmap, with programs that let everything pass.
#[derive(Debug)]
pub struct SockMap {
    map: OwnedFd,
    _programs: Vec<OwnedFd>,
}

impl SockMap {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        Self::with(&[(ATTACH_SK_SKB_VERDICT, SK_PASS)])
    }

    /// An empty one that puts together messages of so many bytes.
    pub fn of_messages(len: i32) -> io::Result<Self> {
        Self::with(&[
            (ATTACH_SK_SKB_STREAM_PARSER, len),
            (ATTACH_SK_SKB_STREAM_VERDICT, SK_PASS),
        ])
    }

    /// An empty one, with programs that give the same answer to everything.
    fn with(programs: &[(u32, i32)]) -> io::Result<Self> {
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
            let program = load(PROG_TYPE_SK_SKB, 0, &program)?;
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

    /// Has the program see what a socket receives.
    pub fn add(&self, socket: &impl AsFd) -> io::Result<()> {
        let key = 0_u32;
        let value = socket.as_fd().as_raw_fd() as u32;
        bpf(
            MAP_UPDATE_ELEM,
            &MapUpdate {
                map_fd: self.map.as_raw_fd() as u32,
                padding: 0,
                key: (&raw const key) as u64,
                value: (&raw const value) as u64,
                flags: 0,
            },
        )?;
        Ok(())
    }
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
