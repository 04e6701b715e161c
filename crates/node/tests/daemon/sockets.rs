//! VMMs that others start, good ones and bad ones, at fault sockets.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rekindle_api::problem::Code;
use rekindle_api::types::{
    CaptureMemory, CaptureSource, FaultSocket, FaultSocketState, OpenFaultSocket, Snapshot, SnapshotState,
    WriteTracking,
};
use rekindle_guest::process::arguments::{GuestArguments, MemoryKind, TrackingKind};
use rekindle_guest::process::protocol::{DeviceState, DiscardHow};
use rekindle_kernel::fd_passing;
use rekindle_testkit::black_box::{Process, Role};
use rekindle_vmm::process::{GuestOptions, ProcessGuest};

use crate::support::{MEMORY_BYTES, Node, rewrite, share};

/// A snapshot and the state of the guest it was made of.
pub(crate) fn base(node: &Node) -> DeviceState {
    node.filled("a", 1);
    let state = node.told("a").state().expect("answers");
    node.pause("a", "base");
    state
}

pub(crate) fn open(node: &Node) -> FaultSocket {
    open_tracking(node, WriteTracking::WhenFree)
}

fn open_tracking(node: &Node, tracking: WriteTracking) -> FaultSocket {
    let wanted = OpenFaultSocket {
        snapshot: "base".parse().expect("it is a name"),
        serve_before_seal: None,
        tracking,
    };
    let socket = node.client.open_fault_socket(&wanted).expect("a socket is opened");
    assert_eq!(socket.state, FaultSocketState::Listening);
    socket
}

/// Arguments of a VMM of ours that is to be served at the socket, with a userfaultfd for that kind of tracking.
fn arguments(socket: &FaultSocket, tracking: TrackingKind) -> GuestArguments {
    GuestArguments {
        kind: MemoryKind::Shared,
        handover: Some(socket.path.clone().into()),
        tracking,
        send_memfd: true,
        ..GuestArguments::fresh(MEMORY_BYTES)
    }
}

/// A VMM of ours that is served at the socket.
pub(crate) fn vmm(node: &Node, socket: &FaultSocket, state: &DeviceState) -> ProcessGuest {
    vmm_that_can(node, socket, state, TrackingKind::Scan)
}

fn vmm_that_can(
    node: &Node,
    socket: &FaultSocket,
    state: &DeviceState,
    tracking: TrackingKind,
) -> ProcessGuest {
    let options = GuestOptions::program(node.place.program(), arguments(socket, tracking));
    let mut guest = ProcessGuest::spawn(&options).expect("a VMM starts");
    guest.control.restore(state.clone()).expect("it goes on from there");
    guest
}

pub(crate) fn assert_right(guest: &mut ProcessGuest) {
    let verified = guest.control.verify().expect("the VMM verifies");
    assert_eq!(verified.mismatches, 0, "{verified:?}");
}

fn state_of(node: &Node, socket: &FaultSocket) -> FaultSocketState {
    node.client.fault_socket(socket.id).expect("it is known").state
}

#[test]
fn a_vmm_served_at_a_fault_socket_outlives_the_daemon_and_is_captured_as_a_child() {
    let mut node = Node::start();
    let state = base(&node);
    let socket = open(&node);
    let mut guest = vmm(&node, &socket, &state);
    guest.control.rewrite(rewrite(2)).expect("rewrites");
    guest.control.discard(share(3, 20), DiscardHow::Remove).expect("discards");
    node.crash();
    assert_right(&mut guest);
    guest.control.rewrite(rewrite(4)).expect("rewrites");
    let written = guest.control.state().expect("answers");
    guest.freeze().expect("it stands");
    let wanted = CaptureMemory {
        domain: None,
        source: CaptureSource::FaultSocket { id: socket.id },
        name: Some("child".parse().expect("it is a name")),
        labels: Default::default(),
        blobs: Default::default(),
    };
    let child = node.client.capture_memory(&wanted).expect("it is captured");
    assert_eq!(child.parent, Some(socket.snapshot));
    guest.kill().expect("it can be killed");
    node.client.close_fault_socket(socket.id).expect("it is closed");
    node.crash();
    let wanted = OpenFaultSocket {
        snapshot: "child".parse().expect("it is a name"),
        serve_before_seal: None,
        tracking: WriteTracking::WhenFree,
    };
    let socket = node.client.open_fault_socket(&wanted).expect("a socket is opened");
    let mut guest = vmm(&node, &socket, &written);
    assert_right(&mut guest);
}

