//! Snapshots of sandboxes that go on: what they have, what comes after them, and a daemon that dies meanwhile.

use std::time::Duration;

use rekindle_api::problem::Code;
use rekindle_api::types::{
    CheckpointSandbox, ForkSandbox, MemoryBacking, Sandbox, SandboxState, Snapshot, SnapshotState,
};
use rekindle_guest::process::history::Rewrite;
use rekindle_guest::process::protocol::DiscardHow;
use rekindle_testkit::random::Random;

use crate::support::{Node, rewrite, share};

/// A checkpoint's options: its name.
pub(crate) fn checkpoint_as(name: &str) -> CheckpointSandbox {
    CheckpointSandbox { name: Some(name.parse().expect("it is a name")), ..Default::default() }
}

impl Node {
    pub(crate) fn checkpoint(&self, sandbox: &str, name: &str) -> Snapshot {
        let taken = self.client.checkpoint_sandbox(sandbox, None, &checkpoint_as(name));
        taken.expect("it is checkpointed")
    }

    fn sandbox(&self, name: &str) -> Sandbox {
        self.client.sandbox(name).expect("it is there")
    }
}

/// Gives a share of the pages back in the way of this memory.
pub(crate) fn discard(node: &Node, sandbox: &str, seed: u64, backing: MemoryBacking) {
    let how = match backing {
        MemoryBacking::Private | MemoryBacking::PrivateHuge => DiscardHow::DontNeed,
        MemoryBacking::Shared | MemoryBacking::Huge => DiscardHow::Remove,
    };
    node.told(sandbox).discard(share(seed, 10), how).expect("it gives pages back");
}

/// Checkpoints a running guest again and again, with work and a crash in between: each snapshot is of its moment.
fn checkpoint_through(node: &mut Node, backing: MemoryBacking, first: u64) {
    let pid = node.sandbox("a").pid;
    let mut states = Vec::new();
    for number in first..first + 3 {
        let state = node.told("a").state().expect("it answers");
        let taken = node.checkpoint("a", &format!("at-{number}"));
        states.push((taken, state));
        assert_eq!(node.sandbox("a").pid, pid, "it goes on in its VMM");
        node.assert_verified("a");
        node.told("a").rewrite(rewrite(number + 100)).expect("it rewrites");
        discard(node, "a", number + 200, backing);
        node.assert_verified("a");
        if number == first + 1 {
            node.crash();
            assert_eq!(node.sandbox("a").pid, pid, "it goes on over a crash");
            node.told("a").rewrite(rewrite(number + 300)).expect("it rewrites");
            node.assert_verified("a");
        }
    }
    for (at, (taken, state)) in states.iter().enumerate() {
        let name = taken.name.as_deref().expect("it is named");
        node.resumed(name, &format!("of-{name}"));
        assert_eq!(node.told(&format!("of-{name}")).state().expect("it answers"), *state);
        node.assert_verified(&format!("of-{name}"));
        if at > 0 {
            assert_eq!(taken.parent, Some(states[at - 1].0.id), "each is a change of the one before it");
        }
    }
}

fn live_through(backing: MemoryBacking) {
    let mut node = Node::start();
    node.filled_of("a", 1, backing);
    checkpoint_through(&mut node, backing, 1);
    // A pause after checkpoints, and checkpoints of a guest that is served.
    let paused = node.pause("a", "paused");
    assert_eq!(paused.parent, Some(node.client.snapshot("at-3").expect("it is there").id));
    node.resume("a");
    node.assert_verified("a");
    checkpoint_through(&mut node, backing, 4);
    node.pause("a", "last");
    node.resume("a");
    node.assert_verified("a");
    let last = node.wait("last", SnapshotState::Published);
    assert_eq!(last.generation, 7);
    assert_eq!(node.client.verify_snapshot("at-5").expect("it is verified").wrong_pages, 0);
}

#[test]
fn a_sandbox_is_checkpointed_again_and_again_and_goes_on_in_its_vmm() {
    live_through(MemoryBacking::Shared);
}

#[test]
fn a_sandbox_with_private_memory_is_checkpointed_again_and_again_and_goes_on_in_its_vmm() {
    live_through(MemoryBacking::Private);
}

