//! Rows on pausing: time of its answer, time until the snapshot can be read, time that its RAM is held.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::frame::frames_of;
use rekindle_engine::geometry::{GuestPage, bytes_of_pages};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::layer_index::LayerIndex;
use rekindle_engine::manifest::{
    Edition, LayerName, Manifest, ObjectName, Publication, SnapshotFacts, StoredLayer, VolumeChange,
    VolumeShape,
};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausePermit, PausedGuest};
use rekindle_engine::ranked_set::RankedSet;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::view::ViewPhase;
use rekindle_guest::process::history::Share;
use rekindle_kernel::{Mapping, Memfd, PAGE_BYTES, PageKind};
use rekindle_testkit::hooks::Held;
use rekindle_testkit::random::Random;

use super::daemon;
use super::map::{MAP_PAGES, MAP_RUNS, merge_runs, random_runs, separate_runs, sorted_runs};
use super::node::{Node, paused_guest, wait_published};
use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave};
use super::statistics::as_float;
use super::volume::random_memfd;

const MIB: u64 = 1 << 20;
/// Longest time for a capture to be packed and freed.
const FREED_LIMIT: Duration = Duration::from_secs(120);
/// Pages of the capture whose RAM is watched: 256 MiB.
const HELD_PAGES: u32 = 64 << 10;

pub(crate) const READABLE: Row = Row {
    name: "just-paused-readable",
    what: "From the frozen guest's memory and page sets to a snapshot whose pages can be planned, with a parent map of \
           1,000,000 runs over 16 GiB, and what that allocates.",
    ours: "`Engine::commit_pause` and the first piece",
    reference: "a new sorted array of the parent's runs with the captured ones in it; for the last part, ours over a \
                parent map of 3 runs",
    fast: true,
    measure: measure_readable,
};

pub(crate) const ANSWER: Row = Row {
    name: "pause-answer",
    what: "From asking for a pause of a served process guest to its answer, over sizes of memory and of the parent's map.",
    ours: "`Sandbox::pause`, memory adopted, writes found by a scan; where a daemon is asked, \
           `POST /v1/sandboxes/{reference}/pause` at a real one, 10 % written",
    reference: "the same pause until its layer is sealed, what a pause that saves first waits for; over many runs, ours \
                over a parent map of few; where a daemon is asked, `Sandbox::pause` in this process",
    fast: false,
    measure: measure_answer,
};

pub(crate) const HELD: Row = Row {
    name: "capture-held-after-seal",
    what: "From the moment a layer of 256 MiB has taken its capture's place to the last byte of RAM given back, nobody \
           reading; elsewhere up to 30 s.",
    ours: "`Engine::capture_bytes_held` until it is 0, while the layer is published; then with publishing held back",
    reference: "dropping a memory file of the same size, and a mapping through which it was read, on this thread",
    fast: false,
    measure: measure_held,
};

fn measure_readable(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let node = Node::new()?;
    let parent = published(&node, &separate_runs(&mut Random::new(3), MAP_PAGES, MAP_RUNS / 2))?;
    let small_parent = published(&node, &separate_runs(&mut Random::new(3), MAP_PAGES, 1))?;
    let manifest = parent.manifest_now().context("a published snapshot has a manifest")?;
    let map = &manifest.volumes().first().context("it has a volume")?.map;
    let runs = sorted_runs(map);
    let written = written_pages();
    let pairs = interleave(
        effort.pairs(),
        || commit(&node, &parent).map(|committed| committed.seconds),
        || {
            let start = Instant::now();
            black_box(merge_runs(&runs, &written));
            Ok(start.elapsed().as_secs_f64())
        },
    )?;
    let label = format!("{} runs", map.runs_count());
    let time = Part { label, unit: Unit::Seconds, pairs, target: Target::OursAtMost(1e-3) };
    let [ours, reference] =
        [commit(&node, &parent)?.allocated_bytes, commit(&node, &small_parent)?.allocated_bytes];
    let pairs = Pairs { ours: vec![ours], reference: vec![reference] };
    let label = "allocated, against a map of 3 runs".to_owned();
    Ok(vec![time, Part { label, unit: Unit::Bytes, pairs, target: Target::RatioAtMost(1.0) }])
}

/// Times of making a snapshot readable.
struct Committed {
    seconds: f64,
    allocated_bytes: f64,
}

