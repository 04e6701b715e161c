//! Three daemons, each in a network namespace of its own, on links that are slow, lose everything, or end.

use std::process::Command;

use rekindle_api::client::ClientError;
use rekindle_api::types::{ForkSandbox, ResumeSnapshot, SandboxState, SnapshotState};
use rekindle_testkit::skip::skipped;
use tempfile::TempDir;

use crate::support::{Node, Outage, resume_as, rewrite};
use crate::two_nodes::{place, settings_of};

const TIER: &str = "nodes in network namespaces";
const NAMES: [&str; 3] = ["a", "b", "c"];
/// The rate of each link, in each direction: a guest's memory takes more than two seconds, in which links and nodes go.
const RATE: &str = "60mbit";

/// Network namespaces of nodes, and one that joins their links; gone with this.
struct Network {
    prefix: String,
}

impl Network {
    /// None where there can be none, which is said.
    fn new(of: &str) -> Option<Self> {
        let network = Self { prefix: format!("rk{}{of}", std::process::id()) };
        let made = network.make();
        if !made {
            skipped(TIER, "ip makes no network namespaces with a bridge");
        }
        made.then_some(network)
    }

    fn make(&self) -> bool {
        let hub = self.namespace("hub");
        let mut made = run(&format!("ip netns add {hub}"))
            && run(&format!("ip -n {hub} link add name hub type bridge"))
            && run(&format!("ip -n {hub} link set hub up"));
        for (number, name) in NAMES.iter().enumerate() {
            let node = self.namespace(name);
            made = made
                && run(&format!("ip netns add {node}"))
                && run(&format!("ip -n {hub} link add name {name} type veth peer name uplink netns {node}"))
                && run(&format!("ip -n {hub} link set dev {name} master hub up"))
                && run(&format!("ip -n {node} link set lo up"))
                && run(&format!("ip -n {node} address add {}/24 dev uplink", host(number)))
                && run(&format!("ip -n {node} link set uplink up"))
                && run(&format!("tc -n {hub} qdisc add dev {name} root {}", rate()))
                && run(&format!("tc -n {node} qdisc add dev uplink root {}", rate()));
        }
        made
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Packets to and from this node are dropped from now on, and nobody is told.
    fn part(&self, name: &str) {
        assert!(run(&format!("ip -n {} link set dev {name} nomaster", self.namespace("hub"))));
    }

    fn join(&self, name: &str) {
        assert!(run(&format!("ip -n {} link set dev {name} master hub", self.namespace("hub"))));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in NAMES.iter().chain(&["hub"]) {
            run(&format!("ip netns delete {}", self.namespace(name)));
        }
    }
}

fn run(words: &str) -> bool {
    let mut words = words.split(' ');
    let program = words.next().expect("it has a name");
    Command::new(program).args(words).status().is_ok_and(|status| status.success())
}

fn rate() -> String {
    format!("tbf rate {RATE} burst 64kb latency 50ms")
}

fn host(number: usize) -> String {
    format!("10.84.0.{}", number + 1)
}

/// Nodes that publish into the same directory, the network between them, and their certificates.
struct Fleet {
    a: Node,
    b: Node,
    c: Node,
    network: Network,
    directories: [TempDir; 2],
}

impl Fleet {
    fn start(of: &str) -> Option<Self> {
        let network = Network::new(of)?;
        let directories = [(); 2].map(|()| tempfile::tempdir().expect("directories"));
        let settings = settings_of(directories[1].path());
        let address = |number: usize| format!("{}:7420", host(number));
        let known: Vec<String> =
            NAMES.iter().enumerate().map(|(number, name)| format!("{name}={}", address(number))).collect();
        let place_of = |number: usize| {
            let own = address(number);
            let peers = format!("listen = {own:?}\naddress = {own:?}\nstatic = {known:?}\n");
            let mut place = place(&format!("{settings}{peers}"), directories[0].path());
            place.in_network(&network.namespace(NAMES[number]));
            place
        };
        let a = Node::start_in(place_of(0));
        let [b, c] = [1, 2].map(|number| {
            let place = place_of(number);
            place.copy_key_ring(&a.place).expect("the other has keys");
            Node::start_in(place)
        });
        Some(Self { a, b, c, network, directories })
    }

