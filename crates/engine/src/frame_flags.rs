//! Bits for the frames of a layer, and for the pages of them, set and read by many threads.

use crate::frame::{FRAME_PAGES, FrameNumber, frame_of};
use crate::geometry::LayerPage;
use crate::page_tree::PageBits;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The bits. Setting one releases what was written before it.
#[derive(Debug)]
pub(crate) struct FrameFlags(Box<[AtomicU64]>);

impl FrameFlags {
    /// None of `frames` is set.
    pub(crate) fn new(frames: usize) -> Self {
        Self((0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn get(&self, frame: FrameNumber) -> bool {
        self.0[frame.index() / 64].load(Ordering::Acquire) & Self::bit(frame) != 0
    }

    pub(crate) fn set(&self, frame: FrameNumber) {
        self.0[frame.index() / 64].fetch_or(Self::bit(frame), Ordering::Release);
    }

    pub(crate) fn clear(&self, frame: FrameNumber) {
        self.0[frame.index() / 64].fetch_and(!Self::bit(frame), Ordering::Release);
    }

    pub(crate) fn set_all(&self) {
        for word in &self.0 {
            word.store(u64::MAX, Ordering::Release);
        }
    }

    pub(crate) fn clear_all(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Release);
        }
    }

    fn bit(frame: FrameNumber) -> u64 {
        1 << (frame.index() % 64)
    }
}

/// A bit for each page of a layer. Setting one releases what was written before it.
#[derive(Debug)]
pub(crate) struct PageFlags(Box<[AtomicU64]>);

impl PageFlags {
    /// No page of `frames` is set.
    pub(crate) fn new(frames: usize) -> Self {
        Self((0..frames).map(|_| AtomicU64::new(0)).collect())
    }

    /// Number of pages that are set from `page` on, to the end of its frame at most.
    pub(crate) fn run_in_frame(&self, page: LayerPage) -> u32 {
        let bits = self.0[frame_of(page).index()].load(Ordering::Acquire);
        (bits >> (page.number() % FRAME_PAGES)).trailing_ones()
    }

    /// True if all of these pages of a frame are set.
    pub(crate) fn has_all(&self, frame: FrameNumber, pages: PageBits) -> bool {
        self.0[frame.index()].load(Ordering::Acquire) & pages.bits() == pages.bits()
    }

    pub(crate) fn set(&self, frame: FrameNumber, pages: PageBits) {
        self.0[frame.index()].fetch_or(pages.bits(), Ordering::Release);
    }

    pub(crate) fn clear(&self, frame: FrameNumber) {
        self.0[frame.index()].store(0, Ordering::Release);
    }

    pub(crate) fn clear_all(&self) {
        self.0.iter().for_each(|frame| frame.store(0, Ordering::Release));
    }
}
