//! Sandboxes and captures for which there is no room: refused with the setting that says so, and nothing is changed.

use std::fs;

use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;
use rekindle_api::types::{
    Accelerator, Board, CaptureMemory, CaptureSource, CreateSandbox, DiskImage, ForkSandbox, MemoryBacking,
    SnapshotState,
};
use rekindle_kernel::hugepages::{self, HugepageReservation};
use rekindle_testkit::skip::skipped;

use crate::machine_console::{have_qemu, tiny};
use crate::sockets;
use crate::support::{Node, create, pause_as, resume_as, rewrite};

/// Captures may hold less RAM than a sandbox of these tests has.
const TOO_SMALL: &str = "capture_bytes_max = \"8MiB\"\n";

/// Starts the daemon again, with other settings beside those of its directories.
fn start_again_with(node: &mut Node, settings: &str) {
    let path = node.place.settings_file();
    let before = fs::read_to_string(&path).expect("settings are there");
    fs::write(&path, format!("{before}{settings}")).expect("there is room");
    node.crash();
}

#[test]
fn a_sandbox_that_could_never_be_paused_is_refused_with_the_setting_and_human_sizes() {
    let mut node = Node::start_with(TOO_SMALL);
    let error =
        node.client.create_sandbox(None, &create("a", Default::default())).expect_err("it is too large");
    assert_eq!(error.code(), Some(Code::Misfit), "{error}");
    for told in ["16.0 MiB is needed", "capture_bytes_max is 8.0 MiB", "run_unpausable"] {
        assert!(error.to_string().contains(told), "{error}");
    }
    assert!(node.client.all_sandboxes(&[]).expect("they are listed").is_empty());
    start_again_with(&mut node, "run_unpausable = true\n");
    node.filled("a", 1);
    let error = node.client.pause_sandbox("a", None, &pause_as("never")).expect_err("it never fits");
    assert_eq!(error.code(), Some(Code::NoRam), "{error}");
    assert!(error.to_string().contains("16.0 MiB is needed, capture_bytes_max is 8.0 MiB: raise"), "{error}");
    node.assert_verified("a");
}

#[test]
fn guests_whose_memory_is_too_much_together_are_refused_also_where_each_alone_is_not() {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("Linux tells it");
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).expect("Linux tells it");
    let total = total.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10;
    // Nine of them are more than four times this machine.
    let memory_bytes = (total / 2).next_multiple_of(1 << 21);
    let node = Node::start_with("run_unpausable = true\nmemory_overcommit = 4\n");
    let wanted = |name: &str| CreateSandbox { memory_bytes, ..create(name, MemoryBacking::Private) };
    let mut made = 0;
    let refused = loop {
        match node.client.create_sandbox(None, &wanted(&format!("vm-{made}"))) {
            Ok(_) => made += 1,
            Err(_) if made == 0 => return skipped("room for guests", "others have most of the memory"),
            Err(refused) => break refused,
        }
        assert!(made <= 8, "{made} guests have more than four times the memory of this machine");
    };
    assert_eq!(refused.code(), Some(Code::Misfit), "{refused}");
    for told in ["guests that run may still take", "raise memory_overcommit"] {
        assert!(refused.to_string().contains(told), "{told}: {refused}");
    }
    let forks = ForkSandbox { count: 8_u32.try_into().expect("a few"), ..Default::default() };
    let refused = node.client.fork_sandbox("vm-0", None, &forks).expect_err("they are too many together");
    assert!(refused.to_string().contains("raise memory_overcommit"), "{refused}");
}

#[test]
fn a_guest_for_which_too_few_huge_pages_are_left_is_refused_before_anything_of_it_is_made() {
    let node = Node::start_with("run_unpausable = true\n");
    let Ok(free) = hugepages::pages_free() else {
        return skipped("huge pages", "the kernel has none of 2 MiB");
    };
    // Many more than other tests reserve meanwhile.
    let memory_bytes = (free + 4096) << 21;
    let wanted = CreateSandbox { memory_bytes, ..create("a", MemoryBacking::Huge) };
    let error = node.client.create_sandbox(None, &wanted).expect_err("there are not so many");
    assert_eq!(error.code(), Some(Code::Misfit), "{error}");
    let needed = format!("needs {} huge pages", free + 4096);
    for told in [needed.as_str(), "vm.nr_hugepages", "--backing"] {
        assert!(error.to_string().contains(told), "{error}");
    }
    assert!(node.client.all_sandboxes(&[]).expect("they are listed").is_empty());
    assert!(node.kept("guest/").is_empty());
}