#[test]
fn a_checkpoint_of_a_served_guest_has_what_was_written_since_the_one_before() {
    for backing in [MemoryBacking::Shared, MemoryBacking::Private] {
        let node = Node::start();
        node.filled_of("a", 1, backing);
        node.pause("a", "base");
        node.resume("a");
        node.told("a").rewrite(Rewrite { share: share(2, 60), ..rewrite(2) }).expect("it rewrites");
        discard(&node, "a", 3, backing);
        node.checkpoint("a", "first");
        let written = node.told("a").rewrite(Rewrite { share: share(4, 2), ..rewrite(4) });
        let pages = written.expect("it rewrites").pages();
        node.checkpoint("a", "second");
        let second = node.wait("second", SnapshotState::Sealed);
        let dirty = second.classes.expect("it is sealed").dirty;
        assert!(dirty >= u64::from(pages), "{backing:?}: {dirty} of {pages} pages");
        assert!(dirty <= u64::from(pages) + 64, "{backing:?}: {dirty} pages were captured, {pages} written");
        node.checkpoint("a", "third");
        let third = node.wait("third", SnapshotState::Sealed).classes.expect("it is sealed");
        assert!(third.dirty <= 64, "{backing:?}: {third:?}, and nothing was written");
        node.assert_verified("a");
        node.resumed("third", "b");
        node.assert_verified("b");
    }
}

#[test]
fn a_checkpoint_is_forked_and_deleted_while_its_sandbox_runs_on() {
    let node = Node::start();
    node.filled("a", 1);
    node.checkpoint("a", "one");
    let forks = ForkSandbox {
        count: 2_u32.try_into().expect("a few"),
        name: Some("f".parse().expect("it is a name")),
        ..Default::default()
    };
    node.told("a").rewrite(rewrite(2)).expect("it rewrites");
    node.client.fork_sandbox("a", None, &forks).expect("it is forked");
    node.checkpoint("f-1", "of-fork");
    node.client.delete_snapshot("one").expect("it is deleted");
    node.client.delete_snapshot("of-fork").expect("it is deleted");
    for name in ["a", "f-1", "f-2"] {
        node.assert_verified(name);
    }
    node.pause("f-1", "after");
    node.resume("f-1");
    node.assert_verified("f-1");
}

#[test]
fn a_checkpoint_is_made_once_under_a_key_and_only_of_a_sandbox_that_runs() {
    let mut node = Node::start();
    node.filled("a", 1);
    let take = |node: &Node| node.client.checkpoint_sandbox("a", Some("k"), &checkpoint_as("s"));
    let first = take(&node).expect("it is checkpointed");
    node.crash();
    assert_eq!(take(&node).expect("it is there").id, first.id);
    assert_eq!(node.sandbox("a").snapshot, Some(first.id));
    let code = |name: &str| {
        node.client.checkpoint_sandbox("a", None, &checkpoint_as(name)).expect_err("it is refused").code()
    };
    assert_eq!(code("s"), Some(Code::NameTaken));
    node.pause("a", "paused");
    assert_eq!(code("no"), Some(Code::WrongState));
}

/// One round: the daemon dies while a checkpoint is taken, and the next one has all that there is to have.
fn die_during_checkpoint(node: &mut Node, round: u64, random: &mut Random) {
    let (name, pid) = (format!("round-{round}"), node.sandbox("a").pid);
    let state = node.told("a").state().expect("it answers");
    let (client, how) = (node.client.clone(), checkpoint_as(&name));
    let asking = std::thread::spawn(move || client.checkpoint_sandbox("a", None, &how).is_ok());
    std::thread::park_timeout(Duration::from_millis(u64::from(random.below(40))));
    node.crash();
    let is_answered = asking.join().expect("asking does not panic");
    let sandbox = node.sandbox("a");
    assert_eq!((sandbox.state, sandbox.pid), (SandboxState::Running, pid), "round {round}");
    node.assert_verified("a");
    let is_there = node.client.snapshot(&name).is_ok();
    assert!(is_there || !is_answered, "round {round}: what was answered is there");
    if is_there {
        let copy = format!("of-{round}");
        node.resumed(&name, &copy);
        assert_eq!(node.told(&copy).state().expect("it answers"), state, "round {round}");
        node.assert_verified(&copy);
        node.client.remove_sandbox(&copy).expect("it is removed");
    }
    node.told("a").rewrite(rewrite(round + 10)).expect("it rewrites");
    discard(node, "a", round + 50, MemoryBacking::Shared);
}

#[test]
fn a_daemon_killed_in_any_step_of_a_checkpoint_leaves_a_running_guest_and_a_whole_snapshot_or_none() {
    let seed = 7;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let mut node = Node::start();
    node.filled("a", 1);
    (0..5).for_each(|round| die_during_checkpoint(&mut node, round, &mut random));
    // From here on its pages are served.
    node.pause("a", "between");
    node.resume("a");
    (5..10).for_each(|round| die_during_checkpoint(&mut node, round, &mut random));
    node.pause("a", "end");
    node.resume("a");
    node.assert_verified("a");
}
