//! Checkpoints of virtual machines, which go on in their VMM with their disks.

use rekindle_api::types::{Accelerator, Board, SnapshotState};

use crate::machine_console::{Console, have_qemu, linux, tiny};
use crate::peers::Peers;
use crate::support::Node;

const TIER: &str = "checkpoints of machines in QEMU";

/// Takes two checkpoints of a machine, the daemon dying in between, and resumes both: each is of its moment.
fn checkpoint_twice(node: &mut Node, seed: u64) {
    let pid = node.client.sandbox("vm").expect("it is there").pid;
    let mut counts = Vec::new();
    for number in [seed, seed + 1] {
        let counted = Console::from_now(&node.client, "vm").tick();
        node.checkpoint("vm", &format!("at-{number}"));
        counts.push((format!("at-{number}"), counted));
        assert_eq!(node.client.sandbox("vm").expect("it is there").pid, pid);
        let mut console = Console::from_now(&node.client, "vm");
        assert_eq!(console.tick(), counted + 1, "it goes on");
        console.assert_verified();
        console.ask(&format!("dirty {number} 20"), "dirtied ");
        node.crash();
        Console::from_now(&node.client, "vm").assert_verified();
    }
    for (snapshot, counted) in counts {
        node.resumed(&snapshot, &format!("of-{snapshot}"));
        let of = format!("of-{snapshot}");
        let mut console = Console::from_now(&node.client, &of);
        assert_eq!(console.tick(), counted + 1);
        console.assert_verified();
        node.client.remove_sandbox(&of).expect("it is removed");
    }
}

#[test]
fn a_machine_is_checkpointed_and_goes_on_in_its_vmm_fresh_and_served() {
    if !have_qemu(TIER) {
        return;
    }
    let mut node = Node::start();
    let machine = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    node.client.create_sandbox(None, &machine).expect("a machine is made");
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle tiny guest, ");
    console.ask("fill 1", "filled ");
    checkpoint_twice(&mut node, 2);
    let paused = node.pause("vm", "paused");
    assert_eq!(paused.parent, Some(node.client.snapshot("at-3").expect("it is there").id));
    node.resume("vm");
    Console::from_now(&node.client, "vm").assert_verified();
    checkpoint_twice(&mut node, 4);
    node.wait("at-5", SnapshotState::Published);
    assert_eq!(node.client.verify_snapshot("at-5").expect("it is verified").wrong_pages, 0);
}

#[test]
fn a_linux_machine_goes_on_with_its_disk_and_each_checkpoint_has_the_disk_of_its_moment() {
    if !have_qemu(TIER) {
        return;
    }
    let mut node = Node::start();
    let Some(wanted) = linux(&node, "vm", TIER) else { return };
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle linux guest, ");
    console.ask("fill 1 40", "filled ");
    for note in ["one", "two", "three"] {
        let mut console = Console::from_now(&node.client, "vm");
        console.ask(&format!("write note {note}"), "written ");
        console.ask("sync", "synced");
        node.checkpoint("vm", note);
        let mut console = Console::from_now(&node.client, "vm");
        console.assert_verified();
        console.ask("forget", "forgot");
        assert_eq!(console.ask("read note", "read "), note);
        if note == "two" {
            node.crash();
        }
    }
    for note in ["one", "two", "three"] {
        node.resumed(note, &format!("of-{note}"));
        let of = format!("of-{note}");
        let mut console = Console::from_now(&node.client, &of);
        console.assert_verified();
        console.ask("forget", "forgot");
        assert_eq!(console.ask("read note", "read "), note);
        node.client.remove_sandbox(&of).expect("it is removed");
    }
}

#[test]
fn a_machine_in_firecracker_is_checkpointed_and_goes_on_with_its_disk_fresh_and_served() {
    let mut peers = Peers::start();
    peers.filled("vm");
    for line in 0..2 {
        let pid = peers.node.client.sandbox("vm").expect("it is there").pid;
        let mut counts = Vec::new();
        // The second checkpoint has a block as it was before the first.
        for (number, seed) in [(0, 4), (1, 5), (2, 4)] {
            let name = format!("at-{line}-{number}");
            let counted = peers.tick("vm");
            peers.write_disk("vm", 3, seed);
            peers.node.checkpoint("vm", &name);
            counts.push((name, counted, seed));
            assert_eq!(peers.node.client.sandbox("vm").expect("it is there").pid, pid);
            peers.assert_verified("vm");
            peers.say("vm", &format!("dirty {number} 20"));
            if number == 1 {
                peers.node.crash();
            }
            peers.assert_disk("vm", 3, seed);
            peers.assert_verified("vm");
        }
        for (name, counted, seed) in counts {
            let of = format!("of-{name}");
            peers.node.resumed(&name, &of);
            assert_eq!(peers.tick(&of), counted + 1);
            peers.assert_verified(&of);
            peers.assert_disk(&of, 3, seed);
            peers.node.client.remove_sandbox(&of).expect("it is removed");
        }
        // From here on its pages are served.
        peers.node.pause("vm", &format!("paused-{line}"));
        peers.node.resume("vm");
        peers.assert_verified("vm");
        peers.assert_disk("vm", 3, 4);
    }
}
