//! Working sets that lie in the store with their pages: what a resume on another node reads of them, and what becomes of
//! them when snapshots follow each other.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::learning::Prefault;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::serve::FaultServer;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_engine::working_set::{Touch, WorkingSet};
use support::{Guest, Kind, LIMIT, Node, counted, serve};

const PAGES: usize = 1024;
/// Runs of the working set: single pages, and walks over several frames.
const RUNS: [(u32, u32); 4] = [(700, 150), (3, 1), (99, 40), (1000, 24)];
/// The bytes that a working set with its pages begins with.
const WITH_PAGES: &[u8] = b"RKWP";

fn word(page: usize) -> u64 {
    0xabba_0000 + u64::try_from(page).unwrap()
}

fn other_word(page: usize) -> u64 {
    word(page) + 1
}

fn runs() -> impl Iterator<Item = GuestPages> {
    RUNS.into_iter().map(|(start, count)| GuestPages::new(GuestPage::new(start), count))
}

fn set_of(snapshot: &Snapshot) -> WorkingSet {
    WorkingSet::new(snapshot.id(), snapshot.memory().pages(), runs().map(Touch::Beside))
}

/// A published snapshot, with a working set in the store.
fn with_set(node: &Node) -> Arc<Snapshot> {
    with_set_of(node, word)
}

/// The same with these words.
fn with_set_of(node: &Node, word: fn(usize) -> u64) -> Arc<Snapshot> {
    let snapshot = node.snapshot(PAGES, |page| Some(word(page)));
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT));
    node.engine.keep_working_set(&snapshot, set_of(&snapshot));
    snapshot
}

/// The newest working set of a snapshot in the store.
fn stored(node: &Node, snapshot: SnapshotId) -> PathBuf {
    let directory = node.directory.path().join("store/working-sets").join(snapshot.to_string());
    let whole = |path: &PathBuf| !path.to_string_lossy().contains('#');
    let found = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(whole);
    found.max().expect("there is one")
}

fn has_pages(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(WITH_PAGES))
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} in time");
        std::thread::yield_now();
    }
}

fn resume(test: &str, engine: &Engine, snapshot: &Arc<Snapshot>) -> Option<(Guest, FaultServer)> {
    let (guest, server) = serve(test, Kind::Private, Tracking::Scan, engine, snapshot)?;
    engine.prefaulter().begin(snapshot, &server, Prefault::WorkingSet);
    Some((guest, server))
}

fn verify(guest: &Guest, pages: impl Iterator<Item = usize>) {
    for page in pages {
        assert!(guest.has(page, word(page)), "page {page} is {:#x}", guest.word(page));
    }
}

fn pages_of_set() -> impl Iterator<Item = usize> {
    runs().flat_map(|run| run.iter()).map(GuestPage::index)
}

#[test]
fn a_node_that_has_nothing_reads_the_pages_of_a_working_set_from_beside_the_manifest() {
    let node = Node::with_share(100);
    let snapshot = with_set(&node);
    assert!(has_pages(&stored(&node, snapshot.id())));
    let (engine, cold) = node.cold(&snapshot);
    // Nothing but the working set can bring them.
    node.store_layers_there(false);
    let Some((guest, server)) = resume("packed", &engine, &cold) else { return };
    counted(&server, |stats| stats.pages_prefetched >= u64::try_from(pages_of_set().count()).unwrap());
    verify(&guest, pages_of_set());
    assert_eq!(server.stats().misses, 0);
    node.store_layers_there(true);
    verify(&guest, 0..PAGES);
}

#[test]
fn a_node_whose_layer_files_were_evicted_reads_the_pages_of_a_working_set_from_beside_the_manifest() {
    // There is room for one snapshot and a part of another.
    let node = Node::with_room(100, 6 << 20);
    let snapshot = with_set(&node);
    assert!(has_pages(&stored(&node, snapshot.id())));
    wait_for("no layer file", || {
        let others = node.snapshot(PAGES, |page| Some(other_word(page)));
        assert!(others.wait_state(SnapshotState::Published, LIMIT));
        snapshot.layers_now().iter().all(|layer| layer.local_bytes == 0)
    });
    node.store_layers_there(false);
    let Some((guest, server)) = resume("evicted", &node.engine, &snapshot) else { return };
    counted(&server, |stats| stats.pages_prefetched >= u64::try_from(pages_of_set().count()).unwrap());
    verify(&guest, pages_of_set());
    assert_eq!(server.stats().misses, 0);
}

