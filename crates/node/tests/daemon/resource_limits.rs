//! Daemons that may write only short files, or have only few files open.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;

use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;
use rekindle_api::types::{
    CaptureMemory, CaptureSource, ForkSandbox, MemoryBacking, OpenFaultSocket, SandboxState, SnapshotState,
};
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::black_box::BlackBox;

use crate::support::{BLOCK_BYTES, MEMORY_BYTES, Node, create, pause_as, program, resume_as};

/// Descriptors that daemon and keeper may have.
const FILES_MAX: usize = 256;

#[test]
fn under_a_limit_of_file_size_a_daemon_starts_and_deletes_and_says_why_it_cannot_save() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.filled("b", 2);
    node.kill();
    node.place.limit(&format!("-f {}", MEMORY_BYTES / 2 / BLOCK_BYTES));
    node.start_again();
    let daemon = node.client.version().expect("it answers").pid;
    node.assert_verified("a");
    node.pause("a", "base");
    node.eventually("the seal failing for the limit", || {
        let shown = node.client.snapshot("base").expect("it is listed");
        shown.state == SnapshotState::Captured
            && shown.reason.is_some_and(|why| why.contains("File too large"))
    });
    node.resume("a");
    node.assert_verified("a");
    for name in ["a", "b"] {
        node.client.remove_sandbox(name).expect("what gives room back is never refused");
    }
    node.client.delete_snapshot("base").expect("what gives room back is never refused");
    assert_eq!(node.client.version().expect("it answers").pid, daemon, "no signal ended it");
    node.crash();
    assert!(node.client.all_sandboxes(&[]).expect("they are listed").is_empty());
}

#[test]
fn with_few_descriptors_a_daemon_refuses_what_it_has_none_for_and_finds_all_it_has_again() {
    let mut place = BlackBox::new(&program()).expect("directories");
    place.limit("-n 256");
    let mut node = Node::start_in(place);
    let mut made = Vec::new();
    let refused = (0..256).find_map(|number| {
        let name = format!("sandbox-{number}");
        let wanted = create(&name, MemoryBacking::Shared);
        match node.client.create_sandbox(None, &wanted) {
            Ok(_) => made.push(name),
            Err(refused) => return Some(refused),
        }
        None
    });
    let refused = refused.expect("256 descriptors are not enough for 256 guests");
    assert_eq!(refused.code(), Some(Code::Misfit), "{refused}");
    assert!(refused.to_string().contains("LimitNOFILE"), "{refused}");
    assert!(made.len() > 2, "{refused}");
    node.crash();
    for name in &made {
        assert_eq!(node.client.sandbox(name).expect("it is listed").state, SandboxState::Running, "{name}");
        node.told(name).fill(1).expect("fills");
        node.assert_verified(name);
    }
    node.client.remove_sandbox(&made[0]).expect("it takes no descriptors");
    node.pause(&made[1], "base");
    node.wait("base", SnapshotState::Published);
    node.eventually("room for another", || {
        node.client.create_sandbox(None, &create("another", MemoryBacking::Shared)).is_ok()
    });
}

#[test]
fn with_no_descriptors_left_every_request_is_refused_with_the_setting_and_costs_nothing() {
    let mut place = BlackBox::new(&program()).expect("directories");
    place.limit(&format!("-n {FILES_MAX}"));
    let mut node = Node::start_in(place);
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        node.filled(name, seed);
    }
    node.pause("a", "base");
    node.wait("base", SnapshotState::Published);
    let mut made = 0;
    while node.client.create_sandbox(None, &create(&format!("more-{made}"), MemoryBacking::Shared)).is_ok() {
        made += 1;
    }
    let fork = ForkSandbox::default();
    let socket = OpenFaultSocket {
        snapshot: "base".parse().expect("it is a name"),
        serve_before_seal: None,
        tracking: Default::default(),
    };
    assert_refused(node.client.resume_sandbox("a", &Default::default()));
    assert_refused(node.client.fork_sandbox("b", None, &fork));
    assert_refused(node.client.resume_snapshot("base", None, &resume_as("clone", 1)));
    assert_refused(node.client.open_fault_socket(&socket));
    let _connections = take_all_files(&node);
    assert_refused(node.client.pause_sandbox("b", None, &pause_as("never")));
    let memory = Memfd::create("captured", MEMORY_BYTES, PageKind::Small).expect("there is memory");
    let fd = memory.as_fd().as_raw_fd();
    let source = CaptureSource::Memfd { pid: std::process::id(), fd };
    let capture = CaptureMemory {
        source,
        name: None,
        domain: None,
        labels: Default::default(),
        blobs: Default::default(),
    };
    assert_refused(node.client.capture_memory(&capture));
    assert_eq!(
        node.client.all_snapshots(&[]).expect("they are listed").len(),
        1,
        "nothing of those is there"
    );
    node.kill();
    node.place.limit("-n 4096");
    node.start_again();
    for name in ["b", "c"] {
        assert_eq!(node.client.sandbox(name).expect("it is listed").state, SandboxState::Running, "{name}");
        node.assert_verified(name);
    }
    assert_eq!(node.client.all_sandboxes(&[]).expect("they are listed").len(), 3 + made);
    // The keeper is the same, with the limit it was started with.
    for number in 0..2 {
        node.client.remove_sandbox(&format!("more-{number}")).expect("it takes no descriptors");
    }
    node.eventually("room for another", || node.client.resume_sandbox("a", &Default::default()).is_ok());
    node.assert_verified("a");
    node.pause("b", "later");
}

/// Connections that leave the daemon the file of one request.
fn take_all_files(node: &Node) -> Vec<UnixStream> {
    let daemon = node.client.version().expect("it answers").pid;
    let count = || fs::read_dir(format!("/proc/{daemon}/fd")).expect("it runs").count();
    // It opens others for a moment.
    let open = || (0..16).map(|_| count()).min().expect("it was counted");
    let mut connections = Vec::new();
    while open() + 1 < FILES_MAX {
        let mut connection =
            UnixStream::connect(node.place.run_directory().join("api.sock")).expect("it listens");
        connection.write_all(b"GET /v1/version HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it listens");
        // Answered, it is one that the daemon has open.
        assert!(connection.read(&mut [0; 16]).expect("it answers") > 0);
        connections.push(connection);
    }
    connections
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) {
    let refused = answer.expect_err("there are no descriptors for it");
    assert!(refused.to_string().contains("LimitNOFILE"), "{refused}");
}
