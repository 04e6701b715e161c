//! Cases of a node with a small disk: local files of published layers go, and come back frame by frame.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rekindle_engine::cache_limits::{CacheLimits, Shortage};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::read_plan::ReadPlan;
use rekindle_engine::snapshot::Snapshot;
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::stores::{Fault, Operation, Rule};

use crate::{
    check, child, first_pause, open_elsewhere, pause, published, run, sealed_in_an_outage, site,
    wait_published, wait_sealed,
};

/// A bound that no layer of these tests fits into.
fn next_to_nothing() -> CacheLimits {
    CacheLimits { bytes_max: Some(4096), ..CacheLimits::default() }
}

fn bounded(site: &Site, cache_limits: CacheLimits) -> Engine {
    Engine::start(EngineOptions { cache_limits, ..site.options() }).expect("threads for an engine")
}

fn recording(site: &Site, cache_limits: CacheLimits) -> Engine {
    let options = site.recording().expect("the catalog is free");
    Engine::start(EngineOptions { cache_limits, ..options }).expect("threads for an engine")
}

/// Names and bytes on the disk of the layer files in a directory.
fn layer_files(directory: &Path) -> Vec<(String, u64)> {
    let entries = directory.read_dir().expect("a directory").map(|entry| entry.expect("a directory"));
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "raw"));
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    files.map(|file| (name(&file), file.metadata().expect("it is there").blocks() * 512)).collect()
}

fn bytes_of(files: &[(String, u64)]) -> u64 {
    files.iter().map(|(_, bytes)| bytes).sum()
}

#[test]
fn case_8_a_published_layer_is_evicted_and_fetched_again_and_a_planned_read_keeps_its_file() {
    let site = site();
    let engine = bounded(&site, next_to_nothing());
    let (outage, (snapshot, content)) = sealed_in_an_outage(&site, &engine, 300);
    // Nothing can be evicted before the snapshot is published.
    let planned = ReadPlan::new(snapshot.memory(), run(0, 300));
    drop(outage);
    wait_published(&snapshot);
    engine.hold_cache_limits();
    assert_eq!(layer_files(site.cache_directory()), [], "the store has it");
    let status = engine.cache_status();
    assert!(status.evicted.files >= 1 && status.evicted.bytes >= 300 * 4096, "{status:?}");
    assert_eq!(status.shortage, None);
    // The plan is older than the eviction: its bytes are read without the store.
    let outage = site.faults.outage();
    let mut found = vec![0; 300 * 4096];
    planned.read(engine.fetcher(), &mut found).expect("it owns its source");
    content.check(run(0, 300), &found).expect("the model's pages");
    drop(outage);
    check(&engine, &(snapshot, content));
}

#[test]
fn case_8_a_read_planned_on_a_closed_file_has_its_bytes_after_the_layer_went() {
    let site = site();
    let engine = recording(&site, CacheLimits::default());
    let (outage, (snapshot, content)) = sealed_in_an_outage(&site, &engine, 300);
    let id = snapshot.id();
    drop((snapshot, engine));
    let engine = recording(&site, CacheLimits::default());
    let snapshot = engine.snapshot(id).expect("the catalog has it");
    engine.end_replay();
    assert_eq!(engine.cache_status().files_open, 0, "a start opens none");
    let planned = ReadPlan::new(snapshot.memory(), run(0, 300));
    engine.delete(&snapshot).expect("nothing needs it");
    drop((snapshot, outage));
    let begun = Instant::now();
    while !layer_files(site.cache_directory()).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "its file goes");
        std::thread::yield_now();
    }
    let mut found = vec![0; 300 * 4096];
    planned.read(engine.fetcher(), &mut found).expect("it owns its source");
    content.check(run(0, 300), &found).expect("the model's pages");
}

