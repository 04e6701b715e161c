//! Cases of a local disk that is full, loses blocks or returns wrong bytes.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rekindle_engine::catalog::{Catalog, Change, Kind};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::keep::Keeper;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store_check::StoreFindings;
use rekindle_engine::verify::Verification;
use rekindle_testkit::guest::{Guest, GuestError, Tracking, judge};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::site::{PATIENCE, Site};
use rekindle_testkit::skip::skipped;
use rekindle_testkit::stores::Operation;

use crate::{
    check, check_elsewhere, child, first_pause, open_elsewhere, published, run, sealed_in_an_outage, site,
    start, verified, wait_published, wait_sealed,
};

fn local_files(site: &Site, snapshot: &Snapshot) -> Vec<PathBuf> {
    let names = snapshot.memory().load();
    names.layers().iter().map(|layer| site.cache_directory().join(format!("{}.raw", layer.id()))).collect()
}

fn cut(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("a local file");
}

#[test]
fn case_33_blocks_lost_under_the_mapping_come_from_the_store() {
    let site = site();
    let engine = start(&site);
    let snapshot = first_pause(&engine, 600);
    wait_published(&snapshot.0);
    cut(&local_files(&site, &snapshot.0)[0], 0);
    // The last page first: restoring it gives the file its old length, with a hole before it.
    let mut last = vec![0; 4096];
    engine.read(snapshot.0.memory(), run(599, 1), &mut last).expect("the store has it");
    snapshot.1.check(run(599, 1), &last).expect("the model's page");
    check(&engine, &snapshot);
}

#[test]
fn case_33_frames_read_before_their_file_was_cut_are_not_zeroes_in_a_read_that_fetches_the_next_one() {
    let site = site();
    let engine = start(&site);
    let (first, content) = first_pause(&engine, 150);
    wait_published(&first);
    let (id, file) = (first.id(), local_files(&site, &first).remove(0));
    drop((first, engine));
    // After a start no frame is verified.
    let engine = start(&site);
    let snapshot = engine.open(id).expect("it is published");
    let read = |pages| {
        let mut found = vec![0; usize::try_from(run(0, pages).bytes()).expect("64 bits")];
        engine.read(snapshot.memory(), run(0, pages), &mut found).expect("the store has it");
        content.check(run(0, pages), &found).expect("the model's pages");
    };
    read(64);
    cut(&file, 4096 * 7);
    read(150);
    assert_eq!(
        file.metadata().expect("it is there").len(),
        4096 * 7,
        "what was lost does not read as zeroes"
    );
}

#[test]
fn case_33_a_lost_block_that_was_never_stored_is_an_error_that_names_the_layer() {
    let site = site();
    let engine = start(&site);
    let (outage, snapshot) = sealed_in_an_outage(&site, &engine, 100);
    let layer = snapshot.0.manifest_now().expect("it is sealed").layers()[0].id;
    cut(&local_files(&site, &snapshot.0)[0], 4096 * 40);
    for _ in 0..2 {
        let error = judge(&engine, &snapshot.0, &snapshot.1).expect_err("the only copy is lost");
        let GuestError::Stalled(error) = error else { panic!("bytes were invented: {error}") };
        assert!(error.to_string().contains(&layer.to_string()), "{error}");
    }
    drop(outage);
    let other = first_pause(&engine, 20);
    wait_published(&other.0);
    assert_eq!(snapshot.0.state(), SnapshotState::Sealed, "what cannot be read is not published");
}

#[test]
fn case_33_a_parent_lost_under_compare_is_kept_instead() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 100);
    wait_published(&first.0);
    let mut guest = Guest::resume(&first.0, first.1.clone());
    guest.verify(&engine).expect("the parent can be read");
    cut(&local_files(&site, &first.0)[0], 0);
    let second = guest.pause(&engine, Tracking::Resident).expect("nothing stands against it").end_vmm();
    wait_published(&second.0);
    let classes = second.0.status().classes.expect("compared");
    assert_eq!((classes.kept, classes.unread), (100, 100));
    check(&engine, &second);
    check_elsewhere(&site, &second);
}

