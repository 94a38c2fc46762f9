// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Headers of messages, whose fields have other types in other C libraries.

use std::io;
use std::mem;

/// A header with so many iovecs and bytes of control data: what `sendmsg()` and `recvmsg()` are given.
///
/// Fails if a field of it has no room for that number.
pub(crate) fn header(
    iovecs: (*mut libc::iovec, usize),
    control: (*mut u8, usize),
) -> io::Result<libc::msghdr> {
    // SAFETY: All-zero is a valid msghdr (null pointers, zero lengths).
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iovecs.0;
    header.msg_iovlen = fit(iovecs.1)?;
    header.msg_control = control.0.cast();
    header.msg_controllen = fit(control.1)?;
    Ok(header)
}

/// The control data that a call with this header has left in its buffer.
pub(crate) fn control<'c>(header: &libc::msghdr, buffer: &'c [u8]) -> &'c [u8] {
    buffer.get(..len(header.msg_controllen)).unwrap_or(buffer)
}

/// A length as a field says it.
fn fit<T: TryFrom<usize>>(len: usize) -> io::Result<T> {
    T::try_from(len).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// What a field says.
fn len<T>(field: T) -> usize
where
    usize: TryFrom<T>,
{
    usize::try_from(field).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr;

    #[test]
    fn what_the_kernel_wrote_and_no_more() {
        let mut buffer = [7; 40];
        let control_of = (buffer.as_mut_ptr(), buffer.len());
        let mut header = header((ptr::null_mut(), 3), control_of).unwrap();
        assert_eq!(header.msg_iovlen, 3);
        for (said, expected) in [(0, 0), (39, 39), (40, 40), (41, 40)] {
            header.msg_controllen = said;
            assert_eq!(control(&header, &buffer).len(), expected);
        }
    }

    #[test]
    fn a_length_that_does_not_fit() {
        assert_eq!(fit::<u32>(7).unwrap(), 7);
        let err = fit::<i8>(128).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::InvalidInput);
        assert_eq!((len(-1_i32), len(5_u32)), (usize::MAX, 5));
    }
}
