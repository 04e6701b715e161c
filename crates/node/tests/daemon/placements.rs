//! Three nodes that say in files what they have: a scheduler that reads nothing else has each resume where its bytes are.

use std::fs;
use std::path::PathBuf;

use rekindle_api::types::{
    NodePlacement, PlacementQuery, Prefault, ResumeHint, ResumeSnapshot, SnapshotState,
};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::{Node, Outage, resume_as, rewrite};
use crate::two_nodes::place;

const NAMES: [&str; 3] = ["first", "second", "third"];

/// Nodes that publish into the same directory, and a directory with the file of each.
struct Fleet {
    nodes: [Node; 3],
    files: TempDir,
    store: TempDir,
}

impl Fleet {
    fn start() -> Self {
        let [store, files] = [(); 2].map(|()| tempfile::tempdir().expect("directories"));
        let place_of =
            |name: &str| place(&format!("placement_file = {:?}\n", files.path().join(name)), store.path());
        let first = Node::start_in(place_of("first"));
        let [second, third] = ["second", "third"].map(|name| {
            let place = place_of(name);
            place.copy_key_ring(&first.place).expect("the other has keys");
            Node::start_in(place)
        });
        Self { nodes: [first, second, third], files, store }
    }

    fn file(&self, node: &str) -> PathBuf {
        self.files.path().join(node)
    }

    /// The value of a label of a node, as its file says it; none without the file.
    fn label(&self, node: &str, label: &str) -> Option<String> {
        let text = fs::read_to_string(self.file(node)).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix(label)?.strip_prefix('=')?.to_owned()))
    }

    fn hint(&self, node: &str, snapshot: Uuid) -> Option<String> {
        self.label(node, &format!("rekindle/snapshot-{snapshot}"))
    }

    /// The node that a scheduler chooses for a resume, by the files alone; none if all are alike.
    fn chosen(&self, snapshot: Uuid) -> Option<&'static str> {
        let open = NAMES.iter().filter(|node| self.label(node, "rekindle/open").as_deref() == Some("true"));
        let with = |wanted: &str| {
            open.clone().find(|node| self.hint(node, snapshot).as_deref() == Some(wanted)).copied()
        };
        with("local").or_else(|| with("warm"))
    }
}

/// The hint of a node on one snapshot.
fn hint(node: &Node, snapshot: Uuid) -> Option<ResumeHint> {
    asked(node, snapshot).placed[0].resume
}

fn asked(node: &Node, snapshot: Uuid) -> NodePlacement {
    node.client.node_placement(&PlacementQuery { snapshots: vec![snapshot] }).expect("it is told")
}

/// Details of the events that tell of a snapshot's nearness.
fn told_hints(node: &Node, snapshot: Uuid) -> Vec<String> {
    let known = node.client.known_events(0).expect("they are known").map(|event| event.expect("an event"));
    let placed = known.filter(|event| event.kind == "snapshot.placed" && event.snapshot == Some(snapshot));
    placed.filter_map(|event| event.detail).collect()
}