#[test]
fn case_25_and_26_damaged_or_short_local_files_are_never_believed() {
    let site = site();
    let engine = start(&site);
    let first = first_pause(&engine, 300);
    let second = child(&engine, &first, run(100, 90), 2);
    wait_published(&second.0);
    let files = local_files(&site, &second.0);
    drop(engine);
    let file = OpenOptions::new().write(true).open(&files[0]).expect("a local file");
    file.write_all_at(&[0xff; 512], 4096 * 70).expect("a disk");
    cut(&files[1], 4096 * 10);
    let engine = start(&site);
    let opened = engine.open(second.0.id()).expect("it is published");
    judge(&engine, &opened, &second.1).expect("every page is the model's");
    judge(&engine, &opened, &second.1).expect("what was fetched stays good");
}

#[test]
fn a_verification_that_nobody_wants_any_more_ends_before_it_has_read_all() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 300);
    let ends_early = || {
        let questions = AtomicUsize::new(0);
        let is_wanted = || questions.fetch_add(1, Ordering::Relaxed) < 2;
        engine.verify(&first.0, &is_wanted).is_none() && questions.load(Ordering::Relaxed) == 3
    };
    assert!(ends_early(), "captured");
    drop(held);
    wait_sealed(&first.0);
    assert!(ends_early(), "sealed");
    assert!(engine.verify(&first.0, &|| true).is_some());
}

#[test]
fn verifying_reads_the_disk_anew_and_says_what_is_wrong_where_the_store_cannot_help() {
    let site = site();
    let engine = start(&site);
    let held = site.hooks.hold(Point::Compare);
    let first = first_pause(&engine, 300);
    let store = StoreFindings::NotPublished;
    let sound = Verification { pages: 300, wrong_pages: 0, first: None, store };
    assert_eq!(verified(&engine, &first.0), sound, "captured");
    assert_eq!(first.0.layers_now(), []);
    let outage = site.faults.outage();
    drop(held);
    wait_sealed(&first.0);
    assert_eq!(verified(&engine, &first.0), sound, "sealed");
    let placed = first.0.layers_now();
    let bytes = 300 * 4096;
    assert_eq!((placed[0].bytes, placed[0].local_bytes, placed[0].stored_bytes), (bytes, bytes, None));
    let path = &local_files(&site, &first.0)[0];
    let file = OpenOptions::new().write(true).open(path).expect("a local file");
    file.write_all_at(&[0xff; 512], 4096 * 70).expect("a disk");
    // Page 70 is in the second frame of 64 pages.
    let found = verified(&engine, &first.0);
    assert_eq!((found.pages, found.wrong_pages), (300, 64));
    let what = found.first.expect("something is wrong");
    assert!(what.starts_with("page 64 of volume memory: ") && what.contains("never stored"), "{what}");
    drop(outage);
    let second = first_pause(&engine, 200);
    wait_published(&second.0);
    let file = OpenOptions::new().write(true).open(&local_files(&site, &second.0)[0]).expect("a local file");
    file.write_all_at(&[0xff; 512], 4096 * 70).expect("a disk");
    assert_eq!(verified(&engine, &second.0).wrong_pages, 0, "the store has it");
    assert!(second.0.layers_now()[0].stored_bytes.is_some());
    check(&engine, &second);
}

#[test]
fn a_local_file_that_rotted_before_it_was_stored_is_not_published_until_it_is_right_again() {
    let site = site();
    let engine = start(&site);
    let (outage, first) = sealed_in_an_outage(&site, &engine, 100);
    let file = OpenOptions::new().read(true).write(true).open(&local_files(&site, &first.0)[0]);
    let file = file.expect("a local file");
    let (mut right, mut wrong) = ([0; 4096], [0; 4096]);
    file.read_exact_at(&mut right, 4096 * 70).expect("a disk");
    file.read_exact_at(&mut wrong, 4096 * 71).expect("a disk");
    file.write_all_at(&wrong, 4096 * 70).expect("a disk");
    drop(outage);
    while !first.0.status().failure.is_some_and(|failure| failure.contains("does not match its digest")) {
        let published = first.0.wait_state(SnapshotState::Published, Duration::from_millis(10));
        assert!(!published, "a rotten frame would be the only durable copy");
    }
    assert_eq!(site.faults.calls(Operation::Put, "manifests/"), 0);
    file.write_all_at(&right, 4096 * 70).expect("a disk");
    wait_published(&first.0);
    check_elsewhere(&site, &first);
}

#[test]
fn case_33_equal_bytes_packed_again_over_a_file_that_was_cut_short_are_all_there() {
    let (site, engine, first) = published(100);
    check(&engine, &first);
    cut(&local_files(&site, &first.0)[0], 0);
    let same = first_pause(&engine, 100);
    wait_sealed(&same.0);
    check(&engine, &same);
    check(&engine, &first);
}

