//! A store that is away for long: waiting snapshots take neither threads nor RAM in proportion. This test is alone in
//! its process, whose threads it counts.

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::limits;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::guest::{Guest, Tracking};
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Operation, Rule};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SNAPSHOTS: u64 = 1000;

/// Number of pauses before their seals are awaited: captured memory holds descriptors.
const AT_ONCE: u64 = 50;

const PAGES: u32 = 4;

/// Far fewer than the snapshots, and more than an engine and the test have.
const THREADS_MAX: usize = 40;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("this process").count()
}

/// Raises the limit of descriptors, as every open layer takes one.
fn allow_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .expect("up to the maximum it is allowed");
}

fn pause(engine: &Engine, seed: u64) -> Arc<Snapshot> {
    let mut guest = Guest::fresh(PAGES);
    let all = GuestPages::new(GuestPage::FIRST, PAGES);
    guest.write_random(engine, all, &mut Random::new(seed)).expect("its own pages");
    guest.pause(engine, Tracking::Exact).expect("there is room").end_vmm().0
}

fn sealed(engine: &Engine, seeds: std::ops::Range<u64>) -> Vec<Arc<Snapshot>> {
    let snapshots: Vec<_> = seeds.map(|seed| pause(engine, seed)).collect();
    for snapshot in &snapshots {
        assert!(snapshot.wait_manifest(PATIENCE).is_ok(), "it is not sealed: {:?}", snapshot.status());
    }
    snapshots
}

#[test]
fn a_thousand_snapshots_that_wait_for_the_store_have_no_threads_and_their_uploads_hold_bounded_bytes() {
    allow_descriptors();
    let site = Site::new().expect("a temporary directory");
    let engine = site.engine().expect("threads for an engine");
    let outage = site.faults.outage();
    let batches = (0..SNAPSHOTS / AT_ONCE).map(|batch| batch * AT_ONCE..(batch + 1) * AT_ONCE);
    let snapshots: Vec<_> = batches.flat_map(|seeds| sealed(&engine, seeds)).collect();
    assert!(threads() <= THREADS_MAX, "{} threads wait for the store", threads());

    // The store is back, but answers no upload.
    let stalled = site.faults.inject(Rule::always(Operation::Put, "layers/", Fault::Stall));
    drop(outage);
    while engine.upload_bytes_held() < limits::UPLOAD_BYTES_MAX {
        let is_published = snapshots[0].wait_state(SnapshotState::Published, Duration::from_millis(10));
        assert!(!is_published, "its upload is stalled");
    }
    // Neither seals nor deletions wait behind them.
    let late = sealed(&engine, SNAPSHOTS..SNAPSHOTS + 1);
    let deleted = site.faults.calls(Operation::List, "manifests/");
    engine.delete(&late[0]).expect("there is no catalog");
    // Its manifest was never put: the deletion looks for editions, and there is none.
    site.faults.wait_calls(Operation::List, "manifests/", deleted + 1);
    assert_eq!(engine.upload_bytes_held(), limits::UPLOAD_BYTES_MAX, "others wait for their bytes");
    assert!(threads() <= THREADS_MAX, "{} threads upload", threads());

    drop(stalled);
    for snapshot in &snapshots {
        let published = snapshot.wait_state(SnapshotState::Published, PATIENCE);
        assert!(published, "it is not published: {:?}", snapshot.status());
    }
    assert_eq!(engine.upload_bytes_held(), 0);
}
