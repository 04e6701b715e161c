//! Keepers that die, with their daemon and without it.

use std::thread;

use rekindle_api::problem::Code;
use rekindle_api::types::{ResumeSandbox, SandboxState, SnapshotState};
use rekindle_keeper::HeldEntry;
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_testkit::black_box::Role;

use crate::support::{Node, Outage, pause_as, resume_as, rewrite};

pub(crate) fn kill_keeper(node: &Node) {
    let pid = node.place.keeper().expect("a keeper runs").identity().pid;
    node.place.kill(pid).expect("it can be killed");
}

#[test]
fn a_keeper_that_stands_is_told_to_whoever_asks_and_guests_are_paused_when_it_goes_on() {
    let mut node = Node::start();
    node.filled("a", 1);
    let pid = node.place.keeper().expect("a keeper runs").identity().pid;
    let keeper = ProcessHandle::open(pid).expect("it runs");
    keeper.signal(Signal::Stop).expect("it can be stopped");
    let is_named = |text: &str| text.contains(&format!("`kill -CONT {pid}`"));
    node.eventually("the daemon saying so", || {
        let readiness = node.client.readiness().expect("the daemon answers");
        !readiness.ready && readiness.reasons.iter().any(|reason| is_named(reason))
    });
    let refused = node.client.pause_sandbox("a", None, &pause_as("no")).expect_err("the keeper stands");
    assert_eq!(refused.code(), Some(Code::KeeperFailed), "{refused}");
    assert!(is_named(&refused.to_string()), "{refused}");
    let frozen = node.client.metrics().expect("metrics");
    let frozen = frozen.lines().find_map(|line| line.strip_prefix("rekindle_pause_frozen_seconds_count "));
    assert_eq!(frozen.map(str::trim), Some("0"), "it was not frozen for the keeper");
    node.assert_verified("a");
    // Another daemon does not begin beside it, and says why.
    node.kill();
    let refused = node.place.start().expect_err("the keeper stands").to_string();
    assert!(is_named(&refused), "{refused}");
    keeper.signal(Signal::Continue).expect("it can go on");
    node.start_again();
    node.pause("a", "yes");
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn when_the_keeper_dies_with_the_daemon_what_was_saved_is_there_and_the_rest_is_lost_by_name() {
    let mut node = Node::start();
    node.filled("published", 1);
    node.filled("sealed", 2);
    node.filled("running", 3);
    node.pause("published", "published");
    node.wait("published", SnapshotState::Published);
    let outage = Outage::of(&node.place.store_directory());
    node.pause("sealed", "sealed");
    node.wait("sealed", SnapshotState::Sealed);
    node.kill();
    kill_keeper(&node);
    node.start_again();
    outage.end();
    let running = node.client.sandbox("running").expect("it is listed");
    assert!(matches!(running.state, SandboxState::Lost | SandboxState::Stopped), "{running:?}");
    assert!(running.reason.is_some(), "it says why: {running:?}");
    for name in ["published", "sealed"] {
        node.resume(name);
        node.assert_verified(name);
    }
    node.eventually("guests of the old keeper ending", || {
        let processes = node.place.processes().expect("processes are listed");
        processes.iter().filter(|process| process.role == Role::Guest).count() == 2
    });
}

#[test]
fn a_snapshot_lost_with_the_keeper_is_listed_with_its_reason_until_it_is_deleted() {
    let mut node = Node::start();
    // It depends on the machine if a snapshot is sealed before both are killed: among enough of them one is not.
    for number in 0..20 {
        let name = format!("sandbox-{number}");
        node.filled(&name, number);
        node.pause(&name, &format!("snapshot-{number}"));
    }
    node.kill();
    kill_keeper(&node);
    node.start_again();
    for number in 0..20 {
        let (sandbox, snapshot) = (format!("sandbox-{number}"), format!("snapshot-{number}"));
        let shown = node.client.snapshot(&snapshot).expect("it is listed");
        if shown.state != SnapshotState::Lost {
            node.resume(&sandbox);
            node.assert_verified(&sandbox);
            continue;
        }
        assert!(shown.reason.is_some(), "{shown:?}");
        let refused = node.client.resume_sandbox(&sandbox, &ResumeSandbox::default());
        assert_eq!(refused.expect_err("there is nothing to resume").code(), Some(Code::Lost));
        node.client.remove_sandbox(&sandbox).expect("it is removed");
        node.client.delete_snapshot(&snapshot).expect("it is deleted");
        assert_eq!(node.client.snapshot(&snapshot).expect_err("it is deleted").code(), Some(Code::NotFound));
    }
}

#[test]
fn a_keeper_that_dies_alone_is_replaced_and_the_next_crash_loses_nothing() {
    let mut node = Node::start();
    node.filled("runs", 1);
    node.filled("paused", 2);
    node.pause("runs", "base");
    node.resume("runs");
    node.pause("paused", "paused");
    kill_keeper(&node);
    node.eventually("another keeper holding everything", || {
        let Ok(keeper) = node.place.keeper() else { return false };
        let held = keeper.list().unwrap_or_default();
        held.iter().any(|entry| entry.key.starts_with("guest/") && entry.names.len() >= 4)
    });
    node.crash();
    node.assert_verified("runs");
    node.resume("paused");
    node.assert_verified("paused");
}

/// The keeper is killed as soon as it has been told of a pause: between that and the snapshot's record the guest is
/// frozen, and its faults are not served.
#[test]
fn a_guest_whose_pause_meets_the_keepers_death_goes_on() {
    const GUESTS: u64 = 8;
    let mut node = Node::start();
    let names: Vec<String> = (0..GUESTS).map(|number| format!("sandbox-{number}")).collect();
    for (seed, name) in (0..).zip(&names) {
        node.filled(name, seed);
        node.pause(name, &format!("{name}-base"));
        node.resume(name);
        node.told(name).rewrite(rewrite(seed)).expect("rewrites");
    }
    let keeper = node.place.keeper().expect("a keeper runs");
    let refused: Vec<bool> = thread::scope(|scope| {
        let pause = |name: &String| node.client.pause_sandbox(name, None, &pause_as(&format!("{name}-next")));
        let pausing: Vec<_> = names.iter().map(|name| scope.spawn(move || pause(name))).collect();
        node.eventually("a pause being noted", || {
            let held = keeper.list().expect("it answers");
            held.iter().any(|entry| entry.note.get("pausing").is_some_and(|pausing| !pausing.is_null()))
        });
        kill_keeper(&node);
        pausing.into_iter().map(|pausing| pausing.join().expect("asking does not panic").is_err()).collect()
    });
    node.eventually("another keeper having every guest that runs", || {
        let is_whole = |entry: &HeldEntry| entry.key.starts_with("guest/") && entry.names.len() >= 4;
        let held = node.place.keeper().and_then(|keeper| keeper.list()).unwrap_or_default();
        held.iter().filter(|entry| is_whole(entry)).count() >= refused.iter().filter(|is| **is).count()
    });
    let check = |node: &Node| {
        for (name, refused) in names.iter().zip(&refused).filter(|(_, refused)| **refused) {
            let shown = node.client.sandbox(name).expect("it is listed");
            assert_eq!(shown.state, SandboxState::Running, "{refused}: {shown:?}");
            node.assert_verified(name);
        }
    };
    check(&node);
    node.crash();
    check(&node);
    for name in &names {
        if node.client.sandbox(name).expect("it is listed").state == SandboxState::Running {
            node.pause(name, &format!("{name}-last"));
        }
        node.resume(name);
        node.assert_verified(name);
    }
}

#[test]
fn a_sandbox_made_while_the_keeper_dies_is_given_to_the_next_one() {
    let mut node = Node::start();
    node.filled("base", 1);
    node.pause("base", "base");
    for round in 0..4 {
        let name = format!("made-{round}");
        thread::scope(|scope| {
            let made = scope.spawn(|| node.client.resume_snapshot("base", None, &resume_as(&name, 1)));
            kill_keeper(&node);
            made.join().expect("asking does not panic").expect("it is made under the next keeper")
        });
        node.eventually("another keeper having it", || {
            let held = node.place.keeper().and_then(|keeper| keeper.list()).unwrap_or_default();
            let guests =
                held.iter().filter(|entry| entry.key.starts_with("guest/") && entry.names.len() >= 4);
            guests.count() == round + 1
        });
        node.crash();
        node.assert_verified(&name);
    }
}
