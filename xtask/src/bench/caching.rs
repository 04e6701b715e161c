//! Rows on local files: a read of one, faults while others are evicted, and a start with many snapshots.

use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use rekindle_engine::cache_limits::CacheLimits;
use rekindle_engine::catalog::{Catalog, Change, Kind};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages, u64_of, usize_of};
use rekindle_engine::identity::{LayerId, SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::manifest::{
    LayerName, LocalManifest, Manifest, ObjectName, SnapshotFacts, StoredLayer, VolumeChange, VolumeShape,
};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::snapshot_record::{SealFacts, SnapshotRecord, SnapshotStage};
use rekindle_engine::store::Store;
use rekindle_engine::tracking::Tracking;
use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace};
use rekindle_kernel::{PAGE_BYTES, PageKind};
use rekindle_testkit::guest::{Guest, Tracking as Tracked};
use rekindle_testkit::random::Random;
use rekindle_testkit::site::PATIENCE;

use super::row::{Effort, Part, Row, Target, Unit, interleave, seconds_each};
use super::served::hand_over;
use super::statistics::as_float;
use super::volume::Volumes;

/// Pages of the layer that is read: 256 MiB.
const PAGES: u32 = 64 << 10;
/// Pages of one read: 2 MiB.
const READ_PAGES: u32 = 512;
/// Reads of one sample.
const READS: u32 = 64;
/// Pages of the guest whose faults are measured, and of each layer that is evicted: 16 MiB.
const GUEST_PAGES: u32 = 4 << 10;
/// Layers that are evicted.
const EVICTED: usize = 4;
/// Snapshots of a large catalog, and of a quick look at one.
const MANY: usize = 100_000;
const FEW: usize = 1_000;

pub(crate) const HIT: Row = Row {
    name: "cache-hit-read",
    what: "2 MiB of a snapshot that are in a local file and in memory.",
    ours: "`Engine::read` of 512 pages in one layer",
    reference: "pread of the same bytes of the same file",
    fast: true,
    measure: measure_hit,
};

pub(crate) const EVICTING: Row = Row {
    name: "evict-under-load",
    what: "Faults of a guest, at the 99th percentile, while four layers of 16 MiB of others are fetched and evicted all \
           the time.",
    ours: "a guest whose pages are in a local file, with evictions by its engine",
    reference: "the same guest, while another engine on this machine fetches and evicts as much",
    fast: false,
    measure: measure_evicting,
};

pub(crate) const START: Row = Row {
    name: "start-100k",
    what: "A start with 100,000 published snapshots of a layer each in the catalog.",
    ours: "`Engine::start`",
    reference: "reading all records of the catalog, and nothing else",
    fast: false,
    measure: measure_start,
};

fn measure_hit(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let volumes = Volumes::new()?;
    let capture = volumes.capture(PAGES, 1)?;
    let flat = volumes.flat(&capture, &[PageSet::full(PAGES)])?;
    let layer = Arc::clone(flat.load().layers().first().context("a flat view of a full volume has a layer")?);
    let file = File::open(volumes.directory().join(format!("{}.raw", layer.id())))?;
    let directory = tempfile::tempdir().context("a directory for an engine")?;
    let engine = Engine::start(options_in(directory.path())?)?;
    let mut random = Random::new(3);
    let starts: Vec<GuestPage> =
        (0..READS).map(|_| GuestPage::new(random.below(PAGES / READ_PAGES) * READ_PAGES)).collect();
    let into = std::cell::RefCell::new(vec![0; usize_of(READ_PAGES) * PAGE_BYTES]);
    let ours = || {
        let mut into = into.borrow_mut();
        Ok(seconds_each(READS, || {
            for start in &starts {
                engine.read(&flat, GuestPages::new(*start, READ_PAGES), &mut into).expect("it is in memory");
                black_box(&mut *into);
            }
        }))
    };
    let pread = || {
        let mut into = into.borrow_mut();
        Ok(seconds_each(READS, || {
            for start in &starts {
                file.read_exact_at(&mut into, u64_of(start.offset())).expect("it is in memory");
                black_box(&mut *into);
            }
        }))
    };
    let pairs = interleave(effort.pairs(), ours, pread)?;
    let label = "2 MiB".to_owned();
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.1) }])
}

fn options_in(directory: &Path) -> anyhow::Result<EngineOptions> {
    let store = Store::directory(&directory.join("store"))?;
    Ok(EngineOptions::new(directory.join("cache"), store, KeyRing::of_name("default")))
}

/// A node with a guest's snapshot and others, all published.
struct Evicting {
    engine: Engine,
    served: Arc<Snapshot>,
    others: Vec<Arc<Snapshot>>,
    _directory: tempfile::TempDir,
}

impl Evicting {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for an engine")?;
        let engine = Engine::start(options_in(directory.path())?)?;
        let served = published(&engine, 1)?;
        let others = (0..EVICTED).map(|other| published(&engine, 2 + u64_of(other)));
        let others = others.collect::<anyhow::Result<_>>()?;
        Ok(Self { engine, served, others, _directory: directory })
    }

    fn faults(&self) -> anyhow::Result<f64> {
        fault_p99(&self.engine, &self.served)
    }

    /// The same while the layers of the others of a node, which may be this one, come and go.
    fn faults_with_evictions_at(&self, node: &Self) -> anyhow::Result<f64> {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let evicting = scope.spawn(|| -> anyhow::Result<()> {
                let mut into = vec![0; usize_of(GUEST_PAGES) * PAGE_BYTES];
                for other in node.others.iter().cycle() {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let all = GuestPages::new(GuestPage::FIRST, GUEST_PAGES);
                    node.engine.read(other.memory(), all, &mut into)?;
                    for layer in other.memory().load().layers() {
                        layer.evictable().context("it is published")?.evict()?;
                    }
                }
                Ok(())
            });
            let faults = self.faults();
            is_over.store(true, Ordering::Relaxed);
            evicting.join().expect("evicting does not panic")?;
            faults
        })
    }
}

