//! VMs that are started, paused, resumed while that is saved, forked, and resumed on a node that has nothing of them.

use rekindle_engine::lifecycle::SnapshotState;
use rekindle_kernel::{HugepageReservation, Memfd};
use rekindle_testkit::hooks::Point;
use rekindle_testkit::skip::skipped;
use rekindle_vmm::firecracker::{Balloon, MemoryPages, TrackFrom};

use crate::support::{LIMIT, Node, interface};

#[test]
fn a_vm_goes_on_where_it_was_paused_three_generations_long() {
    let node = Node::start();
    let mut vm = node.run(&node.spec(8));
    assert_eq!(vm.say("fill 7"), "filled 2048");
    assert_eq!(vm.say("tick"), "tick 1");
    let mut snapshot = node.pause(vm);
    for generation in 1..=3_u64 {
        let mut vm = node.resume(&snapshot);
        assert_eq!(vm.say("tick"), format!("tick {}", generation + 1));
        vm.say(&format!("dirty {} 20", generation * 31));
        assert_eq!(vm.verify(), 2048);
        snapshot = node.pause(vm);
        assert_eq!(snapshot.generation(), generation);
    }
    node.assert_resumes(&snapshot);
    assert!(node.left_behind().is_empty(), "{:?}", node.left_behind());
}

#[test]
fn a_pause_captures_what_was_written_and_no_more() {
    let node = Node::start();
    let mut vm = node.run(&node.spec(8));
    vm.say("fill 7");
    let first = node.pause(vm);
    let mut vm = node.resume(&first);
    vm.verify();
    for page in [0, 9, 10, 2047] {
        vm.say(&format!("put {page} 99"));
    }
    let second = node.pause(vm);
    second.wait_manifest(LIMIT).expect("it is sealed");
    let classes = second.status().classes.expect("it was compared");
    assert_eq!((classes.dirty, classes.kept, classes.unread), (4, 4, 0), "{classes:?}");
    assert_eq!(node.last_request("PUT /snapshot/create")["snapshot_type"], "Diff");
    let mut vm = node.resume(&second);
    vm.verify();
    node.end(vm);
}

#[test]
fn a_vm_resumes_and_forks_while_its_pause_is_not_sealed() {
    let node = Node::start();
    let gate = node.site.hooks.hold(Point::Compare);
    let mut vm = node.run(&node.spec(8));
    vm.say("fill 5");
    let snapshot = node.pause(vm);
    let mut forks = [node.resume(&snapshot), node.resume(&snapshot)];
    for (at, fork) in forks.iter_mut().enumerate() {
        assert_eq!(fork.verify(), 2048);
        fork.say(&format!("dirty {} 30", at + 1));
    }
    assert!(snapshot.manifest_now().is_none(), "nothing was sealed meanwhile");
    let [first, second] = forks;
    let first = node.pause(first);
    drop(gate);
    let mut again = node.resume(&first);
    again.verify();
    node.end(again);
    node.end(second);
}

#[test]
fn a_vm_resumes_cold_on_another_node() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT));
    let there = node.elsewhere();
    let snapshot = there.engine.open(snapshot.id()).expect("it is published");
    let mut vm = there.resume(&snapshot);
    assert_eq!(vm.verify(), 2048);
    there.end(vm);
}

#[test]
fn a_vm_that_is_tracked_from_its_first_resume_is_written_whole_once() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.tracking = TrackFrom::Resume;
    let mut vm = node.run(&spec);
    assert_eq!(node.last_request("PUT /machine-config")["track_dirty_pages"], false);
    vm.say("put 3 1");
    let snapshot = node.pause(vm);
    assert_eq!(node.last_request("PUT /snapshot/create")["snapshot_type"], "Full");
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 2048);
    vm.say("put 4 1");
    let snapshot = node.pause(vm);
    assert_eq!(node.last_request("PUT /snapshot/create")["snapshot_type"], "Diff");
    node.assert_resumes(&snapshot);
}

#[test]
fn memory_over_three_gib_is_in_two_regions_at_falling_addresses() {
    let node = Node::start();
    let mut vm = node.run(&node.spec(3 * 1024 + 512));
    let high = (3_u32 << 18) + 70_000;
    let pages = [0, 1, 70_000, (3 << 18) - 1, 3 << 18, high];
    for page in pages {
        vm.say(&format!("put {page} 8"));
    }
    let snapshot = node.pause(vm);
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 6);
    vm.say(&format!("put {} 9", high + 1));
    vm.say(&format!("put {} 9", 5));
    let snapshot = node.pause(vm);
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 8);
    node.end(vm);
}

