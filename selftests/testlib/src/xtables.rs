// SPDX-License-Identifier: GPL-2.0

//! Rules of nf_tables with matches of iptables, as `iptables-nft` makes them. `nft` does not.

use std::io;

use crate::nfnetlink::NLM_F_ACK;
use crate::nfnetlink::NLM_F_REQUEST;
use crate::nfnetlink::Nfnetlink;
use crate::nfnetlink::attr;
use crate::nfnetlink::message;

const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
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
    let family = libc::AF_INET as u8;
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND;
    let batch = [
        message(BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYSTEM, &[]),
        message(NEW_RULE, flags, family, 0, &rule),
        message(BATCH_END, NLM_F_REQUEST, 0, SUBSYSTEM, &[]),
    ];
    Nfnetlink::open()?.request(&batch.concat())
}
