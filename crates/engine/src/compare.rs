//! Finds the captured pages that differ from the parent. Comparing saves room and can never fail a snapshot: if a
//! parent page is not on this node, not verified or not readable, the captured page is kept.
//!
//! Each page is compared from one read, and a packed page's digest and bytes come from one read. So a write that no
//! proof rules out would be in the snapshot or not, and the snapshot stays consistent.

use std::sync::Arc;

use rekindle_kernel::{LostBytes, Mapping, PAGE_BYTES};

use crate::capture::Capture;
use crate::frame::{FRAME_PAGES, frame_of};
use crate::geometry::{GuestPage, GuestPages, usize_of};
use crate::hooks::Hooks;
use crate::page_set::PageSet;
use crate::precedence::GiveWayLimit;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{idle_priority, spawn_scoped, thread};
use crate::view::{LiveView, Piece, PieceBytes, PieceSource};

/// Pages that one worker takes at a time: 2 MiB.
const STRETCH_PAGES: u32 = 512;

/// A capture with the result for each of its pages.
#[derive(Debug)]
#[must_use = "a comparison is for packing"]
pub struct Compared {
    /// The captured bytes.
    pub capture: Arc<Capture>,
    /// Pages to store.
    pub kept: PageSet,
    /// Pages that are zero.
    pub zero: PageSet,
    /// Counts of kept, equal and zero pages.
    pub classes: PageClasses,
}

/// Counts of a snapshot's captured pages by the result of comparing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageClasses {
    /// Pages captured: zero, equal and kept ones together.
    pub dirty: u32,
    /// Zero now.
    pub zero: u32,
    /// Equal to the parent's.
    pub equal: u32,
    /// Stored.
    pub kept: u32,
    /// Stored pages that were kept because the parent's page could not be read here and now.
    pub unread: u32,
}

impl PageClasses {
    /// Adds the pages of another volume.
    pub fn add(&mut self, other: Self) {
        self.dirty += other.dirty;
        self.zero += other.zero;
        self.equal += other.equal;
        self.kept += other.kept;
        self.unread += other.unread;
    }
}

/// Compares every captured page with `parent` on `workers` threads, this one included, all at idle priority; gives way
/// within its limit. With fewer threads, if the system has no more, the result is the same.
///
/// An error means that a captured page cannot be read: memory itself failed.
pub fn compare(
    capture: &Arc<Capture>,
    parent: Option<&LiveView>,
    workers: usize,
    give_way_limit: &GiveWayLimit,
    hooks: &dyn Hooks,
) -> Result<Compared, LostBytes> {
    assert!(capture.is_frozen(), "only bytes that nobody can write any more are compared");
    let comparison = Comparison { capture, parent, give_way_limit, hooks, next: AtomicU32::new(0) };
    let parts: Vec<Result<Part, LostBytes>> = thread::scope(|scope| {
        let others = (1..workers).map_while(|_| spawn_scoped(scope, || comparison.work()).ok());
        let others: Vec<_> = others.collect();
        let own = comparison.work();
        let others = others.into_iter().map(|worker| worker.join().expect("comparing does not panic"));
        std::iter::once(own).chain(others).collect()
    });
    let mut whole = Part::new(capture.pages());
    whole.zero.union_with(capture.zero());
    for part in parts {
        let part = part?;
        whole.kept.union_with(&part.kept);
        whole.zero.union_with(&part.zero);
        whole.unread += part.unread;
    }
    let dirty = capture.kept().len() + capture.zero().len();
    let (kept, zero) = (whole.kept.len(), whole.zero.len());
    let classes = PageClasses { dirty, zero, kept, equal: dirty - zero - kept, unread: whole.unread };
    Ok(Compared { capture: Arc::clone(capture), kept: whole.kept, zero: whole.zero, classes })
}

struct Comparison<'a> {
    capture: &'a Capture,
    parent: Option<&'a LiveView>,
    give_way_limit: &'a GiveWayLimit,
    hooks: &'a dyn Hooks,
    next: AtomicU32,
}

/// Result of one worker.
struct Part {
    kept: PageSet,
    zero: PageSet,
    unread: u32,
}

impl Part {
    fn new(pages: u32) -> Self {
        Self { kept: PageSet::new(pages), zero: PageSet::new(pages), unread: 0 }
    }
}