#[test]
fn case_8_an_only_copy_is_never_evicted_and_the_shortage_is_told_until_the_store_has_it() {
    let site = site();
    let engine = bounded(&site, next_to_nothing());
    let (outage, snapshot) = sealed_in_an_outage(&site, &engine, 300);
    engine.hold_cache_limits();
    let status = engine.cache_status();
    assert_eq!(status.shortage, Some(Shortage::NothingToEvict), "{status:?}");
    assert_eq!((status.evicted.files, layer_files(site.cache_directory()).len()), (0, 1));
    assert_eq!(status.only_here_bytes, 300 * 4096);
    check(&engine, &snapshot);
    drop(outage);
    wait_published(&snapshot.0);
    engine.hold_cache_limits();
    let status = engine.cache_status();
    assert_eq!((status.shortage, status.only_here_bytes), (None, 0), "{status:?}");
    assert_eq!(layer_files(site.cache_directory()), []);
    check(&engine, &snapshot);
}

#[test]
fn a_layer_stays_on_the_disk_until_each_snapshot_is_published_whose_record_has_no_place_of_it() {
    let site = site();
    let engine = recording(&site, CacheLimits::default());
    let (outage, first) = sealed_in_an_outage(&site, &engine, 300);
    let second = child(&engine, &first, run(0, 10), 2);
    wait_sealed(&second.0);
    let its_manifest: &str = format!("manifests/{}", second.0.id()).leak();
    let failing = site.faults.inject(Rule::always(Operation::Put, its_manifest, Fault::Fail));
    drop(outage);
    wait_published(&first.0);
    let shared = Arc::clone(first.0.memory().load().layers().first().expect("it packed one"));
    // If the first one was deleted now, and the node started anew, only this file would be left for the second one.
    assert!(shared.evictable().is_none(), "the record of the second one has no place of it");
    drop(failing);
    wait_published(&second.0);
    assert!(shared.evictable().is_some(), "both records have its place");
}

#[test]
fn case_10_the_bytes_of_a_file_are_its_blocks_also_where_it_was_fetched_frame_by_frame() {
    let (site, _engine, snapshot) = published(64 * 20);
    let cold = open_elsewhere(&site, &snapshot.0);
    let opened = cold.engine.cache_status().bytes;
    assert!(opened <= 2 * 4096, "{opened}: the manifest brought an index, and nothing else was needed yet");
    let mut page = vec![0; 4096];
    cold.engine.read(cold.snapshot.memory(), run(64 * 15, 1), &mut page).expect("the store has it");
    let (counted, there) =
        (cold.engine.cache_status().bytes, bytes_of(&layer_files(cold._site.cache_directory())));
    assert!(counted > 0 && counted < 64 * 10 * 4096, "{counted} of a file that is mostly holes");
    // A file system may settle where bytes lie after the last write was counted.
    assert!(there.abs_diff(counted) <= 256 << 10, "{there} on the disk, {counted} counted");
}

#[test]
fn case_9_a_layer_file_in_use_is_not_the_first_to_be_evicted() {
    let site = site();
    let engine = site.engine().expect("threads for an engine");
    let snapshots: Vec<_> = (0..4).map(|_| first_pause_of(&engine, 512)).collect();
    snapshots.iter().for_each(|(snapshot, _)| wait_published(snapshot));
    let ids: Vec<_> = snapshots.iter().map(|(snapshot, _)| snapshot.id()).collect();
    drop((snapshots, engine));
    // Room for about three of the four.
    let engine = bounded(&site, CacheLimits { bytes_max: Some(3 * 513 * 4096), ..CacheLimits::default() });
    let opened: Vec<Arc<Snapshot>> =
        ids.iter().map(|id| engine.open(*id).expect("it is published")).collect();
    let mut page = vec![0; 4096];
    for snapshot in opened.iter().chain([&opened[0]]) {
        engine.hold_cache_limits();
        (0..8).for_each(|frame| {
            engine.read(snapshot.memory(), run(frame * 64, 1), &mut page).expect("it can be read");
        });
    }
    engine.hold_cache_limits();
    let file_of = |snapshot: &Snapshot| format!("{}.raw", snapshot.memory().load().layers()[0].id());
    let files = layer_files(site.cache_directory());
    assert!(files.iter().any(|(name, _)| *name == file_of(&opened[0])), "it was used last: {files:?}");
    assert!(bytes_of(&files) <= 3 * 513 * 4096, "{files:?}");
}

