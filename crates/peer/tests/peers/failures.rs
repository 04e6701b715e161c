//! Nodes that go, and nodes that send other bytes than those of the snapshot.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rekindle_engine::engine::{Engine, EngineOptions, ForgetError};
use rekindle_engine::identity::{LayerId, SnapshotId};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::open::OpenError;
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::{Described, HeldLayers, Peer, PeerError, Peers, WantedLayer, WantedPages};
use rekindle_engine::sources::Class;
use rekindle_testkit::guest::judge;
use rekindle_testkit::hooks::Point;
use rekindle_testkit::site::{PATIENCE, Site};

use crate::fleet::{Fleet, any_port, first_pause, next_pause, run};
use crate::window::sites;

const PAGES: u32 = 700;

#[test]
fn case_43_an_origin_that_dies_before_it_has_published_is_named_with_what_is_missing_and_goes_on_when_it_returns()
 {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let (a, b) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"));
    let (at_a, serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    // Nothing is brought ahead: the listener is gone before the first page.
    let described = fleet.peers("x").at(&at_a.to_string()).unwrap();
    let remote = {
        let opened = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
        serves.stop();
        opened
    };
    drop(described);
    let (node, missing) = {
        let status = remote.status().remote.expect("it has no names");
        (status.node, status.missing_bytes)
    };
    assert_eq!(node, at_a.to_string());
    if missing > 0 {
        let mut bytes = vec![0; 4096 * usize::try_from(PAGES).unwrap()];
        let failed =
            b.read(remote.memory(), run(0, PAGES), &mut bytes).expect_err("its node is away").to_string();
        let told = [node.as_str(), &paused.id().to_string(), "bytes of volume 0"];
        assert!(told.iter().all(|part| failed.contains(part)), "{failed}");
        assert_eq!(remote.state(), SnapshotState::Remote, "nothing is given up");
    }
    let (_, _serves) = fleet.listen(&a, "a", at_a);
    let is_there = || judge(&b, &remote, &memory);
    let begun = std::time::Instant::now();
    while let Err(error) = is_there() {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        std::thread::yield_now();
    }
    drop(held);
    assert!(remote.wait_state(SnapshotState::Published, PATIENCE), "{:?}", remote.status());
    judge(&b, &remote, &memory).expect("from the store");
}

#[test]
fn an_origin_that_dies_after_it_has_published_is_not_needed() {
    let fleet = Fleet::new();
    let (of_a, of_b, of_c) = sites();
    let (a, b, c) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"), fleet.engine(&of_c, "c"));
    let (at_a, serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    drop(held);
    assert!(paused.wait_state(SnapshotState::Published, PATIENCE));
    serves.stop();
    let (child, changed) = {
        let begun = std::time::Instant::now();
        while remote.state() != SnapshotState::Published {
            assert!(begun.elapsed() < PATIENCE, "{:?}", remote.status());
            std::thread::yield_now();
        }
        next_pause(&b, &remote, &memory, run(0, 3), 7)
    };
    judge(&b, &child, &changed).expect("from the store");
    let opened = c.open_from(paused.id(), &at_a.to_string()).expect("the store has it");
    assert_eq!(opened.state(), SnapshotState::Published);
    judge(&c, &opened, &memory).expect("from the store");
    let unknown = c.open_from(SnapshotId::new(), &at_a.to_string()).expect_err("nobody has it");
    assert!(matches!(&unknown, OpenError::Peer { source: PeerError::Away { .. }, .. }), "{unknown}");
}

/// A part of a snapshot that a node has wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lie {
    /// A byte of this page.
    Page(u32),
    /// The device state.
    DeviceState,
    /// A byte of each frame of a layer.
    Frames,
    /// It never sends a frame of a layer.
    Silence,
}

#[derive(Debug)]
struct Lying {
    honest: Arc<dyn Peer>,
    lie: Lie,
}

#[derive(Debug)]
struct LyingPeers(Arc<dyn Peers>, Lie);

fn damaged(frame: &Bytes) -> Bytes {
    let mut bytes = frame.to_vec();
    bytes[7] ^= 1;
    bytes.into()
}

pub(crate) fn lying(fleet: &Fleet, lie: Lie) -> Arc<dyn Peers> {
    Arc::new(LyingPeers(fleet.peers("b"), lie))
}

impl Peers for LyingPeers {
    fn at(&self, node: &str) -> Result<Arc<dyn Peer>, PeerError> {
        Ok(Arc::new(Lying { honest: self.0.at(node)?, lie: self.1 }))
    }

    fn all(&self) -> BoxFuture<'_, Vec<String>> {
        self.0.all()
    }

    fn named_by<'a>(&'a self, origin: &'a Origin) -> BoxFuture<'a, Result<String, PeerError>> {
        self.0.named_by(origin)
    }
}

