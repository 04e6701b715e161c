//! Virtual machines through the daemon: real QEMUs, whose guests count and judge their memory themselves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rekindle_api::problem::Code;
use rekindle_api::types::{
    Accelerator, Board, DiskImage, ForkSandbox, SandboxState, SnapshotState, Tap, TapName,
};
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_testkit::black_box::PATIENCE;
use rekindle_testkit::random::Random;
use rekindle_testkit::skip::skipped;

use crate::machine_console::{Console, have_qemu, linux, tiny};
use crate::shared_memory::shared;
use crate::support::{Node, Outage, files_in, pause_as};

const TIER: &str = "machines in QEMU";

/// A machine with the tiny guest that has filled its memory.
fn filled(node: &Node, name: &str, board: Board, accelerator: Accelerator) {
    node.client.create_sandbox(None, &tiny(node, name, board, accelerator)).expect("a machine is made");
    let mut console = Console::of(&node.client, name);
    console.line("rekindle tiny guest, ");
    console.ask("fill 1", "filled ");
}

/// Waits until a machine waits for a page that cannot be had, and tries to pause it.
fn assert_not_paused_while_stalled(node: &Node, name: &str) {
    node.eventually("a page being waited for", || {
        node.client.sandbox(name).expect("it is there").state == SandboxState::Stalled
    });
    let refused = node.client.pause_sandbox(name, None, &pause_as("refused"));
    let refused = refused.expect_err("what waits for pages cannot stand");
    assert_eq!(refused.code(), Some(Code::StoreFailed), "{refused}");
    assert!(refused.to_string().contains("the guest waits for page "), "{refused}");
}

/// Pauses a machine after an outage of the store. Its kernel may still wait for a page that nobody asked it for: each page
/// that could not be had is asked for again only after a while.
fn pause_once_nothing_is_waited_for(node: &Node, sandbox: &str, name: &str) {
    node.eventually("a pause", || match node.client.pause_sandbox(sandbox, None, &pause_as(name)) {
        Ok(_) => true,
        Err(refused) => {
            assert_eq!(refused.code(), Some(Code::StoreFailed), "{refused}");
            false
        }
    });
}

/// Pauses, resumes while that is being saved, forks and pauses forks: everything goes on where it stood.
fn live_through(board: Board, accelerator: Accelerator) {
    let node = Node::start();
    filled(&node, "vm", board, accelerator);
    let counted = Console::from_now(&node.client, "vm").tick();
    let first = node.pause("vm", "first");
    node.resume("vm");
    let mut console = Console::from_now(&node.client, "vm");
    assert_eq!(console.tick(), counted + 1);
    console.assert_verified();
    console.ask("dirty 2 30", "dirtied ");
    let forks = ForkSandbox {
        count: 2_u32.try_into().expect("a few"),
        name: Some("fork".parse().expect("it is a name")),
        ..Default::default()
    };
    node.client.fork_sandbox("vm", None, &forks).expect("it is forked");
    for name in ["vm", "fork-1", "fork-2"] {
        let mut console = Console::from_now(&node.client, name);
        assert_eq!(console.tick(), counted + 2);
        console.ask("dirty 3 10", "dirtied ");
        console.assert_verified();
    }
    assert!(shared(&node, "fork-1") + shared(&node, "fork-2") > 0, "the forks share pages");
    assert_eq!(shared(&node, "vm"), 0);
    node.pause("fork-1", "second");
    node.resume("fork-1");
    Console::from_now(&node.client, "fork-1").assert_verified();
    node.resumed("first", "old");
    let mut old = Console::from_now(&node.client, "old");
    assert_eq!(old.tick(), counted + 1);
    old.assert_verified();
    node.wait("second", SnapshotState::Published);
    assert_eq!(node.client.verify_snapshot("second").expect("it is verified").wrong_pages, 0);
    assert_eq!(node.client.snapshot("first").expect("it is there").id, first.id);
}

#[test]
fn a_microvm_goes_on_where_it_stood_also_forked_and_while_its_pause_is_being_saved() {
    if have_qemu(TIER) {
        live_through(Board::Microvm, Accelerator::Tcg);
    }
}

