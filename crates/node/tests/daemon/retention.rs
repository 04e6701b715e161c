//! Snapshots that the setting `keep` keeps, and those that it does not.

use rekindle_api::types::{PauseSandbox, SnapshotState};
use rekindle_testkit::black_box::BlackBox;

use crate::support::{Node, program};

#[test]
fn snapshots_that_no_rule_keeps_are_deleted_and_those_with_names_or_in_use_stay() {
    let mut node = Node::start_with("keep = [\"newest 1\"]\n");
    node.filled("a", 1);
    let named = node.pause("a", "named").id;
    node.resume("a");
    let unnamed: Vec<_> = (0..3)
        .map(|_| {
            let paused = node.client.pause_sandbox("a", None, &PauseSandbox::default());
            node.resume("a");
            paused.expect("it is paused").id
        })
        .collect();
    let stopped = node.filled("b", 2).id;
    let first_of_b = node.client.pause_sandbox("b", None, &PauseSandbox::default()).expect("it is paused").id;
    node.client.remove_sandbox(&stopped.to_string()).expect("it is removed");
    for snapshot in node.client.all_snapshots(&[]).expect("they are listed") {
        node.wait(&snapshot.id.to_string(), SnapshotState::Published);
    }
    let kept = node.client.kept_snapshots().expect("the rules are asked");
    let verdict = |id| kept.iter().find(|kept| kept.snapshot == id).expect("each has a verdict");
    assert!(verdict(named).kept && verdict(named).reason.contains("no rule is for it"));
    assert!(!verdict(unnamed[0]).kept && verdict(unnamed[0]).reason.contains("`newest 1`"));
    assert!(verdict(unnamed[2]).kept && verdict(unnamed[2]).reason.contains("goes on from it"));
    assert!(verdict(first_of_b).kept && verdict(first_of_b).reason.contains("newest 1 of its line"));

    node.crash();
    node.eventually("the others being deleted", || {
        node.client.all_snapshots(&[]).expect("they are listed").len() == 3
    });
    let left = node.client.all_snapshots(&[]).expect("they are listed");
    let mut ids: Vec<_> = left.into_iter().map(|snapshot| snapshot.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [named, unnamed[2], first_of_b]);
    node.assert_verified("a");
    node.resumed("named", "again");
    node.assert_verified("again");

    let place = BlackBox::with_settings(&program(), "keep = [\"named newest 0\"]\n").expect("directories");
    place.copy_key_ring(&node.place).expect("the other has keys");
    let elsewhere = Node::start_in(place);
    elsewhere.copy_store(&node);
    let opened = elsewhere.client.snapshot(&named.to_string()).expect("the store has it").id;
    let kept = elsewhere.client.kept_snapshots().expect("the rules are asked");
    assert_eq!((kept.len(), kept[0].snapshot, kept[0].kept), (1, opened, true));
    assert_eq!(kept[0].reason, "another node made it");
}
