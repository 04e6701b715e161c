//! Collections of a store that two nodes use. `REKINDLE_COLLECTING_SECONDS` lets the two with kills go on for so long.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use rekindle_api::types::{Accelerator, Board, Collect, SnapshotState};
use rekindle_testkit::black_box::{BlackBox, bucket_words};
use rekindle_testkit::s3::S3Server;

use crate::machine_console::{have_qemu, tiny};
use crate::support::{Node, files_in, program, rewrite};

const AT_ONCE: Collect = Collect { dry_run: false, probation_ms: Some(0) };
const DRY: Collect = Collect { dry_run: true, probation_ms: None };

/// A node on the store of another one, with its keys.
fn on_the_store_of(other: &Node) -> Node {
    let mut place = BlackBox::new(&program()).expect("directories");
    place.copy_key_ring(&other.place).expect("the other has keys");
    let store = other.place.store_directory();
    place.serve_with(&["--store", store.to_str().expect("a temporary directory's name")]);
    Node::start_in(place)
}

/// The names of all objects at a place of the store. Others may go while they are listed.
fn names(store: &Path, place: &str) -> Vec<String> {
    let entries = std::fs::read_dir(store.join(place)).into_iter().flatten().flatten();
    let named = entries.flat_map(|entry| {
        let name = format!("{place}/{}", entry.file_name().display());
        if entry.path().is_dir() { names(store, &name) } else { vec![name] }
    });
    named.collect()
}

fn count_of(store: &Path, place: &str, part: &str) -> usize {
    names(store, place).iter().filter(|name| name.contains(part)).count()
}

#[test]
fn two_nodes_publish_delete_and_collect_in_one_store_with_kills_and_lose_nothing_that_is_used() {
    let first = Node::start();
    let (second, store) = (on_the_store_of(&first), first.place.store_directory());
    publish_delete_and_collect(first, second, &|place| names(&store, place));
}

#[test]
fn two_nodes_do_so_in_one_bucket() {
    let server = S3Server::start().expect("a server");
    let beside = |other: Option<&Node>| {
        let mut place = BlackBox::new(&program()).expect("directories");
        if let Some(other) = other {
            place.copy_key_ring(&other.place).expect("the other has keys");
        }
        let (url, keys) = (server.url(""), place.home_directory().join("keys"));
        let words =
            bucket_words(&url, &server.access(), &server.environment(), &keys).expect("there is room");
        place.serve_with(&words.iter().map(String::as_str).collect::<Vec<_>>());
        Node::start_in(place)
    };
    let first = beside(None);
    let second = beside(Some(&first));
    let opened =
        rekindle_bucket::open(&server.url(""), &server.access(), &server.environment(), &Arc::default());
    let objects = opened.expect("it is there").objects;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    publish_delete_and_collect(first, second, &|place| {
        let listed = objects.list(Some(&place.into())).map_ok(|object| object.location.to_string());
        runtime.block_on(listed.try_collect()).expect("it is listed")
    });
}

