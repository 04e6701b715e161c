//! Sandboxes that share the pages of their snapshot: who does, and that each keeps what it wrote.

use rekindle_api::problem::Code;
use rekindle_api::types::{ForkSandbox, MemoryBacking, MemoryMode, ResumeSnapshot, SnapshotState};
use rekindle_guest::process::history::Share;
use rekindle_guest::process::protocol::DiscardHow;

use crate::support::{MEMORY_BYTES, Node, resume_as, rewrite};

const FORKS: [&str; 3] = ["f-1", "f-2", "f-3"];

fn three(mode: Option<MemoryMode>) -> ForkSandbox {
    ForkSandbox {
        count: 3_u32.try_into().expect("a few"),
        name: Some("f".parse().expect("it is a name")),
        memory_mode: mode,
        ..Default::default()
    }
}

/// Pages that its guest got from those that others had.
pub(crate) fn shared(node: &Node, sandbox: &str) -> u64 {
    let sandbox = node.client.sandbox(sandbox).expect("it is there");
    sandbox.served.map_or(0, |served| served.shared)
}

/// Each fork has every page, and then pages of its own.
fn verify_and_rewrite(node: &Node) {
    for (name, seed) in FORKS.into_iter().zip(20..) {
        node.assert_verified(name);
        node.told(name).rewrite(rewrite(seed)).expect("it rewrites");
    }
    FORKS.into_iter().for_each(|name| node.assert_verified(name));
}

#[test]
fn forks_share_the_pages_of_their_snapshot_and_each_is_paused_with_what_it_wrote() {
    let node = Node::start();
    node.filled("a", 1);
    node.client.fork_sandbox("a", None, &three(None)).expect("it is forked");
    verify_and_rewrite(&node);
    assert!(shared(&node, "f-2") + shared(&node, "f-3") > MEMORY_BYTES / 4096);
    assert_eq!(shared(&node, "a"), 0, "it goes on with pages of its own");
    for name in FORKS {
        node.pause(name, &format!("of-{name}"));
        node.resume(name);
        node.assert_verified(name);
    }
    let paused = node.wait("of-f-1", SnapshotState::Sealed);
    let dirty = paused.classes.expect("it is sealed").dirty;
    assert!(dirty < MEMORY_BYTES / 4096 / 2, "{dirty} pages, and 40 percent were written");
    node.assert_verified("a");
}

#[test]
fn pages_that_a_guest_on_shared_memory_gives_back_read_zero_to_it_alone() {
    let node = Node::start();
    node.filled("a", 1);
    node.client.fork_sandbox("a", None, &three(None)).expect("it is forked");
    for (name, how) in [("f-1", DiscardHow::Remove), ("f-2", DiscardHow::DontNeed)] {
        let share = Share { seed: 3, percent: 30, run_pages: 4 };
        assert!(node.told(name).discard(share, how).expect("it gives pages back").pages > 0);
    }
    verify_and_rewrite(&node);
}

#[test]
fn guests_share_pages_where_the_request_or_several_guests_ask_for_it_and_only_if_they_can() {
    let node = Node::start();
    node.filled("a", 1);
    node.client.fork_sandbox("a", None, &three(Some(MemoryMode::Own))).expect("it is forked");
    verify_and_rewrite(&node);
    assert!(FORKS.iter().all(|name| shared(&node, name) == 0));
    // The snapshot has three guests by now, and the next one shares with those to come.
    let snapshot = node.client.sandbox("f-1").expect("it is there").origin.expect("a snapshot").to_string();
    for name in ["later", "last"] {
        node.resumed(&snapshot, name);
        node.assert_verified(name);
    }
    assert!(shared(&node, "last") > MEMORY_BYTES / 4096 / 2);
    node.filled_of("p", 2, MemoryBacking::Private);
    let asked = node.client.fork_sandbox(
        "p",
        None,
        &ForkSandbox { memory_mode: Some(MemoryMode::Shared), ..Default::default() },
    );
    assert_eq!(asked.expect_err("its memory is private").code(), Some(Code::WrongState));
    node.client
        .fork_sandbox(
            "p",
            None,
            &ForkSandbox { name: Some("q".parse().expect("it is a name")), ..Default::default() },
        )
        .expect("by itself it does not");
    node.assert_verified("q");
}

#[test]
fn a_daemon_that_is_killed_loses_nothing_of_guests_that_share_pages() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    let how = ResumeSnapshot { memory_mode: Some(MemoryMode::Shared), ..resume_as("f", 3) };
    node.client.resume_snapshot("base", None, &how).expect("they are resumed");
    node.told("f-1").rewrite(rewrite(2)).expect("it rewrites");
    node.crash();
    verify_and_rewrite(&node);
    assert!(shared(&node, "f-3") > 0, "they share on");
    node.pause("f-1", "one");
    node.crash();
    node.resume("f-1");
    node.client.checkpoint_sandbox("f-2", None, &Default::default()).expect("it is checkpointed");
    node.told("f-2").rewrite(rewrite(9)).expect("it rewrites");
    node.crash();
    FORKS.into_iter().for_each(|name| node.assert_verified(name));
    node.pause("f-2", "two");
    node.resumed("two", "g");
    node.assert_verified("g");
}
