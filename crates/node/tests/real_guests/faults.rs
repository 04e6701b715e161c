//! Guests, stores and whole processes that go away: nothing acknowledged is lost.

use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions};
use rekindle_engine::store::Store;
use rekindle_engine::tracking::Tracking;
use rekindle_guest::process::arguments::MemoryKind;
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_testkit::stores::{Fault, Injected, Operation, REFUSAL, Rule};
use rekindle_vmm::process::{GuestOptions, ProcessGuest};

use crate::support::{
    Case, FilledNode, LIMIT, Node, assert_reads, assert_resumes, each_case, each_kind, ends, eventually,
    filled_snapshot, pause, program, random_of_this_run, resume, rewrite, share, state_of, wait_published,
};

/// Rounds of killing a guest.
const ROUNDS: usize = 24;

/// Kills process `pid` on another thread after this many turns of waiting.
fn kill_after(pid: u32, turns: u64) -> thread::JoinHandle<()> {
    let process = ProcessHandle::open(pid).expect("the guest lives");
    thread::spawn(move || {
        (0..turns).for_each(|_| thread::yield_now());
        // A guest whose pause was answered may have ended before.
        process.signal(Signal::Kill).ok();
    })
}

#[test]
fn killing_a_random_guest_at_a_random_moment_loses_no_acknowledged_snapshot() {
    let mut random = random_of_this_run("killed guests");
    for kind in [MemoryKind::Shared, MemoryKind::Private] {
        let mut case = Case::new(kind, 3, Tracking::Scan);
        case.shape.memory_bytes /= 4;
        let node = Node::start();
        let engine = &node.engine;
        let mut acknowledged = vec![filled_snapshot(engine, &case.shape, 1)];
        let mut refused = 0;
        for _ in 0..ROUNDS / 2 {
            let parent = &acknowledged[random.position(acknowledged.len())];
            let mut sandbox = resume(engine, parent, &case.shape);
            if random.below(3) > 0 {
                sandbox.guest.control.rewrite(rewrite(random.number())).expect("rewrites");
            }
            // From at once to about as long as a pause takes.
            let turns = 1 << random.below(15);
            let killing = kill_after(sandbox.guest.id(), turns);
            let working = sandbox.guest.control.rewrite(rewrite(random.number()));
            let paused = match working {
                Ok(_) => sandbox.pause(engine).map_err(drop),
                Err(_) => Err(()),
            };
            match paused {
                Ok(paused) => acknowledged.push(paused.snapshot),
                Err(()) => refused += 1,
            }
            killing.join().expect("kills");
        }
        eprintln!("{} pauses were acknowledged, {refused} guests died before", acknowledged.len() - 1);
        for snapshot in &acknowledged {
            assert_resumes(engine, snapshot, &case.shape);
            wait_published(snapshot);
            assert_reads(engine, snapshot, &state_of(snapshot).history);
        }
    }
}

#[test]
fn the_pages_of_a_guest_that_died_during_its_pause_are_not_taken_for_unwritten() {
    each_case(|case| {
        let (tracking, placement) = (case.shape.tracking, Placement::Anywhere);
        let options = ServeOptions { tracking, placement, neighbours: Neighbours::Adaptive };
        let filled = FilledNode::of(case);
        let (mut guest, server) = filled.restored(options);
        guest.control.rewrite(rewrite(2)).expect("rewrites");
        guest.freeze().expect("freezes");
        let epoch = server.end_epoch();
        let written = epoch.changed_pages().expect("the guest stands").kept;
        assert!(!written.is_empty());
        // Ended, but not waited for: its process id is still its own.
        let process = ProcessHandle::open(guest.id()).expect("the guest lives");
        process.signal(Signal::Kill).expect("it is ours to kill");
        assert!(process.wait_exit(LIMIT));
        if let Ok(found) = epoch.changed_pages() {
            let mut lost = written;
            lost.subtract(&found.kept);
            assert!(lost.is_empty(), "{} written pages would be the parent's", lost.len());
        }
        drop((guest, epoch));
    });
}

#[test]
fn killing_the_guest_while_it_hands_over_leaves_nothing_stuck() {
    let filled = FilledNode::usual();
    // Before its handler begins, its message being read already.
    let (mut guest, handover) = filled.handed_over();
    guest.kill().expect("ends");
    let (tracking, placement) = (Tracking::Scan, Placement::Anywhere);
    let options = ServeOptions { tracking, placement, neighbours: Neighbours::None };
    let view = Arc::clone(filled.snapshot.memory());
    let fetcher = filled.node.engine.fetcher().clone();
    ends("serving a dead guest", move || drop(FaultServer::start(view, handover, fetcher, options)));
    // Before its message is read: the message is there, and its sender is gone.
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("handover");
    let listener = UnixListener::bind(&socket).expect("the socket is new");
    let arguments = filled.case.guest_arguments(socket);
    let mut guest =
        ProcessGuest::spawn(&GuestOptions::program(program(), arguments)).expect("a guest starts");
    guest.kill().expect("ends");
    let (stream, _) = listener.accept().expect("the guest had connected");
    let pages = filled.snapshot.memory().pages();
    ends("receiving from a dead guest", move || drop(Handover::receive(stream, pages, LIMIT)));
    filled.assert_resumes(&filled.snapshot);
}

#[test]
fn killing_the_guest_while_it_is_served_leaves_nothing_stuck() {
    each_kind(|case| {
        let filled = FilledNode::of(case);
        for _ in 0..3 {
            let mut sandbox = filled.resume();
            drop(sandbox.guest.control.begin_verify().expect("told"));
            let server = sandbox.server().expect("it is served");
            eventually("a fault", || server.stats().faults > 0);
            server.prefetch(rekindle_engine::page_set::PageSet::full(filled.snapshot.memory().pages()));
            sandbox.guest.process.begin_kill().expect("it is ours to kill");
            ends("dropping a guest killed while it was served", move || drop(sandbox));
        }
        filled.assert_resumes(&filled.snapshot);
    });
}

