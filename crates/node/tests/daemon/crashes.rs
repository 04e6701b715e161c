//! Daemons that die in the middle of something.

use std::thread;

use rekindle_api::types::{CreateSandbox, MemoryBacking, SandboxState, SnapshotState};
use rekindle_guest::process::history::Rewrite;

use crate::support::{Node, create, files_in, pause_as, resume_as, rewrite, share};

#[test]
fn case_40_guests_whose_daemon_was_killed_wait_for_the_next_and_read_no_zeroes() {
    let mut node = Node::start();
    for name in ["a", "b", "c"] {
        node.filled(name, 1);
        node.pause(name, &format!("{name}-filled"));
        node.resume(name);
    }
    let client = node.client.clone();
    let verifying: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let client = client.clone();
            // The answer may be lost with the daemon.
            thread::spawn(move || rekindle_testkit::black_box::Told::new(&client, name).verify().is_ok())
        })
        .collect();
    node.kill();
    verifying.into_iter().for_each(|thread| {
        thread.join().expect("asking does not panic");
    });
    node.start_again();
    for name in ["a", "b", "c"] {
        node.assert_verified(name);
        assert_eq!(node.client.sandbox(name).expect("it is listed").state, SandboxState::Running);
    }
}

#[test]
fn case_34_a_deletion_does_not_wait_for_a_seal_and_leaves_nothing() {
    let mut node = Node::start();
    let big = CreateSandbox { memory_bytes: 128 << 20, ..create("big", MemoryBacking::Shared) };
    node.client.create_sandbox(None, &big).expect("a sandbox is made");
    node.told("big").fill(1).expect("fills");
    node.pause("big", "unfinished");
    node.client.remove_sandbox("big").expect("it is removed");
    node.client.delete_snapshot("unfinished").expect("it is deleted");
    node.crash();
    assert!(node.client.all_snapshots(&[]).expect("a list").is_empty());
    let layers = node.place.state_directory().join("layers");
    // A layer that was packed and not recorded yet when the daemon was killed is set aside.
    let aside = layers.join("aside");
    node.eventually("all of it going", || {
        node.kept("snapshot/").is_empty() && files_in(&layers).iter().all(|file| file.starts_with(&aside))
    });
}

#[test]
fn a_snapshot_that_was_captured_seals_and_publishes_after_a_crash_and_is_the_same() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.told("a").rewrite(Rewrite { share: share(5, 90), ..rewrite(5) }).expect("rewrites");
    let state = node.told("a").state().expect("answers");
    node.pause("a", "captured");
    node.crash();
    node.resumed("captured", "early");
    assert_eq!(node.told("early").state().expect("answers"), state);
    node.assert_verified("early");
    node.wait("captured", SnapshotState::Published);
    node.crash();
    node.resumed("captured", "late");
    assert_eq!(node.told("late").state().expect("answers"), state);
    node.assert_verified("late");
}

#[test]
fn the_same_request_after_a_crash_is_answered_with_the_same_things() {
    let mut node = Node::start();
    let wanted = create("a", MemoryBacking::Shared);
    let made = node.client.create_sandbox(Some("create-a"), &wanted).expect("a sandbox is made");
    node.told("a").fill(1).expect("fills");
    node.crash();
    let again = node.client.create_sandbox(Some("create-a"), &wanted).expect("it is there");
    assert_eq!(again.id, made.id);
    let paused = node.client.pause_sandbox("a", Some("pause-a"), &pause_as("base")).expect("it is paused");
    node.crash();
    let again = node.client.pause_sandbox("a", Some("pause-a"), &pause_as("base")).expect("it is there");
    assert_eq!(again.id, paused.id);
    let forks = node.client.resume_snapshot("base", Some("forks"), &resume_as("fork", 3)).expect("three");
    node.crash();
    let again =
        node.client.resume_snapshot("base", Some("forks"), &resume_as("fork", 3)).expect("they are there");
    let ids = |all: &[rekindle_api::types::Sandbox]| all.iter().map(|one| one.id).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&forks));
    assert_eq!(node.client.all_sandboxes(&[]).expect("a list").len(), 4);
    assert_eq!(node.client.all_snapshots(&[]).expect("a list").len(), 1);
}

#[test]
fn a_daemon_that_dies_again_and_again_while_it_starts_loses_nothing() {
    let mut node = Node::start();
    node.filled("runs", 1);
    node.filled("paused", 2);
    node.pause("runs", "runs-base");
    node.resume("runs");
    node.pause("paused", "paused-base");
    node.kill();
    for _ in 0..5 {
        let starting = node.place.begin().expect("a daemon starts");
        starting.kill().expect("it can be killed");
    }
    node.start_again();
    node.assert_verified("runs");
    node.resume("paused");
    node.assert_verified("paused");
    node.eventually("every guest being of a sandbox", || node.kept("guest/").len() == 2);
}
