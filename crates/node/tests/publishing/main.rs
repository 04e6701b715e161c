//! Publishing into a real S3 server that misbehaves below HTTP: whatever happens to a request, a snapshot that was
//! acknowledged is published once and right, and one that was deleted stays so.

mod parts;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::open::OpenError;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_engine::store_gate::{Holds, OpenedStore, OtherStore, StoreGate, StoreOpener};
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::s3::S3Server;
use rekindle_testkit::site::{PATIENCE, Site};

/// Bytes of a part: few, so that a small layer has several.
pub(crate) const PART_BYTES: usize = 100_000;

/// Pages of a guest whose layer is larger than [`PARTS`] parts less one.
pub(crate) const PAGES: u32 = 190;

/// Parts of the layer of a guest of [`PAGES`], which does not get shorter by compressing.
pub(crate) const PARTS: usize = 8;

/// A bucket, and a node that publishes into it.
pub(crate) struct Place {
    pub(crate) server: Arc<S3Server>,
    pub(crate) site: Site,
}

#[derive(Debug)]
struct Opens(Arc<S3Server>);

impl StoreOpener for Opens {
    fn open(&self, _: Holds) -> Result<OpenedStore, String> {
        let Self(server) = self;
        rekindle_bucket::open(&server.url("node"), &server.access(), &server.environment(), &Arc::default())
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let server = Arc::new(S3Server::start().expect("a server"));
        Self { server, site: Site::new().expect("a temporary directory") }
    }

    /// An engine of the node. One at a time.
    pub(crate) fn start(&self) -> Engine {
        start_at(&self.server, &self.site)
    }

    /// Ends an engine with no word to the server, as far as the server can see, and starts the next one.
    pub(crate) fn start_again(&self, engine: Engine, snapshot: Arc<Snapshot>) -> (Engine, Arc<Snapshot>) {
        let id = self.end(engine, snapshot);
        let engine = self.start();
        let snapshot = engine.snapshot(id).expect("it was acknowledged");
        (engine, snapshot)
    }

    pub(crate) fn end(&self, engine: Engine, snapshot: Arc<Snapshot>) -> SnapshotId {
        engine.stop();
        let id = snapshot.id();
        drop((snapshot, engine));
        id
    }

    /// Checks that the bucket has no snapshot, and tells that this one was deleted.
    pub(crate) fn check_deleted(&self, id: SnapshotId) {
        let elsewhere = self.site.elsewhere().expect("a temporary directory");
        let engine = start_at(&self.server, &elsewhere);
        assert_eq!(engine.stored_snapshots().expect("they are listed"), []);
        let refused = engine.open(id).expect_err("it was deleted");
        assert!(matches!(refused, OpenError::Deleted { .. }), "{refused}");
    }

    /// Checks that the bucket has this one snapshot, every page of it.
    pub(crate) fn check_elsewhere(&self, id: SnapshotId, memory: &ModelMemory) {
        let elsewhere = self.site.elsewhere().expect("a temporary directory");
        let engine = start_at(&self.server, &elsewhere);
        let there: Vec<_> =
            engine.stored_snapshots().expect("it is listed").iter().map(|one| one.id).collect();
        assert_eq!(there, [id]);
        let snapshot = engine.open(id).expect("it is published");
        judge(&engine, &snapshot, memory).expect("every page is the model's");
    }
}

fn start_at(server: &Arc<S3Server>, site: &Site) -> Engine {
    let recording = site.recording().expect("nobody else has the catalog");
    let catalog = recording.catalog.clone().expect("it records");
    let (opener, keys) = (Box::new(Opens(Arc::clone(server))), recording.keys.clone());
    let gate = StoreGate::new(opener, catalog, None, OtherStore::Refused, keys);
    let options = EngineOptions { store: Store::gated(gate), part_bytes: PART_BYTES, ..recording };
    Engine::start(options).expect("threads for an engine")
}

/// A snapshot of a guest that has written all of its pages; its VMM has ended.
pub(crate) fn pause(engine: &Engine, pages: u32) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::fresh(pages);
    let all = GuestPages::new(GuestPage::FIRST, pages);
    guest.write_random(engine, all, &mut Random::new(1)).expect("its own pages");
    guest.pause(engine, Tracking::Exact).expect("there is room").end_vmm()
}

pub(crate) fn wait_published(snapshot: &Snapshot) {
    let published = snapshot.wait_state(SnapshotState::Published, PATIENCE);
    assert!(published, "it is not published: {:?}", snapshot.status());
}

/// Waits until publishing has failed once.
pub(crate) fn wait_failure(snapshot: &Snapshot) {
    while snapshot.status().failure.is_none() {
        assert!(!snapshot.wait_state(SnapshotState::Published, SHORT), "the server refuses");
    }
}

/// Time between two looks at two things of which one happens.
pub(crate) const SHORT: Duration = Duration::from_millis(5);
