//! Sandboxes that take checkpoints in a period: those that stay, those that are left out, and what goes on from the last.

use std::collections::BTreeSet;

use rekindle_api::problem::Code;
use rekindle_api::types::{
    CheckpointSandbox, CreateSandbox, ForkSandbox, Labels, MemoryBacking, PeriodicCheckpoints, ResumeSandbox,
    ResumeSnapshot, Sandbox, SandboxState, Snapshot, SnapshotState,
};
use rekindle_kernel::{ProcessHandle, Signal};
use uuid::Uuid;

use crate::checkpoints::discard;
use crate::keeper_loss::kill_keeper;
use crate::support::{Node, create, resume_as, rewrite};

/// The shortest period there is.
const EVERY_SECOND: PeriodicCheckpoints = PeriodicCheckpoints { every_seconds: 1, keep: 2 };

/// A period that does not end while a test runs.
const EVERY_MONTH: PeriodicCheckpoints = PeriodicCheckpoints { every_seconds: 30 * 24 * 3600, keep: 3 };

impl Node {
    /// A filled sandbox that takes checkpoints.
    fn filled_with(&self, name: &str, checkpoints: PeriodicCheckpoints) {
        let wanted = CreateSandbox { checkpoints: Some(checkpoints), ..create(name, MemoryBacking::Shared) };
        self.client.create_sandbox(None, &wanted).expect("a sandbox is made");
        self.told(name).fill(1).expect("its guest fills its memory");
    }

    /// The checkpoints that a sandbox has taken in its period, oldest first.
    fn periodic(&self, sandbox: &str) -> Vec<Snapshot> {
        let label = format!("{}={sandbox}", Labels::PERIODIC).try_into().expect("it is a label");
        self.client.all_snapshots(&[label]).expect("they are listed")
    }

    fn shown(&self, name: &str) -> Sandbox {
        self.client.sandbox(name).expect("it is there")
    }

    /// Waits for a checkpoint of its period that comes after those that are there.
    fn next_checkpoint(&self, sandbox: &str) -> Uuid {
        let before = self.shown(sandbox).snapshot;
        let newest = || self.shown(sandbox).snapshot.filter(|newest| Some(*newest) != before);
        self.eventually("a checkpoint of its period", || newest().is_some());
        newest().expect("it was there")
    }

