// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a program in C does with pools and groups.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::null;
use std::ptr::null_mut;
use std::time::Duration;
use std::time::Instant;

use crate::Key;
use crate::group::*;
use crate::pool::*;

const LONG: Duration = Duration::from_secs(60);

fn pool() -> *mut Pool {
    let mut pool = null_mut();
    // SAFETY: It can be written.
    assert_eq!(unsafe { dmb_pool_new(0, &raw mut pool) }, 0);
    pool
}

/// A part, its address and its length.
///
/// # Safety
///
/// The pool is valid.
unsafe fn allocated(pool: *mut Pool, mut len: usize) -> (*mut Part, *mut u8, usize) {
    let (mut part, mut address) = (null_mut(), null_mut());
    // SAFETY: As the caller guarantees.
    let made = unsafe { dmb_pool_alloc(pool, &raw mut len, &raw mut address, &raw mut part) };
    assert_eq!(made, 0);
    (part, address.cast(), len)
}

/// # Safety
///
/// Both are valid.
unsafe fn key(pool: *mut Pool, part: *mut Part) -> (Key, u64) {
    let (mut key, mut address) = (Key { bytes: [0; 16] }, 0);
    // SAFETY: As the caller guarantees.
    let made = unsafe { dmb_part_key(pool, part, &raw mut key, &raw mut address) };
    assert_eq!(made, 0);
    (key, address)
}

/// The device and the inode of each mapping, by its address.
fn mapped() -> Vec<(String, [String; 2])> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let parts = maps.lines().map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let address = words.next().unwrap();
        let file = [words.nth(2).unwrap(), words.next().unwrap()];
        (address, file)
    });
    parts.collect()
}

/// Also where there is no udmabuf, and whoever registers some of it: else it would go with the first part.
#[test]
fn allocated_memory_goes_with_its_last_part() {
    let pool = pool();
    // SAFETY: All is valid, and used as the header says.
    unsafe {
        let (whole, address, len) = allocated(pool, 5000);
        assert_eq!((len, address as usize % 4096), (8192, 0));
        address.write_bytes(7, len);
        let before = mapped();
        let here = format!("{:x}-", address as usize);
        let (_, file) = before.iter().find(|(at, _)| at.starts_with(&here)).unwrap();
        let mut part = null_mut();
        let at = address.add(100).cast();
        assert_eq!(dmb_pool_part(pool, at, 8092, &raw mut part), 0);
        dmb_part_free(pool, whole);
        assert_eq!(address.add(8191).read(), 7);
        let (first, start) = key(pool, part);
        assert_eq!(start, at as u64);
        assert_eq!(key(pool, part).0.bytes, first.bytes);
        // What is not all in there is none of it.
        let mut over = null_mut();
        assert_eq!(dmb_pool_part(pool, at, 8093, &raw mut over), 0);
        dmb_part_free(pool, over);
        dmb_part_free(pool, part);
        assert!(!mapped().iter().any(|(_, other)| other == file));
        assert_eq!(
            dmb_pool_part(pool, null_mut(), 1, &raw mut part),
            -libc::EINVAL
        );
        dmb_pool_free(pool);
    }
}

/// A part that nobody gets is let go of at once, with its key, and others are not.
#[test]
fn a_part_that_is_recalled_is_gone() {
    let pool = pool();
    // SAFETY: As above.
    unsafe {
        let (whole, address, len) = allocated(pool, 5000);
        let mut part = null_mut();
        let at = address.add(100).cast();
        assert_eq!(dmb_pool_part(pool, at, 10, &raw mut part), 0);
        let (first, _) = key(pool, part);
        let (other, _) = key(pool, whole);
        assert_eq!(dmb_part_recall(pool, part), 0);
        let registry = &(*pool).registry;
        assert!(!registry.revoke(devmem_bulk::Key(first.bytes)));
        address.add(len - 1).write(7);
        assert_eq!(dmb_part_recall(pool, whole), 0);
        assert!(!registry.revoke(devmem_bulk::Key(other.bytes)));
        dmb_pool_free(pool);
    }
}

/// A group of its own on 127.0.0.1, and where it is.
///
/// # Safety
///
/// The pool is valid.
unsafe fn group(pool: *mut Pool) -> (*mut Group, Place) {
    let mut ip = [0; 16];
    ip[..4].copy_from_slice(&[127, 0, 0, 1]);
    let (version, control, lanes) = (4, 0, 0);
    let mut at = Place {
        ip,
        version,
        control,
        lanes,
    };
    let mut group = null_mut();
    // SAFETY: As the caller guarantees.
    let made = unsafe { dmb_group_new(&raw mut at, pool, null(), &raw mut group) };
    assert_eq!(made, 0);
    assert!(at.control > 0 && at.lanes > 0);
    (group, at)
}

