//! A guest's writes to a disk since the last pause, in memory files that another process may hold: the next server on
//! the same files sees every acknowledged write.
//!
//! Bytes lie in one file at the place they have on the disk; marks in the other say which of its pages count. Holes
//! prove nothing: with huge pages for shared memory the kernel gives a file pages that were never written.
//!
//! A recovery relies on these, each enforced as said:
//! 1. A page is marked as written when all its bytes are in the file, those of the base included: so a kill leaves
//!    either the base or the whole new page. A page is marked as zero before its bytes go.
//! 2. The pages of one word of marks are changed under one lock ([`Writers`]).
//! 3. Recovery has the lock of the marks' file, which a killed server holds until it is out of its last system call.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, pages_covering, u64_of, usize_of};
use rekindle_engine::identity::VolumeName;
use rekindle_engine::limits::{MANIFEST_PAGES_MAX, SERVER_END_ASK, SERVER_END_WAIT};
use rekindle_engine::pause::PausedVolume;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind};

use super::marks::{Marks, PageState};

/// Pages whose changes one lock orders: whole words of marks.
const STRIPE_PAGES: u32 = 64;

/// Locks for all stripes; two stripes may share one.
const LOCKS: usize = 64;

/// A page's bytes.
pub(super) type PageBytes = [u8; PAGE_BYTES];

/// The pages of a disk that changed since the last pause.
#[derive(Debug)]
pub struct Overlay {
    written: Memfd,
    marks: Marks,
    writers: Writers,
}

/// The files of an overlay, for another process to hold.
#[derive(Debug)]
pub struct OverlayFiles {
    /// The bytes that were written.
    pub written: OwnedFd,
    /// Marks of the pages that are written, and of those that are zero.
    pub marks: OwnedFd,
}

