//! The frames that pages ahead of a guest need, and the parts of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::fetch::WantedFrames;
use crate::frame::{FRAME_PAGES, FrameNumber, frame_of};
use crate::geometry::{GuestPages, LayerPage};
use crate::identity::LayerId;
use crate::local_file::LocalFile;
use crate::page_tree::PageBits;
use crate::view::{LiveView, PieceSource};

/// The frames with pages of `runs` that are not verified here yet, by layer.
pub fn missing_frames(view: &LiveView, runs: impl IntoIterator<Item = GuestPages>) -> Vec<WantedFrames> {
    let mut missing: BTreeMap<LayerId, (Arc<LocalFile>, BTreeSet<FrameNumber>)> = BTreeMap::new();
    for run in runs {
        view.pieces_of(run, |piece| {
            let PieceSource::Layer(file, first) = &piece.source else { return };
            let last = first.plus(piece.pages.count() - 1);
            let mut page = *first;
            while page <= last {
                let frame = frame_of(page);
                if !file.has_verified(frame, bits_of(page, last)) {
                    let of_layer = || (Arc::clone(file), BTreeSet::new());
                    missing.entry(file.layer().id()).or_insert_with(of_layer).1.insert(frame);
                }
                page = frame.first_page().plus(FRAME_PAGES);
            }
        });
    }
    let wanted =
        |(file, frames): (_, BTreeSet<_>)| WantedFrames { file, frames: frames.into_iter().collect() };
    missing.into_values().map(wanted).collect()
}

/// The pages of the frame of `page`, from that one to `last` or to the frame's end.
fn bits_of(page: LayerPage, last: LayerPage) -> PageBits {
    let first = page.number() % FRAME_PAGES;
    PageBits::of_run(first, (last.pages_since(page) + 1).min(FRAME_PAGES - first))
}