impl Comparison<'_> {
    fn work(&self) -> Result<Part, LostBytes> {
        if let Err(error) = idle_priority() {
            tracing::debug!(%error, "comparing at normal priority");
        }
        let pages = self.capture.pages();
        let mut part = Part::new(pages);
        loop {
            self.give_way_limit.give_way();
            let start = self.next.fetch_add(STRETCH_PAGES, Ordering::Relaxed);
            if start >= pages {
                return Ok(part);
            }
            let stretch = GuestPages::new(GuestPage::new(start), STRETCH_PAGES.min(pages - start));
            for run in self.capture.kept().runs_in(stretch) {
                self.compare_run(run, &mut part)?;
            }
        }
    }

    fn compare_run(&self, run: GuestPages, part: &mut Part) -> Result<(), LostBytes> {
        let Some(parent) = self.parent else { return self.compare_with_zeroes(run, part) };
        let mut page = run.start();
        while page < run.end() {
            let piece = parent.piece_at(page, run.end().pages_since(page));
            page = piece.pages.end();
            match self.hooks.parent_read() {
                Ok(()) => self.compare_piece(&piece, part)?,
                Err(_) => self.keep_unread(piece.pages, part)?,
            }
        }
        Ok(())
    }

    /// Compares the pages of a piece that can be read here and now, and keeps the others.
    fn compare_piece(&self, piece: &Piece, part: &mut Part) -> Result<(), LostBytes> {
        let mut left = piece.pages;
        while !left.is_empty() {
            let done = left.start().pages_since(piece.pages.start());
            let (readable, count) = readable_stretch(piece, done);
            let pages = left.first_pages(count);
            left = left.after(count);
            if !readable {
                self.keep_unread(pages, part)?;
                continue;
            }
            match piece.place() {
                PieceBytes::At(theirs, offset) => {
                    self.compare_bytes(pages, theirs, offset + usize_of(done) * PAGE_BYTES, part)?;
                }
                PieceBytes::Zero => self.compare_with_zeroes(pages, part)?,
                PieceBytes::Lost => self.keep_unread(pages, part)?,
            }
        }
        Ok(())
    }

    /// Compares with zeroes, if the parent's pages are zero or there is no parent: a page is zero or kept.
    fn compare_with_zeroes(&self, pages: GuestPages, part: &mut Part) -> Result<(), LostBytes> {
        for page in pages.iter() {
            self.place(page, part)?;
        }
        Ok(())
    }

    fn compare_bytes(
        &self,
        pages: GuestPages,
        theirs: &Mapping,
        offset: usize,
        part: &mut Part,
    ) -> Result<(), LostBytes> {
        let ours = self.capture.mapping();
        for (page, theirs_at) in pages.iter().zip((offset..).step_by(PAGE_BYTES)) {
            match ours.equals(page.offset(), theirs, theirs_at, PAGE_BYTES) {
                Ok(true) => {}
                Ok(false) => self.place(page, part)?,
                // Reading the captured page again shows whose bytes were lost: if they were ours, it fails.
                Err(_) => self.keep_unread(GuestPages::new(page, 1), part)?,
            }
        }
        Ok(())
    }

    /// Keeps pages whose parent cannot be read, except zero pages.
    fn keep_unread(&self, pages: GuestPages, part: &mut Part) -> Result<(), LostBytes> {
        for page in pages.iter() {
            self.place(page, part)?;
            part.unread += u32::from(part.kept.contains(page));
        }
        Ok(())
    }

    /// Adds a page that differs from the parent's, or may differ, to the zero or the kept pages.
    fn place(&self, page: GuestPage, part: &mut Part) -> Result<(), LostBytes> {
        if self.capture.mapping().is_zero(page.offset(), PAGE_BYTES)? {
            part.zero.insert(page);
        } else {
            part.kept.insert(page);
        }
        Ok(())
    }
}

/// True if the parent's pages after the first `done` of a piece can be read here and now, with the number of pages that
/// have the same answer. So a frame that is not on this node does not prevent the comparison of others.
fn readable_stretch(piece: &Piece, done: u32) -> (bool, u32) {
    let left = piece.pages.count() - done;
    match &piece.source {
        PieceSource::Zero => (true, left),
        PieceSource::Lost(_) => (false, left),
        // The parent packs these pages later: it must read the same bytes as we do now.
        PieceSource::Capture(capture) => (capture.is_sealed(), left),
        PieceSource::Remote(pages) => {
            let next = piece.pages.start().plus(done);
            match pages.run_here(next, left) {
                0 => (false, piece.rest_of_frame(done)),
                here => (true, here),
            }
        }
        PieceSource::Layer(file, first) => {
            let next = first.plus(done);
            let verified = file.verified_run(next, left);
            if verified > 0 {
                return (true, verified);
            }
            let of_frame = left.min(FRAME_PAGES - next.number() % FRAME_PAGES);
            (matches!(file.load_local(frame_of(next)), Ok(true)), of_frame)
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::time::Duration;

    use rekindle_kernel::{Memfd, PageKind};

    use super::*;
    use crate::budget::Budget;
    use crate::capture::{CapturedPages, Proven};
    use crate::geometry::{bytes_of_pages, u64_of};
    use crate::hooks::NoHooks;
    use crate::precedence::Precedence;
    use crate::reaper::Reaper;
    use crate::view::View;

    const PAGES: u32 = 8;

    /// A capture of pages that are each filled with their number plus 1.
    fn captured(reaper: &Reaper) -> Arc<Capture> {
        let bytes = bytes_of_pages(PAGES);
        let memfd = Memfd::create("guest", bytes, PageKind::Small).expect("memory");
        for page in 0..PAGES {
            let fill = u8::try_from(page).expect("small") + 1;
            memfd.write_at(&[fill; PAGE_BYTES], u64::from(page) * u64_of(PAGE_BYTES)).expect("memory");
        }
        let pages = CapturedPages { kept: PageSet::full(PAGES), zero: PageSet::new(PAGES) };
        let lease = Budget::new(bytes).lease(bytes, Duration::ZERO).expect("there is room");
        Arc::new(Capture::adopt(memfd, pages, lease, reaper.handle()).expect("memory of its size"))
    }

    #[test]
    fn pages_are_equal_to_a_parents_capture_only_when_nobody_can_write_that_any_more() {
        let reaper = Reaper::start().unwrap();
        let (capture, parent) = (captured(&reaper), captured(&reaper));
        assert_eq!(capture.prove_frozen(None).unwrap(), Proven::Frozen);
        let view = LiveView::new(View::captured(Arc::clone(&parent), None));
        let give_way_limit = GiveWayLimit::new(&Precedence::default());
        let classes = || compare(&capture, Some(&view), 1, &give_way_limit, &NoHooks).unwrap().classes;
        let kept = PageClasses { dirty: 8, kept: 8, unread: 8, ..PageClasses::default() };
        assert_eq!(classes(), kept, "the parent's bytes may still change");
        assert_eq!(parent.prove_frozen(None).unwrap(), Proven::Frozen);
        assert_eq!(classes(), PageClasses { dirty: 8, equal: 8, ..PageClasses::default() });
    }
}