/// What happens next to the first one.
///
/// # Safety
///
/// Both are valid.
unsafe fn next(here: *mut Group, there: *mut Group) -> Told {
    let start = Instant::now();
    let mut told = MaybeUninit::uninit();
    while start.elapsed() < LONG {
        // SAFETY: As the caller guarantees; it is written if it is said that there is something.
        unsafe {
            assert_eq!(dmb_group_wait(there, 0, told.as_mut_ptr()), 0);
            if dmb_group_wait(here, 1, told.as_mut_ptr()) == 1 {
                return told.assume_init();
            }
        }
    }
    panic!("nothing happens");
}

#[test]
fn requests_are_known_by_their_cookies() {
    if devmem::uring::Ring::new(1).is_err() && std::env::var_os("DEVMEM_NO_SKIPS").is_none() {
        eprintln!("SKIP: no io_uring here");
        return;
    }
    let cookie = std::ptr::without_provenance_mut::<c_void>;
    let pool = pool();
    // SAFETY: As above.
    unsafe {
        let ((here, _), (there, at)) = (group(pool), group(pool));
        let end = dmb_group_connect(here, &raw const at, 1, cookie(1));
        let end = u64::try_from(end).unwrap();
        assert_eq!(
            (dmb_group_has_room(here, end), dmb_group_is_serving(there)),
            (0, 0)
        );
        let opened = next(here, there);
        assert_eq!((opened.kind, opened.end), (DMB_EVENT_OPEN, cookie(1)));
        assert_eq!(
            (dmb_group_has_room(here, end), dmb_group_is_serving(there)),
            (1, 1)
        );

        let (part, bytes, len) = allocated(pool, 4096);
        bytes.write_bytes(5, len);
        let (key, _) = key(pool, part);
        let to = |offset| Remote {
            key: Key { bytes: key.bytes },
            offset,
        };
        let from = b"abcd".as_ptr().cast();
        let put = dmb_group_put_bytes(here, end, from, 4, &to(1), cookie(2));
        assert_eq!(put, 0);
        assert_eq!(dmb_group_flush(here, end, cookie(3)), 1);
        for expected in [2, 3] {
            let told = next(here, there);
            assert_eq!(
                (told.kind, told.cookie),
                (crate::DMB_EVENT_DONE, cookie(expected))
            );
            assert_eq!((told.end, told.reason), (cookie(1), 0));
        }
        assert_eq!(dmb_group_flush(here, end, cookie(4)), 0);
        let asked = dmb_group_get_bytes(here, end, 3, &to(0), cookie(5));
        assert_eq!(asked, 0);
        let got = next(here, there);
        assert_eq!((got.kind, got.cookie), (DMB_EVENT_GOT, cookie(5)));
        assert_eq!(got.bytes.cast::<[u8; 3]>().read(), *b"\x05ab");
        let far = bytes as u64 + 100;
        let put = dmb_group_put(here, end, part, bytes as u64, 6, &to(100), cookie(6));
        assert_eq!(put, 0);
        assert_eq!(next(here, there).cookie, cookie(6));
        let asked = dmb_group_get(here, end, part, far + 8, 2, &to(1), cookie(7));
        assert_eq!(asked, 0);
        assert_eq!(next(here, there).cookie, cookie(7));
        assert_eq!(
            bytes.add(99).cast::<[u8; 11]>().read(),
            *b"\x05\x05abcd\x05\x05\x05ab"
        );
        // An address that is not in the part.
        let put = dmb_group_put(here, end, part, far + 4000, 1, &to(0), cookie(8));
        assert_eq!(put, -libc::EINVAL);

        assert_eq!(dmb_group_has_requests(here), 0);
        let put = dmb_group_put_bytes(here, end, from, 4, &to(1), cookie(9));
        assert_eq!((put, dmb_group_has_requests(here)), (0, 1));
        let mut told = MaybeUninit::uninit();
        assert_eq!(dmb_group_cancel(here, end, told.as_mut_ptr()), 1);
        let told = told.assume_init();
        assert_eq!(told.cookie, cookie(9));
        assert!(told.reason > crate::DMB_OVER);
        let mut told = MaybeUninit::uninit();
        assert_eq!(dmb_group_cancel(here, end, told.as_mut_ptr()), 0);
        dmb_part_free(pool, part);
        dmb_group_free(here, 1000);

        // Where nobody listens any more.
        let ((other, gone), (idle, _)) = (group(pool), group(pool));
        dmb_group_free(other, 0);
        let end = dmb_group_connect(there, &raw const gone, 1, cookie(10));
        assert!(end > 0);
        let over = next(there, idle);
        let expected = (crate::DMB_EVENT_OVER, DMB_OVER_UNREACHABLE, cookie(10));
        assert_eq!((over.kind, over.reason, over.end), expected);
        dmb_group_free(idle, 0);
        dmb_group_free(there, 1000);
        dmb_pool_free(pool);
    }
}