/// Seconds of the faults of a guest that is served from a snapshot, at the 99th percentile.
pub(super) fn fault_p99(engine: &Engine, served: &Arc<Snapshot>) -> anyhow::Result<f64> {
    let (mut guest, handover) = hand_over(GUEST_PAGES)?;
    let options = ServeOptions {
        tracking: Tracking::Resident,
        placement: Placement::Anywhere,
        neighbours: Neighbours::None,
    };
    let view = Arc::clone(served.memory());
    let server = FaultServer::start(view, handover, engine.fetcher().clone(), options)?;
    let trace = Trace {
        pattern: Pattern::Random { seed: 7, pages: GUEST_PAGES },
        access: Access::Read,
        threads: std::num::NonZeroUsize::MIN,
        cpus: Vec::new(),
        timing: Timing::EachTouch,
    };
    let times = guest.control.touch_trace(trace)?;
    guest.kill()?;
    drop(server);
    let mut each: Vec<u64> = times.each_nanoseconds.into_iter().flatten().collect();
    ensure!(!each.is_empty(), "each touch was timed");
    each.sort_unstable();
    Ok(as_float(usize::try_from(each[each.len() * 99 / 100])?) / 1e9)
}

/// A published snapshot of random pages.
pub(super) fn published(engine: &Engine, seed: u64) -> anyhow::Result<Arc<Snapshot>> {
    let mut guest = Guest::fresh(GUEST_PAGES);
    let all = GuestPages::new(GuestPage::FIRST, GUEST_PAGES);
    guest.write_random(engine, all, &mut Random::new(seed)).map_err(|error| anyhow::anyhow!("{error}"))?;
    let paused =
        guest.pause(engine, Tracked::Exact).map_err(|refused| anyhow::anyhow!("{}", refused.error))?;
    let (snapshot, _) = paused.end_vmm();
    ensure!(snapshot.wait_state(SnapshotState::Published, PATIENCE), "it is published in time");
    Ok(snapshot)
}

fn measure_evicting(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let (node, other_node) = (Evicting::new()?, Evicting::new()?);
    let faults = |evicting| node.faults_with_evictions_at(evicting);
    let pairs = interleave(effort.pairs(), || faults(&node), || faults(&other_node))?;
    let label = "p99".to_owned();
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.2) }])
}

fn measure_start(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let directory = tempfile::tempdir().context("a directory for a catalog")?;
    let path = directory.path().join("catalog.redb");
    fill(&path, if effort.quick { FEW } else { MANY })?;
    let start = || {
        let catalog = Some(Catalog::open(&path)?);
        let begun = Instant::now();
        let engine = Engine::start(EngineOptions {
            catalog,
            cache_limits: CacheLimits::default(),
            ..options_in(directory.path())?
        })?;
        let seconds = begun.elapsed().as_secs_f64();
        drop(engine);
        Ok(seconds)
    };
    let read = || {
        let catalog = Catalog::open(&path)?;
        let begun = Instant::now();
        for kind in [Kind::Snapshot, Kind::Manifest, Kind::Deletion] {
            black_box(catalog.all(kind)?);
        }
        Ok(begun.elapsed().as_secs_f64())
    };
    let pairs = interleave(if effort.quick { 1 } else { 6 }, start, read)?;
    let target = Target::OursAtMost(5.0);
    Ok(vec![Part { label: "start".to_owned(), unit: Unit::Seconds, pairs, target }])
}

/// Records published snapshots, each of one layer of its own.
fn fill(path: &Path, snapshots: usize) -> anyhow::Result<()> {
    let catalog = Catalog::open(path)?;
    let domain = KeyRing::of_name("default").own().domain().clone();
    let mut changes = Vec::new();
    for number in 0..snapshots {
        let (manifest, stored) = numbered(number)?;
        let id = manifest.snapshot();
        let local = LocalManifest::new(None, manifest, vec![Some(stored)]);
        let stage = SnapshotStage::Published(SealFacts::default());
        let record = SnapshotRecord { domain: Some(domain.name().clone()), stage };
        for (kind, value) in [(Kind::Snapshot, record.encode()), (Kind::Manifest, local.encode())] {
            changes.push(Change::Put { kind, key: id.as_bytes().to_vec(), value });
        }
        if changes.len() >= 2_000 || number + 1 == snapshots {
            catalog.write(&changes).map_err(|error| anyhow::anyhow!("{error}"))?;
            changes.clear();
        }
    }
    Ok(())
}

/// A snapshot of one layer, whose name has this number, and the place of its object, which is nowhere.
pub(super) fn numbered(number: usize) -> anyhow::Result<(Manifest, StoredLayer)> {
    let domain = KeyRing::of_name("default").own().domain().clone();
    let id = SnapshotId::new();
    let facts = SnapshotFacts { snapshot: id, created_unix_ms: 0, blobs: BTreeMap::new() };
    let (pages, none) = (PageSet::full(64), PageSet::new(64));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64_of(number).to_le_bytes());
    let name = LayerName { id: LayerId::from_bytes(bytes), domain, pages: 64 };
    let volume = VolumeName::memory();
    let shape = VolumeShape { name: volume.clone(), page_kind: PageKind::Small, pages: 64 };
    let change = VolumeChange { volume, layer: Some((name, &pages)), zero: &none };
    let manifest = Manifest::first(facts, vec![shape], &[change])?;
    let object = ObjectName::new(id);
    Ok((manifest, StoredLayer { object, table_digest: [0; 32], table_bytes: 1, object_bytes: 2 }))
}
