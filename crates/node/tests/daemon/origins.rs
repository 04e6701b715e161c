//! Two daemons, of which the second finds a snapshot that the first has not saved yet by its origin record in the store.

use std::fs;
use std::path::PathBuf;

use rekindle_api::types::SnapshotState;

use crate::support::{Outage, resume_as};
use crate::two_nodes::Pair;

/// The origin record of a snapshot in the store of both.
fn record_of(pair: &Pair, snapshot: &str) -> PathBuf {
    pair.store.path().join("store/origins").join(snapshot)
}

/// The first node pauses a sandbox, and cannot publish; its record of the snapshot is there.
fn paused_at_first(pair: &Pair) -> (Outage, String) {
    let outage = Outage::of_layers(&pair.store.path().join("store"));
    pair.first.filled("box", 1);
    let snapshot = pair.first.pause("box", "base");
    let origin = snapshot.origin.expect("others are served there");
    assert_eq!(origin.address.as_deref(), Some(&*pair.address));
    let id = snapshot.id.to_string();
    pair.first.eventually("the origin record", || record_of(pair, &id).exists());
    (outage, id)
}

#[test]
fn a_snapshot_that_is_not_saved_yet_is_resumed_elsewhere_by_its_origin_record_which_goes_when_it_is_saved() {
    let pair = Pair::start();
    let (outage, snapshot) = paused_at_first(&pair);
    pair.second.resumed(&snapshot, "moved");
    pair.second.assert_verified("moved");
    let shown = pair.second.client.snapshot(&snapshot).expect("it is listed");
    assert_eq!(shown.state, SnapshotState::Remote);
    assert_eq!(shown.origin.map(|origin| origin.node).as_deref(), Some("first"));
    outage.end();
    assert_eq!(pair.first.wait("base", SnapshotState::Published).origin, None);
    pair.first.eventually("the record going", || !record_of(&pair, &snapshot).exists());
    pair.second.wait(&snapshot, SnapshotState::Published);
    pair.second.assert_verified("moved");
}

#[test]
fn an_origin_is_found_among_the_addresses_of_a_name_and_its_record_outlives_its_daemon_but_no_deletion() {
    let mut pair = Pair::start_with(|address| {
        let (_, port) = address.rsplit_once(':').expect("it has a port");
        format!("dns = [\"localhost:{port}\"]\n")
    });
    let (outage, snapshot) = paused_at_first(&pair);
    pair.first.crash();
    assert!(record_of(&pair, &snapshot).exists());
    pair.second.resumed(&snapshot, "moved");
    pair.second.assert_verified("moved");
    pair.second.client.remove_sandbox("moved").expect("it is removed");
    pair.first.client.remove_sandbox("box").expect("it is removed");
    pair.first.client.delete_snapshot(&snapshot).expect("nothing needs it");
    pair.first.eventually("the record going", || !record_of(&pair, &snapshot).exists());
    outage.end();
}

#[test]
fn a_record_that_names_no_peer_or_is_damaged_is_refused_with_its_fault_and_changes_nothing() {
    let pair = Pair::start_with(|_| String::new());
    let (outage, snapshot) = paused_at_first(&pair);
    let record = record_of(&pair, &snapshot);
    let right = fs::read_to_string(&record).expect("it is there");
    let other = "0198c0de-0000-7000-8000-000000000000";
    let damaged = [
        (right.clone(), format!("({})", pair.address)),
        (right.replace(&pair.address, "203.0.113.9:1"), "(203.0.113.9:1)".to_owned()),
        (right.replace(&snapshot, other), "another snapshot".to_owned()),
        ("\u{0}{".repeat(9), "cannot be understood".to_owned()),
        (right.replace("\"version\":1", "\"version\":9"), "version 9 is unknown".to_owned()),
        (" ".repeat(1 << 20), "1048576".to_owned()),
    ];
    for (content, told) in damaged {
        fs::write(&record, content).expect("there is room");
        let refused = pair.second.client.resume_snapshot(&snapshot, None, &resume_as("moved", 1));
        let refused = refused.expect_err("it names no peer").to_string();
        assert!(refused.contains(&told), "{told}: {refused}");
        assert_eq!(pair.second.client.all_snapshots(&[]).expect("it answers"), Vec::new());
    }
    fs::remove_file(&record).expect("it is there");
    let refused = pair.second.client.resume_snapshot(&snapshot, None, &resume_as("moved", 1));
    assert!(refused.expect_err("nobody says where").to_string().contains("there is no snapshot"));
    outage.end();
    pair.first.wait("base", SnapshotState::Published);
    pair.second.resumed(&snapshot, "moved");
    pair.second.assert_verified("moved");
}
