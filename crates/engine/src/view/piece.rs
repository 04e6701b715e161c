//! Consecutive pages of a volume with one source, as a reader plans them.

use std::sync::{Arc, Weak};

use rekindle_kernel::{LostBytes, Mapping, PAGE_BYTES, Source};

use super::{LostPages, ViewPhase};
use crate::capture::Capture;
use crate::fetch::{Fetcher, FrameKey, FrameWaiter};
use crate::frame::{FRAME_PAGES, FrameNumber, frame_of};
use crate::geometry::{GuestPage, GuestPages, LayerPage, u64_of, usize_of};
use crate::local_file::LocalFile;
use crate::remote_pages::{FramesOf, RemotePages, frame_at};

/// Consecutive guest pages with one source. It owns its source: a planned piece can always be read.
#[derive(Debug, Clone)]
pub struct Piece {
    /// The guest pages.
    pub pages: GuestPages,
    /// Place of their bytes.
    pub source: PieceSource,
    /// Stage of the view they were asked of.
    pub phase: ViewPhase,
}

/// Place of a piece's bytes.
#[derive(Debug, Clone)]
pub enum PieceSource {
    /// Nowhere: they are zero.
    Zero,
    /// In a capture, at their own guest pages.
    Capture(Arc<Capture>),
    /// In a layer's local file, from this page on.
    Layer(Arc<LocalFile>, LayerPage),
    /// At another node, as far as they have not come from there: at their own guest pages.
    Remote(Arc<RemotePages>),
    /// Nowhere, or they cannot be had now.
    Lost(Arc<LostPages>),
}

/// A frame that a piece needs and that may not be in memory.
#[derive(Debug, Clone)]
pub enum MissingFrame {
    /// Of a layer.
    Layer(Arc<LocalFile>, FrameNumber),
    /// Of a volume that another node has.
    Remote(Arc<RemotePages>, FrameNumber),
}

impl MissingFrame {
    /// Its name among all that are fetched.
    pub fn key(&self) -> FrameKey {
        match self {
            Self::Layer(file, frame) => (file.layer().id().into(), *frame),
            Self::Remote(pages, frame) => (FramesOf::Remote(pages.of()), *frame),
        }
    }

    /// Asks for it and returns at once; the waiter is called when it is there.
    pub fn request(&self, fetcher: &Fetcher, waiter: Weak<FrameWaiter>) {
        match self {
            Self::Layer(file, frame) => fetcher.request(file, *frame, waiter),
            Self::Remote(pages, frame) => fetcher.request_remote(pages, *frame, waiter),
        }
    }

    /// True if it is the same frame for the same file or memory.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Layer(file, frame), Self::Layer(other, of_other)) => {
                Arc::ptr_eq(file, other) && frame == of_other
            }
            (Self::Remote(pages, frame), Self::Remote(other, of_other)) => {
                Arc::ptr_eq(pages, other) && frame == of_other
            }
            (Self::Layer(..), Self::Remote(..)) | (Self::Remote(..), Self::Layer(..)) => false,
        }
    }

    /// True if it is on this node, though it may not be in memory.
    pub fn is_here(&self) -> bool {
        match self {
            Self::Layer(file, frame) => file.is_verified(*frame),
            Self::Remote(pages, frame) => pages.is_here(*frame),
        }
    }
}

/// Bytes of a piece.
#[derive(Debug, Clone, Copy)]
pub enum PieceBytes<'a> {
    /// They are all zero.
    Zero,
    /// They begin at this byte of a mapping.
    At(&'a Mapping, usize),
    /// They cannot be had.
    Lost,
}

impl Piece {
    pub(super) fn new(start: GuestPage, count: u32, phase: ViewPhase, source: PieceSource) -> Self {
        Self { pages: GuestPages::new(start, count), source, phase }
    }

