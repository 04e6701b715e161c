//! A volume's bytes frozen at a pause: a memfd of ours, and the sets of its pages.

use std::io;
use std::os::fd::AsFd as _;

use rekindle_kernel::holders::{self, Holder, Holding};
use rekindle_kernel::{Mapping, Memfd};

use crate::budget::Lease;
use crate::page_set::PageSet;
use crate::reaper::ReaperHandle;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The frozen bytes of one volume. When the last owner drops it, its memory goes to the reaper.
#[derive(Debug)]
pub struct Capture {
    kept: PageSet,
    zero: PageSet,
    proof: ProofKind,
    frozen: AtomicBool,
    memory: Option<Memory>,
    reaper: ReaperHandle,
}

/// Memory and lease of a capture, freed by the reaper in this order: the lease last.
#[derive(Debug)]
struct Memory {
    mapping: Mapping,
    memfd: Memfd,
    _lease: Lease,
}

/// The pages that a capture decides; all others are the parent's.
#[derive(Debug, Clone)]
pub struct CapturedPages {
    /// Pages whose bytes are in the capture.
    pub kept: PageSet,
    /// Pages known to be zero, even if the parent has content; none of them is in `kept`.
    pub zero: PageSet,
}

impl CapturedPages {
    /// The same of a guest whose memory has every page that is not zero: nothing is the parent's.
    #[must_use]
    pub fn whole(mut self) -> Self {
        self.zero = PageSet::full(self.kept.pages());
        self.zero.subtract(&self.kept);
        self
    }
}

/// Kind of proof that a capture's bytes can no longer be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProofKind {
    /// A seal of the kernel, which is granted only if no writable mapping exists: the bytes can never be written again.
    Seal,
    /// No other process holds the file, for files whose seals are sealed or that are open for reading only. A
    /// descriptor on its way between two processes is not seen.
    NoHolder,
}

/// Result of a try to prove that a capture's bytes can no longer be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proven {
    /// It is proven.
    Frozen,
    /// A process has them mapped for writing.
    Mapped,
    /// This process holds the file.
    Held(Holder),
    /// This process may hold the file: it cannot be inspected.
    Unseen(Holder),
}

/// Reason that a memfd cannot be a capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The memory and the sets differ in length.
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
        /// Number of such pages.
        pages: u32,
    },
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
        let proof = if memfd.can_seal_writes()? { ProofKind::Seal } else { ProofKind::NoHolder };
        let mapping = Mapping::of_memfd(&memfd)?;
        let memory = Some(Memory { mapping, memfd, _lease: lease });
        Ok(Self { kept, zero, proof, frozen: AtomicBool::new(false), memory, reaper })
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

    /// True once these bytes are proven to be unchangeable.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// True if the kernel itself keeps all processes from writing these bytes, so that every read finds the same.
    pub fn is_sealed(&self) -> bool {
        self.proof == ProofKind::Seal && self.is_frozen()
    }

    /// Tries to prove that these bytes can no longer be written. The keeper, whose process id is given if there is one,
    /// holds the file for us and never writes it.
    pub fn prove_frozen(&self, keeper: Option<u32>) -> io::Result<Proven> {
        if self.is_frozen() {
            return Ok(Proven::Frozen);
        }
        let memfd = &self.memory().memfd;
        let proven = match self.proof {
            ProofKind::Seal if memfd.seal_writes()? => Proven::Frozen,
            ProofKind::Seal => Proven::Mapped,
            ProofKind::NoHolder => match self.holding(keeper)? {
                Holding::Nobody => Proven::Frozen,
                Holding::Held(holder) => Proven::Held(holder),
                Holding::Unseen(holder) => Proven::Unseen(holder),
            },
        };
        if proven == Proven::Frozen {
            self.frozen.store(true, Ordering::Release);
        }
        Ok(proven)
    }

    /// The process, besides this one and the keeper, that holds the memory file.
    pub fn holding(&self, keeper: Option<u32>) -> io::Result<Holding> {
        holders::holding(self.memory().memfd.as_fd(), keeper.as_slice())
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
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::budget::Budget;
    use crate::reaper::Reaper;
    use rekindle_kernel::PageKind;
    use rustix::fs::SealFlags;

    fn adopted(memfd: Memfd) -> Capture {
        let reaper = Reaper::start().expect("a thread can be started");
        let lease = Budget::new(4096).lease(4096, Duration::ZERO).expect("there is room");
        let pages = CapturedPages { kept: PageSet::full(1), zero: PageSet::new(1) };
        Capture::adopt(memfd, pages, lease, reaper.handle()).expect("one page of memory")
    }

    #[test]
    fn memory_that_can_never_be_sealed_is_frozen_once_no_other_process_holds_it() {
        let memfd = || Memfd::create("guest", 4096, PageKind::Small).unwrap();
        let unsealable = memfd();
        rustix::fs::fcntl_add_seals(unsealable.as_fd(), SealFlags::SEAL).unwrap();
        let input = unsealable.as_fd().try_clone_to_owned().unwrap();
        let mut holder =
            Command::new("cat").arg("/dev/zero").stdin(input).stdout(Stdio::piped()).spawn().unwrap();
        let capture = adopted(unsealable);
        let held = capture.prove_frozen(None).unwrap();
        assert!(matches!(&held, Proven::Held(found) if found.pid == holder.id()), "{held:?}");
        assert!(!capture.is_frozen());
        assert_eq!(
            capture.prove_frozen(Some(holder.id())).unwrap(),
            Proven::Frozen,
            "the keeper may hold it"
        );
        assert!(!capture.is_sealed(), "the kernel would not keep a writer out");
        holder.kill().unwrap();
        holder.wait().unwrap();
    }

    #[test]
    fn memory_that_can_be_sealed_is_sealed_by_the_kernel() {
        let memfd = || Memfd::create("guest", 4096, PageKind::Small).unwrap();
        let frozen = memfd();
        rustix::fs::fcntl_add_seals(frozen.as_fd(), SealFlags::WRITE | SealFlags::SEAL).unwrap();
        for memfd in [memfd(), frozen] {
            let capture = adopted(memfd);
            assert_eq!(capture.prove_frozen(None).unwrap(), Proven::Frozen);
            assert!(capture.is_sealed());
        }
    }
}