fn first_pause_of(engine: &Engine, pages: u32) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::fresh(pages);
    let seed = engine.snapshots().len();
    let mut random = Random::new(u64::try_from(seed).expect("small"));
    guest.write_random(engine, run(0, pages), &mut random).expect("its own pages");
    pause(engine, guest)
}

#[test]
fn a_guest_reads_its_pages_right_whenever_its_layers_are_evicted_in_a_resume() {
    let site = site();
    let engine = bounded(&site, next_to_nothing());
    let snapshot = first_pause(&engine, 64 * 6 + 5);
    wait_published(&snapshot.0);
    // Before each step of the resume another one of its points is met by an eviction.
    for point in 0..8 {
        engine.hold_cache_limits();
        let mut guest = Guest::resume(&snapshot.0, snapshot.1.clone());
        for step in 0..7 {
            if step == point {
                engine.hold_cache_limits();
            }
            let pages = run(step * 64, if step == 6 { 5 } else { 64 });
            guest.read(&engine, pages).expect("the model's pages");
        }
    }
    // And by one at any moment of it.
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            (0..20).for_each(|_| judge(&engine, &snapshot.0, &snapshot.1).expect("the model's pages"));
        });
        while !reading.is_finished() {
            engine.hold_cache_limits();
        }
        reading.join().expect("every page is the model's");
    });
    assert!(engine.cache_status().evicted.files > 8);
}

#[test]
fn a_node_with_a_disk_far_smaller_than_its_snapshots_serves_them_all_within_its_bounds() {
    let site = site();
    const FILE: u64 = 600 * 4096;
    let limits = CacheLimits { bytes_max: Some(3 * FILE), files_open_max: 4, ..CacheLimits::default() };
    let engine = bounded(&site, limits);
    let mut random = Random::new(7);
    let mut known: Vec<(Arc<Snapshot>, ModelMemory)> = Vec::new();
    for round in 0..24 {
        let mut guest = match known.len() {
            0..4 => Guest::fresh(600),
            count => {
                let (snapshot, content) = &known[random.position(count)];
                Guest::resume(snapshot, content.clone())
            }
        };
        guest
            .write_random(&engine, run(random.below(500), 100), &mut random)
            .expect("the store has the rest");
        guest.verify(&engine).expect("the model's pages");
        let paused = guest.pause(&engine, Tracking::Exact).expect("nothing stands against it").end_vmm();
        wait_published(&paused.0);
        known.push(paused);
        if round % 3 == 0 {
            let some = &known[random.position(known.len())];
            let verified = engine.verify(&some.0, &|| true).expect("it is wanted");
            assert_eq!(verified.wrong_pages, 0, "{verified:?}");
        }
        engine.hold_cache_limits();
        let on_disk = bytes_of(&layer_files(site.cache_directory()));
        assert!(on_disk <= 3 * FILE, "{on_disk} in round {round}");
    }
    known.iter().for_each(|snapshot| check(&engine, snapshot));
    assert!(engine.cache_status().evicted.files > 0);
}

#[test]
fn frames_that_were_fetched_are_good_after_a_restart_while_the_store_is_away() {
    let (origin, _engine, snapshot) = published(64 * 40);
    let site = origin.elsewhere().expect("a temporary directory");
    let engine = recording(&site, CacheLimits::default());
    let opened = engine.open(snapshot.0.id()).expect("it is published");
    judge(&engine, &opened, &snapshot.1).expect("the store has it");
    drop((opened, engine));
    let outage = site.faults.outage();
    let engine = recording(&site, CacheLimits::default());
    let found = engine.snapshot(snapshot.0.id()).expect("the catalog has it");
    judge(&engine, &found, &snapshot.1).expect("the disk has all of it");
    drop((found, engine));
    drop(outage);
    // And those that were fetched into a new file after an eviction, by an engine that knew the index already.
    let engine = recording(&site, CacheLimits::default());
    let found = engine.snapshot(snapshot.0.id()).expect("the catalog has it");
    judge(&engine, &found, &snapshot.1).expect("the disk has all of it");
    let layer = found.memory().load().layers()[0].clone();
    layer.evictable().expect("a published snapshot names it").evict().expect("a disk");
    judge(&engine, &found, &snapshot.1).expect("the store has it");
    drop((layer, found, engine));
    let _outage = site.faults.outage();
    let engine = recording(&site, CacheLimits::default());
    let found = engine.snapshot(snapshot.0.id()).expect("the catalog has it");
    judge(&engine, &found, &snapshot.1).expect("the disk has all of it again");
}