impl Peer for Lying {
    fn node(&self) -> &str {
        self.honest.node()
    }

    fn describe(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<Described, PeerError>> {
        let asked = async move {
            let mut described = self.honest.describe(snapshot).await?;
            if self.lie == Lie::DeviceState {
                described.facts.blobs.insert("device-state".to_owned(), "another".into());
            }
            Ok(described)
        };
        asked.boxed()
    }

    fn pages(&self, wanted: WantedPages, class: Class) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let asked = async move {
            let first = wanted.runs[0].start().number();
            let count = wanted.runs[0].count();
            let mut bytes = self.honest.pages(wanted, class).await?;
            if let Lie::Page(page) = self.lie
                && (first..first + count).contains(&page)
            {
                bytes[usize::try_from(page - first).expect("within the run") * 4096 + 17] ^= 1;
            }
            Ok(bytes)
        };
        asked.boxed()
    }

    fn layers(&self, layers: Vec<LayerId>) -> BoxFuture<'_, Result<HeldLayers, PeerError>> {
        self.honest.layers(layers)
    }

    fn frames(
        &self,
        wanted: WantedLayer,
        class: Class,
    ) -> BoxFuture<'_, Result<Vec<Option<Bytes>>, PeerError>> {
        let sent = async move {
            let mut frames = self.honest.frames(wanted, class).await?;
            match self.lie {
                Lie::Silence => std::future::pending().await,
                Lie::Frames => frames.iter_mut().flatten().for_each(|frame| *frame = damaged(frame)),
                Lie::Page(_) | Lie::DeviceState => {}
            }
            Ok(frames)
        };
        sent.boxed()
    }

    fn published(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<bool, PeerError>> {
        self.honest.published(snapshot)
    }
}

/// They have no name to be checked by when they come.
#[test]
fn case_44_wrong_bytes_of_a_node_are_found_when_the_snapshot_has_names_and_stop_all_that_stands_on_them() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let a = fleet.engine(&of_a, "a");
    let b = Engine::start(EngineOptions { peers: lying(&fleet, Lie::Page(130)), ..of_b.options() })
        .expect("threads for an engine");
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    judge(&b, &remote, &memory).expect_err("a page is wrong, and nothing can tell yet");
    let (child, _) = next_pause(&b, &remote, &memory, run(300, 3), 7);
    drop(held);
    assert!(remote.wait_state(SnapshotState::Lost, PATIENCE), "{:?}", remote.status());
    let reason = remote.status().failure.unwrap_or_default();
    assert!(reason.contains(&at_a.to_string()) && reason.contains("guest page 130"), "{reason}");
    let mut page = vec![0; 4096];
    b.read(remote.memory(), run(130, 1), &mut page).expect_err("no page of it is read any more");
    b.read(child.memory(), run(130, 1), &mut page).expect_err("nor through a child");
    assert!(child.manifest_now().is_none(), "a child of wrong pages gets no name");
}

pub(crate) fn eventually(happened: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !happened() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

/// An engine with a catalog, which reads from these nodes.
fn start(site: &Site, peers: Arc<dyn Peers>) -> Engine {
    let recording = site.recording().expect("a catalog");
    Engine::start(EngineOptions { peers, ..recording }).expect("threads for an engine")
}

#[test]
fn a_refuted_snapshot_stays_so_after_a_start_and_is_forgotten_and_opened_anew() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let a = fleet.engine(&of_a, "a");
    let b = start(&of_b, lying(&fleet, Lie::Page(130)));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    judge(&b, &remote, &memory).expect_err("a page is wrong, and nothing can tell yet");
    let (child, _) = next_pause(&b, &remote, &memory, run(300, 3), 7);
    drop(held);
    assert!(remote.wait_state(SnapshotState::Lost, PATIENCE), "{:?}", remote.status());
    eventually(|| child.status().failure.is_some_and(|reason| reason.contains("is refuted")));
    let id = child.id();
    drop((child, remote, b));

    let b = start(&of_b, fleet.peers("b"));
    let remote = b.snapshot(paused.id()).expect("it is recorded");
    assert!(remote.refuted().is_some_and(|reason| reason.contains("guest page 130")), "{remote:?}");
    let child = b.snapshot(id).expect("it is recorded");
    assert_eq!(child.state(), SnapshotState::Lost, "it stands on wrong pages");
    b.delete(&child).expect("a catalog");
    drop(child);
    b.forget(remote).expect("the store has the right one");
    let anew = b.open_from(paused.id(), &at_a.to_string()).expect("the store has it");
    judge(&b, &anew, &memory).expect("by its names");
    assert_eq!(paused.state(), SnapshotState::Published, "its node has it as before");
}

