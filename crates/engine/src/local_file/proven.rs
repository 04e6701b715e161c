//! Single pages of a layer in its local file, each proven to be of its frame.

use super::{LayerError, LocalFile};
use crate::frame::{FrameNumber, frames_of};
use crate::frame_flags::PageFlags;
use crate::geometry::{LayerPage, PAGE_BYTES, usize_of};
use crate::open_file::OpenFile;
use crate::page_tree::{PageBits, ProvenPages};

impl LocalFile {
    /// Takes in some pages of `frame` if they are what the layer's name commits to: here, or in the successor.
    pub(crate) fn accept_pages(&self, frame: FrameNumber, of: ProvenPages<'_>) -> Result<(), LayerError> {
        if !self.layer.has_pages(frame, of) {
            return Err(LayerError::Digest { layer: self.layer.id(), frame });
        }
        let (start, _) = self.frame_extent(frame);
        let places = of.bits.pages().map(|page| start + usize_of(page) * PAGE_BYTES);
        let written: Vec<_> = places.zip(of.pages.chunks_exact(PAGE_BYTES)).collect();
        let frames = frames_of(self.layer.pages());
        let mark = |opened: &OpenFile| {
            opened.proven.get_or_init(|| PageFlags::new(frames)).set(frame, of.bits);
        };
        self.write(&written, mark).map_err(|source| self.io(source))
    }

    /// True if these pages of a frame can be used: with all of it, or by themselves.
    pub(crate) fn has_verified(&self, frame: FrameNumber, pages: PageBits) -> bool {
        self.is_verified(frame) || self.proven().is_some_and(|proven| proven.has_all(frame, pages))
    }

    /// Number of pages from `page` on, to the end of its frame at most, that can be used by themselves.
    pub(super) fn proven_run(&self, page: LayerPage) -> u32 {
        self.proven().map_or(0, |proven| proven.run_in_frame(page))
    }

    fn proven(&self) -> Option<&PageFlags> {
        self.opened.get()?.proven.get()
    }
}