    /// Number of its pages, from the first on, that can be copied without blocking.
    pub fn readable_now(&self) -> u32 {
        let count = self.pages.count();
        match &self.source {
            PieceSource::Zero | PieceSource::Capture(_) => count,
            PieceSource::Layer(file, first) => file.readable_now(*first, count),
            PieceSource::Remote(pages) => pages.run_here(self.pages.start(), count),
            PieceSource::Lost(_) => 0,
        }
    }

    /// The bytes of `pages` pages after the first `skip`, for the kernel to copy from.
    pub fn bytes(&self, skip: u32, pages: u32) -> Source<'_> {
        assert!(skip + pages <= self.pages.count(), "within the piece");
        let bytes = usize_of(pages) * PAGE_BYTES;
        match self.place() {
            PieceBytes::At(mapping, offset) => mapping.source(offset + usize_of(skip) * PAGE_BYTES, bytes),
            PieceBytes::Zero => Source::zeroes(bytes),
            PieceBytes::Lost => unreachable!("lost pages are never readable"),
        }
    }

    /// Place of the piece's bytes.
    pub fn place(&self) -> PieceBytes<'_> {
        match &self.source {
            PieceSource::Zero => PieceBytes::Zero,
            PieceSource::Capture(capture) => PieceBytes::At(capture.mapping(), self.pages.start().offset()),
            PieceSource::Layer(file, first) => PieceBytes::At(file.mapping(), first.offset()),
            PieceSource::Remote(pages) => PieceBytes::At(pages.mapping(), self.pages.start().offset()),
            PieceSource::Lost(_) => PieceBytes::Lost,
        }
    }

    /// The frame that must be there before the first page can be read; none for what is always in memory, or nowhere.
    pub fn missing_frame(&self) -> Option<MissingFrame> {
        self.missing_frame_at(0)
    }

    /// The same before the page after the first `skip` can be read.
    pub fn missing_frame_at(&self, skip: u32) -> Option<MissingFrame> {
        match &self.source {
            PieceSource::Zero | PieceSource::Capture(_) | PieceSource::Lost(_) => None,
            PieceSource::Layer(file, first) => {
                Some(MissingFrame::Layer(Arc::clone(file), frame_of(first.plus(skip))))
            }
            PieceSource::Remote(pages) => {
                Some(MissingFrame::Remote(Arc::clone(pages), frame_at(self.pages.start().plus(skip))))
            }
        }
    }

    /// Pages from the one after the first `skip` to the end of its frame, or of the piece.
    pub fn rest_of_frame(&self, skip: u32) -> u32 {
        let left = self.pages.count() - skip;
        let position = match &self.source {
            PieceSource::Zero | PieceSource::Capture(_) | PieceSource::Lost(_) => return left,
            PieceSource::Layer(_, first) => first.plus(skip).number(),
            PieceSource::Remote(_) => self.pages.start().plus(skip).number(),
        };
        left.min(FRAME_PAGES - position % FRAME_PAGES)
    }

    /// Says that reading the piece failed: its layer is verified anew, and what the disk lost of it is fetched.
    pub fn source_failed(&self) {
        if let PieceSource::Layer(file, _) = &self.source {
            file.forget_all_verified();
        }
    }

    /// Goes on to the file that its layer's frames are fetched into now; true if that is another one.
    pub fn follow(&mut self) -> bool {
        let PieceSource::Layer(file, _) = &mut self.source else { return false };
        let newest = Arc::clone(file).newest();
        let is_other = !Arc::ptr_eq(file, &newest);
        *file = newest;
        is_other
    }

    /// Copies the piece; `into` is as long as the piece. Its frames must have been verified.
    pub fn copy_to(&self, into: &mut [u8]) -> Result<(), LostBytes> {
        assert_eq!(
            u64_of(into.len()),
            u64::from(self.pages.count()) * u64_of(PAGE_BYTES),
            "as long as the piece"
        );
        match self.place() {
            PieceBytes::At(mapping, offset) => mapping.copy_to(offset, into),
            PieceBytes::Zero => {
                into.fill(0);
                Ok(())
            }
            PieceBytes::Lost => Err(LostBytes { offset: self.pages.start().offset() }),
        }
    }
}
