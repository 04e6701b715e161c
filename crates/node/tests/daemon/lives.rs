//! Users' work with sandboxes and snapshots, with daemons that die in between.

use std::{fs, thread};

use rekindle_api::client::{Client, ClientError};
use rekindle_api::problem::Code;
use rekindle_api::types::{MemoryBacking, PauseSandbox, SandboxState, SnapshotState};
use rekindle_guest::process::protocol::DiscardHow;
use rekindle_kernel::{ProcessHandle, Signal, placement};
use rekindle_testkit::black_box::{PATIENCE, Process, Role};
use rekindle_testkit::skip::skipped;
use uuid::Uuid;

use crate::support::{Node, pause_as, resume_as, rewrite, share};

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<Code> {
    answer.expect_err("it is refused").code()
}

#[test]
fn case_48_changes_made_after_the_second_resume_are_there_after_a_crash_and_the_third() {
    let mut node = Node::start();
    node.filled("a", 1);
    for (number, seed) in [(1, 11), (2, 12), (3, 13)] {
        node.pause("a", &format!("pause-{number}"));
        node.resume("a");
        node.told("a").rewrite(rewrite(seed)).expect("rewrites");
        node.crash();
        node.assert_verified("a");
    }
    let written = node.told("a").state().expect("answers");
    node.pause("a", "last");
    node.crash();
    node.resume("a");
    assert_eq!(node.told("a").state().expect("answers"), written);
    node.assert_verified("a");
}

#[test]
fn case_49_a_snapshot_is_resumed_again_and_again_on_both_sides_of_a_crash() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    for round in 0..3 {
        let made = node.client.resume_snapshot("base", None, &resume_as(&format!("round-{round}"), 2));
        for sandbox in made.expect("two sandboxes are made") {
            let name = sandbox.name.expect("it was given one");
            node.told(&name).rewrite(rewrite(round)).expect("rewrites");
            node.assert_verified(&name);
        }
        node.crash();
    }
    for sandbox in node.client.all_sandboxes(&[]).expect("a list") {
        if sandbox.state != SandboxState::Paused {
            node.assert_verified(&sandbox.id.to_string());
        }
    }
    let verification = node.client.verify_snapshot("base").expect("is verified");
    assert_eq!((verification.wrong_pages, verification.first), (0, None));
}

#[test]
fn case_50_what_was_written_last_before_a_pause_is_what_the_next_daemon_resumes() {
    let mut node = Node::start();
    for backing in [MemoryBacking::Shared, MemoryBacking::Private] {
        let name = format!("{backing:?}");
        node.filled_of(&name, 1, backing);
        node.pause(&name, &format!("{name}-early"));
        node.resume(&name);
        node.told(&name).rewrite(rewrite(7)).expect("rewrites");
        node.told(&name).tick(4).expect("ticks");
        let written = node.told(&name).state().expect("answers");
        node.pause(&name, &format!("{name}-latest"));
        node.crash();
        node.resume(&name);
        assert_eq!(node.told(&name).state().expect("answers"), written, "{name}");
        node.assert_verified(&name);
    }
}

#[test]
fn case_51_a_paused_sandbox_is_found_after_a_crash_by_name_id_and_the_beginning_of_one() {
    let mut node = Node::start();
    let sandbox = node.filled("findable", 1);
    let snapshot = node.pause("findable", "kept");
    node.crash();
    let id = sandbox.id.to_string();
    for reference in ["findable", &id, &id[..23]] {
        let found = node.client.sandbox(reference).expect("it is found");
        assert_eq!(
            (found.id, found.state, found.snapshot),
            (sandbox.id, SandboxState::Paused, Some(snapshot.id))
        );
    }
    assert_eq!(node.client.snapshot("kept").expect("it is found").id, snapshot.id);
    let listed = node.client.all_sandboxes(&[]).expect("a list");
    assert_eq!(listed.iter().map(|sandbox| sandbox.id).collect::<Vec<_>>(), [sandbox.id]);
    node.resume("findable");
    node.assert_verified("findable");
}

