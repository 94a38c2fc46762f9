// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The `ethtool` generic netlink family, as far as header split goes.

use crate::netlink::Attrs;
use crate::netlink::Error;
use crate::netlink::GenericSocket;
use crate::netlink::attributes;

const RINGS_GET: u8 = 15;
const RINGS_SET: u8 = 16;

const HEADER: u16 = 1;
const HEADER_DEV_INDEX: u16 = 1;
const TCP_DATA_SPLIT: u16 = 11;
const HDS_THRESH: u16 = 17;

/// Whether a device puts headers and payload into separate buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataSplit {
    /// The device decides.
    Auto,
    /// Never.
    Off,
    /// Always, for TCP.
    On,
}

/// Ring parameters of a device that matter for device memory.
///
/// What is `None` is unknown when read, and left alone when written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rings {
    /// `tcp-data-split`.
    pub data_split: Option<DataSplit>,
    /// `hds-thresh`: payloads up to this size stay with their headers.
    pub hds_thresh: Option<u32>,
}

impl Rings {
    /// What device memory asks for: header split on, for every size of payload.
    pub const DEVMEM: Self = Self {
        data_split: Some(DataSplit::On),
        hds_thresh: Some(0),
    };

    /// What device memory asks of a device whose rings are these: [`DEVMEM`](Self::DEVMEM), but no threshold where
    /// there is none, as with gve: the kernel refuses to set it there.
    #[must_use]
    pub fn for_devmem(self) -> Self {
        Self {
            hds_thresh: self.hds_thresh.and(Self::DEVMEM.hds_thresh),
            ..Self::DEVMEM
        }
    }
}

/// A socket of the `ethtool` family, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Ethtool {
    socket: GenericSocket,
    family: u16,
}

impl Ethtool {
    /// Opens a socket.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::open`] and [`GenericSocket::family`].
    pub fn open() -> Result<Self, Error> {
        let mut socket = GenericSocket::open()?;
        let family = socket.family("ethtool")?;
        Ok(Self { socket, family })
    }

    /// Reads the ring parameters.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::request`]: `ENODEV` if there is no such device, `EOPNOTSUPP` if it has no rings.
    pub fn rings(&mut self, ifindex: u32) -> Result<Rings, Error> {
        let reply = self
            .socket
            .request(self.family, RINGS_GET, &device(ifindex))?;
        let mut rings = Rings::default();
        for (kind, value) in reply.iter().flat_map(|message| attributes(message)) {
            match kind {
                TCP_DATA_SPLIT => {
                    rings.data_split = match value {
                        [0] => Some(DataSplit::Auto),
                        [1] => Some(DataSplit::Off),
                        [2] => Some(DataSplit::On),
                        _ => None,
                    }
                }
                HDS_THRESH => rings.hds_thresh = value.try_into().map(u32::from_ne_bytes).ok(),
                _ => (),
            }
        }
        Ok(rings)
    }

    /// Writes the ring parameters. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// Those of [`GenericSocket::request`]: besides those of [`rings`](Self::rings) `EPERM`, `EINVAL` if the device
    /// does not know a parameter, and whatever its driver says.
    pub fn set_rings(&mut self, ifindex: u32, rings: Rings) -> Result<(), Error> {
        let mut attrs = device(ifindex);
        if let Some(split) = rings.data_split {
            let value = match split {
                DataSplit::Auto => 0,
                DataSplit::Off => 1,
                DataSplit::On => 2,
            };
            attrs = attrs.u8(TCP_DATA_SPLIT, value);
        }
        if let Some(thresh) = rings.hds_thresh {
            attrs = attrs.u32(HDS_THRESH, thresh);
        }
        self.socket
            .request(self.family, RINGS_SET, &attrs)
            .map(drop)
    }
}

fn device(ifindex: u32) -> Attrs<'static> {
    Attrs::new().nested(HEADER, &Attrs::new().u32(HEADER_DEV_INDEX, ifindex))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_set_where_there_is_one() {
        let rings = Rings {
            data_split: Some(DataSplit::Off),
            hds_thresh: Some(256),
        };
        assert_eq!(rings.for_devmem(), Rings::DEVMEM);
    }

    #[test]
    fn no_threshold_is_set_where_there_is_none() {
        let rings = Rings {
            data_split: Some(DataSplit::Off),
            hds_thresh: None,
        };
        let wanted = rings.for_devmem();
        assert_eq!(wanted.data_split, Some(DataSplit::On));
        assert_eq!(wanted.hds_thresh, None);
    }
}
