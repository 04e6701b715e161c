//! The frames that pages ahead of a guest need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::fetch::WantedFrames;
use crate::frame::{FRAME_PAGES, FrameNumber, frame_of};
use crate::geometry::GuestPages;
use crate::identity::LayerId;
use crate::local_file::LocalFile;
use crate::view::{LiveView, PieceSource};

/// The frames that the pages of `runs` lie in and that are not verified here yet, by layer.
pub fn missing_frames(view: &LiveView, runs: impl IntoIterator<Item = GuestPages>) -> Vec<WantedFrames> {
    let mut missing: BTreeMap<LayerId, (Arc<LocalFile>, BTreeSet<FrameNumber>)> = BTreeMap::new();
    for run in runs {
        view.pieces_of(run, |piece| {
            let PieceSource::Layer(file, first) = &piece.source else { return };
            let last = first.plus(piece.pages.count() - 1);
            let mut page = *first;
            while page <= last {
                let frame = frame_of(page);
                if !file.is_verified(frame) {
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
