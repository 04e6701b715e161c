//! A guest that is resumed a second time: the pages that the first one touched are there before it asks, and a wrong
//! recording does no harm.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use rekindle_engine::catalog::Kind as Table;
use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::learning::Prefault;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::limits;
use rekindle_engine::serve::{FaultServer, ServeStats};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_engine::working_set::{Touch, WorkingSet};
use support::{Guest, Kind, LIMIT, Node, counted, serve};

const PAGES: usize = 2048;

fn word_of(page: usize) -> u64 {
    0x5eed_0000 + u64::try_from(page).expect("a page number")
}

/// A volume with runs of zero pages and runs of others.
fn sparse(page: usize) -> Option<u64> {
    (!(page / 5).is_multiple_of(7)).then(|| word_of(page))
}

/// The first touches of a guest: pages far apart, then a walk.
fn first_touched() -> Vec<usize> {
    let far = (0..400).map(|step| (step * 769 + 1500) % PAGES);
    far.chain(900..1000).collect()
}

fn touch_first(guest: &Guest) {
    for page in first_touched() {
        assert!(guest.has(page, sparse(page).unwrap_or(0)), "page {page} is {:#x}", guest.word(page));
    }
}

fn verify(guest: &Guest) {
    for page in 0..PAGES {
        assert!(guest.has(page, sparse(page).unwrap_or(0)), "page {page} is {:#x}", guest.word(page));
    }
}

/// A guest whose touches are recorded.
fn resume(test: &str, kind: Kind, engine: &Engine, snapshot: &Arc<Snapshot>) -> Option<(Guest, FaultServer)> {
    resume_with(test, kind, engine, snapshot, Prefault::default())
}

/// The same, with these pages brought ahead.
fn resume_with(
    test: &str,
    kind: Kind,
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    prefault: Prefault,
) -> Option<(Guest, FaultServer)> {
    let (guest, server) = serve(test, kind, Tracking::Scan, engine, snapshot)?;
    engine.prefaulter().begin(snapshot, &server, prefault);
    Some((guest, server))
}

/// Waits for background work.
fn wait_for<T>(what: &str, found: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} in time");
        // Asking a catalog without pauses would keep others from writing it.
        std::thread::park_timeout(limits::SERVER_END_ASK);
    }
}

/// Records a guest that touches its first pages and ends.
fn record(
    test: &str,
    kind: Kind,
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
) -> Option<(u64, Arc<WorkingSet>)> {
    let (guest, server) = resume(test, kind, engine, snapshot)?;
    touch_first(&guest);
    let faults = server.stats().faults;
    drop(server.end_epoch());
    Some((faults, wait_for("recorded", || engine.working_set(snapshot))))
}

fn stored_sets(node: &Node, snapshot: SnapshotId) -> Vec<PathBuf> {
    let directory = node.directory.path().join("store/working-sets").join(snapshot.to_string());
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn wait_stored(node: &Node, snapshot: SnapshotId) -> PathBuf {
    // A file that is being written has another name until it is complete.
    let whole = |path: &PathBuf| !path.to_string_lossy().contains('#');
    wait_for("stored", || stored_sets(node, snapshot).into_iter().find(whole))
}

fn prefetched(server: &FaultServer, pages: u32) -> ServeStats {
    counted(server, |stats| stats.pages_prefetched >= u64::from(pages))
}

#[test]
fn a_guest_that_is_resumed_again_waits_for_at_most_a_twentieth_of_the_pages() {
    let node = Node::start();
    for kind in [Kind::Private, Kind::Shared] {
        let published = node.snapshot(PAGES, sparse);
        assert!(published.wait_state(SnapshotState::Published, LIMIT));
        for snapshot in [&published, &node.snapshot(PAGES, sparse)] {
            let Some((before, set)) = record("resumed again", kind, &node.engine, snapshot) else { return };
            assert!(before > 300, "{before} faults");
            let (guest, server) = resume("resumed again", kind, &node.engine, snapshot).unwrap();
            prefetched(&server, set.pages());
            touch_first(&guest);
            let after = server.stats();
            assert!(after.faults * 20 <= before, "{kind:?}: {before} faults, then {after:?}");
            verify(&guest);
            let captured = server.end_epoch().changed_pages().unwrap();
            assert!(captured.kept.is_empty(), "what was installed ahead is not taken for written");
        }
    }
}

#[test]
fn a_huge_page_is_recorded_and_installed_ahead_as_one() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server)) = resume("huge learning", Kind::Huge, &node.engine, &snapshot) else { return };
    assert!(guest.has(1030, sparse(1030).unwrap_or(0)));
    drop(server.end_epoch());
    let set = wait_for("recorded", || node.engine.working_set(&snapshot));
    assert_eq!(set.runs(), [GuestPages::new(GuestPage::new(1024), 512)]);
    let (guest, server) = resume("huge learning", Kind::Huge, &node.engine, &snapshot).unwrap();
    prefetched(&server, 512);
    (1024..1536).for_each(|page| assert!(guest.has(page, sparse(page).unwrap_or(0))));
    assert_eq!(server.stats().faults, 0);
    verify(&guest);
}