#[test]
fn a_pc_goes_on_where_it_stood_also_forked_and_while_its_pause_is_being_saved() {
    if have_qemu(TIER) {
        live_through(Board::Q35, Accelerator::Tcg);
    }
}

#[test]
fn a_machine_under_kvm_goes_on_where_it_stood() {
    if !have_qemu(TIER) {
        return;
    }
    if !std::path::Path::new("/dev/kvm").exists() {
        return skipped("KVM", "there is no /dev/kvm");
    }
    live_through(Board::Microvm, Accelerator::Kvm);
}

#[test]
fn machines_run_on_while_their_daemon_is_killed_and_the_next_one_has_them() {
    if !have_qemu(TIER) {
        return;
    }
    let mut node = Node::start();
    filled(&node, "fresh", Board::Microvm, Accelerator::Tcg);
    filled(&node, "vm", Board::Microvm, Accelerator::Tcg);
    node.pause("vm", "first");
    node.resume("vm");
    let counted = Console::from_now(&node.client, "vm").tick();
    node.crash();
    let mut console = Console::from_now(&node.client, "vm");
    assert_eq!(console.tick(), counted + 1);
    console.assert_verified();
    console.ask("dirty 5 20", "dirtied ");
    Console::from_now(&node.client, "fresh").assert_verified();
    node.pause("vm", "second");
    node.pause("fresh", "third");
    node.crash();
    for name in ["vm", "fresh"] {
        node.resume(name);
        Console::from_now(&node.client, name).assert_verified();
    }
}

/// The daemon dies in the middle of any operation on a machine, and the next one finds it running, or paused and
/// resumable.
#[test]
fn a_daemon_killed_in_any_step_leaves_a_machine_running_or_paused() {
    if !have_qemu(TIER) {
        return;
    }
    let seed = 4;
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let mut node = Node::start();
    filled(&node, "vm", Board::Microvm, Accelerator::Tcg);
    for round in 0..8 {
        let is_running = node.client.sandbox("vm").expect("it is there").state == SandboxState::Running;
        let client = node.client.clone();
        let asking = std::thread::spawn(move || {
            // The next daemon sees the outcome.
            if is_running {
                client.pause_sandbox("vm", None, &pause_as(&format!("round-{round}"))).map(drop).ok();
            } else {
                client.resume_sandbox("vm", &Default::default()).map(drop).ok();
            }
        });
        std::thread::park_timeout(Duration::from_millis(u64::from(random.below(if is_running {
            60
        } else {
            300
        }))));
        node.crash();
        asking.join().expect("the request ends with its daemon");
        let state = node.client.sandbox("vm").expect("it is there").state;
        match state {
            SandboxState::Running => {}
            SandboxState::Paused => drop(node.resume("vm")),
            SandboxState::Stalled | SandboxState::Stopped | SandboxState::Lost | SandboxState::Undecided => {
                unreachable!("round {round}: it is {state:?}")
            }
        }
        let mut console = Console::from_now(&node.client, "vm");
        console.tick();
        console.assert_verified();
        console.ask(&format!("dirty {round} 10"), "dirtied ");
        if round % 2 == 1 {
            node.pause("vm", &format!("between-{round}"));
        }
    }
}

#[test]
fn a_machine_that_is_killed_is_stopped_by_name_and_its_snapshots_go_on() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    filled(&node, "vm", Board::Microvm, Accelerator::Tcg);
    node.pause("vm", "first");
    let pid = node.resume("vm").pid.expect("it runs");
    let process = ProcessHandle::open(pid).expect("it runs");
    process.signal(Signal::Kill).expect("it can be killed");
    node.eventually("the end of the machine", || {
        node.client.sandbox("vm").expect("it is there").state == SandboxState::Stopped
    });
    let reason = node.client.sandbox("vm").expect("it is there").reason.expect("it is told why");
    assert!(reason.contains("signal 9 (SIGKILL)"), "{reason}");
    node.resumed("first", "again");
    Console::from_now(&node.client, "again").assert_verified();
}

