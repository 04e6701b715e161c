//! Nodes that go, and nodes that send other bytes than those of the snapshot.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::open::OpenError;
use rekindle_engine::peer::{Described, Peer, PeerError, Peers, WantedPages};
use rekindle_engine::sources::Class;
use rekindle_testkit::guest::judge;
use rekindle_testkit::hooks::Point;
use rekindle_testkit::site::PATIENCE;

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

/// A node that has one byte of a page wrong.
#[derive(Debug)]
struct Lying {
    honest: Arc<dyn Peer>,
    page: u32,
}

#[derive(Debug)]
struct LyingPeers(Arc<dyn Peers>, u32);

impl Peers for LyingPeers {
    fn at(&self, node: &str) -> Result<Arc<dyn Peer>, PeerError> {
        Ok(Arc::new(Lying { honest: self.0.at(node)?, page: self.1 }))
    }
}

impl Peer for Lying {
    fn node(&self) -> &str {
        self.honest.node()
    }

    fn describe(&self, snapshot: SnapshotId) -> BoxFuture<'_, Result<Described, PeerError>> {
        self.honest.describe(snapshot)
    }

    fn pages(&self, wanted: WantedPages, class: Class) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let asked = async move {
            let first = wanted.runs[0].start().number();
            let count = wanted.runs[0].count();
            let mut bytes = self.honest.pages(wanted, class).await?;
            if (first..first + count).contains(&self.page) {
                bytes[usize::try_from(self.page - first).expect("within the run") * 4096 + 17] ^= 1;
            }
            Ok(bytes)
        };
        asked.boxed()
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
    let peers: Arc<dyn Peers> = Arc::new(LyingPeers(fleet.peers("b"), 130));
    let b = Engine::start(EngineOptions { peers, ..of_b.options() }).expect("threads for an engine");
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
