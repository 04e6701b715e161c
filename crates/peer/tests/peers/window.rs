//! Snapshots that are resumed at other nodes before they are saved.

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::BytesHere;
use rekindle_testkit::guest::judge;
use rekindle_testkit::hooks::Point;
use rekindle_testkit::site::{PATIENCE, Site};

use crate::failures::eventually;
use crate::fleet::{Fleet, any_port, first_pause, next_pause, run};

const PAGES: u32 = 700;

#[test]
fn with_compare_held_for_ever_a_second_node_runs_the_snapshot_and_pauses_it_and_a_third_one_forks_that() {
    let fleet = Fleet::new();
    let (of_a, of_b, of_c) = sites();
    let (a, b, c) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"), fleet.engine(&of_c, "c"));
    let (at_a, serves_a) = fleet.listen(&a, "a", any_port());
    let (at_b, serves_b) = fleet.listen(&b, "b", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);

    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    assert_eq!(remote.state(), SnapshotState::Remote);
    judge(&b, &remote, &memory).expect("every page is the snapshot's");
    let (child, changed) = next_pause(&b, &remote, &memory, run(90, 40), 2);
    judge(&b, &child, &changed).expect("written pages over those of the other node");

    let fork = c.open_from(child.id(), &at_b.to_string()).expect("its node has it");
    judge(&c, &fork, &changed).expect("pages of both nodes");
    assert_eq!(paused.state(), SnapshotState::Captured, "its compare has not begun");
    assert!(
        remote.manifest_now().is_none() && child.manifest_now().is_none() && fork.manifest_now().is_none()
    );

    drop(held);
    for snapshot in [&paused, &remote, &child, &fork] {
        assert!(snapshot.wait_state(SnapshotState::Published, PATIENCE), "{:?}", snapshot.status());
    }
    for (listening, engine) in [(serves_a, a), (serves_b, b)] {
        listening.stop();
        drop(engine);
    }
    judge(&c, &fork, &changed).expect("from the store");
    let site = of_a.elsewhere().unwrap();
    let elsewhere = fleet.engine(&site, "d");
    judge(&elsewhere, &elsewhere.open(paused.id()).unwrap(), &memory).expect("the first pause");
    judge(&elsewhere, &elsewhere.open(child.id()).unwrap(), &changed).expect("the second one");
}

#[test]
fn reads_that_wait_while_a_snapshot_gets_its_names_are_of_the_same_bytes() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let (a, b) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while remote.state() != SnapshotState::Published {
                        judge(&b, &remote, &memory).expect("the same bytes from wherever they come");
                    }
                })
            })
            .collect();
        drop(held);
        assert!(remote.wait_state(SnapshotState::Published, PATIENCE), "{:?}", remote.status());
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    judge(&b, &remote, &memory).expect("by name");
    assert_eq!(remote.status().remote, None);
}

#[test]
fn a_start_finds_a_snapshot_of_another_node_again_and_goes_on_with_it() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let a = fleet.engine(&of_a, "a");
    let (at_a, serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let start = || {
        let recording = of_b.recording().expect("a catalog");
        Engine::start(EngineOptions { peers: fleet.peers("b"), ..recording }).expect("threads for an engine")
    };
    let b = start();
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    let (child, changed) = next_pause(&b, &remote, &memory, run(3, 9), 5);
    let id = child.id();
    drop((child, remote, b));

    let b = start();
    assert_eq!(b.replayed().remote, 1);
    let remote = b.snapshot(paused.id()).expect("it is recorded");
    let child = b.snapshot(id).expect("it is recorded");
    judge(&b, &remote, &memory).expect("its node has it");
    judge(&b, &child, &changed).expect("over the parent's pages");
    drop(held);
    assert!(child.wait_state(SnapshotState::Published, PATIENCE), "{:?}", child.status());
    serves.stop();
    drop((child, remote, b));
    let b = start();
    assert_eq!(b.replayed().published, 2);
    judge(&b, &b.snapshot(id).expect("it is recorded"), &changed).expect("from the store");
}

#[test]
fn case_04_an_early_form_that_reaches_other_nodes_is_the_parent_of_nothing_that_is_stored() {
    let fleet = Fleet::new();
    let (of_a, of_b, of_c) = sites();
    let (a, b, c) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"), fleet.engine(&of_c, "c"));
    let (at_a, _serves_a) = fleet.listen(&a, "a", any_port());
    let (at_b, _serves_b) = fleet.listen(&b, "b", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, memory) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    let (child, changed) = next_pause(&b, &remote, &memory, run(90, 40), 2);
    let fork = c.open_from(child.id(), &at_b.to_string()).expect("its node has it");
    judge(&c, &fork, &changed).expect("pages of both nodes");
    let compared = std::time::Instant::now();
    while child.status().classes.is_none() {
        assert!(compared.elapsed() < PATIENCE, "{:?}", child.status());
        std::thread::yield_now();
    }
    assert_eq!(b.stored_snapshots().expect("the store answers"), Vec::new());
    assert!([&remote, &child, &fork].iter().all(|snapshot| snapshot.layers_now().is_empty()));
    drop(held);
    assert!(fork.wait_state(SnapshotState::Published, PATIENCE), "{:?}", fork.status());
    judge(&c, &fork, &changed).expect("from the store");
}

#[test]
fn case_05_placement_names_no_layer_that_is_not_there_and_waits_for_none() {
    let fleet = Fleet::new();
    let (of_a, of_b, _) = sites();
    let (a, b) = (fleet.engine(&of_a, "a"), fleet.engine(&of_b, "b"));
    let (at_a, _serves) = fleet.listen(&a, "a", any_port());
    let held = of_a.hooks.hold(Point::Compare);
    let (paused, _) = first_pause(&a, PAGES);
    let remote = b.open_from(paused.id(), &at_a.to_string()).expect("its node has it");
    for (engine, snapshot) in [(&a, &paused), (&b, &remote)] {
        assert_eq!(snapshot.layers_now(), Vec::new());
        let described = engine.describe(snapshot.id()).expect("it is here");
        assert!(!described.is_published && snapshot.manifest_now().is_none());
    }
    assert_eq!(remote.status().remote.expect("it has no names").node, at_a.to_string());
    let all = u64::from(PAGES) * 4096;
    assert_eq!(paused.bytes_here(), Some(BytesHere::default()), "it is in RAM, over nothing");
    eventually(|| remote.bytes_here() == Some(BytesHere { bytes: all, local_bytes: all }));
    drop(held);
    assert!(remote.wait_state(SnapshotState::Published, PATIENCE), "{:?}", remote.status());
    assert!(!remote.layers_now().is_empty());
    assert!(paused.wait_state(SnapshotState::Published, PATIENCE), "{:?}", paused.status());
    let BytesHere { bytes, local_bytes } = paused.bytes_here().expect("it is not lost");
    assert!(bytes > 0 && local_bytes == bytes, "{local_bytes} of {bytes}");
}

/// The places of three nodes that share a store.
pub(crate) fn sites() -> (Site, Site, Site) {
    let first = Site::new().expect("a temporary directory");
    let second = first.beside().expect("a temporary directory");
    let third = first.beside().expect("a temporary directory");
    (first, second, third)
}
