//! Writable memory that another process may hold and write too: accessed by copy, never borrowed.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::area::Area;
use crate::guard;
use crate::memfd::Memfd;
use crate::number::word;
use crate::page::{PAGE_BYTES, PageKind};

/// A prefaulted shared mapping of part of a memory file; its content survives this process if another holds the file.
#[derive(Debug)]
pub struct SharedBuffer {
    area: Area,
    memfd: Memfd,
}

impl SharedBuffer {
    /// A buffer of `bytes` bytes, rounded up to whole pages, in a memory file of its own.
    pub fn create(bytes: usize) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let memfd = Memfd::create("rekindle-shared-buffer", word(bytes), PageKind::Small)?;
        Self::of_memfd(&memfd, 0, bytes)
    }

    /// Bytes `offset..offset + bytes` of a memory file; `offset` is a multiple of its page size.
    pub fn of_memfd(memfd: &Memfd, offset: u64, bytes: usize) -> io::Result<Self> {
        if offset.checked_add(word(bytes)).is_none_or(|end| end > memfd.bytes()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a shared buffer lies inside its memory file",
            ));
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let area = Area::of_fd(memfd.as_fd(), offset, bytes, protection, MapFlags::SHARED)?;
        // SAFETY: populating for writing changes no bytes.
        unsafe { area.advise(0, bytes, Advice::LinuxPopulateWrite) }?;
        Ok(Self { area, memfd: memfd.try_clone()? })
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.area.bytes()
    }

    /// The memory file that the buffer is part of.
    pub fn memfd(&self) -> &Memfd {
        &self.memfd
    }

    /// Copies `from` to `offset`.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let into = self.area.at(offset, from.len());
        // SAFETY: `into` is that many bytes of our writable area; others see a mix until it ends, which is what
        // shared memory is; `from` is borrowed, so it cannot raise SIGBUS on our account.
        unsafe { guard::copy(into, from.as_ptr(), from.len()) }.expect("private memory can be read");
    }

    /// Copies the bytes from `offset` that fill `into`, exact while no other process writes them.
    ///
    /// # Panics
    /// If they are not all in the buffer.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.area.at(offset, into.len());
        // SAFETY: `from` is that many bytes of our area, `into` is borrowed mutably; mapping installed the guard.
        unsafe { guard::copy(into.as_mut_ptr(), from, into.len()) }
            .expect("a memory file sealed against shrinking can be read");
    }

    /// Sets `bits` in the little-endian 64-bit word at `offset`, a multiple of 8 that no other thread or process
    /// changes meanwhile.
    ///
    /// The word is stored atomically and after all earlier stores: if this process is killed, other holders of the file
    /// find the word whole, and never without the earlier stores.
    ///
    /// # Panics
    /// If the word is not in the buffer, or not at a multiple of its size.
    #[inline]
    pub fn set_bits(&self, offset: usize, bits: u64) {
        let word = self.atomic_at(offset);
        word.store(word.load(Ordering::Relaxed) | bits.to_le(), Ordering::Release);
    }

    /// The little-endian 64-bit word at `offset`, a multiple of 8, read atomically; stores before it are visible
    /// afterwards.
    ///
    /// # Panics
    /// If the word is not in the buffer, or not at a multiple of its size.
    #[inline]
    pub fn word(&self, offset: usize) -> u64 {
        u64::from_le(self.atomic_at(offset).load(Ordering::Acquire))
    }

    /// Stores the little-endian 64-bit word at `offset`, a multiple of 8, atomically and after all earlier stores: if
    /// this process is killed, other holders of the file find the old or the new word.
    ///
    /// # Panics
    /// If the word is not in the buffer, or not at a multiple of its size.
    #[inline]
    pub fn set_word(&self, offset: usize, word: u64) {
        self.atomic_at(offset).store(word.to_le(), Ordering::Release);
    }

    fn atomic_at(&self, offset: usize) -> &AtomicU64 {
        let at = self.area.at(offset, 8).cast::<u64>();
        assert!(at.is_aligned(), "a word lies at a multiple of its size");
        // SAFETY: eight mapped, aligned bytes of our writable area, which we only ever reach by copy or as words, for as
        // long as `self` is borrowed.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// Keeps the whole buffer in RAM as long as it lives, if this user may lock that much memory.
    ///
    /// A system call that writes to it then never waits for a disk, where a kill could interrupt it half-way.
    pub fn lock_in_ram(&self) -> io::Result<()> {
        let start = self.area.at(0, self.area.bytes());
        // SAFETY: the pages are our area's; locking changes no bytes, and unmapping unlocks.
        Ok(unsafe { rustix::mm::mlock(start.cast(), self.area.bytes()) }?)
    }

    /// The 64-bit word at `offset`, a multiple of 8, read in one access.
    #[inline]
    pub(crate) fn word_at(&self, offset: usize) -> u64 {
        let from = self.area.at(offset, 8).cast::<u64>();
        assert!(from.is_aligned(), "a word is read at a multiple of its size");
        // SAFETY: eight mapped, aligned bytes of our area; volatile, because others may write them.
        unsafe { from.read_volatile() }
    }

    /// Address at which the kernel may write `bytes` bytes at `offset`.
    pub(crate) fn address_of(&self, offset: usize, bytes: usize) -> *mut u8 {
        self.area.at(offset, bytes)
    }
}
