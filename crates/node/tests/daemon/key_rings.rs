//! Nodes with keys of their own, and nodes that share them.

use std::fs;

use rekindle_api::problem::Code;
use rekindle_api::types::{CreateSandbox, MemoryBacking, SnapshotState};
use rekindle_testkit::black_box::BlackBox;

use crate::support::{Node, create, files_in, program, resume_as};

/// A node in directories of its own, over the store of another.
fn over_the_store_of(other: &Node) -> BlackBox {
    let place = BlackBox::new(&program()).expect("directories");
    std::os::unix::fs::symlink(other.place.store_directory(), place.store_directory()).expect("a disk");
    place
}

#[test]
fn two_nodes_with_a_copy_of_one_key_ring_read_and_write_one_store() {
    let node = Node::start();
    node.filled("a", 1);
    let first = node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    let place = over_the_store_of(&node);
    place.copy_key_ring(&node.place).expect("it has keys");
    let elsewhere = Node::start_in(place);
    elsewhere.resumed(&first.id.to_string(), "b");
    elsewhere.assert_verified("b");
    let second = elsewhere.pause("b", "second");
    elsewhere.wait("second", SnapshotState::Published);
    node.resumed(&second.id.to_string(), "c");
    node.assert_verified("c");
}

#[test]
fn a_node_with_a_key_of_its_own_is_told_before_it_publishes_into_the_store_of_others() {
    let node = Node::start();
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    let published = files_in(&node.place.store_directory().join("manifests")).len();
    let mut elsewhere = Node::start_in(over_the_store_of(&node));
    elsewhere.filled("b", 2);
    let second = elsewhere.pause("b", "second");
    elsewhere.wait("second", SnapshotState::Sealed);
    elsewhere.eventually("the store being away", || {
        let snapshot = elsewhere.client.snapshot("second").expect("it is listed");
        snapshot.reason.is_some_and(|reason| reason.contains("of another node of this store"))
    });
    assert_eq!(files_in(&node.place.store_directory().join("manifests")).len(), published);
    // The others' key in front, its own behind it: with that it reads what it packed so far.
    let keys = |place: &BlackBox| -> serde_json::Value {
        serde_json::from_slice(&fs::read(place.key_ring()).expect("it is there")).expect("it is JSON")
    };
    elsewhere.terminate();
    let mut both = keys(&node.place);
    let own = keys(&elsewhere.place)["keys"][0].clone();
    both["keys"].as_array_mut().expect("a list").push(own);
    fs::write(elsewhere.place.key_ring(), both.to_string()).expect("a disk");
    elsewhere.start_again();
    elsewhere.wait("second", SnapshotState::Published);
    elsewhere.resume("b");
    elsewhere.assert_verified("b");
    // The other node lacks the key of what was packed before, and says which one.
    let refused = node.client.resume_snapshot(&second.id.to_string(), None, &Default::default());
    let refused = refused.expect_err("its layers are of another key").to_string();
    assert!(
        refused.contains("the key ring has no key ") && refused.contains(" of domain default"),
        "{refused}"
    );
}

#[test]
fn a_node_whose_ring_lacks_a_key_loses_nothing_and_goes_on_once_it_is_back() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    node.terminate();
    let layers = files_in(&node.place.state_directory().join("layers")).len();
    let ring = fs::read_to_string(node.place.key_ring()).expect("it is there");
    // The same domain with another secret.
    let at = ring.find("\"secret\": \"").expect("it has a key") + 11;
    let other = format!("{}{}{}", &ring[..at], "0".repeat(64), &ring[at + 64..]);
    fs::write(node.place.key_ring(), other).expect("a disk");
    node.begin_again();
    let snapshot = node.client.snapshot("first").expect("it is listed");
    let reason = snapshot.reason.expect("it cannot be read");
    assert!(reason.contains("the key ring has no key ") && reason.contains(" of domain default"), "{reason}");
    assert_eq!(files_in(&node.place.state_directory().join("layers")).len(), layers);
    node.terminate();
    fs::write(node.place.key_ring(), ring).expect("a disk");
    node.start_again();
    node.wait("first", SnapshotState::Published);
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn a_node_whose_ring_is_gone_does_not_start_and_makes_no_other() {
    let mut node = Node::start();
    node.terminate();
    fs::remove_file(node.place.key_ring()).expect("it is there");
    let refused = node.place.start().expect_err("it does not start").to_string();
    let log = fs::read_to_string(node.place.log_file()).unwrap_or_default();
    assert!(
        format!("{refused}{log}").contains("has no key of domain default, and this node's"),
        "{refused} {log}"
    );
    assert!(!node.place.key_ring().exists());
}

/// Adds a key of a domain to a ring, in front of all others or behind them.
fn add_key(place: &BlackBox, domain: &str, digit: &str, in_front: bool) {
    let ring = fs::read(place.key_ring()).expect("it is there");
    let mut ring: serde_json::Value = serde_json::from_slice(&ring).expect("it is JSON");
    let keys = ring["keys"].as_array_mut().expect("a list");
    let at = if in_front { 0 } else { keys.len() };
    keys.insert(at, serde_json::json!({"domain": domain, "secret": digit.repeat(64)}));
    fs::write(place.key_ring(), ring.to_string()).expect("a disk");
}

