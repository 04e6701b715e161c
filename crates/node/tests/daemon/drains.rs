//! Nodes that are drained so that their machine can go down.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rekindle_api::types::{CreateSandbox, DrainNode, MemoryBacking, SandboxState, SnapshotState};
use rekindle_testkit::black_box::Told;

use crate::support::{Node, create, resume_as};

const SANDBOXES: usize = 50;
const MEMORY_BYTES: u64 = 1 << 20;

fn small(name: &str) -> CreateSandbox {
    CreateSandbox { memory_bytes: MEMORY_BYTES, ..create(name, MemoryBacking::Shared) }
}

/// Sandboxes whose guests were filled, by name.
fn filled(node: &Node, count: usize) -> Vec<String> {
    let names = (1..=count).map(|number| format!("s{number}"));
    names
        .inspect(|name| {
            node.client.create_sandbox(None, &small(name)).expect("a sandbox is made");
            node.told(name).fill(7).expect("its guest fills its memory");
        })
        .collect()
}

fn state(node: &Node, name: &str) -> SandboxState {
    node.client.sandbox(name).expect("it is listed").state
}

#[test]
fn a_node_that_was_drained_loses_no_sandbox_with_its_keeper_and_the_next_start_or_another_node_has_them_all()
{
    let mut node = Node::start();
    let names = filled(&node, SANDBOXES);
    let said = node.place.command(["drain"]).output().expect("the program runs");
    assert!(said.status.success(), "{said:?}");
    let told = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(told.ends_with("50 sandboxes are paused, and everything is in the store\n"), "{told}");
    let refused = node.client.create_sandbox(None, &small("late")).expect_err("it takes none");
    assert_eq!(refused.problem().map(|problem| problem.code.as_str()), Some("drained"));
    let ready = node.client.readiness().expect("it answers");
    assert!(!ready.ready && ready.reasons[0].contains("drained"), "{ready:?}");
    let snapshots = node.client.all_snapshots(&[]).expect("they are listed");
    assert!(snapshots.iter().all(|snapshot| snapshot.state == SnapshotState::Published));

    let elsewhere = Node::start_with_keys_of(&node);
    elsewhere.copy_store(&node);
    for (snapshot, name) in snapshots.iter().zip(["first", "second"]) {
        elsewhere.resumed(&snapshot.id.to_string(), name);
        elsewhere.assert_verified(name);
    }

    node.terminate();
    node.place.end_all().expect("the keeper can be ended");
    node.start_again();
    node.eventually("all running again", || {
        names.iter().all(|name| state(&node, name) == SandboxState::Running)
    });
    names.iter().for_each(|name| node.assert_verified(name));
    node.client.create_sandbox(None, &small("late")).expect("it takes new ones");
}

#[test]
fn a_drain_that_is_undone_resumes_what_it_paused_and_nothing_else() {
    let node = Node::start();
    let names = filled(&node, 3);
    node.pause(&names[0], "by-hand");
    let drained = node.client.drain(&DrainNode::default()).expect("it is drained");
    assert!(drained.closed && drained.sandboxes.len() == 2, "{drained:?}");
    let again = node.client.drain(&DrainNode::default()).expect("it may be asked for again");
    assert_eq!(again, drained);
    assert_eq!(node.client.drained().expect("it is shown"), drained);
    let shown = node.client.sandbox(&names[1]).expect("it is listed");
    assert_eq!(shown.state, SandboxState::Paused);
    assert!(shown.reason.is_some_and(|reason| reason.contains("drain --undo")));
    let snapshot = shown.snapshot.expect("it was paused").to_string();
    let refused = node.client.resume_snapshot(&snapshot, None, &resume_as("fork", 1)).map(drop);
    assert_eq!(refused.expect_err("it is closed").code(), Some(rekindle_api::problem::Code::Drained));

    let undone = node.client.undo_drain().expect("it is undone");
    assert!(!undone.closed && undone.sandboxes.iter().all(|drained| drained.problem.is_none()));
    assert_eq!(state(&node, &names[0]), SandboxState::Paused);
    for name in &names[1..] {
        assert_eq!(state(&node, name), SandboxState::Running);
        node.assert_verified(name);
    }
    assert!(node.client.drained().expect("it is shown").sandboxes.is_empty());
}

#[test]
fn a_drain_of_sandboxes_with_a_label_leaves_the_others_and_the_node_takes_new_ones() {
    let mut node = Node::start();
    let blue = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
    let labels: rekindle_api::types::Labels = blue.try_into().expect("they are labels");
    let wanted = CreateSandbox { labels: labels.clone(), ..small("blue") };
    node.client.create_sandbox(None, &wanted).expect("a sandbox is made");
    node.client.create_sandbox(None, &small("red")).expect("a sandbox is made");
    let drained = node.client.drain(&DrainNode { labels, ..DrainNode::default() }).expect("it is drained");
    assert!(!drained.closed && drained.sandboxes.len() == 1, "{drained:?}");
    assert_eq!((state(&node, "blue"), state(&node, "red")), (SandboxState::Paused, SandboxState::Running));
    node.client.create_sandbox(None, &small("late")).expect("it takes new ones");
    node.crash();
    node.eventually("the next daemon resuming it", || state(&node, "blue") == SandboxState::Running);
}

#[test]
fn a_sandbox_that_cannot_be_paused_is_told_and_the_others_are_paused() {
    let node = Node::start_with("capture_bytes_max = \"3MiB\"\nrun_unpausable = true\npause_wait = \"0s\"\n");
    let names = filled(&node, 2);
    let large = CreateSandbox { memory_bytes: 4 << 20, ..small("large") };
    node.client.create_sandbox(None, &large).expect("such are wanted");
    let drained = node.client.drain(&DrainNode::default()).expect("it is drained");
    let refused: Vec<_> = drained.sandboxes.iter().filter(|drained| drained.problem.is_some()).collect();
    assert_eq!(refused.len(), 1, "{drained:?}");
    assert_eq!(refused[0].problem.as_ref().map(|problem| problem.code.as_str()), Some("no_ram"));
    assert_eq!(state(&node, "large"), SandboxState::Running);
    names.iter().for_each(|name| assert_eq!(state(&node, name), SandboxState::Paused));
    Told::new(&node.client, "large").state().expect("it runs on");
}

#[test]
fn the_unit_that_drains_at_shutdown_is_stopped_before_the_daemon_and_the_keeper() {
    let unit =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/rekindle-drain.service");
    let unit = std::fs::read_to_string(unit).expect("it is there");
    let has = |line: &str| unit.lines().any(|has| has == line);
    assert!(has("After=rekindle.service rekindle-keeper.service"), "units stop in the opposite order");
    assert!(has("Requires=rekindle-keeper.service"), "one that stops the keeper drains first");
    assert!(has("ExecStop=/usr/bin/rekindle drain --timeout 10m") && has("TimeoutStopSec=15min"));
}
