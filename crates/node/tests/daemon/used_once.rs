//! Requests that are repeated under their idempotency keys after the things they made are gone: an id is used once.

use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;
use rekindle_api::types::{ForkSandbox, MemoryBacking, SandboxState, SnapshotState};

use crate::support::{Node, create, pause_as, resume_as, rewrite};

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<Code> {
    answer.expect_err("it is refused").code()
}

#[test]
fn a_pause_repeated_under_its_key_after_its_snapshot_was_deleted_is_gone_and_pauses_nothing() {
    let mut node = Node::start();
    node.filled("a", 1);
    let pause = |node: &Node| node.client.pause_sandbox("a", Some("k"), &pause_as("s"));
    let first = pause(&node).expect("it is paused").id;
    node.wait("s", SnapshotState::Published);
    node.resume("a");
    node.client.delete_snapshot("s").expect("it is deleted");
    assert_eq!(code(pause(&node)), Some(Code::Gone));
    // The name is another snapshot's now.
    node.told("a").rewrite(rewrite(2)).expect("it runs on");
    let second = node.pause("a", "s");
    assert_ne!(second.id, first);
    node.resume("a");
    assert_eq!(code(pause(&node)), Some(Code::Gone));
    node.crash();
    assert_eq!(code(pause(&node)), Some(Code::Gone));
    assert_eq!(node.client.sandbox("a").expect("it is listed").state, SandboxState::Running);
    node.assert_verified("a");
}

#[test]
fn a_pause_repeated_under_its_key_finds_its_snapshot_also_when_its_sandbox_was_removed_and_its_name_reused() {
    let mut node = Node::start();
    node.filled("a", 1);
    let pause = |node: &Node| node.client.pause_sandbox("a", Some("k"), &pause_as("s"));
    let first = pause(&node).expect("it is paused").id;
    node.client.remove_sandbox("a").expect("it is removed");
    assert_eq!(pause(&node).expect("it was done").id, first);
    let other = node.filled("a", 2);
    node.crash();
    assert_eq!(pause(&node).expect("it was done").id, first);
    let found = node.client.sandbox("a").expect("it is listed");
    assert_eq!((found.id, found.state), (other.id, SandboxState::Running), "it was not paused");
}

#[test]
fn a_sandbox_that_was_made_under_a_key_and_removed_is_not_made_again() {
    let mut node = Node::start();
    let run = |node: &Node| node.client.create_sandbox(Some("k"), &create("a", MemoryBacking::Shared));
    let made = run(&node).expect("it is made").id;
    assert_eq!(run(&node).expect("it is there").id, made);
    node.client.remove_sandbox("a").expect("it is removed");
    assert_eq!(code(run(&node)), Some(Code::Gone));
    node.filled("a", 1);
    node.crash();
    assert_eq!(code(run(&node)), Some(Code::Gone));
}

#[test]
fn forks_and_resumes_repeated_under_their_keys_are_gone_where_one_of_theirs_is_and_pause_nothing() {
    let mut node = Node::start();
    let source = node.filled("a", 1);
    let two = ForkSandbox {
        count: 2_u32.try_into().expect("a few"),
        name: Some("f".parse().expect("it is a name")),
        ..Default::default()
    };
    let fork = |node: &Node| node.client.fork_sandbox("a", Some("fork"), &two);
    let forks = fork(&node).expect("they are made");
    let running = node.client.sandbox("a").expect("it is listed").pid;
    let base = node.client.all_snapshots(&[]).expect("a list")[0].id.to_string();
    let resume = |node: &Node| node.client.resume_snapshot(&base, Some("resume"), &resume_as("r", 2));
    let resumed = resume(&node).expect("they are made");
    // They can be found without the snapshot they were made of.
    node.client.delete_snapshot(&base).expect("it is deleted");
    let ids = |sandboxes: &[rekindle_api::types::Sandbox]| -> Vec<_> {
        sandboxes.iter().map(|sandbox| sandbox.id).collect()
    };
    assert_eq!(ids(&fork(&node).expect("they are there")), ids(&forks));
    assert_eq!(ids(&resume(&node).expect("they are there")), ids(&resumed));
    for name in [&forks[1], &resumed[0]] {
        node.client.remove_sandbox(&name.id.to_string()).expect("it is removed");
    }
    for _ in 0..2 {
        assert_eq!(code(fork(&node)), Some(Code::Gone));
        assert_eq!(code(resume(&node)), Some(Code::Gone));
        node.crash();
    }
    let after = node.client.sandbox("a").expect("it is listed");
    assert_eq!((after.id, after.pid), (source.id, running), "it was paused once");
    assert_eq!(node.client.all_sandboxes(&[]).expect("a list").len(), 3);
}