fn in_domain(name: &str, domain: &str) -> CreateSandbox {
    CreateSandbox { domain: domain.parse().ok(), ..create(name, MemoryBacking::Shared) }
}

#[test]
fn a_sandbox_of_a_tenant_its_snapshots_and_their_sandboxes_are_of_its_domain_over_starts() {
    let mut node = Node::start();
    let refused = node.client.create_sandbox(None, &in_domain("a", "tenant-1")).expect_err("it has no key");
    assert_eq!(refused.code(), Some(Code::NoKey), "{refused}");
    assert!(refused.to_string().contains("no key of domain tenant-1"), "{refused}");
    node.terminate();
    add_key(&node.place, "tenant-1", "1", false);
    node.start_again();
    let sandbox = node.client.create_sandbox(None, &in_domain("a", "tenant-1")).expect("it has a key");
    assert_eq!(sandbox.domain, "tenant-1".parse().ok());
    node.told("a").fill(1).expect("its guest fills its memory");
    // The next daemon finds the guest, and pauses it in its domain.
    node.crash();
    assert_eq!(node.pause("a", "first").domain, "tenant-1");
    node.wait("first", SnapshotState::Published);
    assert_eq!(node.resume("a").domain, "tenant-1".parse().ok());
    assert_eq!(node.resumed("first", "b").domain, "tenant-1".parse().ok());
    node.assert_verified("b");
    assert_eq!(node.pause("b", "second").domain, "tenant-1");
    node.filled("c", 2);
    assert_eq!(node.pause("c", "third").domain, "default");
    node.crash();
    for (snapshot, domain) in [("first", "tenant-1"), ("second", "tenant-1"), ("third", "default")] {
        assert_eq!(node.client.snapshot(snapshot).expect("it is listed").domain, domain);
    }
}

/// Replaces the key of a domain in a node's ring, as an operator does; the new one's id.
fn rotate(place: &BlackBox, domain: &str) -> String {
    let said = place.command(["--json", "keys", "rotate", domain]).output().expect("the program runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).expect("it is JSON");
    said["key"].as_str().expect("it says the key").to_owned()
}

#[test]
fn snapshots_after_a_rotation_are_of_the_new_key_and_older_ones_are_read_as_before() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    let key = rotate(&node.place, "default");
    // The running daemon goes on with the key that it has.
    let keys = node.place.store_directory().join("keys/default");
    node.filled("b", 2);
    node.pause("b", "before");
    node.wait("before", SnapshotState::Published);
    assert!(!keys.exists());
    node.crash();
    node.resume("a");
    node.assert_verified("a");
    let second = node.pause("a", "second");
    node.wait("second", SnapshotState::Published);
    assert!(keys.join(&key).exists(), "the store has the new key");
    assert_eq!(files_in(&keys).len(), 1);
    node.resume("b");
    node.assert_verified("b");
    node.resumed("second", "c");
    node.assert_verified("c");
    // Another node with the keys reads layers of both.
    let place = over_the_store_of(&node);
    place.copy_key_ring(&node.place).expect("it has keys");
    let elsewhere = Node::start_in(place);
    elsewhere.resumed(&second.id.to_string(), "d");
    elsewhere.assert_verified("d");
}

#[test]
fn a_node_without_a_rotated_key_says_which_one_goes_on_with_its_own_and_reads_once_it_has_it() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "first");
    node.wait("first", SnapshotState::Published);
    let place = over_the_store_of(&node);
    place.copy_key_ring(&node.place).expect("it has keys");
    let mut elsewhere = Node::start_in(place);
    let key = rotate(&node.place, "default");
    node.crash();
    node.resume("a");
    let second = node.pause("a", "second");
    node.wait("second", SnapshotState::Published);
    let refused = elsewhere.client.resume_snapshot(&second.id.to_string(), None, &resume_as("b", 1));
    let refused = refused.expect_err("its manifest has the tag of another key");
    assert_eq!(refused.code(), Some(Code::NoKey), "{refused}");
    let told =
        format!("the key ring has no key {key} of domain default: copy that key from the key ring of a");
    assert!(refused.to_string().contains(&told), "{refused}");
    let doctor = elsewhere.place.command(["doctor"]).output().expect("the program runs");
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        doctor.contains(&format!("has no key {key} of domain default, and the store has it")),
        "{doctor}"
    );
    // Its own snapshots are published as before, and the other node reads them.
    elsewhere.filled("c", 2);
    let own = elsewhere.pause("c", "own");
    elsewhere.wait("own", SnapshotState::Published);
    node.resumed(&own.id.to_string(), "d");
    node.assert_verified("d");
    elsewhere.terminate();
    fs::copy(node.place.key_ring(), elsewhere.place.key_ring()).expect("a disk");
    elsewhere.start_again();
    elsewhere.resumed(&second.id.to_string(), "b");
    elsewhere.assert_verified("b");
    elsewhere.resume("c");
    elsewhere.assert_verified("c");
}
