// SPDX-License-Identifier: GPL-2.0

//! Rules of nf_tables with matches of iptables, as `iptables-nft` makes them. `nft` does not.

use std::io;

use crate::netlink;
use crate::netlink::Socket;
use crate::netlink::attr;
use crate::netlink::message;
use crate::netlink::netfilter;

const NESTED: u16 = 1 << 15;

/// Batches of changes to nf_tables.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

fn nested(kind: u16, attrs: &[Vec<u8>]) -> Vec<u8> {
    attr(kind | NESTED, &attrs.concat())
}

fn expression(name: &[u8], data: &[Vec<u8>]) -> Vec<u8> {
    nested(
        LIST_ELEMENT,
        &[attr(EXPRESSION_NAME, name), nested(EXPRESSION_DATA, data)],
    )
}

/// `-m string --algo bm --string PATTERN`: `struct xt_string_info`.
fn string(pattern: &[u8]) -> [u8; 160] {
    const TO: usize = 2;
    const ALGORITHM: usize = 4;
    const PATTERN: usize = ALGORITHM + 16;
    const LENGTH: usize = PATTERN + 128;
    let mut info = [0; 160];
    info[TO..ALGORITHM].fill(0xff);
    info[ALGORITHM..ALGORITHM + 2].copy_from_slice(b"bm");
    info[PATTERN..PATTERN + pattern.len()].copy_from_slice(pattern);
    info[LENGTH] = pattern.len() as u8;
    info
}

/// Adds a rule to a chain of the family `ip` in the calling thread's namespace: what has these bytes in it is
/// dropped.
pub fn drop_string(table: &str, chain: &str, pattern: &[u8]) -> io::Result<()> {
    const MATCH_NAME: u16 = 1;
    const MATCH_REVISION: u16 = 2;
    const MATCH_INFO: u16 = 3;
    const REVISION: u32 = 1;
    const IMMEDIATE_REGISTER: u16 = 1;
    const IMMEDIATE_DATA: u16 = 2;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CODE: u16 = 1;
    const VERDICT_REGISTER: u32 = 0;
    const DROP: u32 = 0;
    let name = |name: &str| [name.as_bytes(), &[0]].concat();
    let found = expression(
        b"match\0",
        &[
            attr(MATCH_NAME, b"string\0"),
            attr(MATCH_REVISION, &REVISION.to_be_bytes()),
            attr(MATCH_INFO, &string(pattern)),
        ],
    );
    let verdict = attr(VERDICT_CODE, &DROP.to_be_bytes());
    let dropped = expression(
        b"immediate\0",
        &[
            attr(IMMEDIATE_REGISTER, &VERDICT_REGISTER.to_be_bytes()),
            nested(IMMEDIATE_DATA, &[nested(DATA_VERDICT, &[verdict])]),
        ],
    );
    let rule = [
        attr(RULE_TABLE, &name(table)),
        attr(RULE_CHAIN, &name(chain)),
        nested(RULE_EXPRESSIONS, &[found, dropped]),
    ]
    .concat();
    let flags = netlink::REQUEST | netlink::ACK | netlink::CREATE | netlink::APPEND;
    let all = netfilter(libc::AF_UNSPEC, SUBSYSTEM);
    let ip = netfilter(libc::AF_INET, 0);
    let batch = [
        message(BATCH_BEGIN, netlink::REQUEST, &all, &[]),
        message(NEW_RULE, flags, &ip, &rule),
        message(BATCH_END, netlink::REQUEST, &all, &[]),
    ];
    Socket::open(netlink::NETFILTER)?.request(&batch.concat())
}