#[test]
fn wrong_pages_that_came_before_a_start_are_found_after_it() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let a = fleet.engine(&of_a, "a");
    let b = start(&of_b, lying(&fleet, Lie::Page(130)));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    judge(&b, &remote, &memory).expect_err("a page is wrong, and nothing can tell yet");
    let (child, _) = next_pause(&b, &remote, &memory, run(300, 3), 7);
    let id = child.id();
    drop((child, remote, b));

    let b = start(&of_b, fleet.peers("b"));
    let remote = b.snapshot(paused.id()).expect("it is recorded");
    judge(&b, &remote, &memory).expect_err("what a guest may have used is here as before");
    drop(held);
    assert!(remote.wait_state(SnapshotState::Lost, PATIENCE), "{:?}", remote.status());
    assert!(remote.refuted().is_some_and(|reason| reason.contains("guest page 130")), "{remote:?}");
    assert!(b.snapshot(id).expect("it is recorded").manifest_now().is_none(), "a child gets no name");
}

#[test]
fn pages_that_can_not_be_checked_any_more_because_the_keeper_is_gone_too_are_not_used() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let a = fleet.engine(&of_a, "a");
    let start = || {
        let recording = of_b.recording().expect("a catalog");
        Engine::start(EngineOptions { peers: fleet.peers("b"), ..recording }).expect("threads for an engine")
    };
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    drop(start().open_from(paused.id(), &at_a.to_string()).expect("its node has it"));
    of_b.keeper.die();
    let b = start();
    let remote = b.snapshot(paused.id()).expect("it is recorded");
    let reason = remote.refuted().unwrap_or_default();
    assert!(reason.contains("keeper") && reason.contains("resume it anew"), "{reason}");
    b.forget(remote).expect("its node has it");
    let anew = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    judge(&b, &anew, &memory).expect("every page is the snapshot's");
    drop(held);
    assert!(anew.wait_state(SnapshotState::Published, PATIENCE), "{:?}", anew.status());
    assert!(of_b.keeper.wait_empty(PATIENCE), "it is named, and needs no keeper");
}

#[test]
fn a_description_with_another_device_state_is_found_when_the_snapshot_has_names() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let a = fleet.engine(&of_a, "a");
    let b = Engine::start(EngineOptions { peers: lying(&fleet, Lie::DeviceState), ..of_b.options() })
        .expect("threads for an engine");
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, _) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    drop(held);
    assert!(remote.wait_state(SnapshotState::Lost, PATIENCE), "{:?}", remote.status());
    let reason = remote.refuted().unwrap_or_default();
    assert!(reason.contains("another device state"), "{reason}");
}

#[test]
fn a_snapshot_of_another_node_is_forgotten_here_unless_something_uses_it_which_then_goes_on() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let (a, b) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    b.forget(remote).expect("nothing uses it");
    assert!(b.snapshot(paused.id()).is_none());
    let used = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it as before");
    let refused = b.forget(Arc::clone(&used)).expect_err("it is used");
    assert!(matches!(refused, ForgetError::InUse), "{refused}");
    judge(&b, &used, &memory).expect("every page is the snapshot's");
    drop(held);
    assert!(used.wait_state(SnapshotState::Published, PATIENCE), "{:?}", used.status());
}

#[test]
fn a_node_with_another_store_is_told_so_and_reads_on_from_the_first() {
    let fleet = Fleet::new();
    let (of_a, of_b) = (Site::new().expect("a directory"), Site::new().expect("a directory"));
    let (a, b) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    drop(held);
    eventually(|| remote.status().failure.is_some_and(|reason| reason.contains("same setting store")));
    judge(&b, &remote, &memory).expect("every page is the snapshot's");
    assert_eq!(remote.state(), SnapshotState::Remote);
}

#[test]
fn case_46_the_word_that_the_store_has_a_snapshot_does_not_stick_when_the_store_fails() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let (a, b) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    let outage = of_b.faults.outage();
    drop(held);
    assert!(paused.wait_state(SnapshotState::Published, PATIENCE), "{:?}", paused.status());
    eventually(|| remote.status().failure.is_some());
    assert_eq!(remote.state(), SnapshotState::Remote);
    judge(&b, &remote, &memory).expect("its node goes on to serve it");
    drop(outage);
    assert!(remote.wait_state(SnapshotState::Published, PATIENCE), "{:?}", remote.status());
    judge(&b, &remote, &memory).expect("from the store");
}
