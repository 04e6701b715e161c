//! A volume's bytes frozen at pause, in a memfd of ours, with the sets that say which pages they are.

use std::io;

use rekindle_kernel::{Mapping, Memfd};

use crate::budget::Lease;
use crate::page_set::PageSet;
use crate::reaper::ReaperHandle;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The frozen bytes of one volume. Its memory goes to the reaper when the last owner drops it.
#[derive(Debug)]
pub struct Capture {
    kept: PageSet,
    zero: PageSet,
    frozen: AtomicBool,
    memory: Option<Memory>,
    reaper: ReaperHandle,
}

/// What a capture holds: freed by the reaper, in this order, the lease last.
#[derive(Debug)]
struct Memory {
    mapping: Mapping,
    memfd: Memfd,
    _lease: Lease,
}

/// The pages a capture speaks for; every other page is the parent's.
#[derive(Debug, Clone)]
pub struct CapturedPages {
    /// Pages whose bytes are in the capture.
    pub kept: PageSet,
    /// Pages known to read zero, whatever the parent has; none of them is in `kept`.
    pub zero: PageSet,
}

/// Why a memfd cannot be a capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The memory is not as long as the sets say.
    #[error("the captured memory has {bytes} bytes, its page sets speak of {pages} pages")]
    WrongSize {
        /// Bytes of the memfd.
        bytes: u64,
        /// Pages of the sets.
        pages: u32,
    },
    /// A page is both kept and zero.
    #[error("page sets overlap: {pages} pages are said to be both captured and zero")]
    Overlap {
        /// How many.
        pages: u32,
    },
    /// It can never be proven that nobody writes it any more, so it could never be sealed.
    #[error(
        "the captured memory can never be sealed against writing: it is open for reading only or has F_SEAL_SEAL; hand over a writable memfd made with MFD_ALLOW_SEALING"
    )]
    NeverFrozen,
    /// The memory could not be mapped.
    #[error("the captured memory could not be mapped: {0}")]
    Map(#[from] io::Error),
}

impl Capture {
    /// Takes `memfd` over as the bytes of `pages`; guest page `p` is at byte `p * 4096`.
    pub fn adopt(
        memfd: Memfd,
        pages: CapturedPages,
        lease: Lease,
        reaper: ReaperHandle,
    ) -> Result<Self, CaptureError> {
        let CapturedPages { kept, zero } = pages;
        let universe = kept.pages();
        if memfd.bytes() != u64::from(universe) * 4096 || zero.pages() != universe {
            return Err(CaptureError::WrongSize { bytes: memfd.bytes(), pages: universe });
        }
        if !kept.is_disjoint_from(&zero) {
            let mut both = kept;
            both.intersect_with(&zero);
            return Err(CaptureError::Overlap { pages: both.len() });
        }
        if !memfd.can_seal_writes()? {
            return Err(CaptureError::NeverFrozen);
        }
        let mapping = Mapping::of_memfd(&memfd)?;
        let memory = Some(Memory { mapping, memfd, _lease: lease });
        Ok(Self { kept, zero, frozen: AtomicBool::new(false), memory, reaper })
    }

    /// Pages of the volume.
    pub fn pages(&self) -> u32 {
        self.kept.pages()
    }

    /// The pages whose bytes are here.
    pub fn kept(&self) -> &PageSet {
        &self.kept
    }

    /// The pages known to be zero.
    pub fn zero(&self) -> &PageSet {
        &self.zero
    }

    /// The bytes, guest page `p` at byte `p * 4096`. Only `kept` pages may be read: reading a hole allocates it.
    pub fn mapping(&self) -> &Mapping {
        &self.memory().mapping
    }

    /// The memory file itself, to be held by others too.
    pub(crate) fn memfd(&self) -> &Memfd {
        &self.memory().memfd
    }

    /// Whether it is proven that nobody can write these bytes any more.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Tries to prove that nobody can write these bytes: the kernel accepts `F_SEAL_WRITE` only when no writable
    /// mapping lives. False while one does.
    pub fn prove_frozen(&self) -> io::Result<bool> {
        if self.is_frozen() {
            return Ok(true);
        }
        let proven = self.memory().memfd.seal_writes()?;
        if proven {
            self.frozen.store(true, Ordering::Release);
        }
        Ok(proven)
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("only drop takes the memory")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.reaper.discard(memory);
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::time::Duration;

    use super::*;
    use crate::budget::Budget;
    use crate::reaper::Reaper;
    use rekindle_kernel::PageKind;
    use rustix::fs::SealFlags;

    fn adopted(memfd: Memfd) -> Result<Capture, CaptureError> {
        let reaper = Reaper::start().expect("a thread can be started");
        let lease = Budget::new(4096).lease(4096, Duration::ZERO).expect("there is room");
        let pages = CapturedPages { kept: PageSet::full(1), zero: PageSet::new(1) };
        Capture::adopt(memfd, pages, lease, reaper.handle())
    }

    #[test]
    fn memory_that_can_never_be_sealed_against_writing_is_no_capture() {
        let memfd = || Memfd::create("guest", 4096, PageKind::Small).unwrap();
        let sealed = memfd();
        rustix::fs::fcntl_add_seals(sealed.as_fd(), SealFlags::SEAL).unwrap();
        assert!(matches!(adopted(sealed), Err(CaptureError::NeverFrozen)));
        let frozen = memfd();
        rustix::fs::fcntl_add_seals(frozen.as_fd(), SealFlags::WRITE | SealFlags::SEAL).unwrap();
        assert!(adopted(frozen).unwrap().prove_frozen().unwrap(), "it is sealed already");
        let path =
            |memfd: &Memfd| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&memfd.as_fd()));
        let writable = memfd();
        let read_only: OwnedFd = std::fs::File::open(path(&writable)).unwrap().into();
        let read_only = Memfd::adopt(read_only).unwrap();
        assert!(matches!(adopted(read_only), Err(CaptureError::NeverFrozen)));
        assert!(adopted(writable).unwrap().prove_frozen().unwrap());
    }
}