/// Pauses a guest of 16 GiB that wrote few pages since `parent`.
fn commit(node: &Node, parent: &Arc<Snapshot>) -> anyhow::Result<Committed> {
    let (permit, guest) = frozen_guest(node, parent)?;
    let mut committed = None;
    let counted = allocation_counter::measure(|| {
        let start = Instant::now();
        let snapshot = node.engine.commit_pause(permit, guest);
        if let Ok(snapshot) = &snapshot {
            black_box(snapshot.memory().piece_at(GuestPage::new(MAP_PAGES / 2), 1));
        }
        committed = Some((snapshot, start.elapsed().as_secs_f64()));
    });
    let (snapshot, seconds) = committed.context("the measured closure was run")?;
    node.forget(&snapshot?)?;
    Ok(Committed { seconds, allocated_bytes: as_float(usize::try_from(counted.bytes_total)?) })
}

/// The pages that the guest of [`commit`] wrote.
fn written_pages() -> PageSet {
    random_runs(&mut Random::new(9), MAP_PAGES, 16)
}

fn frozen_guest(node: &Node, parent: &Arc<Snapshot>) -> anyhow::Result<(PausePermit, PausedGuest)> {
    let memfd = Memfd::create("bench-guest", bytes_of_pages(MAP_PAGES), PageKind::Small)?;
    let kept = written_pages();
    for page in kept.iter() {
        memfd.write_at(&[7; PAGE_BYTES], page.offset_bytes())?;
    }
    let permit = node.engine.permit_pause(Some(parent), memfd.bytes())?;
    let pages = CapturedPages { kept, zero: PageSet::new(MAP_PAGES) };
    Ok((permit, paused_guest(memfd, pages)))
}

/// A published snapshot of 16 GiB with `kept` in one layer, whose object is there and holds zeroes: it is never read.
fn published(node: &Node, kept: &PageSet) -> anyhow::Result<Arc<Snapshot>> {
    let keys = KeyRing::of_name("default");
    let digests = vec![keys.own().frame_digest(b"never read"); frames_of(kept.len())];
    let layer = keys.own().layer_id(&LayerIndex::new(RankedSet::new(kept), digests).encode());
    let domain = keys.own().domain().clone();
    let facts = SnapshotFacts { snapshot: SnapshotId::new(), created_unix_ms: 0, blobs: BTreeMap::new() };
    let snapshot = facts.snapshot;
    let volume = VolumeShape { name: VolumeName::memory(), page_kind: PageKind::Small, pages: MAP_PAGES };
    let change = VolumeChange {
        volume: VolumeName::memory(),
        layer: Some((LayerName { id: layer, domain, pages: kept.len() }, kept)),
        zero: &PageSet::new(MAP_PAGES),
    };
    let manifest = Manifest::first(facts, vec![volume], &[change])?;
    let object = ObjectName::new(snapshot);
    let object_bytes = 1 << 20;
    let objects = node.store_directory.join("layers").join(layer.to_string());
    std::fs::create_dir_all(&objects)?;
    std::fs::File::create(objects.join(format!("{}-{}", object.publisher, object.upload)))?
        .set_len(object_bytes)?;
    let stored = StoredLayer { object, table_digest: [0; 32], table_bytes: 64, object_bytes };
    let directory = node.store_directory.join("manifests").join(snapshot.to_string());
    std::fs::create_dir_all(&directory)?;
    let publication = Publication::new(Edition::FIRST, manifest, vec![stored]).encode(keys.own());
    std::fs::write(directory.join("1"), publication)?;
    Ok(node.engine.open(snapshot)?)
}

fn measure_answer(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let node = Node::new()?;
    let mut parts = Vec::new();
    let sizes = effort.choose(vec![(64, 100), (256, 100), (1024, 100), (4096, 25)], vec![(64, 100)]);
    for (memory_mib, percent) in sizes {
        let base = node.filled(memory_mib * MIB)?;
        let mut pairs = Pairs::default();
        for _ in 0..effort.heavy_pairs() {
            let (answer, sealed) = pause(&node, &base, Share { seed: 2, percent, run_pages: 8 })?;
            pairs.ours.push(answer);
            pairs.reference.push(sealed);
        }
        let gib = as_float(usize::try_from(memory_mib)?) / 1024.0;
        let label = format!("{memory_mib} MiB, {percent} % written");
        let target = Target::OursAtMost(5e-3 + 3e-3 * gib);
        parts.push(Part { label, unit: Unit::Seconds, pairs, target });
        node.forget(&base)?;
    }
    parts.push(measure_answer_over_maps(&node, effort)?);
    parts.extend(daemon::pause_parts(effort)?);
    Ok(parts)
}