#[test]
fn a_fault_socket_that_nobody_used_yet_is_there_after_a_crash() {
    let mut node = Node::start();
    let state = base(&node);
    let socket = open(&node);
    node.crash();
    assert_eq!(state_of(&node, &socket), FaultSocketState::Listening);
    let mut guest = vmm(&node, &socket, &state);
    assert_right(&mut guest);
    node.crash();
    assert_right(&mut guest);
}

#[test]
fn a_fault_socket_that_is_closed_during_its_hand_over_stays_closed() {
    let mut node = Node::start();
    base(&node);
    for round in 0..10 {
        let socket = open(&node);
        let arguments = arguments(&socket, TrackingKind::Scan);
        thread::scope(|scope| {
            // It depends on the machine if it is served before the socket goes, or finds it gone.
            let starting =
                scope.spawn(|| ProcessGuest::spawn(&GuestOptions::program(node.place.program(), arguments)));
            if round % 2 == 0 {
                node.eventually("the VMM being served", || {
                    state_of(&node, &socket) == FaultSocketState::Running
                });
            }
            node.client.close_fault_socket(socket.id).expect("it is closed");
            drop(starting.join().expect("starting does not panic"));
        });
        let gone = node.client.fault_socket(socket.id).expect_err("it is closed");
        assert_eq!(gone.code(), Some(Code::NotFound));
        assert_eq!(node.kept("socket/"), Vec::<String>::new());
    }
    node.crash();
    assert_eq!(node.client.fault_sockets().expect("they are listed").len(), 0);
}

/// Pages that were answered for at the socket so far.
fn faults(node: &Node, socket: &FaultSocket) -> u64 {
    node.client.fault_socket(socket.id).expect("it is known").served.expect("it is served").faults
}

fn capture_as(node: &Node, socket: &FaultSocket, name: &str) -> Snapshot {
    let wanted = CaptureMemory {
        domain: None,
        source: CaptureSource::FaultSocket { id: socket.id },
        name: Some(name.parse().expect("it is a name")),
        labels: Default::default(),
        blobs: Default::default(),
    };
    node.client.capture_memory(&wanted).expect("it is captured")
}

#[test]
fn writes_cost_a_vmm_no_faults_of_their_own_unless_that_was_asked_for() {
    let node = Node::start();
    let state = base(&node);
    for tracking in [WriteTracking::WhenFree, WriteTracking::Always] {
        let socket = open_tracking(&node, tracking);
        let mut guest = vmm_that_can(&node, &socket, &state, TrackingKind::Resident);
        assert_right(&mut guest);
        let before = faults(&node, &socket);
        guest.control.rewrite(rewrite(2)).expect("rewrites");
        let of_writes = faults(&node, &socket) - before;
        assert_eq!(of_writes == 0, tracking == WriteTracking::WhenFree, "{tracking:?}: {of_writes} faults");
        let written = guest.control.state().expect("answers");
        guest.freeze().expect("it stands");
        let name = format!("{tracking:?}").to_lowercase();
        capture_as(&node, &socket, &name);
        guest.kill().expect("it can be killed");
        let again = OpenFaultSocket {
            snapshot: name.parse().expect("it is a name"),
            serve_before_seal: None,
            tracking,
        };
        let again = node.client.open_fault_socket(&again).expect("a socket is opened");
        assert_right(&mut vmm(&node, &again, &written));
    }
}