#[test]
fn a_scheduler_that_reads_files_of_three_nodes_has_a_resume_where_it_is_local() {
    let mut fleet = Fleet::start();
    let [first, second, third] = &fleet.nodes;
    first.filled("box", 1);
    let base = first.pause("box", "base").id;
    assert_eq!(hint(first, base), Some(ResumeHint::Local), "all of it is in RAM, or on the disk");
    first.wait("base", SnapshotState::Published);
    first.eventually("its file naming it", || fleet.hint("first", base).as_deref() == Some("local"));
    assert_eq!(fleet.chosen(base), Some("first"));
    // Nobody told the others of it, and they did not ask the store.
    let unknown = asked(second, base);
    assert_eq!((unknown.placed[0].resume, unknown.placed[0].state), (Some(ResumeHint::Remote), None));
    assert_eq!(unknown.snapshots, 0);

    let whole = ResumeSnapshot { prefault: Some(Prefault::All), ..resume_as("copy", 1) };
    second.client.resume_snapshot(&base.to_string(), None, &whole).expect("the store has it");
    second.assert_verified("copy");
    second.eventually("all of it having come", || fleet.hint("second", base).as_deref() == Some("local"));
    second.eventually("an event", || told_hints(second, base).last().is_some_and(|hint| hint == "local"));

    // Its child is warm where the parent's layers are, and remote where nothing is.
    first.resume("box");
    first.told("box").rewrite(rewrite(2)).expect("rewrites");
    let next = first.pause("box", "next").id;
    first.wait("next", SnapshotState::Published);
    second.client.snapshot(&next.to_string()).expect("the store has it");
    third.client.snapshot(&next.to_string()).expect("the store has it");
    second.eventually("its file naming the child", || fleet.hint("second", next).as_deref() == Some("warm"));
    assert_eq!((hint(second, next), hint(third, next)), (Some(ResumeHint::Warm), Some(ResumeHint::Remote)));
    assert_eq!(fleet.hint("third", next), None);
    assert_eq!(fleet.chosen(next), Some("first"));

    // A node that ends says nothing any more, and the next best one is chosen.
    fleet.nodes[0].terminate();
    assert!(!fleet.file("first").exists());
    assert_eq!(fleet.chosen(next), Some("second"));
    let chosen = &fleet.nodes[1];
    chosen.resumed(&next.to_string(), "moved");
    chosen.assert_verified("moved");
    chosen.client.drain(&Default::default()).expect("it is drained");
    chosen.eventually("its file saying so", || {
        fleet.label("second", "rekindle/open").as_deref() == Some("false")
    });
    assert_eq!(fleet.chosen(next), None);
    fleet.nodes[0].start_again();
    fleet.nodes[0].eventually("its file being back", || fleet.chosen(next) == Some("first"));
}

#[test]
fn an_unsaved_snapshot_is_answered_about_and_named_in_no_list() {
    let fleet = Fleet::start();
    let node = &fleet.nodes[0];
    let outage = Outage::of(&fleet.store.path().join("store"));
    node.filled("box", 1);
    let snapshot = node.pause("box", "base").id;
    let answered = asked(node, snapshot);
    assert_eq!((answered.placed[0].resume, answered.snapshots), (Some(ResumeHint::Local), 1));
    let listed = node.client.node_placement(&PlacementQuery::default()).expect("it is told");
    assert_eq!(listed.placed, []);
    node.eventually("the file being there", || fleet.label("first", "rekindle/running").is_some());
    assert_eq!(fleet.hint("first", snapshot), None);
    outage.end();
    node.wait("base", SnapshotState::Published);
    node.eventually("the file naming it", || fleet.hint("first", snapshot).as_deref() == Some("local"));
    // Changes that a client missed come as events, from the one that its answer names.
    let after = node.client.known_events(answered.event).expect("they are known");
    let kinds: Vec<String> = after.map(|event| event.expect("an event").kind).collect();
    assert!(kinds.iter().any(|kind| kind == "snapshot.published"), "{kinds:?}");
}

#[test]
fn a_snapshot_whose_layers_are_evicted_is_no_longer_named_and_its_hint_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("placement");
    let node = Node::start_with(&format!("cache_bytes_max = \"1MiB\"\nplacement_file = {file:?}\n"));
    node.filled("box", 1);
    let snapshot = node.pause("box", "base").id;
    node.wait("base", SnapshotState::Published);
    node.eventually("an eviction", || hint(&node, snapshot) == Some(ResumeHint::Remote));
    node.eventually("an event", || told_hints(&node, snapshot).last().is_some_and(|hint| hint == "remote"));
    node.eventually("the file without it", || {
        fs::read_to_string(&file).is_ok_and(|text| !text.contains(&snapshot.to_string()))
    });
    node.resume("box");
    node.assert_verified("box");
}