/// The same pause over a parent map of many runs and of few.
fn measure_answer_over_maps(node: &Node, effort: Effort) -> anyhow::Result<Part> {
    let base = node.filled(effort.choose(1024, 64) * MIB)?;
    let paused = node.changed(&base, Share { seed: 4, percent: 50, run_pages: 1 })?;
    drop(paused.ending);
    let fragmented = paused.snapshot;
    wait_published(&fragmented)?;
    let runs = |snapshot: &Snapshot| {
        let manifest = snapshot.manifest_now();
        manifest
            .and_then(|manifest| manifest.volumes().first().map(|volume| volume.map.runs_count()))
            .unwrap_or(0)
    };
    let label = format!("over {} runs against {}", runs(&fragmented), runs(&base));
    let share = Share { seed: 5, percent: 5, run_pages: 8 };
    let pairs = interleave(
        effort.heavy_pairs(),
        || pause(node, &fragmented, share).map(|(answer, _)| answer),
        || pause(node, &base, share).map(|(answer, _)| answer),
    )?;
    Ok(Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.1) })
}

/// Seconds until a pause answered, and until it was sealed.
fn pause(node: &Node, parent: &Arc<Snapshot>, share: Share) -> anyhow::Result<(f64, f64)> {
    let paused = node.changed(parent, share)?;
    let answered = Instant::now();
    drop(paused.ending);
    paused.snapshot.wait_manifest(FREED_LIMIT)?;
    let answer_time = paused.answer_time.as_secs_f64();
    let sealed = answer_time + answered.elapsed().as_secs_f64();
    node.forget(&paused.snapshot)?;
    Ok((answer_time, sealed))
}

fn measure_held(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let node = Node::new()?;
    let part = |label: &str, measure: &dyn Fn() -> anyhow::Result<f64>| {
        let pairs = interleave(effort.heavy_pairs(), measure, free_directly)?;
        let target = Target::BeyondReferenceAtMost(10e-3);
        anyhow::Ok(Part { label: label.to_owned(), unit: Unit::Seconds, pairs, target })
    };
    let published = part("256 MiB", &|| held(&node, None))?;
    let unpublished = part("256 MiB, nothing published", &|| held(&node, Some(node.hold_names())))?;
    Ok(vec![published, unpublished])
}

/// Seconds from the packed view to the last byte given back; `publishing` is held until then.
fn held(node: &Node, publishing: Option<Held>) -> anyhow::Result<f64> {
    let memfd = random_memfd(HELD_PAGES, 6)?;
    let permit = node.engine.permit_pause(None, memfd.bytes())?;
    let pages = CapturedPages { kept: PageSet::full(HELD_PAGES), zero: PageSet::new(HELD_PAGES) };
    let guest = paused_guest(memfd, pages);
    let snapshot = node.engine.commit_pause(permit, guest)?;
    wait_until(|| snapshot.memory().load().phase() > ViewPhase::Captured)?;
    let packed = Instant::now();
    wait_until(|| node.engine.capture_bytes_held() == 0)?;
    let seconds = packed.elapsed().as_secs_f64();
    drop(publishing);
    node.forget(&snapshot)?;
    Ok(seconds)
}

/// Asks again and again, yielding the processor in between: the answer is wanted to the microsecond.
fn wait_until(holds: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + FREED_LIMIT;
    while !holds() {
        anyhow::ensure!(Instant::now() < deadline, "what was waited for did not come");
        // Not a loop that never rests: it would take a core from the threads that are waited for.
        std::thread::park_timeout(Duration::from_micros(100));
    }
    Ok(())
}

/// Seconds of giving a memory file's RAM back on this thread.
fn free_directly() -> anyhow::Result<f64> {
    let memfd = random_memfd(HELD_PAGES, 6)?;
    let mapping = Mapping::of_memfd(&memfd)?;
    for page in PageSet::full(HELD_PAGES).iter() {
        black_box(mapping.is_zero(page.offset(), PAGE_BYTES)).ok();
    }
    let start = Instant::now();
    drop((mapping, memfd));
    Ok(start.elapsed().as_secs_f64())
}
