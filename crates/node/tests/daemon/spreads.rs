//! Nodes whose sandboxes are spread over others when they are drained.

use std::collections::BTreeMap;

use rekindle_api::problem::Code;
use rekindle_api::types::{
    CreateSandbox, Drain, DrainNode, Labels, MemoryBacking, SandboxState, SnapshotState,
};
use tempfile::TempDir;

use crate::support::{Node, create};
use crate::two_nodes::{free_address, place, settings_of};

const NAMES: [&str; 3] = ["first", "second", "third"];

/// Three nodes that know each other, and publish into the same directory.
struct Fleet {
    first: Node,
    second: Node,
    third: Node,
    _directories: [TempDir; 2],
}

impl Fleet {
    fn start() -> Self {
        let directories = [(); 2].map(|()| tempfile::tempdir().expect("directories"));
        let settings = settings_of(directories[1].path());
        let addresses = NAMES.map(|_| free_address());
        let known: Vec<String> =
            NAMES.iter().zip(&addresses).map(|(name, address)| format!("{name}={address}")).collect();
        let place_of = |address: &String| {
            let peers = format!("listen = {address:?}\nstatic = {known:?}\n");
            place(&format!("{settings}{peers}"), directories[0].path())
        };
        let first = Node::start_in(place_of(&addresses[0]));
        let [second, third] = [&addresses[1], &addresses[2]].map(|address| {
            let place = place_of(address);
            place.copy_key_ring(&first.place).expect("the other has keys");
            Node::start_in(place)
        });
        Self { first, second, third, _directories: directories }
    }

    /// Sandboxes of the first node whose guests were filled.
    fn filled(&self, names: &[&str]) {
        for name in names {
            let small = CreateSandbox { memory_bytes: 1 << 20, ..create(name, MemoryBacking::Shared) };
            self.first.client.create_sandbox(None, &small).expect("a sandbox is made");
            self.first.told(name).fill(7).expect("its guest fills its memory");
        }
    }

    fn drained(&self, to: &[&str], labels: Labels) -> Drain {
        let to = to.iter().map(ToString::to_string).collect();
        self.first.client.drain(&DrainNode { labels, to }).expect("it is drained")
    }
}

