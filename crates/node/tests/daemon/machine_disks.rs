//! Machines that boot on the disks of a snapshot, without its memory.

use rekindle_api::problem::Code;
use rekindle_api::types::{CreateSandbox, SnapshotState};

use crate::machine_console::{Console, have_qemu, linux};
use crate::peers::Peers;
use crate::support::Node;

const TIER: &str = "machines on the disks of a snapshot";

/// The same sandbox on the disks of a snapshot.
fn on_disks_of(snapshot: &str, mut wanted: CreateSandbox) -> CreateSandbox {
    let machine = wanted.machine.as_mut().expect("it is one");
    machine.disks.clear();
    machine.disks_of = Some(snapshot.to_owned().try_into().expect("it is a name"));
    wanted
}

#[test]
fn a_machine_boots_on_the_disks_of_a_snapshot_and_leaves_it_as_it_is() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let Some(wanted) = linux(&node, "vm", TIER) else { return };
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle linux guest, ");
    console.ask("write note one", "written ");
    console.ask("sync", "synced");
    console.ask("fill 1 40", "filled ");
    let saved = node.pause("vm", "saved");

    let Some(fresh) = linux(&node, "fresh", TIER) else { return };
    let fresh = on_disks_of("saved", fresh);
    let less = CreateSandbox { memory_bytes: fresh.memory_bytes / 2, ..fresh.clone() };
    let refused = node.client.create_sandbox(None, &less).expect_err("it has another size");
    assert_eq!(refused.code(), Some(Code::WrongState), "{refused}");
    node.client.create_sandbox(None, &fresh).expect("it boots");
    let mut console = Console::of(&node.client, "fresh");
    assert!(console.line("rekindle linux guest, ").ends_with("/dev/vda at /disk"), "it boots anew");
    assert_eq!(console.ask("read note", "read "), "one");
    console.ask("write note two", "written ");
    console.ask("sync", "synced");
    console.ask("fill 2 40", "filled ");
    let snapshots = node.client.all_snapshots(&[]).expect("a list");
    let images = snapshots.iter().find(|snapshot| snapshot.parent == Some(saved.id));
    let images = images.expect("its lineage says whose disks it has").id;
    let first = node.pause("fresh", "first");
    assert_eq!(first.parent, Some(images));
    node.wait("first", SnapshotState::Published);
    node.resume("fresh");
    let mut console = Console::from_now(&node.client, "fresh");
    console.assert_verified();
    console.ask("forget", "forgot");
    assert_eq!(console.ask("read note", "read "), "two");

    node.resume("vm");
    let mut console = Console::from_now(&node.client, "vm");
    console.assert_verified();
    console.ask("forget", "forgot");
    assert_eq!(console.ask("read note", "read "), "one", "the snapshot is as it was");
}

#[test]
fn a_machine_in_firecracker_boots_on_the_disks_of_a_snapshot() {
    let peers = Peers::start();
    let node = &peers.node;
    peers.filled("vm");
    node.pause("vm", "saved");
    let fresh = on_disks_of("saved", peers.machine("fresh"));
    node.client.create_sandbox(None, &fresh).expect("it boots");
    peers.assert_disk("fresh", 3, 4);
    assert_eq!(peers.tick("fresh"), 1, "it boots anew");
    peers.write_disk("fresh", 3, 5);
    node.pause("fresh", "first");
    node.resume("fresh");
    peers.assert_disk("fresh", 3, 5);
    node.resume("vm");
    peers.assert_disk("vm", 3, 4);
}
