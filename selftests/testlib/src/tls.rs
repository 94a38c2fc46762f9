// SPDX-License-Identifier: GPL-2.0

//! TLS in the kernel, with keys that anybody knows.

use std::io;
use std::os::fd::AsFd;

use crate::sockopt;

const TCP_ULP: i32 = 31;
const SOL_TLS: i32 = 282;
const TLS_SET_RECORD_TYPE: i32 = 1;
/// The type of records with data.
const DATA: u8 = 23;

/// Which way a socket does TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Way {
    /// What is sent is encrypted.
    Tx = 1,
    /// What is received is decrypted.
    Rx = 2,
}

/// `struct tls12_crypto_info_aes_gcm_128` of TLS 1.2, with keys of zeroes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Keys {
    version: u16,
    cipher: u16,
    keys: [u8; 8 + 16 + 4 + 8],
}

/// Has the kernel encrypt what a socket sends, or decrypt what it receives.
pub fn start(socket: &impl AsFd, way: Way) -> io::Result<()> {
    sockopt::set(socket, libc::IPPROTO_TCP, TCP_ULP, *b"tls")?;
    let keys = Keys {
        version: 0x303,
        cipher: 51,
        keys: [0; 36],
    };
    sockopt::set(socket, SOL_TLS, way as i32, keys)
}

/// The head of a record of so many bytes.
pub fn record(len: u16) -> [u8; 13] {
    let [high, low] = len.to_be_bytes();
    [DATA, 3, 3, high, low, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The control message that tells the type of a record, padded for others to follow.
pub fn record_type_control() -> Vec<u8> {
    const HEADER: usize = 16;
    let mut control = vec![0; HEADER + 8];
    control[..8].copy_from_slice(&(HEADER + 1).to_ne_bytes());
    control[8..12].copy_from_slice(&SOL_TLS.to_ne_bytes());
    control[12..16].copy_from_slice(&TLS_SET_RECORD_TYPE.to_ne_bytes());
    control[HEADER] = DATA;
    control
}