#[test]
fn a_machine_is_shown_with_what_it_was_made_of_also_while_it_is_paused() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let mut wanted = tiny(&node, "vm", Board::Q35, Accelerator::Tcg);
    let asked = wanted.machine.as_mut().expect("it is one");
    let image = node.place.home_directory().join("odd.img");
    std::fs::write(&image, [7; 1000]).expect("there is room");
    asked.disks.push(DiskImage { name: "odd".to_owned(), image: image.display().to_string() });
    let kernel = asked.kernel.clone();
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let shown = || node.client.sandbox("vm").expect("it is listed").machine.expect("it is a machine");
    let running = shown();
    assert_eq!((running.kernel.path.clone(), running.kernel.blake3.len()), (kernel, 64));
    assert_eq!((running.cpus, running.board, running.accelerator), (1, Some(Board::Q35), Accelerator::Tcg));
    assert_eq!((running.disks[0].name.as_str(), running.disks[0].bytes), ("odd", 1024));
    assert!(running.vmm_version.is_some_and(|version| version.contains('.')));
    node.pause("vm", "first");
    assert_eq!(shown().disks, running.disks);
}

/// A node with a Linux machine that has a disk, called `vm`; none where there can be no such machine.
fn linux_node() -> Option<Node> {
    if !have_qemu(TIER) {
        return None;
    }
    let node = Node::start();
    let wanted = linux(&node, "vm", TIER)?;
    node.client.create_sandbox(None, &wanted).expect("a machine is made");
    Some(node)
}

/// A machine's own actions are told, also those while there was no daemon.
#[test]
fn a_machine_that_resets_itself_is_told_of_and_one_that_ended_without_a_daemon_says_how() {
    let Some(mut node) = linux_node() else { return };
    let mut console = Console::of(&node.client, "vm");
    console.line("rekindle linux guest, ");
    console.ask("end", "ending");
    let mut events = node.client.events(Some(0)).expect("they are streamed");
    loop {
        let event = events.next_within(PATIENCE).expect("they are streamed").expect("a reset is told");
        if event.kind == "sandbox.reset" {
            break assert!(event.detail.is_some_and(|detail| detail.contains("guest-reset")));
        }
    }
    console.line("rekindle linux guest, ");
    let pid = node.client.sandbox("vm").expect("it is there").pid.expect("it runs");
    node.kill();
    let process = ProcessHandle::open(pid).expect("it runs");
    process.signal(Signal::Kill).expect("it can be killed");
    assert!(process.wait_exit(Duration::from_secs(60)));
    node.start_again();
    let shown = node.client.sandbox("vm").expect("it is there");
    assert_eq!(shown.state, SandboxState::Stopped);
    assert!(shown.reason.expect("it is told why").contains("signal 9 (SIGKILL)"));
}

