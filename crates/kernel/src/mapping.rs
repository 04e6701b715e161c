//! A read-only mapping of a file that another process may write, or whose disk may fail: read by copy, never borrowed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::area::Area;
use crate::guard::{self, Lost};
use crate::memfd::Memfd;
use crate::number::size;
use crate::page::PAGE_BYTES;
use crate::source::{Source, zeroes_address};

/// Bytes of a memory file or of a file on disk, readable for as long as this lives.
///
/// Reading a page that a memory file does not have yet allocates it: use [`Memfd::data_runs`] to read a sparse one.
#[derive(Debug)]
pub struct Mapping {
    area: Area,
}

/// A byte that cannot be read: the file was cut short or its disk or memory is bad. Only this one read failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the byte at {offset} of a mapping cannot be read")]
pub struct LostBytes {
    /// Offset of the read in the mapping; of a comparison, the offset it had reached.
    pub offset: usize,
}

/// Pages asked about in one mincore call: as many as a small buffer on the stack can answer for.
const RESIDENCY_PAGES: usize = 512;

impl Mapping {
    /// Maps the whole of a memory file. The mapping does not prevent [`Memfd::seal_writes`].
    pub fn of_memfd(memfd: &Memfd) -> io::Result<Self> {
        // Through a descriptor that cannot write, the kernel counts the mapping as one that never will.
        let reader = File::open(memfd.proc_path())?;
        Self::of_fd(reader.as_fd(), size(memfd.bytes()))
    }

    /// Maps the first `bytes` bytes of a file; reading bytes beyond its end gives [`LostBytes`].
    pub fn of_file(file: &File, bytes: usize) -> io::Result<Self> {
        Self::of_fd(file.as_fd(), bytes)
    }

    fn of_fd(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let area = Area::of_fd(fd, 0, bytes, ProtFlags::READ, MapFlags::SHARED | MapFlags::NORESERVE)?;
        Ok(Self { area })
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.area.bytes()
    }

    /// Copies the bytes from `offset` that fill `into`; after an error `into` holds any mix of old and new bytes.
    ///
    /// # Panics
    /// If they are not all in the mapping; so do the other reads.
    #[inline]
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) -> Result<(), LostBytes> {
        let from = self.area.at(offset, into.len());
        // SAFETY: `from` is that many mapped bytes of our area, `into` is borrowed mutably; mapping installed the guard.
        unsafe { guard::copy(into.as_mut_ptr(), from, into.len()) }.map_err(|lost| self.lost_bytes(lost))
    }

    /// True if `bytes` bytes from `offset` equal those of `other` from `other_offset`.
    #[inline]
    pub fn equals(
        &self,
        offset: usize,
        other: &Self,
        other_offset: usize,
        bytes: usize,
    ) -> Result<bool, LostBytes> {
        let left = self.area.at(offset, bytes);
        let right = other.area.at(other_offset, bytes);
        // SAFETY: both are that many mapped bytes of areas that are borrowed; mapping them installed the guard.
        unsafe { guard::equal(left, right, bytes) }.map_err(|Lost { address }| {
            let side = if address >= left.addr() && address < left.addr() + bytes { left } else { right };
            LostBytes { offset: offset + address.saturating_sub(side.addr()).min(bytes) }
        })
    }

    /// True if the bytes from `offset` equal `other`.
    #[inline]
    pub fn equals_slice(&self, offset: usize, other: &[u8]) -> Result<bool, LostBytes> {
        let left = self.area.at(offset, other.len());
        // SAFETY: `left` is that many mapped bytes of our area, `other` is borrowed; mapping installed the guard.
        unsafe { guard::equal(left, other.as_ptr(), other.len()) }.map_err(|lost| self.lost_bytes(lost))
    }

    /// True if `bytes` bytes from `offset` are all zero; stops at the first page that is not.
    #[inline]
    pub fn is_zero(&self, offset: usize, bytes: usize) -> Result<bool, LostBytes> {
        let start = self.area.at(offset, bytes);
        let mut done = 0;
        while done < bytes {
            let step = PAGE_BYTES.min(bytes - done);
            // SAFETY: `start + done` is `step` mapped bytes of our area, of zeroes there are at least as many.
            let equal = unsafe { guard::equal(start.wrapping_add(done), zeroes_address(), step) };
            if !equal.map_err(|lost| self.lost_bytes(lost))? {
                return Ok(false);
            }
            done += step;
        }
        Ok(true)
    }

    /// True if reading `bytes` bytes from `offset` needs no disk: every page of them is in memory now.
    ///
    /// The kernel calls every page of a file resident if this user may not write it and does not own it; of a hugetlb
    /// file, only the pages that were read through this mapping.
    pub fn is_resident(&self, offset: usize, bytes: usize) -> bool {
        self.resident_prefix_bytes(offset, bytes) == bytes
    }

    /// Length in bytes of the first part of `bytes` bytes from `offset` that is in memory without a gap.
    pub fn resident_prefix_bytes(&self, offset: usize, bytes: usize) -> usize {
        let (start, length) = self.area.pages_around(offset, bytes);
        let before = self.area.at(offset, bytes).addr() - start.addr();
        let mut answers = [0_u8; RESIDENCY_PAGES];
        let mut asked = 0;
        while asked < length {
            let step = (RESIDENCY_PAGES * PAGE_BYTES).min(length - asked);
            let pages = &mut answers[..step / PAGE_BYTES];
            // SAFETY: `start + asked` is page-aligned, the buffer has a byte for each page of `step` bytes.
            let result = unsafe { libc::mincore(start.wrapping_add(asked).cast(), step, pages.as_mut_ptr()) };
            let resident =
                if result == 0 { pages.iter().take_while(|page| *page & 1 == 1).count() } else { 0 };
            asked += resident * PAGE_BYTES;
            if resident < pages.len() {
                break;
            }
        }
        asked.saturating_sub(before).min(bytes)
    }

    /// Reads the pages of `bytes` bytes from `offset` into memory and maps them here, blocking on the disk.
    pub fn populate(&self, offset: usize, bytes: usize) -> io::Result<()> {
        // SAFETY: populating for reading changes no bytes.
        unsafe { self.area.advise(offset, bytes, Advice::LinuxPopulateRead) }
    }

    /// The `bytes` bytes from `offset`, for the kernel to copy from.
    pub fn source(&self, offset: usize, bytes: usize) -> Source<'_> {
        Source::of_mapped(self.area.at(offset, bytes), bytes)
    }

    #[cold]
    fn lost_bytes(&self, lost: Lost) -> LostBytes {
        LostBytes { offset: self.area.offset_of(lost.address) }
    }
}
