//! Memory of this process that plays guest memory: mapped as by a VMM, touched as by a guest.

use std::io;
use std::os::fd::AsFd;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::area::Area;
use crate::guard;
use crate::guest_range::GuestRange;
use crate::mapping::LostBytes;
use crate::memfd::Memfd;
use crate::page::{HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};

/// One region of guest memory; its pages may be missing, and a userfaultfd may serve them.
#[derive(Debug)]
pub struct GuestMemory {
    area: Area,
    shared: bool,
    kind: PageKind,
}

/// Backing of a region of guest memory.
#[derive(Debug, Clone, Copy)]
pub enum Backing<'a> {
    /// Private memory of no file.
    Private(PageKind),
    /// A shared mapping of a memory file from this offset.
    Shared(&'a Memfd, u64),
    /// A private mapping of a memory file from this offset: what is written here is nowhere else.
    PrivateOf(&'a Memfd, u64),
}

/// Ways in which a guest gives pages back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// MADV_DONTNEED: private pages are gone; those of a memory file stay in it and are only unmapped.
    DontNeed,
    /// MADV_REMOVE: a hole in the memory file.
    Remove,
}

impl GuestMemory {
    /// Maps a region whose base lies `shift` bytes past a 2 MiB boundary, as VMMs' bases are only 4 KiB aligned.
    ///
    /// `bytes` and `shift` are multiples of the backing's page size; later regions tend to lie below earlier ones.
    pub fn map(backing: Backing<'_>, bytes: usize, shift: usize) -> io::Result<Self> {
        let kind = match backing {
            Backing::Private(kind) => kind,
            Backing::Shared(memfd, _) | Backing::PrivateOf(memfd, _) => memfd.page_kind(),
        };
        let aligned = bytes.is_multiple_of(kind.bytes()) && shift.is_multiple_of(kind.bytes());
        if !aligned || bytes == 0 || shift >= HUGE_PAGE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a region is whole pages, shifted by whole pages",
            ));
        }
        let area = reserve(bytes, shift)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        match backing {
            Backing::Private(PageKind::Small) => {
                area.replace(None, protection, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
            }
            Backing::Private(PageKind::Huge) => {
                let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
                area.replace(None, protection, flags)?;
            }
            Backing::Shared(memfd, offset) => {
                area.replace(Some((memfd.as_fd(), offset)), protection, MapFlags::SHARED)?;
            }
            Backing::PrivateOf(memfd, offset) => {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                area.replace(Some((memfd.as_fd(), offset)), protection, flags)?;
            }
        }
        Ok(Self { area, shared: matches!(backing, Backing::Shared(..)), kind })
    }

    /// The region's range in this process.
    pub fn range(&self) -> GuestRange {
        let addresses = self.area.addresses();
        GuestRange { start: addresses.start, bytes: addresses.end - addresses.start }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.area.bytes()
    }

    /// Kind of its pages.
    pub fn page_kind(&self) -> PageKind {
        self.kind
    }

    /// Writes `from` at `offset`, faulting as a guest does.
    ///
    /// # Panics
    /// If it does not fit in the region; so do the other accesses.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let into = self.area.at(offset, from.len());
        // SAFETY: `into` is that many bytes of our writable area, of which no references are given out.
        unsafe { guard::copy(into, from.as_ptr(), from.len()) }.expect("private memory can be read");
    }

    /// Reads the bytes from `offset` that fill `into`, faulting as a guest does; a poisoned page is lost.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), LostBytes> {
        let from = self.area.at(offset, into.len());
        // SAFETY: `from` is that many bytes of our area, `into` is borrowed mutably; mapping installed the guard.
        unsafe { guard::copy(into.as_mut_ptr(), from, into.len()) }
            .map_err(|lost| LostBytes { offset: self.area.offset_of(lost.address) })
    }

    /// True if the bytes from `offset` equal `other`, faulting as a guest does.
    pub fn equals(&self, offset: usize, other: &[u8]) -> Result<bool, LostBytes> {
        let left = self.area.at(offset, other.len());
        // SAFETY: `left` is that many bytes of our area, `other` is borrowed; mapping installed the guard.
        unsafe { guard::equal(left, other.as_ptr(), other.len()) }
            .map_err(|lost| LostBytes { offset: self.area.offset_of(lost.address) })
    }

    /// Reads one byte of the page at `offset`: the cheapest way to fault it in. Ends the process if it is poisoned.
    #[inline]
    pub fn touch(&self, offset: usize) -> u8 {
        let from = self.area.at(offset, 1);
        // SAFETY: a mapped byte of our area; volatile, because other processes may write it.
        unsafe { from.read_volatile() }
    }

    /// Writes one byte at `offset`: the cheapest way to dirty a page. Ends the process if it is poisoned.
    #[inline]
    pub fn touch_write(&self, offset: usize, value: u8) {
        let into = self.area.at(offset, 1);
        // SAFETY: a mapped, writable byte of our area, of which no references are given out.
        unsafe { into.write_volatile(value) };
    }

    /// Gives pages back. If a userfaultfd reports removes, it returns once the owner has read the event.
    pub fn discard(&self, offset: usize, bytes: usize, how: Discard) -> io::Result<()> {
        // The kernel makes holes of less than a huge page by zeroing that part of it.
        let page = match how {
            Discard::DontNeed => self.kind.bytes(),
            Discard::Remove => PAGE_BYTES,
        };
        if !offset.is_multiple_of(page) || !bytes.is_multiple_of(page) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "whole pages are discarded"));
        }
        let advice = match how {
            Discard::DontNeed => Advice::LinuxDontNeed,
            Discard::Remove if !self.shared => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "private memory has no file to make holes in",
                ));
            }
            Discard::Remove => Advice::LinuxRemove,
        };
        // SAFETY: the region's bytes change, and no reference to them exists.
        unsafe { self.area.advise(offset, bytes, advice) }
    }
}

/// Reserves addresses for `bytes` bytes, the first `shift` bytes past a 2 MiB boundary, without memory yet.
fn reserve(bytes: usize, shift: usize) -> io::Result<Area> {
    let room = bytes.checked_add(2 * HUGE_PAGE_BYTES).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "a region of that size has no addresses")
    })?;
    let area = Area::anonymous(room, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)?;
    let start = area.at(0, room).addr();
    let base = start.next_multiple_of(HUGE_PAGE_BYTES) + shift;
    area.narrowed(base - start, bytes)
}
