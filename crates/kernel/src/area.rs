//! An owned stretch of this process's address space.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::guard;
use crate::number::word;
use crate::page::PAGE_BYTES;

/// Mapped addresses, unmapped when dropped. Its owner knows which uses of the bytes are allowed.
#[derive(Debug)]
pub(crate) struct Area {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: an area is an address and a length; every access to the bytes is in methods that say what they need.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `bytes` bytes of `fd` from `offset`; nothing is mapped where `bytes` is 0.
    pub(crate) fn of_fd(
        fd: BorrowedFd<'_>,
        offset: u64,
        bytes: usize,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        if bytes == 0 {
            return Ok(Self { address: ptr::dangling_mut(), bytes });
        }
        guard::install();
        // SAFETY: no address is asked for and the caller's flags have no FIXED, so nothing that exists is replaced.
        let address = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, protection, flags, fd, offset) }?;
        Ok(Self { address: address.cast(), bytes })
    }

    /// Maps `bytes` bytes that belong to no file.
    pub(crate) fn anonymous(bytes: usize, protection: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        guard::install();
        // SAFETY: no address is asked for and the caller's flags have no FIXED, so nothing that exists is replaced.
        let address = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, protection, flags) }?;
        Ok(Self { address: address.cast(), bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address `offset` bytes into the area, of which `bytes` bytes from there are mapped.
    ///
    /// # Panics
    /// If they are not all in the area.
    #[inline]
    pub(crate) fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "bytes {offset}+{bytes} lie in a mapping of {} bytes",
            self.bytes
        );
        self.address.wrapping_add(offset)
    }

    /// Offset in the area of an address that a guarded read of it stopped at.
    pub(crate) fn offset_of(&self, address: usize) -> usize {
        address.saturating_sub(self.address.addr()).min(self.bytes)
    }

    /// The page-aligned addresses around `bytes` bytes from `offset`, as far as the area goes.
    pub(crate) fn pages_around(&self, offset: usize, bytes: usize) -> (*mut u8, usize) {
        if bytes == 0 {
            return (self.at(offset, bytes), 0);
        }
        let start = self.at(offset, bytes).addr() & !(PAGE_BYTES - 1);
        let end = (self.address.addr() + offset + bytes).next_multiple_of(PAGE_BYTES);
        (self.address.with_addr(start), end - start)
    }

    /// Advises the kernel about the pages around `bytes` bytes from `offset`.
    ///
    /// # Safety
    /// The advice changes no bytes that anyone holds a reference to.
    pub(crate) unsafe fn advise(&self, offset: usize, bytes: usize, advice: Advice) -> io::Result<()> {
        let (start, length) = self.pages_around(offset, bytes);
        if length == 0 {
            return Ok(());
        }
        // SAFETY: the pages are this area's, which is mapped; the rest is the caller's promise.
        Ok(unsafe { rustix::mm::madvise(start.cast(), length, advice) }?)
    }

    /// The range of addresses, as a number.
    pub(crate) fn addresses(&self) -> Range<u64> {
        let start = word(self.address.expose_provenance());
        start..start + word(self.bytes)
    }

    /// Unmaps everything but the `bytes` bytes from `offset`.
    pub(crate) fn narrowed(mut self, offset: usize, bytes: usize) -> io::Result<Self> {
        let start = self.at(offset, bytes);
        let tail = self.bytes - offset - bytes;
        unmap(self.address.cast(), offset)?;
        self.address = start;
        self.bytes = bytes + tail;
        unmap(start.wrapping_add(bytes).cast(), tail)?;
        self.bytes = bytes;
        Ok(self)
    }

    /// Puts other memory in place of the whole area: of `fd` from its offset, or of no file.
    pub(crate) fn replace(
        &self,
        file: Option<(BorrowedFd<'_>, u64)>,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<()> {
        let flags = flags | MapFlags::FIXED;
        let start = self.address.cast();
        match file {
            Some((fd, offset)) => {
                // SAFETY: exactly this area's own addresses are replaced, and no reference points into it.
                unsafe { rustix::mm::mmap(start, self.bytes, protection, flags, fd, offset) }?
            }
            None => {
                // SAFETY: as above.
                unsafe { rustix::mm::mmap_anonymous(start, self.bytes, protection, flags) }?
            }
        };
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        unmap(self.address.cast(), self.bytes).expect("unmapping a mapping of our own cannot fail");
    }
}

/// Unmaps part of an area that is being narrowed or dropped.
fn unmap(address: *mut c_void, bytes: usize) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: only areas call this, with addresses they own and will not use again.
    Ok(unsafe { rustix::mm::munmap(address, bytes) }?)
}