#[test]
fn a_machine_that_cannot_be_made_is_refused_with_what_is_missing_and_leaves_nothing() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let mut wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    wanted.machine.as_mut().expect("it is one").kernel = "/no such kernel".to_owned();
    let error = node.client.create_sandbox(None, &wanted).expect_err("there is no kernel");
    assert!(error.to_string().contains("/no such kernel"), "{error}");
    let disk = node.place.home_directory().join("disk.img");
    std::fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("a sparse file");
    for (kernel, why) in [
        (disk.as_path(), "it is no kernel: QEMU boots"),
        (Path::new("/dev/zero"), "it is a character device, and must be a regular file"),
    ] {
        let mut wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
        wanted.machine.as_mut().expect("it is one").kernel = kernel.display().to_string();
        let error = node.client.create_sandbox(None, &wanted).expect_err("nothing boots that");
        assert_eq!(error.code(), Some(Code::InvalidRequest), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let mut wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    wanted.machine.as_mut().expect("it is one").initrd = Some(disk.display().to_string());
    wanted.memory_bytes = 4 << 20;
    let error = node.client.create_sandbox(None, &wanted).expect_err("it does not fit into memory");
    assert!(error.to_string().contains("it has 8.0 MiB, and may have 4.0 MiB at most"), "{error}");
    let boot = node.place.state_directory().join("boot");
    assert_eq!(
        files_in(&boot),
        Vec::<PathBuf>::new(),
        "its kernel was copied before that, and is gone again"
    );
    let mut wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    let device = TapName("rk-is-not-here".to_owned());
    wanted.machine.as_mut().expect("it is one").taps.push(Tap { device, mac: None });
    let error = node.client.create_sandbox(None, &wanted).expect_err("there is no such tap");
    assert_eq!(error.code(), Some(Code::Misfit), "{error}");
    assert!(error.to_string().contains("there is no tap device rk-is-not-here"), "{error}");
    let mut wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    wanted.memory_bytes = 4096;
    let error = node.client.create_sandbox(None, &wanted).expect_err("no machine is so small");
    assert_eq!(error.code(), Some(Code::Misfit), "{error}");
    assert!(node.client.all_sandboxes(&[]).expect("they are listed").is_empty());
    assert!(node.kept("guest/").is_empty());
}

#[test]
fn a_machine_that_cannot_be_resumed_is_refused_with_the_last_words_of_its_qemu() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    // A QEMU that, once it is told so, does not start; the daemon finds it before the system's.
    let beside = node.place.program().parent().expect("it is in a directory");
    let (qemu, is_broken) = (beside.join("qemu-system-x86_64"), beside.join("broken"));
    let script = format!(
        "#!/bin/sh\n[ -e {is_broken:?} ] && set -- -no-such-option\nexec {:?} \"$@\"\n",
        system_qemu()
    );
    rekindle_testkit::programs::write(&qemu, script).expect("a script is written");
    filled(&node, "vm", Board::Microvm, Accelerator::Tcg);
    node.pause("vm", "first");
    std::fs::write(&is_broken, "").expect("there is room");
    let error = node.client.resume_sandbox("vm", &Default::default()).expect_err("it cannot start");
    assert_eq!(error.code(), Some(Code::GuestFailed), "{error}");
    assert!(error.to_string().contains("-no-such-option: invalid option"), "{error}");
    node.eventually("its end", || node.kept("guest/").is_empty());
    std::fs::remove_file(&is_broken).expect("it is there");
    node.resume("vm");
    Console::from_now(&node.client, "vm").assert_verified();
}

#[test]
fn a_machine_that_could_not_go_on_here_is_not_paused_to_be_forked_and_its_pause_says_so() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    let wanted = tiny(&node, "vm", Board::Microvm, Accelerator::Tcg);
    let kernel = PathBuf::from(&wanted.machine.as_ref().expect("it is one").kernel);
    filled(&node, "vm", Board::Microvm, Accelerator::Tcg);
    let (boot, away) = (node.place.state_directory().join("boot"), kernel.with_extension("away"));
    std::fs::remove_dir_all(&boot).expect("it is there");
    std::fs::rename(&kernel, &away).expect("it is there");
    let counted = Console::from_now(&node.client, "vm").tick();
    let forks = ForkSandbox {
        count: 2_u32.try_into().expect("a few"),
        name: Some("fork".parse().expect("it is a name")),
        ..Default::default()
    };
    let refused = node.client.fork_sandbox("vm", None, &forks).expect_err("there is no kernel");
    assert_eq!(refused.code(), Some(Code::Misfit), "{refused}");
    for told in ["runs on, no fork was made", &kernel.display().to_string(), &boot.display().to_string()] {
        assert!(refused.to_string().contains(told), "{told}: {refused}");
    }
    assert_eq!(node.client.sandbox("vm").expect("it is there").state, SandboxState::Running);
    assert!(node.client.all_snapshots(&[]).expect("they are listed").is_empty());
    assert_eq!(Console::from_now(&node.client, "vm").tick(), counted + 1);
    node.pause("vm", "first");
    let events = node.client.known_events(0).expect("they are told");
    let mut events = events.map(|event| event.expect("one is told"));
    let paused = events.find(|event| event.kind == "sandbox.paused").expect("it was paused");
    assert_eq!(paused.detail.as_deref(), Some("it cannot be resumed on this node: its kernel is gone"));
    let refused = node.client.resume_sandbox("vm", &Default::default()).expect_err("there is no kernel");
    assert!(refused.to_string().contains(&kernel.display().to_string()), "{refused}");
    std::fs::rename(&away, &kernel).expect("it is there");
    node.resume("vm");
    let mut console = Console::from_now(&node.client, "vm");
    assert_eq!(console.tick(), counted + 2);
    console.assert_verified();
}

