// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Control messages as the kernel lays them out, walked without unsafe code.

/// `SCM_DEVMEM_LINEAR`: bytes of the stream that lie in the data buffer.
pub const SCM_DEVMEM_LINEAR: i32 = 78;
/// `SCM_DEVMEM_DMABUF`: bytes of the stream that lie in a dma-buf.
pub const SCM_DEVMEM_DMABUF: i32 = 79;

const WORD: usize = size_of::<usize>();
/// Size of `struct cmsghdr`, which is also where a message's data starts.
const HEADER: usize = align(WORD + 2 * size_of::<i32>());
/// Size of `struct dmabuf_cmsg`.
const DMABUF_CMSG: usize = 24;

/// Room in a control buffer for one devmem message.
pub const SPACE: usize = HEADER + align(DMABUF_CMSG);

/// Size of a control buffer that names a dma-buf to send from.
pub const TX_SPACE: usize = HEADER + align(size_of::<u32>());

const fn align(len: usize) -> usize {
    (len + WORD - 1) & !(WORD - 1)
}

/// `struct dmabuf_cmsg` of `<linux/uio.h>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmabufCmsg {
    /// Where the piece starts in the dma-buf.
    pub frag_offset: u64,
    /// Its length in bytes.
    pub frag_size: u32,
    /// What returns it to the NIC.
    pub frag_token: u32,
    /// The binding it belongs to.
    pub dmabuf_id: u32,
    /// Reserved by the kernel.
    pub flags: u32,
}

impl DmabufCmsg {
    fn parse(data: &[u8]) -> Option<Self> {
        Some(Self {
            frag_offset: u64::from_ne_bytes(field(data, 0)?),
            frag_size: u32::from_ne_bytes(field(data, 8)?),
            frag_token: u32::from_ne_bytes(field(data, 12)?),
            dmabuf_id: u32::from_ne_bytes(field(data, 16)?),
            flags: u32::from_ne_bytes(field(data, 20)?),
        })
    }
}

fn field<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Control buffer for `sendmsg()`: the offsets in its iovecs are those of this transmit binding.
pub fn tx_control(dmabuf_id: u32) -> [u8; TX_SPACE] {
    let mut control = [0; TX_SPACE];
    let message = encode(
        libc::SOL_SOCKET,
        SCM_DEVMEM_DMABUF,
        &dmabuf_id.to_ne_bytes(),
    );
    control.copy_from_slice(&message);
    control
}

/// A control message with any content, padded for another one to follow.
pub fn encode(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + align(data.len()));
    out.extend((HEADER + data.len()).to_ne_bytes());
    out.extend(level.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(data);
    out.resize(align(out.len()), 0);
    out
}

/// A devmem control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevmemCmsg {
    /// So many bytes lie in the data buffer.
    Linear(u32),
    /// The bytes lie in a dma-buf.
    Dmabuf(DmabufCmsg),
}

/// A control message of any kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cmsg<'a> {
    /// Its level.
    pub level: i32,
    /// Its type.
    pub kind: i32,
    /// Its content.
    pub data: &'a [u8],
}

/// Walks a control buffer as `recvmsg()` filled it. The walk ends at the first header that does not fit.
#[derive(Clone, Debug)]
pub struct Cmsgs<'a> {
    rest: &'a [u8],
}

impl<'a> Cmsgs<'a> {
    /// Walks `control`, which has to be just the bytes that the kernel wrote.
    pub fn new(control: &'a [u8]) -> Self {
        Self { rest: control }
    }
}

impl<'a> Iterator for Cmsgs<'a> {
    type Item = Cmsg<'a>;

    fn next(&mut self) -> Option<Cmsg<'a>> {
        let len = usize::from_ne_bytes(field(self.rest, 0)?);
        let level = i32::from_ne_bytes(field(self.rest, WORD)?);
        let kind = i32::from_ne_bytes(field(self.rest, WORD + size_of::<i32>())?);
        let Some(data) = self.rest.get(HEADER..len) else {
            self.rest = &[];
            return None;
        };
        // The last message may lack its padding.
        self.rest = self.rest.get(align(len)..).unwrap_or(&[]);
        Some(Cmsg { level, kind, data })
    }
}

/// Walks a control buffer as `recvmsg()` filled it, and yields its devmem messages.
///
/// Other messages (timestamps for example) are passed over. The walk ends at the first header that
/// does not fit, and at a devmem message that is too short to be one.
#[derive(Clone, Debug)]
pub struct DevmemCmsgs<'a> {
    cmsgs: Cmsgs<'a>,
}