#[test]
fn pages_are_recorded_in_the_order_in_which_the_guest_touched_them() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server)) = resume("order", Kind::Private, &node.engine, &snapshot) else { return };
    for page in [1900, 3, 700, 3, 40, 1900] {
        guest.touch(page);
    }
    drop(server.end_epoch());
    let set = wait_for("recorded", || node.engine.working_set(&snapshot));
    let first: Vec<_> = set.runs().iter().map(|run| (run.start().number(), run.count())).collect();
    assert_eq!(first, [(1900, 1), (3, 1), (700, 1), (40, 1)]);
    assert_eq!(set.faults(), 4);
}

#[test]
fn what_was_recorded_is_found_in_the_store_by_a_node_that_has_nothing() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((_, set)) = record("elsewhere", Kind::Private, &node.engine, &snapshot) else { return };
    let (engine, cold) = node.cold(&snapshot);
    wait_stored(&node, snapshot.id());
    let (guest, server) = resume("elsewhere", Kind::Private, &engine, &cold).unwrap();
    prefetched(&server, set.pages());
    touch_first(&guest);
    let stats = server.stats();
    assert_eq!((stats.faults, stats.misses), (0, 0), "{stats:?}");
    verify(&guest);
    assert_eq!(engine.working_set(&cold).as_deref(), Some(&*set));
    assert_eq!(stored_sets(&node, snapshot.id()).len(), 1, "it is not stored again");
}

#[test]
fn a_guest_is_brought_none_of_its_pages_or_all_of_them_where_that_is_asked_for() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((_, set)) = record("asked for", Kind::Private, &node.engine, &snapshot) else { return };
    wait_stored(&node, snapshot.id());
    let (engine, cold) = node.cold(&snapshot);
    let (guest, server) = resume_with("asked for", Kind::Private, &engine, &cold, Prefault::Nothing).unwrap();
    touch_first(&guest);
    let stats = server.stats();
    assert!(stats.pages_prefetched == 0 && stats.faults > 0, "{stats:?}");
    drop(server.end_epoch());
    assert_eq!(engine.working_set(&cold).as_deref(), Some(&*set), "it is as it was");
    let (guest, server) = resume_with("asked for", Kind::Private, &engine, &cold, Prefault::All).unwrap();
    prefetched(&server, u32::try_from(PAGES).unwrap());
    verify(&guest);
    let stats = server.stats();
    assert_eq!((stats.faults, stats.misses), (0, 0), "{stats:?}");
}

#[test]
fn without_a_recording_the_pages_that_a_snapshots_own_pause_kept_are_fetched() {
    let node = Node::start();
    let parent = node.snapshot(PAGES, sparse);
    // A child that is published at the same time may upload its parent's layer.
    assert!(parent.wait_state(SnapshotState::Published, LIMIT), "published in time");
    let own = |page: usize| (100..300).contains(&page).then(|| word_of(page) + 1);
    let snapshot = node.snapshot_of(Some(&parent), PAGES, own);
    let (engine, cold) = node.cold(&snapshot);
    let Some((guest, server)) = resume("own pages", Kind::Private, &engine, &cold) else { return };
    wait_for("fetched", || {
        let layers = cold.layers_now();
        layers.iter().any(|layer| layer.bytes == 200 * 4096 && layer.local_bytes == layer.bytes).then_some(())
    });
    let parents = cold.layers_now().into_iter().find(|layer| layer.bytes > 200 * 4096).unwrap();
    assert!(parents.local_bytes <= 2 * 4096, "only the guest asks for more than its index");
    assert_eq!(server.stats().pages_prefetched, 0, "so that the recording has what the guest touches");
    assert!(guest.has(150, word_of(150) + 1) && guest.has(1500, sparse(1500).unwrap_or(0)));
}

