//! Daemons that may write only short files, or have only few files open.

use rekindle::api::problem::Code;
use rekindle::api::types::{MemoryBacking, SandboxState, SnapshotState};
use rekindle_testkit::black_box::BlackBox;

use crate::support::{BLOCK_BYTES, MEMORY_BYTES, Node, create, program};

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
