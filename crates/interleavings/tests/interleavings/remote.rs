//! Pages of another node that come while they get their names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine_under_shuttle::budget::Budget;
use engine_under_shuttle::frame::{FRAME_PAGES, FrameNumber};
use engine_under_shuttle::geometry::{GuestPages, PAGE_BYTES};
use engine_under_shuttle::identity::{LayerId, SnapshotId};
use engine_under_shuttle::peer::{Described, HeldLayers, Peer, PeerError, WantedLayer, WantedPages};
use engine_under_shuttle::reaper::Reaper;
use engine_under_shuttle::remote_pages::{NamedPages, RemoteVolume};
use engine_under_shuttle::sources::Class;
use engine_under_shuttle::steps::RemoteSteps;
use futures_util::future::BoxFuture;
use shuttle::thread;

use crate::schedule::random;

const FRAMES: usize = 3;
const PAGES: u32 = 3 * FRAME_PAGES;
/// The frame of which the other node sends wrong bytes.
const WRONG: usize = 1;

/// A node that nothing is asked of: its answers come by steps.
#[derive(Debug)]
struct Other;

impl Other {
    fn away<T: Send>(&self) -> BoxFuture<'_, Result<T, PeerError>> {
        let (node, reason) = (self.node().to_owned(), "nothing is asked of it".to_owned());
        Box::pin(async move { Err(PeerError::Away { node, reason }) })
    }
}

impl Peer for Other {
    fn node(&self) -> &'static str {
        "other"
    }

    fn describe(&self, _: SnapshotId) -> BoxFuture<'_, Result<Described, PeerError>> {
        self.away()
    }

    fn pages(&self, _: WantedPages, _: Class) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        self.away()
    }

    fn published(&self, _: SnapshotId) -> BoxFuture<'_, Result<bool, PeerError>> {
        self.away()
    }

    fn layers(&self, _: Vec<LayerId>) -> BoxFuture<'_, Result<HeldLayers, PeerError>> {
        self.away()
    }

    fn frames(&self, _: WantedLayer, _: Class) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, PeerError>> {
        self.away()
    }
}

/// The bytes that names stand for: each page of a frame is filled with the frame's number.
struct Right;

impl NamedPages for Right {
    fn read(&self, pages: GuestPages, into: &mut [u8]) -> Result<(), String> {
        for (page, bytes) in pages.iter().zip(into.chunks_exact_mut(PAGE_BYTES)) {
            bytes.fill(right(page.number() / FRAME_PAGES));
        }
        Ok(())
    }
}

fn right(frame: u32) -> u8 {
    u8::try_from(frame + 1).expect("a few")
}

/// A frame as the other node sends it.
fn sent(frame: usize, is_wrong: bool) -> Vec<u8> {
    let fill = if is_wrong { 99 } else { right(u32::try_from(frame).expect("a few")) };
    vec![fill; PAGE_BYTES * usize::try_from(FRAME_PAGES).expect("64 bits")]
}

/// The first byte of each frame that is here.
fn here(steps: &RemoteSteps) -> BTreeMap<usize, u8> {
    let pages = steps.pages();
    let first = |frame: FrameNumber| {
        let mut byte = [0];
        pages.mapping().copy_to(pages.pages_of(frame).start().offset(), &mut byte).expect("it is here");
        byte[0]
    };
    pages.frames().filter(|frame| pages.is_here(*frame)).map(|frame| (frame.index(), first(frame))).collect()
}

/// Frames come in threads of their own while they are compared; the node, what differed, and what is here.
fn come_while_compared(is_wrong: bool) -> (bool, BTreeMap<usize, u8>) {
    let reaper = Reaper::start().expect("a thread");
    let budget = Budget::new(u64::from(PAGES) * 4096);
    let lease = budget.lease(u64::from(PAGES) * 4096, Duration::ZERO).expect("there is room");
    let of = RemoteVolume { snapshot: SnapshotId::new(), volume: 0 };
    let steps = Arc::new(RemoteSteps::new(of, PAGES, Arc::new(Other), lease, reaper.handle()));
    let coming: Vec<_> = (0..FRAMES)
        .map(|frame| {
            let steps = Arc::clone(&steps);
            thread::spawn(move || {
                steps.come(FrameNumber::new(frame), &sent(frame, is_wrong && frame == WRONG));
            })
        })
        .collect();
    let comparing = Arc::clone(&steps);
    let compared = thread::spawn(move || comparing.compare(&Arc::new(Right)).is_some());
    coming.into_iter().for_each(|coming| coming.join().expect("it came"));
    let differs = compared.join().expect("it was compared");
    let found = here(&steps);
    drop(steps);
    drop(reaper);
    (differs, found)
}

#[test]
fn a_wrong_page_that_comes_while_pages_get_names_is_found_or_read_by_name_and_never_kept() {
    random(3000, || {
        let (differs, here) = come_while_compared(true);
        assert_eq!(here.len(), FRAMES);
        assert_ne!(differs, here[&WRONG] == right(1), "it is found wrong, or is right by its name: {here:?}");
    });
}

#[test]
fn pages_that_come_right_are_all_here_and_nothing_differs() {
    random(1000, || {
        let (differs, here) = come_while_compared(false);
        assert!(!differs);
        assert_eq!(here, BTreeMap::from([(0, 1), (1, 2), (2, 3)]));
    });
}
