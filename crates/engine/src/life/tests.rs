//! Lives of snapshots on a bench of their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;

use super::*;
use crate::byte_budget::ByteBudget;
use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::hooks::NoHooks;
use crate::identity::{DomainName, SnapshotId, VolumeName};
use crate::key_ring::KeyRing;
use crate::manifest::{Manifest, SnapshotFacts, VolumeShape};
use crate::page_map::PageMap;
use crate::pool::Pool;
use crate::precedence::Precedence;
use crate::reaper::Reaper;
use crate::roots::Roots;
use crate::seal::Sealing;
use crate::snapshot::{SealParts, SnapshotParts, Volume};
use crate::sources::Sources;
use crate::view::{LiveView, View};
use crate::watch::NoWatcher;
use rekindle_kernel::PageKind;

fn sealed() -> Snapshot {
    let (id, name, page_kind) = (SnapshotId::new(), VolumeName::memory(), PageKind::Small);
    let facts = SnapshotFacts { snapshot: id, created_unix_ms: 0, blobs: BTreeMap::new() };
    let shape = VolumeShape { name: name.clone(), page_kind, pages: 1 };
    let manifest = Manifest::first(facts, vec![shape], &[]).expect("within limits");
    let view = Arc::new(LiveView::new(View::flat(PageMap::zero(1), Arc::from([]))));
    let parts = SnapshotParts {
        id,
        parent_id: None,
        domain: DomainName::shared(),
        generation: 0,
        created_unix_ms: 0,
        volumes: vec![Volume { name, page_kind, view }],
        blobs: BTreeMap::new(),
        records: None,
    };
    let snapshot = Snapshot::captured(parts, None, &[]);
    let named = Named::new(manifest, []);
    let (work, _) = snapshot.record_sealed((named, Vec::new()), Duration::ZERO, SealParts::default());
    assert_eq!(work, SnapshotWork::Publish);
    snapshot
}

/// A life of a sealed snapshot, and the threads that it needs.
struct Bed {
    life: Life,
    store: Store,
    reaper: Reaper,
    runtime: tokio::runtime::Runtime,
    _pool: Pool,
}

fn bed(directory: &Path) -> Bed {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let store = Store::directory(&directory.join("store")).expect("a directory");
    let keys = KeyRing::of_name("shared");
    let cache = Arc::new(Cache::open(&directory.join("cache"), keys.clone()).expect("a directory"));
    let sources = Sources::new(store.clone(), keys.clone());
    let fetcher = Fetcher::new(runtime.handle().clone(), sources, Stop::default());
    let sealing = Sealing { workers: 1, merge_at_layers: limits::MERGE_AT_LAYERS };
    let pool = Pool::start("saving", 1).expect("a thread");
    let budget = ByteBudget::new(limits::UPLOAD_BYTES_MAX);
    let sets =
        WorkingSets { fetcher: fetcher.clone(), encoding: pool.handle(), budget: budget.clone(), share: 0 };
    let follower = Follower { fetcher: fetcher.clone(), cache: Arc::clone(&cache) };
    let sealer = Sealer::new(cache, fetcher, sealing, Precedence::default(), Arc::new(NoHooks));
    let reaper = Reaper::start().expect("a thread");
    let publisher = Publisher {
        store: store.clone(),
        pool: pool.handle(),
        encoding: pool.handle(),
        budget,
        keys: keys.clone(),
        stop: Stop::default(),
        uploads: None,
        part_bytes: limits::UPLOAD_PART_BYTES,
        roots: Roots::default(),
    };
    let background = Arc::new(Background {
        sealer,
        sealing: pool.handle(),
        publisher,
        reaper: reaper.handle(),
        records: None,
        watcher: Arc::new(NoWatcher),
        run_roots: Arc::default(),
        sets: Arc::new(sets),
        origin: None,
        follower,
    });
    Bed { life: Life { snapshot: Arc::new(sealed()), background }, store, reaper, runtime, _pool: pool }
}

#[test]
fn a_snapshot_that_was_deleted_before_its_next_try_is_not_published() {
    let directory = tempfile::tempdir().expect("a directory");
    let Bed { life, store, runtime, .. } = &bed(directory.path());
    let again = Work::left(&life.snapshot, Vec::new());
    life.snapshot.record(SnapshotEvent::Deleted);
    assert_eq!(runtime.block_on(life.carry_on(again)), Ok(()));
    assert_eq!(store.traffic().sent_bytes, 0);
}

/// Memory that takes long to free, and says how much was sent while it was freed.
struct SlowToFree {
    store: Store,
    sent: mpsc::Sender<u64>,
}

impl Drop for SlowToFree {
    fn drop(&mut self) {
        let begun = Instant::now();
        while self.store.traffic().sent_bytes == 0 && begun.elapsed() < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        self.sent.send(self.store.traffic().sent_bytes).expect("the test waits for it");
    }
}

#[test]
fn publishing_begins_once_the_memory_of_captures_is_given_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let Bed { life, store, reaper, runtime, .. } = &bed(directory.path());
    let (sent, seen) = mpsc::channel();
    reaper.handle().discard(SlowToFree { store: store.clone(), sent });
    assert_eq!(runtime.block_on(life.carry_on(Work::left(&life.snapshot, Vec::new()))), Ok(()));
    assert_eq!(seen.try_recv(), Ok(0));
    assert_ne!(store.traffic().sent_bytes, 0);
}