#[test]
fn a_pause_of_a_dead_guest_fails_and_leaves_nothing_stuck() {
    each_kind(|case| {
        let filled = FilledNode::of(case);
        let engine = &filled.node.engine;
        let mut sandbox = filled.resume();
        sandbox.guest.control.rewrite(rewrite(2)).expect("rewrites");
        sandbox.guest.kill().expect("ends");
        let refused = sandbox.pause(engine).expect_err("there is nothing to pause");
        ends("dropping what could not be paused", move || drop(refused));
        wait_published(&filled.snapshot);
        filled.assert_resumes(&filled.snapshot);
        eventually("the permit's bytes come back", || engine.capture_bytes_held() == 0);
    });
}

#[test]
fn a_store_that_goes_away_in_the_middle_of_a_publish_loses_nothing() {
    let case = Case::usual();
    let (node, faults) = Node::with_faults();
    let engine = &node.engine;
    let fail_writes_after = |after| -> Vec<Injected> {
        let rule = |on| Rule { after, ..Rule::always(on, "", Fault::Fail) };
        [Operation::Begin, Operation::Put].map(|on| faults.inject(rule(on))).into()
    };
    let mut failing = fail_writes_after(0);
    let base = filled_snapshot(engine, &case.shape, 1);
    let mut snapshots = vec![base];
    // Each try comes a little further, and is cut off.
    for writes in 0..6_u32 {
        let seed = u64::from(writes);
        let parent = snapshots.last().expect("the first is there");
        let mut sandbox = resume(engine, parent, &case.shape);
        sandbox.guest.control.rewrite(rewrite(10 + seed)).expect("rewrites");
        sandbox.guest.control.discard(share(20 + seed, 10), case.discard).expect("discards");
        snapshots.push(pause(engine, sandbox).snapshot);
        let struck = faults.struck();
        drop(std::mem::replace(&mut failing, fail_writes_after(writes)));
        eventually("a failed upload", || faults.struck() > struck);
    }
    drop(std::mem::replace(&mut failing, fail_writes_after(0)));
    for snapshot in &snapshots {
        assert_resumes(engine, snapshot, &case.shape);
    }
    let newest = snapshots.last().expect("the first is there");
    newest.wait_manifest(LIMIT).expect("a seal needs no store");
    eventually("the failure is told", || newest.status().failure.is_some());
    let failure = newest.status().failure.unwrap_or_default();
    assert!(failure.contains(REFUSAL), "{failure}");
    assert_eq!(newest.state(), SnapshotState::Sealed);

    drop(failing);
    let names: Vec<_> = snapshots
        .iter()
        .map(|snapshot| {
            wait_published(snapshot);
            assert_eq!(snapshot.status().failure, None);
            (snapshot.id(), state_of(snapshot).history)
        })
        .collect();
    drop(snapshots);
    let elsewhere = node.elsewhere("second");
    for (id, history) in names {
        assert_reads(&elsewhere, &elsewhere.open(id).expect("it was published"), &history);
    }
}

/// Names the store for [`in_a_new_process`], and the snapshots in it.
const COLD_STORE: &str = "REKINDLE_TEST_COLD_STORE";
const COLD_SNAPSHOTS: &str = "REKINDLE_TEST_COLD_SNAPSHOTS";

#[test]
fn a_snapshot_is_resumed_by_a_process_that_has_nothing_but_the_store() {
    let case = Case::usual();
    let node = Node::start();
    let engine = &node.engine;
    let mut snapshots = vec![filled_snapshot(engine, &case.shape, 1)];
    for seed in [2, 3] {
        let mut sandbox = resume(engine, &snapshots[0], &case.shape);
        sandbox.guest.control.rewrite(rewrite(seed)).expect("rewrites");
        sandbox.guest.control.discard(share(seed + 10, 10), case.discard).expect("discards");
        snapshots.insert(0, pause(engine, sandbox).snapshot);
    }
    snapshots.iter().for_each(|snapshot| wait_published(snapshot));
    let names: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id().to_string()).collect();
    let store = node.store_directory();
    let Node { engine, directory } = node;
    drop((snapshots, engine));
    let output = Command::new(std::env::current_exe().expect("this test is a program"))
        .args(["--exact", "faults::in_a_new_process", "--nocapture", "--include-ignored"])
        .env(COLD_STORE, &store)
        .env(COLD_SNAPSHOTS, names.join(","))
        .output()
        .expect("this test runs again");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("resumed cold").count(), 3, "{said}");
    drop(directory);
}

#[test]
#[ignore = "run by a_snapshot_is_resumed_by_a_process_that_has_nothing_but_the_store"]
fn in_a_new_process() {
    let (Some(store), Ok(snapshots)) = (std::env::var_os(COLD_STORE), std::env::var(COLD_SNAPSHOTS)) else {
        return;
    };
    let case = Case::usual();
    let cache = tempfile::tempdir().expect("a directory");
    let store = Store::directory(store.as_ref()).expect("the store is there");
    let engine =
        Engine::start(EngineOptions::new(cache.path().join("cold"), store, KeyRing::of_name("default")))
            .expect("an engine starts");
    for name in snapshots.split(',') {
        let id: SnapshotId = name.parse().expect("a snapshot's name");
        let cold = engine.open(id).expect("it was published");
        assert_resumes(&engine, &cold, &case.shape);
        assert_reads(&engine, &cold, &state_of(&cold).history);
        eprintln!("resumed cold: {id}");
    }
    assert!(engine.traffic().fetched_bytes > 0);
}
