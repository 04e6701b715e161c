//! Drivers that end while Firecracker goes on: the next one finds everything it needs with the keeper.

use rekindle_engine::serve::Epoch;
use rekindle_vmm::firecracker::{FirecrackerFacts, FirecrackerGuest, FirecrackerParts};

use crate::peer::Step;
use crate::support::{Console, Node, Running, let_go_on, pipe};

/// Drops the driver and all it has, and goes on with what the keeper holds and the catalog would have.
fn after_the_driver(node: &Node, running: Running) -> Running {
    let Running { guest, key, server, base, console } = running;
    let facts = serde_json::to_vec(guest.facts()).expect("they are plain data");
    // A killed daemon's server ends without a word, and its descriptors go.
    let epoch = server.map(|server| server.end_epoch().kept().expect("it can be kept"));
    drop((guest, console));
    let facts: FirecrackerFacts = serde_json::from_slice(&facts).expect("they were written");
    let parts = FirecrackerParts::take(&mut node.held(&key), facts).expect("the keeper has all of it");
    let guest = FirecrackerGuest::attach(parts).expect("it lives");
    let server = epoch
        .zip(base.as_ref())
        .map(|(kept, base)| node.serve(base, Epoch::recover(kept).expect("what is kept is enough")));
    let console = Console::of(&guest);
    Running { guest, key, server, base, console }
}

#[test]
fn a_fresh_vm_outlives_its_driver_and_is_paused_by_the_next() {
    let node = Node::start();
    let vm = node.filled(&node.spec(8));
    let mut vm = after_the_driver(&node, vm);
    assert_eq!(vm.say("tick"), "tick 1");
    let snapshot = node.pause(vm);
    node.assert_resumes(&snapshot);
}

#[test]
fn a_resumed_vm_outlives_its_driver_with_its_disk_and_what_it_wrote() {
    let node = Node::start();
    let mut spec = node.spec(8);
    spec.drives = vec![node.disk("data", 1 << 20, b"image")];
    let snapshot = node.pause(node.filled(&spec));
    let mut vm = node.resume(&snapshot);
    vm.say("dirty 4 20");
    vm.say("disk data write 3 4");
    let mut vm = after_the_driver(&node, vm);
    vm.say("dirty 5 20");
    let snapshot = node.pause(vm);
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 2048);
    assert_eq!(vm.say("disk data check 3 4"), "right data 3");
    node.end(vm);
}

#[test]
fn a_driver_that_ended_in_the_middle_of_a_pause_leaves_a_vm_that_goes_on() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    let mut vm = node.resume(&snapshot);
    vm.say("dirty 4 20");
    vm.guest.suspend().expect("it is written");
    vm.guest.process.freeze().expect("freezes");
    let mut vm = after_the_driver(&node, vm);
    vm.guest.process.thaw().expect("thaws");
    vm.guest.go_on().expect("it goes on");
    assert_eq!(vm.verify(), 2048);
    vm.say("dirty 5 20");
    let snapshot = node.pause(vm);
    assert_eq!(node.last_request("PUT /snapshot/create")["snapshot_type"], "Full");
    node.assert_resumes(&snapshot);
}

#[test]
fn a_driver_that_comes_while_firecracker_answers_another_waits_its_turn() {
    let node = Node::start();
    let vm = node.filled(&node.spec(8));
    let gate = node.file("gate");
    pipe(&gate);
    node.set(|settings| settings.stands_at = Some((Step::CreateState, gate.clone())));
    // Answers to these requests go to a driver that is gone.
    let stream =
        std::os::unix::net::UnixStream::connect(vm.guest.facts().directory.api()).expect("it listens");
    crate::requests::raw(&stream, "PATCH /vm", r#"{"state":"Paused"}"#);
    let body =
        r#"{"snapshot_type":"Diff","snapshot_path":"/proc/self/fd/31","mem_file_path":"/proc/self/fd/30"}"#;
    std::io::Write::write_all(
        &mut &stream,
        format!("PUT /snapshot/create HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
    )
    .expect("it listens");
    let letting = std::thread::spawn(move || let_go_on(&gate));
    let mut vm = after_the_driver(&node, vm);
    letting.join().expect("it stood there");
    drop(stream);
    vm.guest.go_on().expect("it goes on, once it has answered");
    node.set(|_| {});
    assert_eq!(vm.verify(), 2048);
    let snapshot = node.pause(vm);
    node.assert_resumes(&snapshot);
}

#[test]
fn a_vm_is_handed_to_another_keeper() {
    let node = Node::start();
    let vm = node.filled(&node.spec(8));
    let key = "guest/again";
    vm.guest.keep_under(&node.keeper, key).expect("the keeper takes it");
    let vm = after_the_driver(&node, Running { key: key.to_owned(), ..vm });
    let snapshot = node.pause(vm);
    node.assert_resumes(&snapshot);
}
