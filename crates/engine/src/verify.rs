//! Verifies that every page of a snapshot can be read and is right: each frame is read again and checked against the
//! digest that its layer's name commits to. For a published snapshot the store must have every object, too.

use std::collections::HashMap;

use rekindle_kernel::PAGE_BYTES;

use crate::capture::Capture;
use crate::fetch::Fetcher;
use crate::frame::{FRAME_PAGES, FrameNumber, frame_of};
use crate::geometry::{GuestPage, GuestPages};
use crate::identity::LayerId;
use crate::remote_pages::frame_at;
use crate::snapshot::{Snapshot, Volume};
use crate::store_check::{StoreFindings, look_for_objects};
use crate::view::{Piece, PieceSource};

/// Result of verifying a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Pages of the snapshot, which were all checked.
    pub pages: u64,
    /// Pages that cannot be read, or are wrong.
    pub wrong_pages: u64,
    /// The fault of the first of them.
    pub first: Option<String>,
    /// Result of looking for its objects in the store.
    pub store: StoreFindings,
}

/// Reads everything: captured pages from RAM, frames from the local disk, or from the store if they are missing or
/// wrong there. None if `is_wanted`, which is called before each frame or as many captured pages, returns false.
pub fn verify(snapshot: &Snapshot, fetcher: &Fetcher, is_wanted: &dyn Fn() -> bool) -> Option<Verification> {
    let store = StoreFindings::NotPublished;
    let found = Verification { pages: 0, wrong_pages: 0, first: None, store };
    let mut verifying = Verifying { fetcher, is_wanted, frames: HashMap::new(), found };
    for volume in snapshot.volumes() {
        verifying.volume(volume)?;
    }
    let mut found = verifying.found;
    if snapshot.is_lost() {
        found.first = snapshot.status().failure;
    }
    if snapshot.is_published() {
        let (id, seen) = (snapshot.id(), snapshot.editions().last());
        let looked = fetcher.ask(async |sources| look_for_objects(id, seen, sources).await);
        found.store =
            looked.unwrap_or_else(|stopped| StoreFindings::NotAsked { reason: stopped.to_string() });
    }
    Some(found)
}

struct Verifying<'a> {
    fetcher: &'a Fetcher,
    is_wanted: &'a dyn Fn() -> bool,
    /// The fault, if any, of each frame that was checked.
    frames: HashMap<(LayerId, FrameNumber), Option<String>>,
    found: Verification,
}

impl Verifying<'_> {
    /// None if it is no longer wanted.
    fn check_wanted(&self) -> Option<()> {
        (self.is_wanted)().then_some(())
    }

    fn volume(&mut self, volume: &Volume) -> Option<()> {
        let pages = volume.view.pages();
        let mut page = GuestPage::FIRST;
        while page.number() < pages {
            let piece = volume.view.piece_at(page, pages - page.number());
            self.piece(volume, &piece)?;
            page = piece.pages.end();
        }
        Some(())
    }

    fn piece(&mut self, volume: &Volume, piece: &Piece) -> Option<()> {
        self.found.pages += u64::from(piece.pages.count());
        match &piece.source {
            PieceSource::Zero => {}
            PieceSource::Lost(_) => self.wrong(volume, piece.pages, "it is lost, or cannot be read now"),
            PieceSource::Capture(capture) => {
                let mut left = piece.pages;
                while !left.is_empty() {
                    self.check_wanted()?;
                    let here = left.first_pages(left.count().min(FRAME_PAGES));
                    left = left.after(here.count());
                    self.captured(volume, capture, here);
                }
            }
            PieceSource::Remote(remote) => {
                let mut left = piece.pages;
                while !left.is_empty() {
                    self.check_wanted()?;
                    let here =
                        left.first_pages(piece.rest_of_frame(left.start().pages_since(piece.pages.start())));
                    // Pages without a name can be had or not, but not be checked.
                    if let Err(error) = self.fetcher.load_remote(remote, frame_at(left.start())) {
                        self.wrong(volume, here, &error.to_string());
                    }
                    left = left.after(here.count());
                }
            }
            PieceSource::Layer(file, first) => {
                let mut left = piece.pages;
                while !left.is_empty() {
                    self.check_wanted()?;
                    let at = first.plus(left.start().pages_since(piece.pages.start()));
                    let here = left.first_pages(left.count().min(FRAME_PAGES - at.number() % FRAME_PAGES));
                    left = left.after(here.count());
                    let frame = frame_of(at);
                    let fetcher = self.fetcher;
                    let wrong = self.frames.entry((file.layer().id(), frame)).or_insert_with(|| {
                        file.forget_verified(frame);
                        fetcher.load(file, frame).err().map(|error| error.to_string())
                    });
                    if let Some(reason) = wrong.clone() {
                        self.wrong(volume, here, &reason);
                    }
                }
            }
        }
        Some(())
    }

    fn captured(&mut self, volume: &Volume, capture: &Capture, pages: GuestPages) {
        let mut bytes = vec![0; PAGE_BYTES];
        for page in pages.iter() {
            if let Err(lost) = capture.mapping().copy_to(page.offset(), &mut bytes) {
                self.wrong(volume, GuestPages::new(page, 1), &lost.to_string());
            }
        }
    }

    fn wrong(&mut self, volume: &Volume, pages: GuestPages, reason: &str) {
        self.found.wrong_pages += u64::from(pages.count());
        self.found
            .first
            .get_or_insert_with(|| format!("page {} of volume {}: {reason}", pages.start(), volume.name));
    }
}