#[test]
fn clones_for_which_too_few_huge_pages_are_left_together_are_refused_before_the_first_is_made() {
    let node = Node::start();
    let wanted = CreateSandbox { memory_bytes: 64 << 20, ..create("a", MemoryBacking::Huge) };
    let reserved = HugepageReservation::reserve(64);
    let (Ok(_reserved), Ok(_)) = (reserved, node.client.create_sandbox(None, &wanted)) else {
        return skipped("huge pages", "the kernel has none of 2 MiB to spare");
    };
    node.told("a").fill(1).expect("fills");
    // Those that are free, and many more than other tests reserve meanwhile.
    let free = hugepages::pages_free().expect("there are some");
    let count = u32::try_from(free / 32 + 16).expect("a few");
    let assert_refused = |refused: ClientError| {
        assert_eq!(refused.code(), Some(Code::Misfit), "{refused}");
        assert!(refused.to_string().contains("huge pages of 2 MiB"), "{refused}");
        assert!(!refused.to_string().contains("could not be made"), "{refused}");
    };
    let forks = ForkSandbox { count: count.try_into().expect("a few"), ..Default::default() };
    assert_refused(node.client.fork_sandbox("a", None, &forks).expect_err("there are not so many"));
    assert_eq!(node.told("a").verify().expect("its guest verifies").mismatches, 0, "it runs on");
    assert!(
        node.client.all_snapshots(&[]).expect("they are listed").is_empty(),
        "it was not paused for that"
    );
    node.pause("a", "base");
    let clones = resume_as("b", count);
    assert_refused(node.client.resume_snapshot("base", None, &clones).expect_err("there are not so many"));
    assert_eq!(node.client.all_sandboxes(&[]).expect("they are listed").len(), 1);
    node.resume("a");
    node.assert_verified("a");
}

#[test]
fn a_vmm_whose_capture_has_no_room_is_served_on_as_if_nothing_had_been_asked() {
    let mut node = Node::start();
    let state = sockets::base(&node);
    node.wait("base", SnapshotState::Published);
    start_again_with(&mut node, TOO_SMALL);
    let socket = sockets::open(&node);
    let mut guest = sockets::vmm(&node, &socket, &state);
    guest.control.rewrite(rewrite(2)).expect("rewrites");
    let faults = || {
        let shown = node.client.fault_socket(socket.id).expect("it is known");
        shown.served.expect("it is served").faults
    };
    let before = faults();
    assert!(before > 0);
    let wanted = CaptureMemory {
        domain: None,
        source: CaptureSource::FaultSocket { id: socket.id },
        name: None,
        labels: Default::default(),
        blobs: Default::default(),
    };
    let error = node.client.capture_memory(&wanted).expect_err("it is more than captures may hold");
    assert_eq!(error.code(), Some(Code::NoRam), "{error}");
    assert!(faults() >= before, "the server that it had serves it on");
    sockets::assert_right(&mut guest);
}

#[test]
fn images_that_are_more_than_captures_may_hold_are_refused_before_they_are_read() {
    if !have_qemu("machines in QEMU") {
        return;
    }
    let node = Node::start_with(TOO_SMALL);
    let mut wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    wanted.memory_bytes = 4 << 20;
    let machine = wanted.machine.as_mut().expect("it is a machine");
    for name in ["one", "two"] {
        let image = node.place.home_directory().join(name);
        fs::write(&image, vec![7; 5 << 20]).expect("there is room");
        let image = image.display().to_string();
        machine.disks.push(DiskImage { name: name.to_owned(), image });
    }
    let error = node.client.create_sandbox(None, &wanted).expect_err("they are more together");
    assert_eq!(error.code(), Some(Code::NoRam), "{error}");
    assert!(error.to_string().contains("10.0 MiB is needed, capture_bytes_max is 8.0 MiB"), "{error}");
    assert!(node.client.all_snapshots(&[]).expect("they are listed").is_empty());
}
