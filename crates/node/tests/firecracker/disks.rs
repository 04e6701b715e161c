//! Disks: each VM has a file of its own, which is a volume of its snapshots.

use rekindle_vmm::firecracker::{Drive, DriveContent, FirecrackerError};

use crate::support::{LIMIT, MIB, Node};

#[test]
fn a_writable_disk_goes_back_with_memory_and_each_resume_has_its_own() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.drives = vec![node.disk("data", 4 * MIB, b"from the image")];
    let image = node.file("data.img");
    let before = std::fs::read(&image).expect("it is there");
    let mut vm = node.run(&spec);
    vm.say("disk data write 7 5");
    vm.say("disk data write 300 6");
    let first = node.pause(vm);
    assert_eq!(first.volumes().len(), 2);
    let (mut left, mut right) = (node.resume(&first), node.resume(&first));
    for vm in [&mut left, &mut right] {
        assert_eq!(vm.say("disk data check 7 5"), "right data 7");
        assert_eq!(vm.say("disk data check 300 6"), "right data 300");
    }
    left.say("disk data write 7 8");
    left.say("disk data write 300 0");
    assert_eq!(right.say("disk data check 7 5"), "right data 7", "the other one's disk is its own");
    let second = node.pause(left);
    let mut again = node.resume(&second);
    assert_eq!(again.say("disk data check 7 8"), "right data 7");
    assert_eq!(again.say("disk data check 300 0"), "right data 300");
    assert_eq!(right.say("disk data check 300 6"), "right data 300");
    let file = again.guest.facts().directory.root().join("drive-data");
    assert_eq!(&std::fs::read(file).expect("it is there")[..14], b"from the image");
    assert_eq!(std::fs::read(&image).expect("it is there"), before, "nobody writes the image");
    node.end(again);
    node.end(right);
}

#[test]
fn of_a_disk_only_what_changed_is_captured() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.drives = vec![node.disk("data", 16 * MIB, &vec![9; 16 << 20])];
    let vm = node.run(&spec);
    let first = node.pause(vm);
    let mut vm = node.resume(&first);
    vm.say("disk data write 1000 5");
    let second = node.pause(vm);
    second.wait_manifest(LIMIT).expect("it is sealed");
    let classes = second.status().classes.expect("it was compared");
    assert_eq!((classes.kept, classes.unread), (1, 0), "{classes:?}");
    assert!(classes.dirty <= 16, "one chunk was captured: {classes:?}");
    let mut vm = node.resume(&second);
    assert_eq!(vm.say("disk data check 1000 5"), "right data 1000");
    node.end(vm);
}

#[test]
fn a_disk_that_ends_within_a_page_keeps_its_size_and_its_end() {
    let node = Node::start();
    let mut spec = node.spec(8);
    let mut content = vec![3; 9 * 512];
    content[9 * 512 - 1] = 77;
    spec.drives = vec![node.disk("odd", 9 * 512, &content)];
    let vm = node.run(&spec);
    let snapshot = node.pause(vm);
    let vm = node.resume(&snapshot);
    let file = vm.guest.facts().directory.root().join("drive-odd");
    assert_eq!(std::fs::read(file).expect("it is there"), content);
    node.end(vm);
}

#[test]
fn a_disk_comes_cold_from_the_store() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.drives = vec![node.disk("data", 4 * MIB, b"from the image")];
    let mut vm = node.run(&spec);
    vm.say("disk data write 900 6");
    let snapshot = node.pause(vm);
    snapshot.wait_manifest(LIMIT).expect("it is sealed");
    assert!(snapshot.wait_state(rekindle_engine::lifecycle::SnapshotState::Published, LIMIT));
    let there = node.elsewhere();
    let snapshot = there.engine.open(snapshot.id()).expect("it is published");
    let mut vm = there.resume(&snapshot);
    assert_eq!(vm.say("disk data check 900 6"), "right data 900");
    there.end(vm);
}

#[test]
fn a_read_only_disk_is_the_file_itself_and_must_have_its_bytes() {
    let node = Node::start();
    std::fs::write(node.file("base.img"), [7; 8192]).expect("there is room");
    let mut spec = node.spec(8);
    let content = DriveContent::ReadOnly(node.boot_file("base.img"));
    spec.drives = vec![Drive { id: "base".to_owned(), bytes: 8192, is_root: true, content }];
    let vm = node.run(&spec);
    let snapshot = node.pause(vm);
    assert_eq!(snapshot.volumes().len(), 1, "it is no volume");
    let vm = node.resume(&snapshot);
    node.end(vm);
    std::fs::write(node.file("base.img"), [8; 8192]).expect("there is room");
    let before = node.requests().len();
    let error = node.begin_resume(&snapshot, &node.spec_of(&snapshot)).map(drop).expect_err("other bytes");
    assert!(
        matches!(&error, FirecrackerError::OtherBytes { path, .. } if path.ends_with("base.img")),
        "{error}"
    );
    assert_eq!(node.requests().len(), before, "nothing was started");
}

#[test]
fn an_image_of_another_size_is_refused() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.drives = vec![node.disk("data", MIB, b"")];
    spec.drives[0].bytes = 2 * MIB;
    let error = node.try_start(&spec).map(drop).expect_err("it is shorter");
    assert!(
        matches!(&error, FirecrackerError::OtherSize { expected, found, .. }
        if (*expected, *found) == (2 * MIB, MIB)),
        "{error}"
    );
    assert!(node.left_behind().is_empty());
}
