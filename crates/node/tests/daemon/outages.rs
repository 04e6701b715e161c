//! Stores and disks that fail, and daemons that start while they do.

use std::fs::{self, OpenOptions};
use std::thread;

use rekindle::api::types::{SandboxState, SnapshotState};
use rekindle_testkit::black_box::Told;

use crate::support::{Node, Outage, files_in, rewrite};

#[test]
fn case_31_an_upload_that_failed_is_tried_again_by_the_next_daemon() {
    let mut node = Node::start();
    let outage = Outage::of(&node.place.store_directory());
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Sealed);
    node.eventually("a failed upload being told of", || {
        node.client.snapshot("base").is_ok_and(|snapshot| snapshot.reason.is_some())
    });
    node.crash();
    assert_eq!(node.client.snapshot("base").expect("it is listed").state, SnapshotState::Sealed);
    outage.end();
    node.wait("base", SnapshotState::Published);
    assert_eq!(node.client.snapshot("base").expect("it is listed").reason, None);
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn case_35_a_start_wipes_nothing_that_is_nowhere_else() {
    let mut node = Node::start();
    let outage = Outage::of(&node.place.store_directory());
    node.filled("a", 1);
    node.pause("a", "first");
    node.resume("a");
    node.told("a").rewrite(rewrite(2)).expect("rewrites");
    node.pause("a", "second");
    node.wait("second", SnapshotState::Sealed);
    let layers = node.place.state_directory().join("layers");
    let before = files_in(&layers).len();
    assert!(before > 0);
    node.crash();
    node.crash();
    assert_eq!(files_in(&layers).len(), before);
    node.resume("a");
    node.assert_verified("a");
    node.resumed("first", "b");
    node.assert_verified("b");
    outage.end();
    node.wait("second", SnapshotState::Published);
}

#[test]
fn case_25_layer_files_that_were_cut_short_or_damaged_are_not_taken_for_good() {
    for damage in [cut_short, overwrite] {
        let mut node = Node::start();
        node.filled("a", 1);
        node.pause("a", "base");
        node.wait("base", SnapshotState::Published);
        node.kill();
        let layers = files_in(&node.place.state_directory().join("layers"));
        assert!(!layers.is_empty());
        layers.iter().for_each(|layer| damage(layer));
        node.start_again();
        node.resume("a");
        node.assert_verified("a");
    }
}

fn cut_short(file: &std::path::Path) {
    let bytes = fs::metadata(file).expect("it is there").len();
    let open = OpenOptions::new().write(true).open(file).expect("it can be opened");
    open.set_len(bytes / 2).expect("it can be cut");
}

fn overwrite(file: &std::path::Path) {
    let bytes = usize::try_from(fs::metadata(file).expect("it is there").len()).expect("64 bits");
    fs::write(file, vec![0xAA; bytes]).expect("it can be written");
}

#[test]
fn case_28_everyone_who_waits_for_a_page_gets_it_when_the_store_is_back() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    node.kill();
    for layer in files_in(&node.place.state_directory().join("layers")) {
        fs::remove_file(layer).expect("it can be removed");
    }
    node.start_again();
    node.resumed("base", "b");
    node.resumed("base", "c");
    let outage = Outage::of(&node.place.store_directory());
    let waiting: Vec<_> = ["b", "c"]
        .into_iter()
        .map(|name| {
            let client = node.client.clone();
            thread::spawn(move || Told::new(&client, name).verify())
        })
        .collect();
    for name in ["b", "c"] {
        node.eventually("a guest being stalled with a reason", || {
            let shown = node.client.sandbox(name).expect("it is listed");
            shown.state == SandboxState::Stalled && shown.reason.is_some()
        });
    }
    outage.end();
    for verified in waiting {
        let verified = verified.join().expect("asking does not panic").expect("the guest answers");
        assert_eq!(verified.mismatches, 0, "{verified:?}");
    }
    for name in ["b", "c"] {
        node.eventually("a guest going on", || {
            node.client.sandbox(name).is_ok_and(|shown| shown.state == SandboxState::Running)
        });
    }
}