#[test]
fn case_09_a_deleted_snapshot_serves_the_guest_that_runs_from_it_over_a_crash_and_goes_with_it() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    node.resume("a");
    node.client.delete_snapshot("base").expect("it is deleted");
    assert_eq!(code(node.client.snapshot("base")), Some(Code::NotFound));
    node.crash();
    assert_eq!(code(node.client.snapshot("base")), Some(Code::NotFound));
    node.assert_verified("a");
    node.client.remove_sandbox("a").expect("it is removed");
    let layers = node.place.state_directory().join("layers");
    node.eventually("the layers of the deleted snapshot going", || {
        crate::support::files_in(&layers).is_empty()
    });
}

#[test]
fn case_10_placement_never_waits_and_names_only_what_is_there() {
    let node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    for state in [SnapshotState::Captured, SnapshotState::Sealed, SnapshotState::Published] {
        node.wait("base", state);
        let placement = node.client.placement("base").expect("it is told");
        // A captured one may be sealed by now; what was waited for is there.
        let is_told = !placement.layers.is_empty();
        assert!(is_told || state == SnapshotState::Captured, "{placement:?}");
        assert!(!is_told || placement.state != SnapshotState::Captured, "{placement:?}");
        for layer in &placement.layers {
            assert!(layer.bytes > 0 && layer.local_bytes <= layer.bytes, "{layer:?}");
            if placement.state == SnapshotState::Published {
                assert!(layer.stored_bytes.is_some_and(|stored| stored > 0), "{layer:?}");
            }
        }
        assert_eq!(placement.origin.is_some(), placement.state != SnapshotState::Published);
    }
}

#[test]
fn case_22_what_is_not_there_is_not_found_whatever_it_was() {
    let node = Node::start();
    node.filled("gone", 1);
    node.pause("gone", "deleted");
    node.client.remove_sandbox("gone").expect("it is removed");
    node.client.delete_snapshot("deleted").expect("it is deleted");
    let never = Uuid::now_v7().to_string();
    for reference in ["gone", "never", never.as_str()] {
        assert_eq!(code(node.client.sandbox(reference)), Some(Code::NotFound), "{reference}");
        assert_eq!(code(node.client.pause_sandbox(reference, None, &pause_as("x"))), Some(Code::NotFound));
        assert_eq!(code(node.told(reference).verify()), Some(Code::NotFound));
    }
    for reference in ["deleted", "never", never.as_str()] {
        assert_eq!(code(node.client.snapshot(reference)), Some(Code::NotFound), "{reference}");
        assert_eq!(code(node.client.placement(reference)), Some(Code::NotFound));
        assert_eq!(
            code(node.client.resume_snapshot(reference, None, &resume_as("y", 1))),
            Some(Code::NotFound)
        );
        assert_eq!(code(node.client.delete_snapshot(reference)), Some(Code::NotFound));
    }
}

#[test]
fn case_02_a_pause_that_is_refused_or_whose_guest_dies_holds_nothing() {
    let node = Node::start();
    node.filled("a", 1);
    node.filled("b", 2);
    node.pause("a", "taken");
    assert_eq!(code(node.client.pause_sandbox("b", None, &pause_as("taken"))), Some(Code::NameTaken));
    assert_eq!(code(node.client.pause_sandbox("a", None, &pause_as("again"))), Some(Code::WrongState));
    node.assert_verified("b");
    let pid = node.client.sandbox("b").expect("it runs").pid.expect("its guest has a process");
    ProcessHandle::open(pid).and_then(|guest| guest.signal(Signal::Kill)).expect("it can be killed");
    let paused = node.client.pause_sandbox("b", None, &PauseSandbox::default());
    assert!(paused.is_err(), "a guest that was killed cannot be paused: {paused:?}");
    node.wait("taken", SnapshotState::Published);
    node.eventually("the keeper letting go of everything", || {
        node.kept("snapshot/").is_empty() && node.kept("guest/").is_empty()
    });
    node.eventually("the RAM of captures going", || captures_held(&node.client) == 0);
    let known = node.client.all_snapshots(&[]).expect("a list");
    assert_eq!(known.len(), 1, "{known:?}");
}

