//! The rows on accounting for a large store, and on collecting in one.

use std::hint::black_box;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use rekindle_engine::catalog::Catalog;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::u64_of;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::manifest::{Edition, Publication};
use rekindle_engine::store::Store;
use rekindle_testkit::rules::Operation;
use rekindle_testkit::stores::{Faults, UnreliableStore};
use tokio::runtime::Builder;

use super::caching::numbered;
use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave};

/// Snapshots in the store, and in that of a quick look.
const MANY: usize = 100_000;
const FEW: usize = 1_000;

pub(crate) const USAGE: Row = Row {
    name: "usage-100k",
    what: "The bytes of a store with 100,000 snapshots of a layer each, by what they are for; the store is in this process, \
           and the manifests were read before.",
    ours: "`Engine::store_usage`",
    reference: "the list of all objects, and nothing else",
    fast: false,
    measure: measure_usage,
};

fn measure_usage(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let snapshots = effort.choose(MANY, FEW);
    let objects = Arc::new(InMemory::new());
    let runtime = Builder::new_current_thread().build()?;
    runtime.block_on(fill(&objects, snapshots))?;
    let directory = tempfile::tempdir().context("a directory for an engine")?;
    let store = Store::new(objects.clone());
    let engine =
        Engine::start(EngineOptions::new(directory.path().into(), store, KeyRing::of_name("default")))?;
    let usage = engine.store_usage()?;
    ensure!(usage.snapshots.len() == snapshots && usage.unread.is_empty(), "every manifest was read");
    ensure!(usage.total().count == 2 * u64_of(snapshots), "every object was counted");
    let ours = || {
        let begun = Instant::now();
        black_box(engine.store_usage()?);
        Ok(begun.elapsed().as_secs_f64())
    };
    let list = || {
        let begun = Instant::now();
        let listed: Vec<_> = runtime.block_on(objects.list(None).try_collect())?;
        black_box(listed);
        Ok(begun.elapsed().as_secs_f64())
    };
    let pairs = interleave(effort.heavy_pairs(), ours, list)?;
    let label = format!("{snapshots} snapshots");
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(3.0) }])
}

pub(crate) const REQUESTS: Row = Row {
    name: "gc-requests",
    what: "Requests to the store for a collection, and for the next one by a new process of the node; the manifests that the \
           next one reads.",
    ours: "`Engine::collect` on a store of snapshots of a layer each, every second one deleted; a list counts as one request \
           for each 1,000 objects of the store, a deletion as one for each object",
    reference: "the objects of the store before; the manifests of the snapshots that are left",
    fast: false,
    measure: measure_requests,
};

/// Snapshots in the store of a collection, and in that of a quick look.
const COLLECTED: usize = 50_000;
const FEW_COLLECTED: usize = 500;

fn measure_requests(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let snapshots = effort.choose(COLLECTED, FEW_COLLECTED);
    let runtime = Builder::new_current_thread().build()?;
    let (mut first, mut second, mut read) = (Pairs::default(), Pairs::default(), Pairs::default());
    for _ in 0..effort.heavy_pairs() {
        let objects = Arc::new(InMemory::new());
        runtime.block_on(fill(&objects, snapshots))?;
        runtime.block_on(delete_every_second(&objects))?;
        let count = runtime.block_on(objects.list(None).try_collect::<Vec<_>>())?.len();
        let directory = tempfile::tempdir().context("a directory for an engine")?;
        let mut seen = 0.0;
        for pairs in [&mut first, &mut second] {
            let store = Arc::new(UnreliableStore::new(objects.clone()));
            let asked = store.faults();
            let collected = collector(directory.path(), store)?.collect(Duration::ZERO)?;
            let expected = if seen == 0.0 { u64_of(snapshots.div_ceil(2)) } else { 0 };
            ensure!(collected.deleted == expected, "{collected:?}");
            seen = requests(&asked, count);
            pairs.ours.push(seen);
            pairs.reference.push(f64_of(count));
            if expected == 0 {
                read.ours.push(f64_of(asked.calls(Operation::Get, "manifests/")));
                read.reference.push(f64_of(snapshots / 2));
            }
        }
    }
    let objects = 2 * snapshots;
    let part = |label: &str, pairs, most| Part {
        label: format!("{label}, {objects} objects"),
        unit: Unit::Count,
        pairs,
        target: Target::RatioAtMost(most),
    };
    Ok(vec![
        part("half of them deleted", first, 1.1),
        part("after a restart", second, 0.1),
        part("manifests read after a restart", read, 0.01),
    ])
}

/// A node without sandboxes, which remembers the manifests that it read in `directory`.
fn collector(directory: &FilePath, store: Arc<UnreliableStore>) -> anyhow::Result<Engine> {
    let catalog = Catalog::open(&directory.join("catalog.redb"))?;
    let layers = directory.join("layers");
    let options = EngineOptions::new(layers, Store::new(store), KeyRing::of_name("default"));
    let (catalog, manifest_memory) = (Some(catalog), Some(directory.join("manifests.memory")));
    let second_look_after = Duration::ZERO;
    Ok(Engine::start(EngineOptions { catalog, manifest_memory, second_look_after, ..options })?)
}

fn requests(asked: &Faults, objects: usize) -> f64 {
    let calls = |on| asked.calls(on, "");
    let lists = calls(Operation::List) * objects.div_ceil(1_000);
    f64_of(lists + calls(Operation::Get) + calls(Operation::Put) + calls(Operation::Delete))
}

fn f64_of(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

async fn delete_every_second(objects: &InMemory) -> anyhow::Result<()> {
    let manifests: Vec<_> = objects.list(Some(&Path::from("manifests"))).try_collect().await?;
    for manifest in manifests.iter().step_by(2) {
        let snapshot = manifest.location.parts().nth(1).context("a manifest has a snapshot")?;
        objects.put(&Path::from(format!("deleted/{}", snapshot.as_ref())), vec![b'1'].into()).await?;
        objects.delete(&manifest.location).await?;
    }
    Ok(())
}

async fn fill(objects: &InMemory, snapshots: usize) -> anyhow::Result<()> {
    let keys = KeyRing::of_name("default");
    for number in 0..snapshots {
        let (manifest, stored) = numbered(number)?;
        let id = manifest.snapshot();
        let layer = manifest.layers().first().context("it has a layer")?.id;
        let object = Path::from(format!("layers/{layer}/{}", stored.object));
        let publication = Publication::new(Edition::FIRST, manifest, vec![stored]).encode(keys.own());
        objects.put(&Path::from(format!("manifests/{id}/1")), publication.into()).await?;
        objects.put(&object, vec![0; 2].into()).await?;
    }
    Ok(())
}
