//! Machines in Firecracker through the daemon: peers that play it, whose guests judge memory and disks themselves.

use std::fs;
use std::thread;

use rekindle_api::problem::Code;
use rekindle_api::types::{ForkSandbox, ResumeSandbox, SandboxState, SnapshotState};

use crate::peer::Step;
use crate::peers::{Peers, Standing};
use crate::support::pause_as;

#[test]
fn a_machine_goes_on_where_it_stood_also_forked_and_while_its_pause_is_being_saved() {
    let peers = Peers::start();
    let node = &peers.node;
    peers.filled("vm");
    assert_eq!(peers.tick("vm"), 1);
    let first = node.pause("vm", "first");
    node.resume("vm");
    assert_eq!(peers.tick("vm"), 2);
    peers.assert_verified("vm");
    peers.assert_disk("vm", 3, 4);
    peers.say("vm", "dirty 2 30");
    peers.write_disk("vm", 5, 6);
    let forks = ForkSandbox {
        count: 2_u32.try_into().expect("a few"),
        name: Some("fork".parse().expect("it is a name")),
        ..Default::default()
    };
    node.client.fork_sandbox("vm", None, &forks).expect("it is forked");
    for (name, seed) in [("vm", 7), ("fork-1", 8), ("fork-2", 9)] {
        assert_eq!(peers.tick(name), 3);
        peers.assert_verified(name);
        peers.assert_disk(name, 3, 4);
        peers.assert_disk(name, 5, 6);
        peers.say(name, &format!("dirty {seed} 10"));
        peers.write_disk(name, 5, seed);
    }
    for (name, seed) in [("vm", 7), ("fork-1", 8), ("fork-2", 9)] {
        peers.assert_verified(name);
        peers.assert_disk(name, 5, seed);
    }
    node.pause("fork-1", "second");
    node.resume("fork-1");
    peers.assert_verified("fork-1");
    peers.assert_disk("fork-1", 5, 8);
    node.resumed("first", "old");
    assert_eq!(peers.tick("old"), 2);
    peers.assert_verified("old");
    peers.assert_disk("old", 3, 4);
    peers.assert_disk("old", 5, 0);
    node.wait("second", SnapshotState::Published);
    assert_eq!(node.client.verify_snapshot("second").expect("it is verified").wrong_pages, 0);
    assert_eq!(node.client.snapshot("first").expect("it is there").id, first.id);
}

#[test]
fn a_machine_is_resumed_by_a_node_that_has_nothing_but_the_store() {
    let mut peers = Peers::start();
    peers.filled("vm");
    peers.node.pause("vm", "first");
    peers.node.resume("vm");
    peers.say("vm", "dirty 2 30");
    peers.write_disk("vm", 5, 6);
    let last = peers.node.pause("vm", "last");
    peers.node.wait("last", SnapshotState::Published);
    let mut elsewhere = Peers::start();
    elsewhere.node.terminate();
    peers.node.terminate();
    elsewhere.node.copy_store(&peers.node);
    elsewhere.node.place.copy_key_ring(&peers.node.place).expect("it has keys");
    elsewhere.node.start_again();
    for gone in [peers.node.place.state_directory(), peers.node.place.home_directory()] {
        fs::remove_dir_all(gone).expect("nobody uses it");
    }
    elsewhere.node.resumed(&last.id.to_string(), "cold");
    elsewhere.assert_verified("cold");
    elsewhere.assert_disk("cold", 3, 4);
    elsewhere.assert_disk("cold", 5, 6);
    elsewhere.say("cold", "dirty 3 20");
    elsewhere.node.pause("cold", "colder");
    elsewhere.node.resume("cold");
    elsewhere.assert_verified("cold");
}