fn system_qemu() -> PathBuf {
    let searched = std::env::var_os("PATH").expect("there is a search path");
    let mut places = std::env::split_paths(&searched).map(|place| place.join("qemu-system-x86_64"));
    places.find(|path| path.is_file()).expect("it was run before")
}

/// The story of a Linux machine with a disk: what was written is there in forks, after a crash, and on another node.
#[test]
fn linux_with_a_disk_has_its_files_in_forks_after_a_crash_and_on_another_node() {
    let Some(mut node) = linux_node() else { return };
    let mut console = Console::of(&node.client, "vm");
    assert!(console.line("rekindle linux guest, ").ends_with("/dev/vda at /disk"));
    console.ask("write note one", "written ");
    console.ask("fill 1 40", "filled ");
    node.pause("vm", "first");
    node.resume("vm");
    let mut console = Console::from_now(&node.client, "vm");
    console.ask("forget", "forgot");
    assert_eq!(console.ask("read note", "read "), "one");
    let fork = ForkSandbox { name: Some("fork".parse().expect("it is a name")), ..Default::default() };
    node.client.fork_sandbox("vm", None, &fork).expect("it is forked");
    let mut forked = Console::from_now(&node.client, "fork");
    forked.ask("write note two", "written ");
    node.crash();
    let mut forked = Console::from_now(&node.client, "fork");
    forked.ask("write more three", "written ");
    forked.assert_verified();
    let last = node.pause("fork", "last");
    let mut console = Console::from_now(&node.client, "vm");
    console.ask("forget", "forgot");
    assert_eq!(console.ask("read note", "read "), "one");
    console.assert_verified();
    node.wait("last", SnapshotState::Published);
    let elsewhere = Node::start_with_keys_of(&node);
    node.terminate();
    elsewhere.copy_store(&node);
    elsewhere.resumed(&last.id.to_string(), "cold");
    let mut cold = Console::from_now(&elsewhere.client, "cold");
    cold.assert_verified();
    // Of its disk nothing is here yet, and what reads it is not either.
    let outage = Outage::of(&elsewhere.place.store_directory());
    elsewhere.client.type_at_console("cold", b"forget\nread note\n").expect("it is typed");
    assert_not_paused_while_stalled(&elsewhere, "cold");
    outage.end();
    assert_eq!(cold.line("read "), "two");
    assert_eq!(cold.ask("read more", "read "), "three");
    pause_once_nothing_is_waited_for(&elsewhere, "cold", "paused");
    elsewhere.resume("cold");
    Console::from_now(&elsewhere.client, "cold").assert_verified();
}

/// A machine that waits for pages that cannot be had is not paused, and goes on once they can.
#[test]
fn a_machine_that_waits_for_pages_that_cannot_be_had_is_not_paused_and_goes_on() {
    if !have_qemu(TIER) {
        return;
    }
    let node = Node::start();
    filled(&node, "vm", Board::Microvm, Accelerator::Tcg);
    let first = node.pause("vm", "first");
    node.wait("first", SnapshotState::Published);
    let elsewhere = Node::start_with_keys_of(&node);
    elsewhere.copy_store(&node);
    elsewhere.resumed(&first.id.to_string(), "cold");
    let mut console = Console::from_now(&elsewhere.client, "cold");
    let outage = Outage::of(&elsewhere.place.store_directory());
    elsewhere.client.type_at_console("cold", b"verify\n").expect("it is typed");
    assert_not_paused_while_stalled(&elsewhere, "cold");
    outage.end();
    assert!(console.line("verified ").ends_with(" 0"));
    pause_once_nothing_is_waited_for(&elsewhere, "cold", "second");
    elsewhere.resume("cold");
    Console::from_now(&elsewhere.client, "cold").assert_verified();
}
