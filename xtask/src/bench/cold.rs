//! Rows on resumes of a node that has nothing, over a store with the times of a model.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use object_store::local::LocalFileSystem;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace};
use rekindle_testkit::sandbox::Sandbox;
use rekindle_testkit::timed_store::{Network, TimedStore};

use super::node::{Node, STEP_PAGES, shape, wait_published};
use super::row::{Effort, Part, Row, Target, Unit, interleave};

/// Time to a first byte 25 ms, 150 MB a second and answer, 16 answers at once.
const NETWORK: Network =
    Network { first_byte: Duration::from_millis(25), bytes_a_second: 150_000_000, streams: 16 };
/// Times of a first byte that follow each other at least: the manifest's, and the frames'.
const ROUND_TRIPS: u32 = 2;
/// Bytes of the guest: 256 MiB.
const MEMORY_BYTES: u64 = 256 << 20;
/// Pages of the working set: 32 MiB.
const WORKING_SET_PAGES: u32 = 8 << 10;
/// Longest time for a working set to be put into the store.
const RECORDED_LIMIT: Duration = Duration::from_secs(60);

pub(crate) const PROGRESS: Row = Row {
    name: "cold-first-progress",
    what: "From asking for a resume on a node that has nothing of the snapshot to the end of the guest's first step, with 25 \
           ms to each first byte.",
    ours: "`Engine::open` and a resume over such a store",
    reference: "the same on the node that made the snapshot, and two first bytes and the step's bytes of such a store",
    fast: false,
    measure: measure_progress,
};

pub(crate) const WORKING_SET: Row = Row {
    name: "cold-working-set",
    what: "From asking for such a resume to the guest having read its recorded working set of 32 MiB.",
    ours: "`Engine::open` and a resume over such a store",
    reference: "the same on the node that made the snapshot, and two first bytes and the set's bytes of such a store by 16 \
                answers at once",
    fast: false,
    measure: measure_working_set,
};

fn measure_progress(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let node = Node::new()?;
    let snapshot = node.filled(MEMORY_BYTES)?;
    let ideal = ideal(u64::from(STEP_PAGES) * 4096, 1);
    part(&node, &snapshot, effort, ideal, first_step)
}

fn measure_working_set(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let node = Node::new()?;
    let snapshot = node.filled(MEMORY_BYTES)?;
    read_working_set(&node.engine, snapshot.id())?;
    let recorded = node.store_directory.join("working-sets").join(snapshot.id().to_string());
    let begun = Instant::now();
    while !recorded.is_dir() {
        ensure!(begun.elapsed() < RECORDED_LIMIT, "the working set was not put into the store");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let ideal = ideal(u64::from(WORKING_SET_PAGES) * 4096, NETWORK.streams);
    part(&node, &snapshot, effort, ideal, read_working_set)
}

/// The work on a cold node, and on the node itself with the time of an ideal store.
fn part(
    node: &Node,
    snapshot: &Arc<Snapshot>,
    effort: Effort,
    ideal: Duration,
    work: fn(&Engine, SnapshotId) -> anyhow::Result<Duration>,
) -> anyhow::Result<Vec<Part>> {
    wait_published(snapshot)?;
    let cold = || {
        let directory = tempfile::tempdir().context("a directory for a node")?;
        let objects = Arc::new(LocalFileSystem::new_with_prefix(&node.store_directory)?);
        let store = Store::new(Arc::new(TimedStore::new(objects, NETWORK)));
        let keys = KeyRing::of_name("default");
        let engine = Engine::start(EngineOptions::new(directory.path().join("cache"), store, keys))?;
        Ok(work(&engine, snapshot.id())?.as_secs_f64())
    };
    let warm = || Ok((work(&node.engine, snapshot.id())? + ideal).as_secs_f64());
    let pairs = interleave(effort.heavy_pairs(), cold, warm)?;
    let label = format!("{} MiB", MEMORY_BYTES >> 20);
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.2) }])
}

/// Time that `bytes` of the store take at least, over this many answers at once.
fn ideal(bytes: u64, answers: usize) -> Duration {
    let a_second = NETWORK.bytes_a_second * u64::try_from(answers).expect("a few");
    NETWORK.first_byte * ROUND_TRIPS + Duration::from_micros(bytes * 1_000_000 / a_second)
}

fn first_step(engine: &Engine, id: SnapshotId) -> anyhow::Result<Duration> {
    resumed(engine, id, |sandbox| {
        let ticked = sandbox.guest.control.tick(STEP_PAGES)?;
        ensure!(ticked.verified.mismatches == 0, "the guest found wrong pages in its first step");
        Ok(())
    })
}

fn read_working_set(engine: &Engine, id: SnapshotId) -> anyhow::Result<Duration> {
    resumed(engine, id, |sandbox| {
        let trace = Trace {
            pattern: Pattern::Random { seed: 5, pages: WORKING_SET_PAGES },
            access: Access::Read,
            threads: NonZeroUsize::MIN,
            cpus: Vec::new(),
            timing: Timing::Whole,
        };
        sandbox.guest.control.touch_trace(trace)?;
        Ok(())
    })
}

/// Time from asking for a resume to the end of the guest's work.
fn resumed(
    engine: &Engine,
    id: SnapshotId,
    work: impl FnOnce(&mut Sandbox) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let shape = shape(MEMORY_BYTES)?;
    let asked = Instant::now();
    let snapshot = engine.open(id)?;
    let mut sandbox = Sandbox::resume_learning(engine, &snapshot, shape)?;
    work(&mut sandbox)?;
    let elapsed = asked.elapsed();
    drop(sandbox);
    Ok(elapsed)
}