#[test]
fn a_layer_packed_here_is_on_this_disk_though_the_store_has_the_same() {
    let (site, _engine, first) = published(100);
    let cold = open_elsewhere(&site, &first.0);
    let _outage = site.faults.outage();
    let same = first_pause(&cold.engine, 100);
    wait_sealed(&same.0);
    check(&cold.engine, &same);
    check(&cold.engine, &(cold.snapshot, first.1));
}

#[test]
fn a_disk_that_is_full_while_packing_loses_nothing() {
    let site = site();
    let Some(small) = SmallDisk::mount(site.cache_directory(), "1m") else {
        skipped("a full disk", "mounting a small tmpfs needs root and CAP_SYS_ADMIN");
        return;
    };
    let options = EngineOptions { cache_directory: small.0.clone(), ..site.options() };
    let engine = Engine::start(options).expect("threads for an engine");
    let first = first_pause(&engine, 700);
    while first.0.status().failure.is_none() {
        assert!(
            !first.0.wait_state(SnapshotState::Sealed, Duration::from_millis(10)),
            "the disk is too small"
        );
    }
    let failure = first.0.status().failure.expect("just seen");
    assert!(failure.contains("No space left"), "{failure}");
    assert_eq!(first.0.state(), SnapshotState::Captured);
    check(&engine, &first);
    let second = child(&engine, &first, run(3, 4), 2);
    check(&engine, &second);
    small.enlarge();
    wait_published(&first.0);
    wait_published(&second.0);
    check(&engine, &second);
    check_elsewhere(&site, &second);
    drop(engine);
}

#[test]
fn a_catalog_on_a_full_disk_changes_nothing_and_takes_the_next_write_when_there_is_room() {
    let site = site();
    let Some(small) = SmallDisk::mount(site.cache_directory(), "1m") else {
        skipped("a full disk", "mounting a small tmpfs needs root and CAP_SYS_ADMIN");
        return;
    };
    let put = |number: usize| Change::Put {
        kind: Kind::Sandbox,
        key: number.to_le_bytes().to_vec(),
        value: vec![1; 20_000],
    };
    let catalog = Catalog::open(&small.0.join("catalog.redb")).expect("there is room for an empty one");
    let mut written = 0;
    let refused = loop {
        match catalog.write(&[put(written), put(written + 1)]) {
            Ok(()) => written += 2,
            Err(error) => break error,
        }
    };
    assert!(refused.to_string().contains("No space left"), "{refused}");
    assert_eq!(catalog.all(Kind::Sandbox).expect("it can be read").len(), written);
    small.enlarge();
    catalog.write(&[put(written)]).expect("there is room again");
    assert_eq!(catalog.all(Kind::Sandbox).expect("it can be read").len(), written + 1);
}

#[test]
fn a_catalog_that_cannot_be_written_refuses_pauses_and_loses_no_seal() {
    let site = site();
    let Some(small) = SmallDisk::mount(site.cache_directory(), "8m") else {
        skipped("a full disk", "mounting a small tmpfs needs root and CAP_SYS_ADMIN");
        return;
    };
    let path = small.0.join("catalog.redb");
    let recording = |catalog| EngineOptions { catalog: Some(catalog), ..site.recording().expect("its own") };
    let engine =
        Engine::start(recording(Catalog::open(&path).expect("room for an empty one"))).expect("threads");
    let held = site.hooks.hold(Point::Record);
    let first = first_pause(&engine, 40);
    assert!(site.hooks.wait_standing(Point::Record, first.0.id(), PATIENCE));
    std::fs::write(small.0.join("filling"), vec![1; 8 << 20]).expect_err("it is smaller");
    drop(held);
    while first.0.status().failure.is_none() {
        assert!(!first.0.wait_state(SnapshotState::Sealed, Duration::from_millis(10)), "the disk is full");
    }
    assert!(!site.keeper.held().expect("it answers").is_empty(), "its memory is still kept");
    check(&engine, &first);
    std::fs::remove_file(small.0.join("filling")).expect("it was cut short");
    wait_published(&first.0);
    check_elsewhere(&site, &first);
    drop(engine);
}

/// A small file system, until it is enlarged.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(under: &Path, size: &str) -> Option<Self> {
        let path = under.join("small");
        std::fs::create_dir(&path).expect("a directory of ours");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&path);
        mount.output().ok()?.status.success().then_some(Self(path))
    }

    fn enlarge(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,size=64m"]).arg(&self.0);
        assert!(mount.status().expect("mount was found before").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}