#[test]
fn memory_that_can_never_be_sealed_is_captured_and_who_else_holds_it_is_named_from_the_hand_over_on() {
    let mut node = Node::start();
    let state = base(&node);
    let socket = open(&node);
    let mut guest = vmm(&node, &socket, &state);
    assert_right(&mut guest);
    let memory = memory_file(guest.process.id());
    rustix::fs::fcntl_add_seals(&memory, rustix::fs::SealFlags::SEAL).expect("it has no such seal yet");
    let mut holder = Command::new("sleep")
        .arg("600")
        .stdin(memory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sleep runs");
    // A seal that was made after the hand-over is found when the daemon looks again.
    node.crash();
    node.eventually("the holder being named before a capture", || {
        let hindrance = node.client.fault_socket(socket.id).expect("it is known").capture_hindrance;
        hindrance.is_some_and(|hindrance| hindrance.contains(&format!("process {} (sleep)", holder.id())))
    });
    guest.control.rewrite(rewrite(2)).expect("rewrites");
    let written = guest.control.state().expect("answers");
    guest.freeze().expect("it stands");
    capture_as(&node, &socket, "child");
    guest.kill().expect("it can be killed");
    node.eventually("the holder being named", || {
        let reason = node.client.snapshot("child").expect("it is there").reason;
        reason.is_some_and(|reason| reason.contains(&format!("process {} (sleep)", holder.id())))
    });
    assert_eq!(node.client.snapshot("child").expect("it is there").state, SnapshotState::Captured);
    holder.kill().expect("it can be killed");
    holder.wait().expect("it can be waited for");
    node.wait("child", SnapshotState::Published);
    assert_eq!(node.client.verify_snapshot("child").expect("it is verified").wrong_pages, 0);
    let wanted = OpenFaultSocket {
        snapshot: "child".parse().expect("it is a name"),
        serve_before_seal: None,
        tracking: WriteTracking::WhenFree,
    };
    let socket = node.client.open_fault_socket(&wanted).expect("a socket is opened");
    assert_right(&mut vmm(&node, &socket, &written));
}

/// The file behind a process guest's memory, opened again.
fn memory_file(pid: u32) -> File {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let paths = descriptors.map(|entry| entry.expect("an entry").path());
    let is_memory = |path: &std::path::PathBuf| {
        let facts = std::fs::metadata(path).expect("it is open");
        facts.len() == MEMORY_BYTES
    };
    let path = paths.into_iter().find(is_memory).expect("it has its memory open");
    File::options().read(true).write(true).open(path).expect("it can be opened again")
}

/// The pages touched by the first VMM at a snapshot are there before the second one asks for them.
#[test]
fn a_second_vmm_at_fault_sockets_of_one_snapshot_is_given_ahead_what_the_first_one_touched() {
    let node = Node::start();
    let state = base(&node);
    let ahead = || {
        let metrics = node.client.metrics().expect("it is measured");
        let of = "rekindle_served_ahead_pages_total{reason=\"prefetch\"} ";
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(of)).expect("it is there from the start");
        line.parse::<u64>().expect("a number")
    };
    let first = open(&node);
    let mut guest = vmm(&node, &first, &state);
    guest.control.tick(64).expect("touches");
    assert_eq!(ahead(), 0, "nothing is known yet");
    // Its end is the end of what is learned from it.
    guest.kill().expect("it can be killed");
    node.client.close_fault_socket(first.id).expect("it is closed");
    node.eventually("a VMM that is given pages ahead", || {
        let second = open(&node);
        let mut guest = vmm(&node, &second, &state);
        guest.control.tick(64).expect("touches");
        guest.kill().expect("it can be killed");
        node.client.close_fault_socket(second.id).expect("it is closed");
        ahead() > 0
    });
}