    /// From now on nothing can be published.
    fn outage(&self) -> Outage {
        Outage::of_layers(&self.directories[0].path().join("store"))
    }
}

fn resume_from(node: &Node, snapshot: &str, name: &str, origin: &str) -> Result<(), ClientError> {
    let how = ResumeSnapshot { from: Some(origin.to_owned()), ..resume_as(name, 1) };
    node.client.resume_snapshot(snapshot, None, &how).map(drop)
}

/// The node says that it waits for pages of another one.
fn waits_for(node: &Node, snapshot: &str, origin: &str) {
    node.eventually("the node being named", || {
        let shown = node.client.snapshot(snapshot).expect("it is listed");
        let named = format!("node {origin}");
        shown.reason.is_some_and(|reason| reason.contains(&named) && reason.contains("bytes of"))
    });
}

#[test]
fn a_guest_goes_from_node_to_node_over_slow_links_before_any_pause_is_saved() {
    let Some(fleet) = Fleet::start("line") else { return };
    let outage = fleet.outage();
    fleet.a.filled("box", 1);
    let first = fleet.a.pause("box", "base").id.to_string();
    resume_from(&fleet.b, &first, "moved", "a").expect("its node has it");
    fleet.b.told("moved").rewrite(rewrite(2)).expect("rewrites");
    let second = fleet.b.pause("moved", "next").id.to_string();
    resume_from(&fleet.c, &second, "again", "b").expect("its node has it");
    fleet.c.client.fork_sandbox("again", None, &ForkSandbox::default()).expect("it is forked");
    fleet.b.resume("moved");
    for (node, sandbox) in [(&fleet.c, "again"), (&fleet.b, "moved")] {
        node.assert_verified(sandbox);
    }
    for fork in fleet.c.client.all_sandboxes(&[]).expect("it answers") {
        fleet.c.assert_verified(&fork.id.to_string());
    }
    outage.end();
    for (node, snapshot) in [(&fleet.a, &first), (&fleet.b, &second), (&fleet.c, &second)] {
        node.wait(snapshot, SnapshotState::Published);
    }
    fleet.c.assert_verified("again");
}

#[test]
fn a_link_that_loses_everything_stalls_the_guest_and_names_the_node_until_it_is_back() {
    let Some(fleet) = Fleet::start("part") else { return };
    let outage = fleet.outage();
    fleet.a.filled("box", 1);
    let snapshot = fleet.a.pause("box", "base").id.to_string();
    resume_from(&fleet.b, &snapshot, "moved", "a").expect("its node has it");
    fleet.network.part("a");
    waits_for(&fleet.b, &snapshot, "a");
    let refused = resume_from(&fleet.c, &snapshot, "other", "a").expect_err("it is away").to_string();
    assert!(refused.contains("node a"), "{refused}");
    fleet.network.join("a");
    fleet.b.assert_verified("moved");
    assert_eq!(fleet.b.client.sandbox("moved").expect("it is listed").state, SandboxState::Running);
    outage.end();
    fleet.b.wait(&snapshot, SnapshotState::Published);
}

#[test]
fn a_node_that_is_killed_in_any_phase_costs_no_saved_page_and_is_named() {
    let Some(mut fleet) = Fleet::start("kill") else { return };
    let outage = fleet.outage();
    fleet.a.filled("box", 1);
    let snapshot = fleet.a.pause("box", "base").id.to_string();
    // Before anyone has asked it.
    fleet.a.kill();
    let refused = resume_from(&fleet.b, &snapshot, "moved", "a").expect_err("it is away").to_string();
    assert!(refused.contains("node a cannot be reached"), "{refused}");
    fleet.a.start_again();
    // While its pages are on their way.
    resume_from(&fleet.b, &snapshot, "moved", "a").expect("its node has it");
    fleet.a.kill();
    waits_for(&fleet.b, &snapshot, "a");
    fleet.a.start_again();
    fleet.b.assert_verified("moved");
    // While another node reads the child, whose pages lie at two nodes.
    fleet.b.told("moved").rewrite(rewrite(2)).expect("rewrites");
    let child = fleet.b.pause("moved", "next").id.to_string();
    resume_from(&fleet.c, &child, "again", "b").expect("its node has it");
    fleet.a.kill();
    fleet.c.assert_verified("again");
    fleet.a.start_again();
    // After all is in the store.
    outage.end();
    for (node, snapshot) in [(&fleet.a, &snapshot), (&fleet.b, &child), (&fleet.c, &child)] {
        node.wait(snapshot, SnapshotState::Published);
    }
    fleet.a.kill();
    fleet.b.kill();
    resume_from(&fleet.c, &child, "late", "b").expect("the store has it");
    fleet.c.assert_verified("late");
    fleet.c.assert_verified("again");
}