impl<'a> DevmemCmsgs<'a> {
    /// Walks `control`, which has to be just the bytes that the kernel wrote.
    pub fn new(control: &'a [u8]) -> Self {
        Self {
            cmsgs: Cmsgs::new(control),
        }
    }
}

impl Iterator for DevmemCmsgs<'_> {
    type Item = DevmemCmsg;

    fn next(&mut self) -> Option<DevmemCmsg> {
        let (linear, data) = self.cmsgs.find_map(|cmsg| match (cmsg.level, cmsg.kind) {
            (libc::SOL_SOCKET, SCM_DEVMEM_LINEAR) => Some((true, cmsg.data)),
            (libc::SOL_SOCKET, SCM_DEVMEM_DMABUF) => Some((false, cmsg.data)),
            _ => None,
        })?;
        let cmsg = DmabufCmsg::parse(data)?;
        Some(match linear {
            true => DevmemCmsg::Linear(cmsg.frag_size),
            false => DevmemCmsg::Dmabuf(cmsg),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode_devmem(cmsg: &DevmemCmsg) -> Vec<u8> {
        let (kind, c) = match *cmsg {
            DevmemCmsg::Linear(frag_size) => (
                SCM_DEVMEM_LINEAR,
                DmabufCmsg {
                    frag_offset: 0,
                    frag_size,
                    frag_token: 0,
                    dmabuf_id: 0,
                    flags: 0,
                },
            ),
            DevmemCmsg::Dmabuf(c) => (SCM_DEVMEM_DMABUF, c),
        };
        let mut data = c.frag_offset.to_ne_bytes().to_vec();
        for word in [c.frag_size, c.frag_token, c.dmabuf_id, c.flags] {
            data.extend(word.to_ne_bytes());
        }
        encode(libc::SOL_SOCKET, kind, &data)
    }

    fn devmem_cmsg() -> impl Strategy<Value = DevmemCmsg> {
        prop_oneof![
            any::<u32>().prop_map(DevmemCmsg::Linear),
            any::<(u64, u32, u32, u32, u32)>().prop_map(
                |(frag_offset, frag_size, frag_token, dmabuf_id, flags)| {
                    DevmemCmsg::Dmabuf(DmabufCmsg {
                        frag_offset,
                        frag_size,
                        frag_token,
                        dmabuf_id,
                        flags,
                    })
                }
            ),
        ]
    }

    #[test]
    fn space_is_that_of_libc() {
        // SAFETY: CMSG_SPACE only computes.
        let space = unsafe { libc::CMSG_SPACE(24) };
        assert_eq!((DMABUF_CMSG, SPACE), (24, space as usize));
    }

    #[test]
    fn a_transmit_cmsg_is_laid_out_as_libc_does() {
        let control = tx_control(0x0102_0304);
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute.
        let (space, len) = unsafe { (libc::CMSG_SPACE(4) as usize, libc::CMSG_LEN(4) as usize) };
        assert_eq!(control.len(), space);
        assert_eq!(control[..WORD], len.to_ne_bytes());
        let cmsgs: Vec<_> = Cmsgs::new(&control[..len]).collect();
        let expected = Cmsg {
            level: libc::SOL_SOCKET,
            kind: SCM_DEVMEM_DMABUF,
            data: &0x0102_0304u32.to_ne_bytes(),
        };
        assert_eq!(cmsgs, [expected]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(cmsgs in proptest::collection::vec(devmem_cmsg(), 0..40)) {
            let bytes: Vec<u8> = cmsgs.iter().flat_map(encode_devmem).collect();
            prop_assert_eq!(DevmemCmsgs::new(&bytes).collect::<Vec<_>>(), cmsgs);
        }

        #[test]
        fn foreign_messages_are_passed_over(cmsg in devmem_cmsg(), data: Vec<u8>, kind in 0..70i32) {
            let mut bytes = encode(libc::SOL_SOCKET, kind, &data);
            bytes.extend(encode(libc::IPPROTO_TCP, SCM_DEVMEM_DMABUF, &data));
            bytes.extend(encode_devmem(&cmsg));
            prop_assert_eq!(DevmemCmsgs::new(&bytes).collect::<Vec<_>>(), vec![cmsg]);
        }

        #[test]
        fn any_bytes_end_the_walk(bytes: Vec<u8>) {
            // A message has a header at least: anything else would not come to an end.
            prop_assert!(DevmemCmsgs::new(&bytes).count() <= bytes.len() / HEADER);
        }
    }
}
