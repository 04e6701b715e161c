//! A resume that overlaps a seal: with compare held up for ever, nothing else waits.

use std::sync::Arc;

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_guest::process::history::History;
use rekindle_testkit::hooks::{Held, Point, TestHooks};

use crate::support::{
    Case, Node, assert_reads, assert_resumes, assert_verified, each_case, each_kind, filled_snapshot, pause,
    resume, rewrite, share, state_of, wait_published,
};

/// A node on which no compare begins before the hold is dropped.
fn stalled_node() -> (Node, Held) {
    let hooks = Arc::<TestHooks>::default();
    let held = hooks.hold(Point::Compare);
    (Node::start_with(|options| EngineOptions { hooks, ..options }), held)
}

/// A guest of `parent` verifies everything, writes, discards, verifies again, and is paused.
fn next_generation(engine: &Engine, parent: &Arc<Snapshot>, case: &Case, seed: u64) -> Arc<Snapshot> {
    let mut sandbox = resume(engine, parent, &case.shape);
    assert_verified(&mut sandbox.guest);
    sandbox.guest.control.rewrite(rewrite(seed)).expect("rewrites");
    sandbox.guest.control.discard(share(seed + 1, 10), case.discard).expect("discards");
    sandbox.guest.control.rewrite(rewrite(seed + 2)).expect("rewrites");
    assert_verified(&mut sandbox.guest);
    pause(engine, sandbox).snapshot
}

fn assert_unsealed(snapshots: &[&Arc<Snapshot>]) {
    for snapshot in snapshots {
        assert!(snapshot.manifest_now().is_none(), "its compare has not begun");
    }
}

/// A snapshot's name and what its guest's history says.
fn told(snapshot: &Snapshot) -> (SnapshotId, History) {
    (snapshot.id(), state_of(snapshot).history)
}

/// With compare held up: three generations and a fork of each, the middle one deleted meanwhile; then everything is
/// published, and the same from another node that has nothing.
fn nothing_waits_for_compare(case: &Case) {
    let (node, stalled) = stalled_node();
    let engine = &node.engine;
    let base = filled_snapshot(engine, &case.shape, 1);
    let first = next_generation(engine, &base, case, 10);
    let second = next_generation(engine, &first, case, 20);
    let fork = next_generation(engine, &first, case, 30);
    let third = next_generation(engine, &second, case, 40);
    assert_unsealed(&[&base, &first, &second, &fork, &third]);
    engine.delete(&second).expect("nothing to write");
    assert_eq!(second.state(), SnapshotState::CapturedForChildren);
    assert_resumes(engine, &third, &case.shape);
    assert_resumes(engine, &second, &case.shape);
    assert_unsealed(&[&base, &first, &second, &fork, &third]);

    drop(stalled);
    let kept = [&base, &first, &fork, &third];
    kept.iter().for_each(|snapshot| wait_published(snapshot));
    let told: Vec<_> = kept.iter().map(|snapshot| told(snapshot)).collect();
    assert_resumes(engine, &third, &case.shape);
    let deleted = second.id();
    drop((base, first, second, fork, third));
    let elsewhere = node.elsewhere("second");
    assert!(elsewhere.open(deleted).is_err(), "a deleted snapshot is not published");
    for (id, history) in told {
        let cold = elsewhere.open(id).expect("it was published");
        assert_eq!(state_of(&cold).history, history);
        assert_reads(&elsewhere, &cold, &history);
        assert_resumes(&elsewhere, &cold, &case.shape);
    }
}

#[test]
fn with_compare_held_up_for_ever_nothing_else_waits() {
    each_case(nothing_waits_for_compare);
}

#[test]
fn case_13_a_line_in_the_window_outlives_every_deleted_ancestor() {
    let case = Case::usual();
    let (node, stalled) = stalled_node();
    let engine = &node.engine;
    let base = filled_snapshot(engine, &case.shape, 1);
    let first = next_generation(engine, &base, &case, 10);
    let second = next_generation(engine, &first, &case, 20);
    let third = next_generation(engine, &second, &case, 30);
    for ancestor in [base, first, second] {
        engine.delete(&ancestor).expect("nothing to write");
    }
    assert_resumes(engine, &third, &case.shape);
    let running = resume(engine, &third, &case.shape);
    drop(stalled);
    wait_published(&third);
    let (id, history) = told(&third);
    let mut running = running;
    assert_verified(&mut running.guest);
    drop((running, third));
    let elsewhere = node.elsewhere("second");
    let cold = elsewhere.open(id).expect("it was published");
    assert_reads(&elsewhere, &cold, &history);
}

#[test]
fn case_48_changes_made_after_the_second_resume_are_there_in_the_third() {
    each_kind(|case| {
        let node = Node::start();
        let engine = &node.engine;
        let base = filled_snapshot(engine, &case.shape, 1);
        let mut second = resume(engine, &base, &case.shape);
        second.guest.control.rewrite(rewrite(2)).expect("rewrites");
        let snapshot = pause(engine, second).snapshot;
        let mut third = resume(engine, &snapshot, &case.shape);
        assert_eq!(third.guest.control.tick(16).expect("ticks").verified.mismatches, 0);
        third.guest.control.rewrite(rewrite(3)).expect("rewrites");
        let snapshot = pause(engine, third).snapshot;
        assert_resumes(engine, &snapshot, &case.shape);
        let (id, history) = told(&snapshot);
        wait_published(&snapshot);
        drop((base, snapshot));
        let elsewhere = node.elsewhere("second");
        let cold = elsewhere.open(id).expect("it was published");
        assert_reads(&elsewhere, &cold, &history);
        assert_resumes(&elsewhere, &cold, &case.shape);
    });
}

#[test]
fn case_49_a_snapshot_is_resumed_again_and_again_and_each_guest_is_its_own() {
    each_kind(|case| {
        let node = Node::start();
        let engine = &node.engine;
        let snapshot = filled_snapshot(engine, &case.shape, 1);
        let mut first = resume(engine, &snapshot, &case.shape);
        first.guest.control.fill(7).expect("fills");
        let mut second = resume(engine, &snapshot, &case.shape);
        assert_verified(&mut second.guest);
        second.guest.control.rewrite(rewrite(8)).expect("rewrites");
        assert_verified(&mut first.guest);
        assert_verified(&mut second.guest);
        drop(first);
        let history = state_of(&snapshot).history;
        assert_reads(engine, &snapshot, &history);
        assert_resumes(engine, &snapshot, &case.shape);
        assert_eq!(second.guest.control.state().expect("answers").count, 0);
        wait_published(&snapshot);
        assert_resumes(engine, &snapshot, &case.shape);
    });
}
