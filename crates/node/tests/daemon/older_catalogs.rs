//! Daemons that start on a copy of the catalog that is older than what the keeper holds.

use std::fs;
use std::path::PathBuf;

use rekindle_api::types::{FaultSocketState, SandboxState, SnapshotState};
use rekindle_kernel::ProcessHandle;
use rekindle_testkit::black_box::PATIENCE;
use uuid::Uuid;

use crate::sockets;
use crate::support::{Node, rewrite};

/// A daemon starts that finds `copy` in the place of its catalog, which goes to `away`.
fn start_on(node: &mut Node, copy: &str, away: &str) {
    let [catalog, copy, away] = ["catalog.redb", copy, away].map(|name| state(node).join(name));
    fs::rename(&catalog, away).expect("a disk");
    fs::rename(copy, &catalog).expect("a disk");
    node.start_again();
}

fn copy_catalog(node: &Node, name: &str) {
    fs::copy(state(node).join("catalog.redb"), state(node).join(name)).expect("there is room");
}

fn state(node: &Node) -> PathBuf {
    node.place.state_directory()
}

/// A directory as a machine has one, and the file in it.
fn machine_file(node: &Node) -> PathBuf {
    let directory = state(node).join("machines").join(Uuid::now_v7().to_string());
    fs::create_dir_all(&directory).expect("a disk");
    fs::write(directory.join("disk"), b"written").expect("there is room");
    directory.join("disk")
}

/// Numbers of guests, captured snapshots and fault sockets set aside, from the daemon's metrics.
fn set_aside(node: &Node) -> [u64; 3] {
    let metrics = node.client.metrics().expect("it answers");
    ["guest", "snapshot", "fault_socket"].map(|kind| {
        let name = format!("rekindle_set_aside_held{{kind=\"{kind}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name)).expect("it is there");
        value.parse().expect("a number")
    })
}

#[test]
fn an_older_catalog_costs_nothing_that_only_the_newer_one_names() {
    let mut node = Node::start();
    let written = sockets::base(&node);
    node.wait("base", SnapshotState::Published);
    node.filled("before", 1);
    copy_catalog(&node, "older");
    let after = node.filled("after", 2).pid.expect("it runs");
    let socket = sockets::open(&node);
    let mut vmm = sockets::vmm(&node, &socket, &written);
    let waiting = sockets::open(&node);
    node.filled("captured", 3);
    // Without its directory no layer can be packed.
    let (layers, away) = (state(&node).join("layers"), state(&node).join("layers-away"));
    fs::rename(&layers, &away).expect("a disk");
    fs::write(&layers, b"in the way").expect("there is room");
    node.pause("captured", "captured");
    node.eventually("the guest of a pause going", || node.kept("guest/").len() == 2);
    node.kill();
    fs::remove_file(&layers).expect("a disk");
    fs::rename(&away, &layers).expect("a disk");
    let file = machine_file(&node);
    start_on(&mut node, "older", "newer");

    assert_eq!(set_aside(&node), [2, 1, 2], "a guest, and one that has only files");
    let said = node.client.readiness().expect("it answers");
    assert!(said.ready && said.reasons.iter().any(|why| why.contains("1 captured snapshots")), "{said:?}");
    node.assert_verified("before");
    // This catalog's new names are not the newer one's, and its next start still finds it older.
    node.filled("later", 4);
    node.crash();
    assert_eq!(set_aside(&node), [2, 1, 2]);
    assert!(ProcessHandle::open(after).expect("it was not reaped").is_alive());
    assert!(file.exists() && PathBuf::from(&waiting.path).exists());
    let doctor = node.place.command(["doctor"]).output().expect("the program runs");
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("2 guests, 1 captured snapshots and 2 fault sockets are set aside"), "{doctor}");

    node.kill();
    start_on(&mut node, "newer", "diverged");
    assert_eq!(set_aside(&node), [2, 0, 0], "the one with files, and the one that was made since");
    for name in ["before", "after"] {
        node.assert_verified(name);
    }
    assert_eq!(node.client.fault_socket(socket.id).expect("it is known").state, FaultSocketState::Running);
    sockets::assert_right(&mut vmm);
    assert_eq!(node.client.fault_socket(waiting.id).expect("it is known").state, FaultSocketState::Listening);
    node.wait("captured", SnapshotState::Published);
    node.resume("captured");
    node.assert_verified("captured");
    node.told("captured").rewrite(rewrite(5)).expect("rewrites");
    node.crash();
    node.assert_verified("captured");
    node.kill();
    start_on(&mut node, "diverged", "newer");
    assert_eq!(node.client.sandbox("later").expect("it is named again").state, SandboxState::Running);
    node.assert_verified("later");
}

#[test]
fn what_was_set_aside_goes_when_its_time_is_over_and_nothing_else_does() {
    let mut node = Node::start_with("set_aside_kept = \"0s\"\n");
    node.filled("before", 1);
    copy_catalog(&node, "older");
    let after = node.filled("after", 2).pid.expect("it runs");
    let after = ProcessHandle::open(after).expect("it runs");
    let file = machine_file(&node);
    node.kill();
    start_on(&mut node, "older", "newer");
    assert!(after.wait_exit(PATIENCE));
    node.eventually("all of it going", || {
        set_aside(&node) == [0; 3] && node.kept("guest/").len() == 1 && !file.exists()
    });
    node.assert_verified("before");
}

#[test]
fn a_guest_that_the_catalog_does_not_name_yet_goes_at_a_start_on_the_same_catalog() {
    let mut node = Node::start();
    node.filled("named", 1);
    node.kill();
    let file = machine_file(&node);
    node.start_again();
    assert_eq!(set_aside(&node), [0; 3]);
    node.eventually("files of a guest that never came to be going", || !file.exists());
    node.assert_verified("named");
}