/// Recordings that no guest has made of this snapshot.
fn hostile(snapshot: SnapshotId) -> Vec<(&'static str, Vec<u8>)> {
    let pages = u32::try_from(PAGES).unwrap();
    let keys = KeyRing::of_name("default");
    let of = |volume: u32, touches: &[Touch]| {
        WorkingSet::new(snapshot, volume, touches.to_vec()).encode(keys.own())
    };
    let fault = |page: u32| Touch::Fault(GuestPage::new(page));
    let everything = Touch::Beside(GuestPages::new(GuestPage::new(0), pages));
    let random: Vec<_> = (0..1500).map(|page: u32| fault(page.wrapping_mul(2_654_435_761) % pages)).collect();
    let valid = of(pages, &random);
    let mut flipped = valid.clone();
    flipped[40] ^= 4;
    let beyond: Vec<_> = (0..9).map(|page| fault(pages - 5 + page)).collect();
    let huge = Touch::Beside(GuestPages::new(GuestPage::new(1000), limits::WORKING_SET_PAGES_MAX));
    let other = WorkingSet::new(SnapshotId::new(), pages, [everything]).encode(keys.own());
    vec![
        ("nothing", Vec::new()),
        ("garbage", vec![0xa5; 5000]),
        ("too long", vec![0; limits::WORKING_SET_BYTES_MAX + 1]),
        ("truncated", valid[..valid.len() / 2].to_vec()),
        ("flipped", flipped),
        ("another snapshot's", other),
        ("random pages", valid),
        ("all pages", of(pages, &[everything])),
        ("pages beyond the volume", of(2 * pages, &beyond)),
        ("as many pages as may be", of(1 << 20, &[huge])),
    ]
}

#[test]
fn a_wrong_or_hostile_recording_costs_bounded_work_and_never_a_wrong_byte() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT));
    for (name, bytes) in hostile(snapshot.id()) {
        let directory = node.directory.path().join("store/working-sets").join(snapshot.id().to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("018f0000-0000-7000-8000-000000000000"), &bytes).unwrap();
        let cold_directory = node.directory.path().join("second");
        let (engine, cold) = node.cold(&snapshot);
        let Some((guest, server)) = resume("hostile", Kind::Private, &engine, &cold) else { return };
        verify(&guest);
        let stats = server.stats();
        let installed = stats.pages_zero + stats.pages_from_layer;
        assert!(installed <= u64::try_from(PAGES).unwrap(), "{name}: every page at most once: {stats:?}");
        drop(server.end_epoch());
        drop((guest, cold, engine));
        drop(fs::remove_dir_all(cold_directory));
        fs::remove_dir_all(directory).unwrap();
    }
}

#[test]
fn what_was_given_back_is_not_installed_ahead() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    for kind in [Kind::Private, Kind::Shared] {
        let Some((guest, server)) = serve("given back", kind, Tracking::Scan, &node.engine, &snapshot) else {
            return;
        };
        let all = [Touch::Beside(GuestPages::new(GuestPage::new(0), u32::try_from(PAGES).unwrap()))];
        let set = Arc::new(WorkingSet::new(snapshot.id(), u32::try_from(PAGES).unwrap(), all));
        guest.discard(100, 50, kind);
        std::thread::scope(|scope| {
            // More is given back while the rest is installed.
            scope.spawn(|| {
                for page in (200..1000).step_by(8) {
                    guest.discard(page, 3, kind);
                    assert!(guest.has(page + 1, 0), "{kind:?} page {page}");
                }
            });
            server.install_ahead(&set);
        });
        let is_removed =
            |page: usize| (100..150).contains(&page) || ((200..1000).contains(&page) && (page - 200) % 8 < 3);
        for page in 0..PAGES {
            let word = if is_removed(page) { 0 } else { word_of(page) };
            assert!(guest.has(page, word), "{kind:?} page {page} is {:#x}", guest.word(page));
        }
        // Again, now that everything is installed: nothing is left to install.
        let before = server.stats().pages_prefetched;
        server.install_ahead(&set);
        assert!(guest.has(101, 0) && guest.has(201, 0));
        let epoch = server.end_epoch();
        assert!(before <= u64::try_from(PAGES).unwrap());
        assert_eq!(epoch.removed().len(), 350);
    }
}