#[test]
fn pages_that_are_missing_wrong_or_damaged_come_from_their_layers() {
    let node = Node::with_share(100);
    let (snapshot, other) = (with_set(&node), with_set_of(&node, other_word));
    let path = stored(&node, snapshot.id());
    let whole = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let half_cut = whole[..whole.len() / 2].to_vec();
    let spoiled: Vec<_> = whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at > 5000)).collect();
    let cases = [
        ("cut", half_cut),
        ("cut in its head", whole[..90].to_vec()),
        ("a wrong bit in its head", flipped(60)),
        ("a wrong bit in its pages", flipped(whole.len() - 9)),
        ("wrong pages", spoiled),
        ("another snapshot's", fs::read(stored(&node, other.id())).unwrap()),
        ("longer", [whole.clone(), vec![7; 300_000]].concat()),
    ];
    for (name, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        let (engine, cold) = node.cold(&snapshot);
        let Some((guest, server)) = resume("damaged", &engine, &cold) else { return };
        println!("{name}");
        verify(&guest, pages_of_set());
        verify(&guest, 0..PAGES);
        drop(server.end_epoch());
        drop((guest, cold, engine));
        fs::remove_dir_all(node.directory.path().join("second")).unwrap();
    }
}

#[test]
fn a_working_set_takes_no_more_than_its_share_and_with_none_it_has_no_pages() {
    for share in [0, 10, 100] {
        let node = Node::with_share(share);
        let snapshot = with_set(&node);
        let path = stored(&node, snapshot.id());
        let stored: u64 = snapshot.layers_now().iter().filter_map(|layer| layer.stored_bytes).sum();
        let bytes = fs::metadata(&path).unwrap().len();
        // The head says which pages they are.
        assert!(bytes <= stored * u64::from(share) / 100 + 4096, "{bytes} of {stored} bytes");
        assert_eq!(has_pages(&path), share > 0);
        if share == 10 {
            let (engine, cold) = node.cold(&snapshot);
            let Some((guest, server)) = resume("share", &engine, &cold) else { return };
            counted(&server, |stats| {
                stats.pages_prefetched >= u64::try_from(pages_of_set().count()).unwrap()
            });
            verify(&guest, 0..PAGES);
        }
    }
}

#[test]
fn the_pages_move_on_to_the_newest_snapshot_of_a_line_and_stay_with_one_that_is_resumed_again() {
    let node = Node::with_share(100);
    let first = with_set(&node);
    let Some((guest, server)) = resume("moves on", &node.engine, &first) else { return };
    verify(&guest, pages_of_set());
    drop(server.end_epoch());
    let child = |parent: &Arc<Snapshot>| {
        let written = |page: usize| (700..720).contains(&page).then(|| word(page));
        let child = node.snapshot_of(Some(parent), PAGES, written);
        assert!(child.wait_state(SnapshotState::Published, LIMIT));
        let directory = node.directory.path().join("store/working-sets").join(child.id().to_string());
        let is_whole = |entry: fs::DirEntry| !entry.path().to_string_lossy().contains('#');
        wait_for("a working set of the child", || {
            fs::read_dir(&directory).is_ok_and(|mut entries| entries.any(|entry| is_whole(entry.unwrap())))
        });
        child
    };
    let second = child(&first);
    assert!(has_pages(&stored(&node, second.id())));
    wait_for("the parent without pages", || !has_pages(&stored(&node, first.id())));
    assert_eq!(node.engine.working_set(&second).unwrap().runs(), set_of(&second).runs());
    // A resume from the parent shows that more may follow.
    let Some((guest, server)) = resume("moves on", &node.engine, &first) else { return };
    verify(&guest, pages_of_set());
    wait_for("the pages again", || has_pages(&stored(&node, first.id())));
    drop(server.end_epoch());
    let third = child(&first);
    assert!(has_pages(&stored(&node, first.id())) && has_pages(&stored(&node, third.id())));
    let (engine, cold) = node.cold(&third);
    let Some((guest, _server)) = resume("moves on", &engine, &cold) else { return };
    verify(&guest, 0..PAGES);
}