#[test]
fn machines_run_on_while_their_daemon_is_killed_and_the_next_one_pauses_them() {
    let mut peers = Peers::start();
    peers.filled("fresh");
    peers.filled("vm");
    peers.node.pause("vm", "first");
    peers.node.resume("vm");
    assert_eq!(peers.tick("vm"), 1);
    peers.write_disk("vm", 5, 6);
    peers.node.crash();
    assert_eq!(peers.tick("vm"), 2);
    for name in ["vm", "fresh"] {
        peers.assert_verified(name);
        peers.say(name, "dirty 5 20");
        peers.write_disk(name, 7, 8);
        peers.node.pause(name, &format!("{name}-after"));
    }
    peers.node.crash();
    for name in ["vm", "fresh"] {
        peers.node.resume(name);
        peers.assert_verified(name);
        peers.assert_disk(name, 3, 4);
        peers.assert_disk(name, 7, 8);
    }
    peers.assert_disk("vm", 5, 6);
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_pause_leaves_a_machine_that_goes_on() {
    let mut peers = Peers::start();
    peers.filled("vm");
    peers.node.pause("vm", "first");
    peers.node.resume("vm");
    peers.say("vm", "dirty 2 20");
    for step in [Step::Pause, Step::CreateState, Step::CreateMemory] {
        let pipe = peers.stand_at(step);
        let client = peers.node.client.clone();
        // The daemon dies before it answers.
        let asking = thread::spawn(move || client.pause_sandbox("vm", None, &pause_as("never")).is_err());
        let standing = Standing::wait(&pipe);
        peers.node.kill();
        assert!(asking.join().expect("the request ends with its daemon"), "{step:?}");
        peers.set(|_| {});
        standing.let_go_on();
        peers.node.start_again();
        assert_eq!(peers.node.client.sandbox("vm").expect("it is there").state, SandboxState::Running);
        peers.assert_verified("vm");
        peers.say("vm", "dirty 3 20");
        peers.write_disk("vm", 5, 6);
    }
    peers.node.pause("vm", "second");
    peers.node.resume("vm");
    peers.assert_verified("vm");
    peers.assert_disk("vm", 3, 4);
    peers.assert_disk("vm", 5, 6);
}

#[test]
fn a_daemon_killed_in_the_middle_of_a_resume_leaves_a_paused_machine_and_no_other() {
    let mut peers = Peers::start();
    peers.filled("vm");
    peers.node.pause("vm", "first");
    for step in [Step::Start, Step::LoadBegins, Step::LoadHandedOver, Step::LoadTouched] {
        let pipe = peers.stand_at(step);
        let client = peers.node.client.clone();
        let asking = thread::spawn(move || client.resume_sandbox("vm", &ResumeSandbox::default()).is_err());
        let standing = Standing::wait(&pipe);
        peers.node.kill();
        assert!(asking.join().expect("the request ends with its daemon"), "{step:?}");
        peers.set(|_| {});
        peers.node.start_again();
        drop(standing);
        peers.node.eventually("the end of what was begun", || {
            peers.node.kept("guest/").is_empty() && peers.machine_files().is_empty()
        });
        peers.node.resume("vm");
        peers.assert_verified("vm");
        peers.assert_disk("vm", 3, 4);
        peers.node.pause("vm", &format!("at-{step:?}").to_lowercase());
    }
}

#[test]
fn a_snapshot_of_another_firecracker_is_refused_with_what_differs_and_nothing_is_started() {
    let peers = Peers::start();
    let node = &peers.node;
    peers.filled("vm");
    node.pause("vm", "first");
    node.eventually("the end of the machine", || node.kept("guest/").is_empty());
    peers.set(|settings| {
        settings.version = "1.10.1".to_owned();
        settings.format = "4.0.0".to_owned();
    });
    let before = peers.requests();
    let refused = node.client.resume_sandbox("vm", &ResumeSandbox::default()).expect_err("it cannot load");
    assert_eq!(refused.code(), Some(Code::Misfit), "{refused}");
    for part in ["1.16.0", "8.0.0", "1.10.1", "4.0.0"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    assert_eq!(peers.requests(), before);
    assert!(node.kept("guest/").is_empty());
    assert!(peers.machine_files().is_empty());
    assert_eq!(node.client.sandbox("vm").expect("it is there").state, SandboxState::Paused);
    peers.set(|_| {});
    node.resume("vm");
    peers.assert_verified("vm");
}

#[test]
fn a_program_that_is_no_firecracker_or_no_known_one_does_not_fit_and_leaves_nothing() {
    let peers = Peers::start();
    let node = &peers.node;
    let refused = || {
        let refused = node.client.create_sandbox(None, &peers.machine("vm")).expect_err("it cannot be made");
        assert_eq!(refused.code(), Some(Code::Misfit), "{refused}");
        refused.to_string()
    };
    for version in ["1.7.0", "2.0.0"] {
        peers.set(|settings| settings.version = version.to_owned());
        assert!(refused().contains(version));
    }
    let script = fs::read(peers.file("firecracker")).expect("it is there");
    rekindle_testkit::programs::write(&peers.file("firecracker"), "#!/bin/sh\necho something else\n")
        .expect("there is room");
    assert!(refused().contains("does not say which version"));
    fs::write(peers.file("firecracker"), script).expect("there is room");
    peers.set(|_| {});
    assert!(node.client.all_sandboxes(&[]).expect("they are listed").is_empty());
    assert!(node.kept("guest/").is_empty());
    assert!(peers.machine_files().is_empty());
    peers.filled("vm");
}

#[test]
fn a_firecracker_that_dies_at_its_hand_over_is_told_in_its_own_words_and_the_snapshot_resumes_after() {
    let peers = Peers::start();
    let node = &peers.node;
    peers.filled("vm");
    node.pause("vm", "first");
    for step in [Step::Start, Step::LoadBegins, Step::LoadHandedOver, Step::LoadTouched] {
        peers.set(|settings| settings.dies_at = Some(step));
        let died = node.client.resume_sandbox("vm", &ResumeSandbox::default()).expect_err("it dies");
        assert_eq!(died.code(), Some(Code::GuestFailed), "{step:?}: {died}");
        assert!(died.to_string().contains(&format!("Firecracker dies at {step:?}")), "{died}");
        assert!(died.to_string().contains("ended by itself with status 148"), "{died}");
        assert_eq!(node.client.sandbox("vm").expect("it is there").state, SandboxState::Paused);
        peers.set(|_| {});
        node.eventually("nothing left of it", || {
            node.kept("guest/").is_empty() && peers.machine_files().is_empty()
        });
    }
    node.resume("vm");
    peers.assert_verified("vm");
    peers.assert_disk("vm", 3, 4);
}

#[test]
fn a_firecracker_that_its_filter_ends_is_told_with_signal_and_setting_and_is_not_called_left_over() {
    let peers = Peers::start();
    let node = &peers.node;
    peers.set(|settings| (settings.dies_at, settings.is_filtered) = (Some(Step::Start), true));
    let died = node.client.create_sandbox(None, &peers.machine("vm")).expect_err("it dies").to_string();
    assert!(died.contains("killed by signal 31 (SIGSYS)") && died.contains("firecracker.seccomp"), "{died}");
    node.eventually("nothing left of it", || {
        node.kept("guest/").is_empty() && peers.machine_files().is_empty()
    });
    let log = fs::read_to_string(node.place.log_file()).expect("the daemon logs");
    assert!(!log.contains("left over"), "{log}");
}

#[test]
fn a_load_that_firecracker_refuses_is_told_in_its_own_words() {
    let peers = Peers::start();
    let node = &peers.node;
    peers.filled("vm");
    node.pause("vm", "first");
    peers.set(|settings| {
        settings.refuses.insert("PUT /snapshot/load".to_owned(), "no such luck".to_owned());
    });
    let refused = node.client.resume_sandbox("vm", &ResumeSandbox::default()).expect_err("it is refused");
    assert_eq!(refused.code(), Some(Code::GuestFailed), "{refused}");
    assert!(refused.to_string().contains("no such luck"), "{refused}");
    peers.set(|_| {});
    node.resume("vm");
    peers.assert_verified("vm");
}