/// Names of the sandboxes of a node, all of which are in that state.
fn names(node: &Node, state: SandboxState) -> Vec<String> {
    let all = node.client.all_sandboxes(&[]).expect("it answers");
    assert!(all.iter().all(|sandbox| sandbox.state == state), "{all:?}");
    let mut names: Vec<_> =
        all.into_iter().map(|sandbox| sandbox.name.expect("it has one").to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_node_is_drained_over_two_others_which_go_on_with_half_of_its_sandboxes_each() {
    let mut fleet = Fleet::start();
    fleet.filled(&["a", "b", "c", "d"]);
    let said =
        fleet.first.place.command(["drain", "--to", "second,third"]).output().expect("the program runs");
    assert!(said.status.success(), "{said:?}");
    let told = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(told.contains("sandbox a runs at node second as "), "{told}");
    assert!(told.ends_with("4 sandboxes are at other nodes, and everything is in the store\n"), "{told}");
    assert_eq!(names(&fleet.first, SandboxState::Running), Vec::<String>::new());
    let snapshots = fleet.first.client.all_snapshots(&[]).expect("they are listed");
    assert!(snapshots.iter().all(|snapshot| snapshot.state == SnapshotState::Published), "{snapshots:?}");
    let shown = fleet.first.client.drained().expect("it is shown");
    assert!(shown.closed && shown.sandboxes.len() == 4, "{shown:?}");
    assert_eq!(fleet.drained(&["second", "third"], Labels::default()), shown, "it may be asked for again");

    let undone = fleet.first.client.undo_drain().expect("it is undone");
    assert!(!undone.closed, "{undone:?}");
    assert_eq!(undone.sandboxes, shown.sandboxes, "they stay where they are, and are told");
    assert_eq!(fleet.first.client.drained().expect("it is shown").sandboxes, Vec::new());
    fleet.first.kill();
    for (node, has) in [(&fleet.second, ["a", "c"]), (&fleet.third, ["b", "d"])] {
        assert_eq!(names(node, SandboxState::Running), has);
        has.iter().for_each(|name| node.assert_verified(name));
    }
}

#[test]
fn a_sandbox_that_one_node_does_not_take_goes_to_the_next_and_is_paused_here_if_none_does() {
    let mut fleet = Fleet::start();
    fleet.filled(&["a", "b"]);
    fleet.second.client.drain(&DrainNode::default()).expect("it takes none from now on");
    let unknown =
        fleet.first.client.drain(&DrainNode { to: vec!["fourth".to_owned()], ..Default::default() });
    assert_eq!(unknown.expect_err("no node is called so").code(), Some(Code::NotFound));
    assert_eq!(names(&fleet.first, SandboxState::Running), ["a", "b"], "nothing has begun");
    let drained = fleet.drained(&["second", "third"], Labels::default());
    assert!(drained.sandboxes.iter().all(|drained| drained.moved.is_some()), "{drained:?}");
    assert_eq!(names(&fleet.third, SandboxState::Running), ["a", "b"]);
    ["a", "b"].iter().for_each(|name| fleet.third.assert_verified(name));

    fleet.first.client.undo_drain().expect("it is undone");
    fleet.filled(&["c"]);
    fleet.third.kill();
    let said =
        fleet.first.place.command(["drain", "--to", "second,third"]).output().expect("the program runs");
    let told = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success() && told.contains("sandbox c is paused here: "), "{said:?}");
    assert!(told.contains("node second does not take it: this node is drained"), "{told}");
    assert!(told.contains("node third cannot be reached"), "{told}");
    assert!(told.ends_with("1 sandbox is paused, and everything is in the store\n"), "{told}");
    assert_eq!(names(&fleet.first, SandboxState::Paused), ["c"]);
    // One that a drain has paused moves with the next one.
    fleet.second.client.undo_drain().expect("it takes some again");
    let drained = fleet.drained(&["second"], Labels::default());
    assert!(drained.sandboxes.iter().all(|drained| drained.moved.is_some()), "{drained:?}");
    assert_eq!(names(&fleet.second, SandboxState::Running), ["c"]);
    fleet.second.assert_verified("c");
}

#[test]
fn a_drain_of_sandboxes_with_a_label_moves_those_and_undoing_it_resumes_those_that_no_node_took() {
    let mut fleet = Fleet::start();
    let blue: Labels =
        BTreeMap::from([("team".to_owned(), "blue".to_owned())]).try_into().expect("they are labels");
    let wanted = CreateSandbox { labels: blue.clone(), ..create("blue", MemoryBacking::Shared) };
    fleet.first.client.create_sandbox(None, &wanted).expect("a sandbox is made");
    fleet.filled(&["red"]);
    fleet.third.kill();
    let drained = fleet.drained(&["third"], blue.clone());
    let [stays] = &drained.sandboxes[..] else { unreachable!("there is one: {drained:?}") };
    assert!(!drained.closed && stays.problem.is_none() && stays.not_moved.is_some(), "{drained:?}");
    assert_eq!(fleet.first.client.sandbox("blue").expect("it is listed").state, SandboxState::Paused);
    let undone = fleet.first.client.undo_drain().expect("it is undone");
    assert_eq!(undone.sandboxes.len(), 1, "{undone:?}");
    assert_eq!(names(&fleet.first, SandboxState::Running), ["blue", "red"]);
    let drained = fleet.drained(&["third", "second"], blue);
    assert!(drained.sandboxes.iter().all(|drained| drained.moved.is_some()), "{drained:?}");
    assert_eq!(names(&fleet.first, SandboxState::Running), ["red"]);
    assert_eq!(names(&fleet.second, SandboxState::Running), ["blue"]);
    fleet
        .first
        .client
        .create_sandbox(None, &create("late", MemoryBacking::Shared))
        .expect("it takes new ones");
}
