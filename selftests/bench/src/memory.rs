// SPDX-License-Identifier: GPL-2.0

//! Memory to bind that has the same scatterlist in each boot.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use devmem::DmaBuf;
use devmem::dmabuf::HUGE_PAGE;
use devmem_testlib::odd::OddDmaBuf;
use devmem_testlib::odd::Segment;
use devmem_testlib::odd::Shape;
use devmem_testlib::provider;

use crate::layout::BUFFER;

/// A dma-buf of real memory.
#[derive(Debug)]
pub enum Memory {
    /// A scatterlist entry for each page.
    Pages(OddDmaBuf),
    /// Huge pages.
    Huge(DmaBuf),
}

impl Memory {
    /// Single pages. Those of a udmabuf share an entry where they happen to be neighbours.
    pub fn pages(size: usize) -> io::Result<Self> {
        let page = Segment {
            addr: 0,
            len: BUFFER,
        };
        let segments = vec![page; size / BUFFER as usize];
        let bytes = vec![0; size];
        Ok(Self::Pages(Shape::new(&segments).of_memory(&bytes)?))
    }

    /// Huge pages, which it asks the kernel to have.
    pub fn huge(size: usize) -> io::Result<Self> {
        provider::huge_pages(size / HUGE_PAGE)?;
        Ok(Self::Huge(DmaBuf::udmabuf_huge(size)?))
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Pages(dmabuf) => dmabuf.as_fd(),
            Self::Huge(dmabuf) => dmabuf.as_fd(),
        }
    }
}
