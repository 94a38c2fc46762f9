// SPDX-License-Identifier: GPL-2.0

//! IPsec in the mode IPTFS, which the `ip` of Debian 12 does not know.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::netlink;
use crate::netlink::Socket;
use crate::netlink::attr;
use crate::netlink::message;

const NEW_STATE: u16 = 0x10;
const NEW_POLICY: u16 = 0x13;
const TEMPLATE: u16 = 5;
const ALGORITHM: u16 = 18;
const DIRECTION: u16 = 33;
const INITIAL_DELAY: u16 = 39;

const ESP: u8 = libc::IPPROTO_ESP as u8;
const MODE: u8 = 5;
const INDEX: [u8; 4] = 0x1234_u32.to_be_bytes();
/// Bytes of an address, and of what packets are chosen by.
const ADDRESS: usize = 16;
const SELECTOR: usize = 56;
/// Bytes of limits and of what is used of them, the latter all zero.
const LIMITS: usize = 64;
const USED: usize = 32;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// There are none: `struct xfrm_lifetime_cfg`.
fn no_limits(bytes: &mut [u8], at: usize) {
    bytes[at..at + LIMITS / 2].fill(0xff);
}

/// `struct xfrm_id`: where to, by which number.
fn put_id(bytes: &mut [u8], at: usize, to: Ipv4Addr) {
    put(bytes, at, &to.octets());
    put(bytes, at + ADDRESS, &INDEX);
    bytes[at + ADDRESS + 4] = ESP;
}

/// Has packets to an address leave the calling thread's namespace through a tunnel, in which those that come within
/// this time share a packet.
pub fn send_through(
    destination: Ipv4Addr,
    from: Ipv4Addr,
    to: Ipv4Addr,
    delay: Duration,
) -> io::Result<()> {
    const OUT: u8 = 2;
    let family = (libc::AF_INET as u16).to_ne_bytes();
    let socket = Socket::open(netlink::XFRM)?;
    let flags = netlink::REQUEST | netlink::ACK | netlink::CREATE;

    // struct xfrm_usersa_info
    const ID: usize = SELECTOR;
    const SOURCE: usize = ID + ADDRESS + 8;
    const STATE_LIMITS: usize = SOURCE + ADDRESS;
    /// Behind statistics, a sequence number and an id of our own.
    const FAMILY: usize = STATE_LIMITS + LIMITS + USED + 12 + 8;
    let mut state = [0; FAMILY + 12];
    put_id(&mut state, ID, to);
    put(&mut state, SOURCE, &from.octets());
    no_limits(&mut state, STATE_LIMITS);
    put(&mut state, FAMILY, &family);
    state[FAMILY + 2] = MODE;
    let attrs = [
        attr(ALGORITHM, &algorithm()),
        attr(DIRECTION, &[OUT]),
        attr(INITIAL_DELAY, &(delay.as_micros() as u32).to_ne_bytes()),
    ];
    socket.request(&message(NEW_STATE, flags, &state, &attrs.concat()))?;

    // struct xfrm_user_tmpl
    const TEMPLATE_FAMILY: usize = ADDRESS + 8;
    const TEMPLATE_SOURCE: usize = TEMPLATE_FAMILY + 4;
    const TEMPLATE_MODE: usize = TEMPLATE_SOURCE + ADDRESS + 4;
    const ALGORITHMS: usize = TEMPLATE_MODE + 4;
    let mut template = [0; ALGORITHMS + 12];
    put_id(&mut template, 0, to);
    put(&mut template, TEMPLATE_FAMILY, &family);
    put(&mut template, TEMPLATE_SOURCE, &from.octets());
    template[TEMPLATE_MODE] = MODE;
    template[ALGORITHMS..].fill(0xff);

    // struct xfrm_userpolicy_info
    /// Behind the ports and their masks in the selector.
    const SELECTED_FAMILY: usize = 2 * ADDRESS + 8;
    const SELECTED_PREFIX: usize = SELECTED_FAMILY + 2;
    /// Behind a priority and an index.
    const WAY: usize = SELECTOR + LIMITS + USED + 8;
    const POLICY_OUT: u8 = 1;
    let mut policy = [0; WAY + 8];
    put(&mut policy, 0, &destination.octets());
    put(&mut policy, SELECTED_FAMILY, &family);
    policy[SELECTED_PREFIX] = 32;
    no_limits(&mut policy, SELECTOR);
    policy[WAY] = POLICY_OUT;
    let attrs = attr(TEMPLATE, &template);
    socket.request(&message(NEW_POLICY, flags, &policy, &attrs))
}

/// `struct xfrm_algo_aead`: name, bits of the key and of the signature, and a key that anybody knows.
fn algorithm() -> [u8; 92] {
    const NAME: usize = 64;
    const KEY: usize = 16 + 4;
    const SIGNATURE: u32 = 128;
    let mut algorithm = [0; NAME + 8 + KEY];
    put(&mut algorithm, 0, b"rfc4106(gcm(aes))");
    put(&mut algorithm, NAME, &(8 * KEY as u32).to_ne_bytes());
    put(&mut algorithm, NAME + 4, &SIGNATURE.to_ne_bytes());
    algorithm
}