#[test]
fn memory_of_huge_pages_is_served_and_captured_by_small_ones() {
    // Two VMs at a time have 16 MiB each.
    let _reservation = match HugepageReservation::reserve(20) {
        Ok(reservation) => reservation,
        Err(error) => return skipped("Firecracker with huge pages", &error.to_string()),
    };
    let node = Node::start();
    let mut spec = node.spec(16);
    spec.pages = MemoryPages::Huge;
    let mut vm = node.run(&spec);
    assert_eq!(node.last_request("PUT /machine-config")["huge_pages"], "2M");
    vm.say("fill 3");
    let mut snapshot = node.pause(vm);
    for seed in [4, 5] {
        let mut vm = node.resume(&snapshot);
        assert_eq!(vm.verify(), 4096);
        vm.say(&format!("dirty {seed} 10"));
        snapshot = node.pause(vm);
    }
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 4096);
    node.end(vm);
}

#[test]
fn what_a_balloon_took_is_zero_in_the_next_snapshot_and_not_the_parents() {
    let node = Node::start();
    let mut spec = node.spec(16);
    spec.balloon = Some(Balloon { mib: 0, deflates: true });
    let mut snapshot = node.pause(node.filled(&spec));
    for mib in [2, 5] {
        let mut vm = node.resume(&snapshot);
        vm.say("dirty 9 10");
        vm.guest.inflate_balloon(mib).expect("the balloon takes memory");
        // Some of what was taken is written again, some only read.
        vm.say("put 4095 6");
        vm.say("put 4000 0");
        assert_eq!(vm.verify(), 4096);
        snapshot = node.pause(vm);
    }
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 4096);
    node.end(vm);
}

#[test]
fn memory_that_a_vmm_shares_is_captured_without_a_copy() {
    let node = Node::start();
    node.set(|settings| (settings.shares_memory, settings.seals_seals) = (true, false));
    let mut snapshot = node.pause(node.filled(&node.spec(8)));
    for seed in [4, 5] {
        let mut vm = node.resume(&snapshot);
        let kept = vm.server.as_ref().expect("it is served").kept();
        let shared = kept.memfd.as_ref().expect("it was handed over").try_clone().expect("it is open");
        vm.say(&format!("dirty {seed} 20"));
        vm.verify();
        let gate = node.site.hooks.hold(Point::Compare);
        snapshot = node.pause(vm);
        // The capture is the very file, which is not written any more: the proof that its seal asks for.
        assert!(node.site.hooks.wait_standing(Point::Compare, snapshot.id(), LIMIT));
        assert!(Memfd::adopt(shared).expect("it is memory").is_write_sealed().expect("it can be asked"));
        drop(gate);
        let mut vm = node.resume(&snapshot);
        vm.verify();
        node.end(vm);
    }
}

#[test]
fn memory_that_a_vmm_shares_and_that_can_never_be_sealed_is_captured_as_it_was_written() {
    let node = Node::start();
    node.set(|settings| settings.shares_memory = true);
    let mut snapshot = node.pause(node.filled(&node.spec(8)));
    for seed in [4, 5] {
        let mut vm = node.resume(&snapshot);
        let kept = vm.server.as_ref().expect("it is served").kept();
        let shared = kept.memfd.as_ref().expect("it was handed over").try_clone().expect("it is open");
        let shared = Memfd::adopt(shared).expect("it is memory");
        assert!(!shared.can_seal_writes().expect("it can be asked"));
        vm.say(&format!("dirty {seed} 20"));
        vm.verify();
        snapshot = node.pause(vm);
        snapshot.wait_manifest(LIMIT).expect("it is sealed although the shared file lives");
        assert_eq!(snapshot.status().classes.expect("it was compared").unread, 0);
        drop(shared);
    }
    let mut vm = node.resume(&snapshot);
    vm.verify();
    node.end(vm);
}

#[test]
fn a_frame_that_comes_after_the_state_is_in_no_snapshot() {
    let node = Node::start();
    for shares in [false, true] {
        node.set(|settings| {
            settings.shares_memory = shares;
            settings.late_frame = true;
        });
        let mut spec = node.spec(8);
        spec.interfaces = vec![interface("eth0", "tap0")];
        let mut vm = node.run(&spec);
        vm.say("put 0 4");
        let first = node.pause(vm);
        let mut vm = node.resume(&first);
        vm.say("put 0 5");
        let second = node.pause(vm);
        let mut vm = node.resume(&second);
        assert_eq!(vm.verify(), 2048);
        node.end(vm);
    }
}
