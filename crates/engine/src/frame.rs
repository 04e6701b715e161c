//! The unit in which a layer's pages are hashed, compressed and fetched: 64 pages, the last frame what is left.

use std::fmt;

use crate::geometry::{LayerPage, PAGE_BYTES, usize_of};

/// Pages of a frame: 256 KiB, a cold miss that costs some 0.2 ms to decompress and 6 us to hash.
pub const FRAME_PAGES: u32 = 64;

/// The index of a frame in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameNumber(u32);

impl FrameNumber {
    /// The frame at this position; one that no layer has is a bug of the caller.
    #[must_use]
    pub fn new(position: usize) -> Self {
        Self(u32::try_from(position).expect("a layer has less frames than pages"))
    }

    /// The frame's position.
    #[must_use]
    pub fn index(self) -> usize {
        usize_of(self.0)
    }

    /// The first page of the frame.
    #[must_use]
    pub fn first_page(self) -> LayerPage {
        LayerPage::FIRST.plus(self.0.checked_mul(FRAME_PAGES).expect("a layer has a frame of this number"))
    }
}

impl fmt::Display for FrameNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The frame a page is in.
#[must_use]
pub fn frame_of(page: LayerPage) -> FrameNumber {
    FrameNumber(page.number() / FRAME_PAGES)
}

/// Number of frames in a layer of this many pages.
#[must_use]
pub fn frames_of(layer_pages: u32) -> usize {
    usize_of(layer_pages.div_ceil(FRAME_PAGES))
}

/// Number of pages of `frame` in a layer of this many pages; a frame the layer does not have is a bug of the caller.
#[must_use]
pub fn pages_in_frame(frame: FrameNumber, layer_pages: u32) -> u32 {
    let first = frame.first_page().number();
    assert!(first < layer_pages, "frame {frame} is outside a layer of {layer_pages} pages");
    FRAME_PAGES.min(layer_pages - first)
}

/// Number of bytes of `frame`, uncompressed, in a layer of this many pages.
#[must_use]
pub fn frame_bytes(frame: FrameNumber, layer_pages: u32) -> usize {
    usize_of(pages_in_frame(frame, layer_pages)) * PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_cover_a_layer_once() {
        for layer_pages in [1, 63, 64, 65, 128, 1000] {
            let frames = (0..frames_of(layer_pages)).map(FrameNumber::new);
            let pages: u32 = frames.clone().map(|frame| pages_in_frame(frame, layer_pages)).sum();
            assert_eq!(pages, layer_pages);
            for frame in frames {
                assert_eq!(frame_of(frame.first_page()), frame);
                let last = pages_in_frame(frame, layer_pages) - 1;
                assert_eq!(frame_of(frame.first_page().plus(last)), frame);
            }
        }
        assert_eq!(frames_of(0), 0);
    }

    #[test]
    #[should_panic(expected = "outside a layer")]
    fn a_frame_past_the_last_page_is_a_bug() {
        let _: u32 = pages_in_frame(FrameNumber::new(1), 64);
    }
}