/// Lets two nodes use one store, whose objects at a place `names` has, while they are killed.
fn publish_delete_and_collect(mut first: Node, mut second: Node, names: &dyn Fn(&str) -> Vec<String>) {
    let count_of = |place, part: &str| names(place).iter().filter(|name| name.contains(part)).count();
    first.filled("a", 1);
    let (begun, long) = (Instant::now(), seconds());
    for round in (0..).take_while(|round| *round < 2 || begun.elapsed() < long) {
        let (base, child, guest) = (format!("base-{round}"), format!("child-{round}"), format!("b-{round}"));
        first.told("a").rewrite(rewrite(round)).expect("its guest rewrites a part of its memory");
        let made = first.pause("a", &base);
        first.wait(&base, SnapshotState::Published);
        second.resumed(&made.id.to_string(), &guest);
        first.resume("a");
        second.eventually("both nodes having roots", || count_of("roots", &format!("runs-{}", made.id)) == 2);
        first.client.delete_snapshot(&base).expect("it is there");
        first.eventually("its manifest being gone", || count_of("manifests", &made.id.to_string()) == 0);
        let killed = second.client.clone();
        std::thread::scope(|scope| {
            // Its answer may be lost with its daemon.
            scope.spawn(move || drop(killed.collect(&AT_ONCE)));
            first.client.collect(&AT_ONCE).expect("the store is there");
            second.kill();
        });
        second.start_again();
        first.crash();
        second.client.collect(&AT_ONCE).expect("the store is there");
        first.client.collect(&AT_ONCE).expect("the store is there");
        second.assert_verified(&guest);
        first.assert_verified("a");
        second.pause(&guest, &child);
        second.wait(&child, SnapshotState::Published);
        first.client.collect(&AT_ONCE).expect("the store is there");
        let listed = second.client.all_snapshots(&[]).expect("it answers");
        // The others were deleted by the first node.
        let is_there = |name: &str| name.starts_with("child-");
        for snapshot in listed.iter().filter(|snapshot| snapshot.name.as_deref().is_some_and(is_there)) {
            let verified = second.client.verify_snapshot(&snapshot.id.to_string()).expect("it is there");
            assert_eq!((verified.wrong_pages, verified.store.wrong_objects), (0, 0), "in round {round}");
        }
        first.eventually("every object being named by a manifest, a root or a list", || {
            [&second, &first].iter().for_each(|node| {
                node.client.collect(&AT_ONCE).expect("the store is there");
            });
            let judged = first.client.collect(&DRY).expect("the store is there");
            judged.verdicts.iter().all(|verdict| verdict.kept)
        });
        // The second node deletes as well: what it published three rounds ago, and the guest of that.
        if round >= 3 {
            second.client.remove_sandbox(&format!("b-{}", round - 3)).expect("it is there");
            second.client.delete_snapshot(&format!("child-{}", round - 3)).expect("it is there");
        }
        if long > Duration::ZERO {
            eprintln!("round {round} is right, after {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    [&first, &second].into_iter().for_each(remove_all);
    first.eventually("nothing being left", || {
        for node in [&first, &second] {
            node.client.collect(&AT_ONCE).expect("the store is there");
        }
        ["layers", "manifests", "working-sets", "roots", "condemned"]
            .iter()
            .all(|place| names(place).is_empty())
    });
    assert_eq!(first.client.collect(&DRY).expect("the store is there").objects, 0);
}

/// The time for which rounds go on, if it is asked for.
fn seconds() -> Duration {
    let asked = std::env::var("REKINDLE_COLLECTING_SECONDS").ok();
    asked.map_or(Duration::ZERO, |asked| Duration::from_secs(asked.parse().expect("a number of seconds")))
}

/// Removes all sandboxes and snapshots of a node.
fn remove_all(node: &Node) {
    for sandbox in node.client.all_sandboxes(&[]).expect("it answers") {
        node.client.remove_sandbox(&sandbox.id.to_string()).expect("it is removed");
    }
    for snapshot in node.client.all_snapshots(&[]).expect("it answers") {
        node.client.delete_snapshot(&snapshot.id.to_string()).expect("it is there");
    }
}

#[test]
fn a_deletion_tells_the_other_nodes_whose_sandboxes_run_from_the_snapshot() {
    let first = Node::start();
    first.filled("a", 1);
    let made = first.pause("a", "base");
    first.wait("base", SnapshotState::Published);
    let second = on_the_store_of(&first);
    second.resumed(&made.id.to_string(), "b");
    let root = format!("runs-{}", made.id);
    second.eventually("its node having a root", || {
        count_of(&first.place.store_directory(), "roots", &root) == 1
    });
    first.client.remove_sandbox("a").expect("it is removed");
    let deleted = first.place.command(["delete", "base", "--yes"]).output().expect("the program runs");
    let said = String::from_utf8_lossy(&deleted.stderr);
    assert!(deleted.status.success() && said.contains("run from it on other nodes, and go on: "), "{said}");
    second.assert_verified("b");
}

#[test]
fn once_all_is_deleted_and_collected_neither_store_nor_disk_has_anything_of_it() {
    let mut node = Node::start();
    node.filled("a", 1);
    if have_qemu("boot files of deleted machines") {
        let wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
        node.client.create_sandbox(None, &wanted).expect("a machine is made");
        node.pause("vm", "machine");
        node.wait("machine", SnapshotState::Published);
        assert_eq!(files_in(&node.place.state_directory().join("boot")).len(), 1);
        node.client.collect(&AT_ONCE).expect("the store is there");
        assert_eq!(files_in(&node.place.state_directory().join("boot")).len(), 1, "a snapshot names it");
        node.resume("vm");
        node.client.delete_snapshot("machine").expect("it is there");
        node.client.collect(&AT_ONCE).expect("the store is there");
        assert_eq!(files_in(&node.place.state_directory().join("boot")).len(), 1, "a sandbox names it");
    }
    node.pause("a", "first");
    node.resume("a");
    node.told("a").rewrite(rewrite(2)).expect("its guest rewrites a part of its memory");
    node.crash();
    node.pause("a", "second");
    node.wait("second", SnapshotState::Published);
    node.resumed("first", "b");
    remove_all(&node);
    let (store, state) = (node.place.store_directory(), node.place.state_directory());
    node.eventually("nothing being left", || {
        node.client.collect(&AT_ONCE).expect("the store is there");
        let left = |place: &Path, stays: &dyn Fn(&str) -> bool| {
            let files = files_in(place);
            let name = |file: &std::path::PathBuf| {
                file.strip_prefix(place).expect("it is below it").display().to_string()
            };
            let left: Vec<_> = files.iter().map(name).filter(|name| !stays(name)).collect();
            left.is_empty() || {
                eprintln!("left in {}: {left:?}", place.display());
                false
            }
        };
        left(&store, &|name| {
            name == "store" || ["domains/", "nodes/", "deleted/"].iter().any(|place| name.starts_with(place))
        }) && left(&state, &|name| {
            ["catalog.lock", "catalog.redb", "catalog.room", "key-ring.json", "manifests.memory"]
                .contains(&name)
        })
    });
}
