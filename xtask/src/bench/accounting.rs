//! The row on accounting for a large store.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures_util::TryStreamExt as _;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::u64_of;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::manifest::{Edition, Publication};
use rekindle_engine::store::Store;
use tokio::runtime::Builder;

use super::caching::numbered;
use super::row::{Effort, Part, Row, Target, Unit, interleave};

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