#[test]
fn a_process_guest_says_that_it_has_no_console() {
    let node = Node::start();
    node.filled("a", 1);
    let read = node.client.read_console("a", Default::default()).expect_err("it has none");
    let typed = node.client.type_at_console("a", b"x").expect_err("it has none");
    for error in [read, typed] {
        assert_eq!(error.code(), Some(Code::WrongState), "{error}");
        assert!(error.to_string().ends_with("is a process guest and has no console"), "{error}");
    }
    assert_eq!(node.client.sandbox("a").expect("it is listed").machine, None);
}

#[test]
fn a_guest_whose_vmm_was_stopped_by_a_signal_says_so_and_goes_on_when_it_is_let_to() {
    let node = Node::start();
    let pid = node.filled("a", 1).pid.expect("its guest has a process");
    let vmm = ProcessHandle::open(pid).expect("it runs");
    vmm.signal(Signal::Stop).expect("it can be stopped");
    node.eventually("the guest being stalled", || {
        let shown = node.client.sandbox("a").expect("it is listed");
        shown.state == SandboxState::Stalled && shown.reason.is_some_and(|why| why.contains("SIGSTOP"))
    });
    assert_eq!(code(node.client.pause_sandbox("a", None, &pause_as("no"))), Some(Code::WrongState));
    vmm.signal(Signal::Continue).expect("it can go on");
    node.eventually("the guest going on", || {
        node.client.sandbox("a").expect("it is listed").state == SandboxState::Running
    });
    node.assert_verified("a");
    node.pause("a", "yes");
}

#[test]
fn a_guest_that_is_stopped_while_it_is_told_something_is_stalled_and_the_telling_ends() {
    let node = Node::start();
    let pid = node.filled("a", 1).pid.expect("its guest has a process");
    let vmm = ProcessHandle::open(pid).expect("it runs");
    vmm.signal(Signal::Stop).expect("it can be stopped");
    node.eventually("the guest being stopped", || vmm.is_stopped().expect("it is there"));
    // It is refused at once, and has not got the guest while the pause after it is refused.
    let verify = serde_json::json!({ "command": "verify" });
    let refused = node.client.tell_guest("a", &verify).expect_err("it cannot answer");
    assert_eq!(refused.code(), Some(Code::WrongState), "{refused}");
    assert!(refused.to_string().contains("kill -CONT"), "{refused}");
    vmm.signal(Signal::Continue).expect("it can go on");
    node.assert_verified("a");
    // A command that takes longer than any test.
    let client = node.place.client();
    let telling = std::thread::spawn(move || {
        client.tell_guest("a", &serde_json::json!({ "command": "tick", "pages": u32::MAX }))
    });
    node.eventually("the telling being ended by a stop in the middle of it", || {
        vmm.signal(Signal::Stop).expect("it can be stopped");
        telling.is_finished()
    });
    let ended = telling.join().expect("it does not panic").expect_err("the guest cannot answer");
    assert_eq!(ended.code(), Some(Code::WrongState), "{ended}");
    assert_eq!(node.client.sandbox("a").expect("it is listed").state, SandboxState::Stalled);
    assert_eq!(node.client.stop_sandbox("a").expect("it is ended").state, SandboxState::Stopped);
}