/// Damages the one layer file of a site while no engine runs.
fn damage(site: &Site, how: impl Fn(&Path)) {
    let files = layer_files(site.cache_directory());
    let [(name, _)] = &files[..] else { unreachable!("one layer: {files:?}") };
    how(&site.cache_directory().join(name));
}

#[test]
fn a_layer_file_that_is_damaged_cut_or_gone_is_found_at_a_read_and_fetched_again_for_good() {
    let (site, id, content) = recorded(64 * 3 + 9);
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).expect("it is there");
        bytes[64 * 4096 + 17] ^= 1;
        std::fs::write(path, bytes).expect("a disk");
    };
    let cut = |path: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("it is there");
        file.set_len(70 * 4096).expect("a disk");
    };
    let cut_index = |path: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("it is there");
        file.set_len((64 * 3 + 9) * 4096 + 5).expect("a disk");
    };
    let remove = |path: &Path| std::fs::remove_file(path).expect("it is there");
    let damages: [(_, fn(&Path)); 4] =
        [("flipped", flip), ("cut", cut), ("its index cut", cut_index), ("gone", remove)];
    for (what, how) in damages {
        damage(&site, how);
        let judged = |engine: Engine| {
            let snapshot = engine.snapshot(id).expect("the catalog has it");
            judge(&engine, &snapshot, &content).unwrap_or_else(|error| unreachable!("{what}: {error}"));
        };
        judged(recording(&site, CacheLimits::default()));
        // The file that was fetched in its place is whole again, and lasts.
        let outage = site.faults.outage();
        judged(recording(&site, CacheLimits::default()));
        drop(outage);
    }
}

/// A site with a catalog and a published snapshot, on which no engine runs.
fn recorded(pages: u32) -> (Site, SnapshotId, ModelMemory) {
    let site = site();
    let engine = recording(&site, CacheLimits::default());
    let (snapshot, content) = first_pause(&engine, pages);
    wait_published(&snapshot);
    let id = snapshot.id();
    (site, id, content)
}

#[test]
fn a_start_opens_no_layer_file_and_reads_keep_few_of_them_open() {
    const FILES_OPEN_MAX: usize = 8;
    let site = site();
    let engine = recording(&site, CacheLimits::default());
    let known: Vec<_> = (0..60).map(|_| first_pause_of(&engine, 3)).collect();
    known.iter().for_each(|(snapshot, _)| wait_published(snapshot));
    let known: Vec<_> = known.into_iter().map(|(snapshot, content)| (snapshot.id(), content)).collect();
    drop(engine);
    let limits = CacheLimits { files_open_max: FILES_OPEN_MAX, ..CacheLimits::default() };
    let engine = recording(&site, limits);
    assert_eq!(open_layer_files(&site), 0);
    assert!(engine.cache_status().bytes >= 60 * 3 * 4096, "they are counted all the same");
    for (id, content) in &known {
        let snapshot = engine.snapshot(*id).expect("the catalog has it");
        judge(&engine, &snapshot, content).expect("the model's pages");
        let open = open_layer_files(&site);
        assert!(open <= FILES_OPEN_MAX + 1, "{open} are open");
    }
    assert!(open_layer_files(&site) > 0);
}

/// Descriptors of this process that lead to layer files of a site.
fn open_layer_files(site: &Site) -> usize {
    let links = Path::new("/proc/self/fd").read_dir().expect("proc is mounted");
    let links = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    links.filter(|path| path.starts_with(site.cache_directory())).count()
}