/// Messages of bad VMMs.
fn bad_handovers() -> Vec<(&'static str, Vec<u8>, Option<File>)> {
    let null = || File::open("/dev/null").expect("there is one");
    let region = format!(
        "[{{\"base_host_virt_addr\":4096,\"size\":{MEMORY_BYTES},\"offset\":0,\"page_size\":4096,\
         \"page_size_kib\":4096}}]"
    );
    vec![
        ("nothing", Vec::new(), None),
        ("half a message", region.as_bytes()[..20].to_vec(), None),
        ("a message without a descriptor", region.clone().into_bytes(), None),
        ("a descriptor that is something else", region.into_bytes(), Some(null())),
        ("no JSON", b"\0\xff\xfe hello".to_vec(), Some(null())),
        ("a megabyte", vec![b'['; 1 << 20], Some(null())),
        (
            "regions of another guest",
            b"[{\"base_host_virt_addr\":0,\"size\":1,\"offset\":7}]".to_vec(),
            Some(null()),
        ),
    ]
}

fn send(path: &Path, message: &[u8], fd: Option<BorrowedFd<'_>>) -> UnixStream {
    let mut stream = UnixStream::connect(path).expect("the socket listens");
    let head = message.len().min(1024);
    let fds: Vec<_> = fd.into_iter().collect();
    if !message.is_empty() {
        fd_passing::send(&stream, &message[..head], &fds).expect("it is taken");
    }
    // The daemon may have had enough before all of it has come.
    stream.write_all(&message[head..]).ok();
    stream
}

#[test]
fn case_42_vmms_that_hand_over_nonsense_harm_only_themselves() {
    let node = Node::start();
    let state = base(&node);
    let good = open(&node);
    let mut guest = vmm(&node, &good, &state);
    let silent = open(&node);
    let _says_nothing = send(Path::new(&silent.path), b"", None);
    for (what, message, fd) in bad_handovers() {
        let socket = open(&node);
        let stream = send(Path::new(&socket.path), &message, fd.as_ref().map(|file| file.as_fd()));
        drop(stream);
        node.eventually(what, || state_of(&node, &socket) == FaultSocketState::Ended);
        let shown = node.client.fault_socket(socket.id).expect("it is known");
        assert!(shown.reason.is_some(), "{what}: {shown:?}");
        node.client.close_fault_socket(socket.id).expect("it is closed");
    }
    assert_right(&mut guest);
    assert_eq!(state_of(&node, &good), FaultSocketState::Running);
    node.client.close_fault_socket(silent.id).expect("one that is being waited for can be closed");
    node.eventually("everything of the bad ones going", || node.kept("socket/").len() == 1);
}

#[test]
fn case_39_vmms_that_die_while_they_are_served_harm_nobody_and_leave_no_descriptors() {
    let node = Node::start();
    let state = base(&node);
    node.wait("base", SnapshotState::Published);
    let good = open(&node);
    let mut guest = vmm(&node, &good, &state);
    let daemon = Process { pid: node.client.version().expect("it answers").pid, role: Role::Daemon };
    let mut before = 0;
    for round in 0..12 {
        let socket = open(&node);
        let mut dying = vmm(&node, &socket, &state);
        let verifying = dying.control.begin_verify().expect("it begins");
        drop(verifying);
        dying.process.kill().expect("it can be killed");
        node.eventually("the death being noticed", || state_of(&node, &socket) == FaultSocketState::Ended);
        node.client.close_fault_socket(socket.id).expect("it is closed");
        if round == 1 {
            before = daemon.fds().expect("they are listed");
        }
    }
    node.eventually("the daemon having no more descriptors than before", || {
        daemon.fds().is_ok_and(|now| now <= before)
    });
    assert_right(&mut guest);
}

#[test]
fn case_41_a_guest_that_storms_with_discards_and_faults_harms_only_itself() {
    let node = Node::start();
    let state = base(&node);
    let (stormy, calm) = (open(&node), open(&node));
    let mut stormy = vmm(&node, &stormy, &state);
    let mut calm = vmm(&node, &calm, &state);
    for seed in 0..30 {
        stormy.control.discard(share(seed, 80), DiscardHow::Remove).expect("discards");
        let writing = stormy.control.begin_rewrite(rewrite(seed)).expect("rewrites");
        let ticked = calm.control.tick(256).expect("the other guest goes on");
        assert_eq!(ticked.verified.mismatches, 0);
        writing.wait().expect("rewrites");
    }
    assert_right(&mut stormy);
    assert_right(&mut calm);
}