#[test]
fn a_busy_sandbox_that_a_user_stopped_was_not_killed_for_another_reason() {
    let node = Node::start();
    // It depends on the machine if the end is noticed before the request has its turn.
    for number in 0..8 {
        let name = format!("busy-{number}");
        let pid = node.filled(&name, 1).pid.expect("its guest has a process");
        let guest = ProcessHandle::open(pid).expect("it runs");
        let (client, told) = (node.place.client(), name.clone());
        let telling = std::thread::spawn(move || {
            client.tell_guest(&told, &serde_json::json!({ "command": "tick", "pages": u32::MAX }))
        });
        let stopped = node.client.stop_sandbox(&name).expect("it is stopped");
        assert_eq!((stopped.state, stopped.reason), (SandboxState::Stopped, None));
        assert!(guest.wait_exit(PATIENCE), "its guest ends");
        telling.join().expect("it does not panic").expect_err("its guest was ended");
    }
}

/// Bytes of RAM that captures hold.
fn captures_held(client: &Client) -> u64 {
    let metrics = client.metrics().expect("metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("rekindle_captures_held_bytes "));
    line.and_then(|value| value.trim().parse().ok()).expect("captures are measured")
}

#[test]
fn case_54_pages_discarded_before_a_crash_are_zero_in_the_next_snapshot() {
    let mut node = Node::start();
    for (backing, how) in
        [(MemoryBacking::Shared, DiscardHow::Remove), (MemoryBacking::Private, DiscardHow::DontNeed)]
    {
        let name = format!("{backing:?}");
        node.filled_of(&name, 1, backing);
        node.pause(&name, &format!("{name}-filled"));
        node.resume(&name);
        node.assert_verified(&name);
        node.told(&name).discard(share(3, 30), how).expect("discards");
        node.kill();
        node.start_again();
        node.told(&name).discard(share(4, 10), how).expect("discards");
        node.assert_verified(&name);
        node.pause(&name, &format!("{name}-discarded"));
        node.crash();
        node.resume(&name);
        node.assert_verified(&name);
    }
}

#[test]
fn a_guest_that_is_killed_says_by_which_signal_and_its_memory_is_given_back() {
    let node = Node::start();
    let daemon = Process { pid: node.client.version().expect("it answers").pid, role: Role::Daemon };
    node.filled("others", 1);
    let before = daemon.fds().expect("they are listed");
    let killed = node.filled("killed", 2);
    node.place.kill(killed.pid.expect("it runs")).expect("it can be killed");
    node.eventually("its end being told", || {
        node.client.sandbox("killed").is_ok_and(|shown| shown.state == SandboxState::Stopped)
    });
    let reason = node.client.sandbox("killed").expect("it is listed").reason.expect("it says why");
    assert!(reason.contains("signal 9 (SIGKILL)"), "{reason}");
    node.eventually("everything of it going", || {
        node.kept("guest/").len() == 1 && daemon.fds().is_ok_and(|now| now <= before)
    });
    node.assert_verified("others");
}

#[test]
fn ends_of_guests_are_noticed_before_other_work_is_done_where_that_is_allowed() {
    if !thread::spawn(|| placement::first_priority().is_ok()).join().expect("it does not panic") {
        return skipped("threads that run first", "that takes CAP_SYS_NICE or RLIMIT_RTPRIO");
    }
    let node = Node::start();
    let guest = node.filled("a", 1).pid.expect("it runs");
    let daemon = node.client.version().expect("it answers").pid;
    let keeper = node.place.keeper().expect("a keeper runs").identity().pid;
    assert_eq!(run_first(keeper), ["rekindle"]);
    node.eventually("one thread of the daemon running first", || run_first(daemon) == ["freeing"]);
    assert!(run_first(guest).is_empty());
}

/// The names of those threads of a process that run before all normal ones (SCHED_FIFO, sched(7)): the policy is field 41
/// of a thread's stat line (proc(5)).
fn run_first(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    let name_of = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
        (fields.split_whitespace().nth(41 - 3)? == "1").then(|| name.to_owned())
    };
    threads.filter_map(|thread| name_of(thread.expect("it can be listed"))).collect()
}