    /// Number of turns of checkpoints that came to `outcome`.
    fn turns(&self, outcome: &str) -> u64 {
        let metrics = self.client.metrics().expect("it is measured");
        let name = format!("rekindle_periodic_checkpoints_total{{outcome=\"{outcome}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.expect("it is there from the start").parse().expect("a number")
    }

    /// Changes the checkpoints that a running sandbox takes, by a checkpoint of that moment.
    fn set_period(&self, sandbox: &str, checkpoints: PeriodicCheckpoints) -> Snapshot {
        let how = CheckpointSandbox { checkpoints: Some(checkpoints), ..Default::default() };
        self.client.checkpoint_sandbox(sandbox, None, &how).expect("it is checkpointed")
    }

    /// Kills the VMM of a sandbox, and waits until that was noticed.
    fn kill_guest(&self, sandbox: &str) {
        let pid = self.shown(sandbox).pid.expect("it runs");
        ProcessHandle::open(pid).and_then(|guest| guest.signal(Signal::Kill)).expect("it can be killed");
        self.eventually("the end being noticed", || self.shown(sandbox).state == SandboxState::Stopped);
    }
}

#[test]
fn a_sandbox_keeps_the_last_checkpoints_of_its_period_and_all_others_that_were_made_of_it() {
    let node = Node::start();
    node.filled_with("a", EVERY_SECOND);
    let first = node.next_checkpoint("a");
    node.resumed(&first.to_string(), "runner");
    let named = node.checkpoint("a", "named").id;
    let by_hand = node.set_period("a", EVERY_SECOND).id;
    let mut seen = BTreeSet::from([first]);
    node.eventually("more of them than are kept", || {
        node.told("a").rewrite(rewrite(u64::try_from(seen.len()).expect("a few"))).expect("it rewrites");
        seen.extend(node.periodic("a").iter().map(|snapshot| snapshot.id));
        seen.len() > 4
    });
    node.pause("a", "end");
    let is_saved = |snapshot: &Snapshot| snapshot.state == SnapshotState::Published;
    let mut left = Vec::new();
    node.eventually("the old ones going", || {
        left = node.periodic("a");
        left.len() == 3 && left.iter().all(is_saved)
    });
    assert_eq!(left[0].id, first, "one that a sandbox runs from stays");
    node.assert_verified("runner");
    for snapshot in [left[1].id, left[2].id, named, by_hand] {
        assert_eq!(node.client.verify_snapshot(&snapshot.to_string()).expect("it stays").wrong_pages, 0);
    }
    node.resumed(&left[2].id.to_string(), "of-last");
    node.assert_verified("of-last");
}

#[test]
fn a_guest_that_wrote_nothing_is_not_checkpointed_until_it_writes_or_gives_pages_back() {
    for backing in [MemoryBacking::Shared, MemoryBacking::Private] {
        let node = Node::start();
        let wanted = CreateSandbox { checkpoints: Some(EVERY_SECOND), ..create("a", backing) };
        node.client.create_sandbox(None, &wanted).expect("a sandbox is made");
        node.told("a").fill(1).expect("its guest fills its memory");
        node.pause("a", "base");
        node.resume("a");
        node.told("a").rewrite(rewrite(2)).expect("it rewrites");
        node.next_checkpoint("a");
        for number in 0..2 {
            let turns = |wanted: u64| node.eventually("turns", || node.turns("unchanged") >= wanted);
            turns(node.turns("unchanged") + 1);
            let last = node.shown("a").snapshot;
            turns(node.turns("unchanged") + 2);
            assert_eq!(node.shown("a").snapshot, last, "{backing:?}: nothing was written");
            match number {
                0 => drop(node.told("a").rewrite(rewrite(3)).expect("it rewrites")),
                _ => discard(&node, "a", 4, backing),
            }
            node.next_checkpoint("a");
        }
        let newest = node.shown("a").snapshot.expect("it has one").to_string();
        node.resumed(&newest, "of-newest");
        node.assert_verified("of-newest");
    }
}

#[test]
fn checkpoints_that_are_all_the_same_do_not_push_others_out() {
    let node = Node::start();
    node.filled_with("a", EVERY_SECOND);
    node.next_checkpoint("a");
    node.told("a").rewrite(rewrite(2)).expect("it rewrites");
    // Nothing tells what a guest that began empty has written, so they are taken.
    let taken = node.turns("taken");
    node.eventually("more of them than are kept", || node.turns("taken") >= taken + 4);
    node.pause("a", "end");
    node.eventually("the old ones going", || node.periodic("a").len() == 2);
    let mut states = Vec::new();
    for (number, snapshot) in node.periodic("a").iter().enumerate() {
        let name = format!("of-{number}");
        node.resumed(&snapshot.id.to_string(), &name);
        node.assert_verified(&name);
        states.push(node.told(&name).state().expect("it answers"));
    }
    assert_ne!(states[0], states[1], "from before the guest wrote, and from after that");
}

#[test]
fn a_sandbox_with_a_period_goes_on_from_its_last_checkpoint_whatever_was_killed() {
    let mut node = Node::start();
    node.filled_with("a", EVERY_SECOND);
    node.next_checkpoint("a");
    node.crash();
    assert_eq!(node.shown("a").checkpoints, Some(EVERY_SECOND), "it is the sandbox's own");
    node.told("a").rewrite(rewrite(2)).expect("it rewrites");
    node.next_checkpoint("a");
    node.kill_guest("a");
    let last = node.shown("a").snapshot.expect("it was checkpointed");
    let refused = node.client.pause_sandbox("a", None, &Default::default()).expect_err("it has ended");
    assert_eq!(refused.code(), Some(Code::WrongState));
    assert!(
        refused.to_string().contains(&format!("`rekindle resume a` goes on from its last snapshot {last}"))
    );
    let resumed = node.resume("a");
    assert_eq!((resumed.origin, resumed.checkpoints), (Some(last), Some(EVERY_SECOND)));
    node.assert_verified("a");
    // The last one is gone: there is one before it.
    node.told("a").rewrite(rewrite(3)).expect("it rewrites");
    node.next_checkpoint("a");
    node.kill_guest("a");
    let last = node.shown("a").snapshot.expect("it was checkpointed");
    node.client.delete_snapshot(&last.to_string()).expect("it is deleted");
    let before = node.periodic("a").last().map(|before| before.id);
    assert_eq!(node.resume("a").origin, before);
    node.assert_verified("a");
    // A sandbox that takes none goes on from its last snapshot when that is said.
    node.filled("b", 1);
    let by_hand = node.checkpoint("b", "by-hand").id;
    node.kill_guest("b");
    let refused = node.client.resume_sandbox("b", &ResumeSandbox::default()).expect_err("that is not said");
    assert!(refused.to_string().contains(&by_hand.to_string()), "{refused}");
}

#[test]
fn a_sandbox_that_was_lost_goes_on_from_its_last_whole_checkpoint_here_and_on_another_node() {
    let mut node = Node::start();
    node.filled_with("a", EVERY_SECOND);
    let saved = node.next_checkpoint("a").to_string();
    node.wait(&saved, SnapshotState::Published);
    node.kill();
    kill_keeper(&node);
    node.start_again();
    let lost = node.shown("a");
    assert!(matches!(lost.state, SandboxState::Lost | SandboxState::Stopped), "{lost:?}");
    assert!(lost.snapshot.is_some(), "it names its last one");
    node.resume("a");
    node.assert_verified("a");
    node.told("a").rewrite(rewrite(2)).expect("it rewrites");
    let last = node.next_checkpoint("a").to_string();
    node.client.stop_sandbox("a").expect("it is stopped");
    let other = Node::start_with_keys_of(&node);
    let last = node.shown("a").snapshot.map_or(last, |last| last.to_string());
    node.wait(&last, SnapshotState::Published);
    node.kill();
    other.copy_store(&node);
    other.resumed(&last, "a");
    other.assert_verified("a");
}

#[test]
fn a_checkpoint_of_a_period_that_cannot_be_taken_is_told_and_taken_in_a_later_one() {
    let node = Node::start();
    node.filled_with("a", EVERY_SECOND);
    node.next_checkpoint("a");
    let sandbox = node.shown("a");
    let vmm = ProcessHandle::open(sandbox.pid.expect("it runs")).expect("it runs");
    vmm.signal(Signal::Stop).expect("it can be stopped");
    node.eventually("failures", || node.turns("failed") >= 2);
    let events = node.client.known_events(0).expect("they are told");
    let told = events
        .map(|event| event.expect("they come whole"))
        .find(|event| event.kind == "sandbox.not_checkpointed")
        .expect("it is an event");
    assert_eq!(told.sandbox, Some(sandbox.id));
    assert!(told.detail.is_some_and(|why| why.contains("SIGSTOP")), "it says why");
    vmm.signal(Signal::Continue).expect("it can go on");
    node.told("a").rewrite(rewrite(2)).expect("it rewrites");
    node.next_checkpoint("a");
    node.assert_verified("a");
}

#[test]
fn a_period_is_given_to_new_sandboxes_and_changed_at_a_resume_and_a_checkpoint_and_nothing_waits_for_it() {
    let mut node = Node::start();
    node.filled_with("a", EVERY_MONTH);
    let fork = |name: &str, checkpoints| {
        let name = Some(name.parse().expect("it is a name"));
        let made =
            node.client.fork_sandbox("a", None, &ForkSandbox { name, checkpoints, ..Default::default() });
        made.expect("it is forked")[0].checkpoints
    };
    assert_eq!([fork("f", None), fork("g", Some(EVERY_MONTH))], [None, Some(EVERY_MONTH)]);
    assert_eq!(node.shown("a").checkpoints, Some(EVERY_MONTH), "it went on with its own");
    node.pause("a", "base");
    let of_base = ResumeSnapshot { checkpoints: Some(EVERY_MONTH), ..resume_as("h", 1) };
    let made = node.client.resume_snapshot("base", None, &of_base).expect("it is resumed");
    assert_eq!(made[0].checkpoints, Some(EVERY_MONTH));
    let fewer = PeriodicCheckpoints { keep: 1, ..EVERY_MONTH };
    let how = ResumeSandbox { checkpoints: Some(fewer), ..Default::default() };
    assert_eq!(node.client.resume_sandbox("a", &how).expect("it is resumed").checkpoints, Some(fewer));
    node.client.drain(&Default::default()).expect("it is drained");
    assert_eq!(node.shown("a").state, SandboxState::Paused);
    node.client.undo_drain().expect("it takes guests again");
    assert_eq!(node.shown("a").checkpoints, Some(fewer));
    node.set_period("a", PeriodicCheckpoints { every_seconds: 0, keep: 1 });
    assert_eq!(node.shown("a").checkpoints, None);
    node.terminate();
}