/// Reason that there is no overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// More or fewer bytes than a volume has.
    #[error(
        "a disk of {bytes} bytes cannot be a volume: it has 1 to {MANIFEST_PAGES_MAX} pages of 4096 bytes"
    )]
    Size {
        /// Bytes asked for.
        bytes: u64,
    },
    /// A file that was kept is not one of a disk.
    #[error("a kept file is not one of a disk: {0}")]
    Adopt(#[from] rekindle_kernel::memfd::AdoptError),
    /// It was captured: nothing may be written any more.
    #[error("this disk's writes belong to a snapshot already")]
    Captured,
    /// Another process still serves the disk.
    #[error("another process serves this disk")]
    Served,
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Locks on pages that are being changed: one thread at a time for each stripe. Held for a copy within memory.
#[derive(Debug)]
struct Writers([Mutex<()>; LOCKS]);

impl Overlay {
    /// An overlay of a disk of `bytes` bytes without any write; its last page may be used in part.
    pub fn create(bytes: u64) -> Result<Self, OverlayError> {
        let pages = pages_of(bytes)?;
        let written = Memfd::create("rekindle-disk", bytes_of_pages(pages), PageKind::Small)?;
        let marks = Marks::create(pages)?;
        assert!(marks.memfd().try_lock()?, "a file that nobody else has seen is not locked");
        Ok(Self { written, marks, writers: Writers::new() })
    }

    /// The overlay that a server before this one left in these files; waits, for a bounded time, until that is gone.
    pub fn recover(files: OverlayFiles) -> Result<Self, OverlayError> {
        let written = Memfd::adopt(files.written)?;
        if written.is_write_sealed()? {
            return Err(OverlayError::Captured);
        }
        let marks = Memfd::adopt(files.marks)?.reopen()?;
        let pages = pages_of(written.bytes())?;
        let deadline = Instant::now() + SERVER_END_WAIT;
        while !marks.try_lock()? {
            if Instant::now() >= deadline {
                return Err(OverlayError::Served);
            }
            std::thread::park_timeout(SERVER_END_ASK);
        }
        Ok(Self { written, marks: Marks::of(&marks, pages)?, writers: Writers::new() })
    }

    /// Its files, to be held by another process. Holding them does not stand in the way of a recovery.
    pub fn files(&self) -> io::Result<OverlayFiles> {
        Ok(OverlayFiles {
            written: self.written.try_clone()?.into(),
            marks: self.marks.memfd().reopen()?.into(),
        })
    }

    /// Pages of the disk.
    pub fn pages(&self) -> u32 {
        self.marks.pages()
    }

    /// Bytes of RAM that it has taken for what was written.
    pub fn bytes_held(&self) -> io::Result<u64> {
        self.written.allocated_bytes()
    }

    /// True if anything was written or made zero since the last pause.
    pub fn is_changed(&self) -> bool {
        self.marks.is_any_changed()
    }

    /// The writes as a volume of a pause, with zero copy. Right only while no thread writes, and none may after it.
    pub(super) fn volume(&self, name: VolumeName) -> io::Result<PausedVolume> {
        let pages = CapturedPages {
            kept: self.marks.pages_in(PageState::Written),
            zero: self.marks.pages_in(PageState::Zero),
        };
        Ok(PausedVolume { name, page_kind: PageKind::Small, memfd: self.written.try_clone()?, pages })
    }

    /// Forgets every write: the base has them all. Right only while no thread reads or writes. A kill in between leaves
    /// each page written or the base's, which is the same.
    pub(super) fn forget(&self) -> io::Result<()> {
        let pages = GuestPages::new(GuestPage::FIRST, self.pages());
        self.marks.set(pages, PageState::Base);
        self.written.punch_hole(0, pages.bytes())
    }

    /// The state of `page`, and how many pages from it on have the same, at most `limit`.
    pub(super) fn run_at(&self, page: GuestPage, limit: u32) -> (PageState, u32) {
        self.marks.run_at(page, limit)
    }

    /// Reads bytes of pages that were in [`PageState::Written`] a moment ago: if they are zero by now, that is read.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.written.read_at(into, offset)
    }

    /// Writes whole pages.
    pub(super) fn write_pages(&self, first: GuestPage, bytes: &[u8]) -> io::Result<()> {
        let count = u32::try_from(bytes.len() / PAGE_BYTES).expect("a request is shorter than 2^32 pages");
        let mut left = bytes;
        for run in stripes(GuestPages::new(first, count)) {
            let (here, after) = left.split_at(usize_of(run.count()) * PAGE_BYTES);
            left = after;
            let _only = self.writers.of(run.start());
            self.written.write_at(here, run.start().offset_bytes())?;
            self.marks.set(run, PageState::Written);
        }
        Ok(())
    }

    /// Writes a part of one page; `base` is what the page was at the last pause, where it may still be that.
    pub(super) fn write_part(
        &self,
        page: GuestPage,
        offset: usize,
        bytes: &[u8],
        base: Option<&PageBytes>,
    ) -> io::Result<()> {
        let _only = self.writers.of(page);
        let mut whole = match self.marks.state(page) {
            PageState::Written => return self.written.write_at(bytes, page.offset_bytes() + u64_of(offset)),
            PageState::Zero => [0; PAGE_BYTES],
            PageState::Base => *base.expect("a page that was changed never becomes the base's again"),
        };
        whole[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.written.write_at(&whole, page.offset_bytes())?;
        self.marks.set(GuestPages::new(page, 1), PageState::Written);
        Ok(())
    }

    /// Makes whole pages zero and gives their memory back.
    pub(super) fn zero_pages(&self, run: GuestPages) -> io::Result<()> {
        for run in stripes(run) {
            let _only = self.writers.of(run.start());
            let had_bytes = self.has_written(run);
            self.marks.set(run, PageState::Zero);
            if had_bytes {
                self.written.punch_hole(run.start().offset_bytes(), run.bytes())?;
            }
        }
        Ok(())
    }

    fn has_written(&self, run: GuestPages) -> bool {
        let mut rest = run;
        while !rest.is_empty() {
            let (state, count) = self.marks.run_at(rest.start(), rest.count());
            if state == PageState::Written {
                return true;
            }
            rest = rest.after(count);
        }
        false
    }
}

impl Writers {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    fn of(&self, page: GuestPage) -> MutexGuard<'_, ()> {
        let lock = &self.0[usize_of(page.number() / STRIPE_PAGES) % LOCKS];
        lock.lock().expect("no thread panics while it writes")
    }
}

/// The parts of a run that lie in one stripe each.
fn stripes(run: GuestPages) -> impl Iterator<Item = GuestPages> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let count = STRIPE_PAGES - rest.start().number() % STRIPE_PAGES;
        let here = rest.first_pages(count);
        rest = rest.after(count);
        (!here.is_empty()).then_some(here)
    })
}

fn pages_of(bytes: u64) -> Result<u32, OverlayError> {
    match pages_covering(bytes) {
        Some(pages @ 1..=MANIFEST_PAGES_MAX) => Ok(pages),
        Some(_) | None => Err(OverlayError::Size { bytes }),
    }
}