#[test]
fn several_guests_at_once_record_once_and_a_poor_recording_grows() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server)) = resume("forks", Kind::Private, &node.engine, &snapshot) else { return };
    let (fork, fork_server) = resume("forks", Kind::Private, &node.engine, &snapshot).unwrap();
    (0..40).for_each(|step| guest.touch((step * 769 + 1500) % PAGES));
    touch_first(&fork);
    drop(server.end_epoch());
    let first = wait_for("recorded", || node.engine.working_set(&snapshot));
    drop(fork_server.end_epoch());
    verify_with(&node, &snapshot, &first);
    let grown =
        wait_for("grown", || node.engine.working_set(&snapshot).filter(|set| set.pages() > first.pages()));
    let pages = |set: &WorkingSet| set.runs().iter().flat_map(|run| run.iter()).collect::<Vec<_>>();
    assert!(pages(&first).iter().all(|page| pages(&grown).contains(page)), "what it had is still there");
    assert!(grown.faults() > first.faults());
}

/// Checks a guest for which `set` is installed ahead, and which touches everything.
fn verify_with(node: &Node, snapshot: &Arc<Snapshot>, set: &WorkingSet) {
    let (guest, server) = resume("forks", Kind::Private, &node.engine, snapshot).unwrap();
    prefetched(&server, set.pages());
    verify(&guest);
    drop(server.end_epoch());
}

#[test]
fn a_recording_outlives_the_engine_and_goes_with_its_snapshot() {
    let node = Node::recording();
    let snapshot = node.snapshot(PAGES, sparse);
    // The store refuses working sets for now.
    let sets = node.directory.path().join("store/working-sets");
    fs::write(&sets, "in the way").unwrap();
    let Some((_, set)) = record("outlives", Kind::Private, &node.engine, &snapshot) else { return };
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT));
    wait_for("in the catalog", || (!node.catalog().all(Table::WorkingSet).unwrap().is_empty()).then_some(()));
    let id = snapshot.id();
    drop(snapshot);
    let node = node.restarted();
    node.engine.end_replay();
    let snapshot = node.engine.snapshot(id).unwrap();
    assert!(node.engine.working_set(&snapshot).is_none(), "nobody has asked");
    fs::remove_file(&sets).unwrap();
    let (guest, server) = resume("outlives", Kind::Private, &node.engine, &snapshot).unwrap();
    prefetched(&server, set.pages());
    touch_first(&guest);
    assert_eq!(node.engine.working_set(&snapshot).as_deref(), Some(&*set));
    // A working set that could not be stored before the restart is stored by the next resume.
    wait_stored(&node, id);
    drop(server.end_epoch());
    node.engine.delete(&snapshot).unwrap();
    drop((guest, snapshot));
    wait_for("out of the store", || stored_sets(&node, id).is_empty().then_some(()));
    wait_for("out of the catalog", || {
        node.catalog().all(Table::WorkingSet).unwrap().is_empty().then_some(())
    });
}

#[test]
fn a_guest_that_ends_after_its_snapshot_was_deleted_leaves_no_recording() {
    let node = Node::recording();
    let snapshot = node.snapshot(PAGES, sparse);
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT));
    let Some((guest, server)) = resume("deleted", Kind::Private, &node.engine, &snapshot) else { return };
    touch_first(&guest);
    node.engine.delete(&snapshot).unwrap();
    drop(server.end_epoch());
    let id = snapshot.id();
    drop((guest, snapshot));
    wait_for("gone", || node.catalog().all(Table::Snapshot).unwrap().is_empty().then_some(()));
    assert!(node.catalog().all(Table::WorkingSet).unwrap().is_empty());
    assert!(stored_sets(&node, id).is_empty());
}
