//! A new memory file while it is being filled by its only owner.

use std::io;
use std::os::fd::AsFd;

use rustix::mm::{MapFlags, ProtFlags};

use crate::area::Area;
use crate::memfd::Memfd;
use crate::number::{size, word};
use crate::page::PageKind;

/// A memory file without other holders, mapped for writing; [`Self::into_memfd`] ends the writing.
#[derive(Debug)]
pub struct WritableMapping {
    area: Area,
    memfd: Memfd,
}

impl WritableMapping {
    /// A new memory file of `bytes` bytes, all of them holes.
    pub fn create(name: &str, bytes: usize, kind: PageKind) -> io::Result<Self> {
        let memfd = Memfd::create(name, word(bytes), kind)?;
        let area = Area::of_fd(
            memfd.as_fd(),
            0,
            size(memfd.bytes()),
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        )?;
        Ok(Self { area, memfd })
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.area.bytes()
    }

    /// The bytes. Touching a page, even by reading it, allocates it.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        let address = self.area.at(0, self.area.bytes());
        // SAFETY: the area is mapped readable and writable for as long as `self`; the file was made by us, its
        // descriptor is not given out before `self` ends, so no one else writes or cuts it.
        unsafe { std::slice::from_raw_parts_mut(address, self.area.bytes()) }
    }

    /// The file, which can then be sealed against writing: the mapping is gone.
    pub fn into_memfd(self) -> Memfd {
        self.memfd
    }
}
