//! A Firecracker that dies, or fails, at each step: a VM that runs is left, or a snapshot that resumes.

use rekindle_vmm::firecracker::{CallError, FirecrackerError};
use rekindle_vmm::vmm_process::ProcessError;

use crate::peer::Step;
use crate::support::{LIMIT, Node};

fn is_gone(error: &FirecrackerError) -> bool {
    // Its log is told with the error.
    let FirecrackerError::Logged { source, words } = error else { return false };
    words.contains("about to die")
        && matches!(
            &**source,
            FirecrackerError::Call(CallError::Gone { .. } | CallError::Unreachable { .. })
                | FirecrackerError::Process(ProcessError::Gone { .. })
        )
}

#[test]
fn a_death_during_a_start_is_said_and_nothing_is_left() {
    let node = Node::start();
    for step in [Step::Start, Step::Configure, Step::InstanceStart] {
        node.set(|settings| settings.dies_at = Some(step));
        let error = node.try_start(&node.spec(8)).map(drop).expect_err("it died");
        assert!(is_gone(&error), "{step:?}: {error}");
        assert!(node.left_behind().is_empty(), "{step:?}");
    }
    node.set(|_| {});
    let vm = node.run(&node.spec(8));
    node.end(vm);
}

#[test]
fn a_death_during_a_load_is_said_and_the_snapshot_resumes_after() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    for step in [Step::Start, Step::LoadBegins, Step::LoadHandedOver, Step::LoadTouched] {
        node.set(|settings| settings.dies_at = Some(step));
        let error = node.try_resume(&snapshot, &node.spec_of(&snapshot)).map(drop).expect_err("it died");
        assert!(is_gone(&error), "{step:?}: {error}");
        node.set(|_| {});
        node.assert_resumes(&snapshot);
    }
}

#[test]
fn a_death_during_a_pause_is_said_and_the_last_snapshot_resumes() {
    let node = Node::start();
    let snapshot = node.pause(node.filled(&node.spec(8)));
    for step in [Step::Pause, Step::CreateBegins, Step::CreateState, Step::CreateMemory] {
        let mut vm = node.resume(&snapshot);
        vm.say("dirty 4 20");
        node.set(|settings| settings.dies_at = Some(step));
        let (vm, error) = *node.try_pause(vm).map(drop).expect_err("it died");
        assert!(is_gone(&error), "{step:?}: {error}");
        assert!(vm.guest.process.ends_within(LIMIT));
        node.end(vm);
        node.set(|_| {});
        node.assert_resumes(&snapshot);
    }
}

#[test]
fn a_vm_whose_pause_was_refused_goes_on_and_its_next_pause_is_whole() {
    let node = Node::start();
    let mut snapshot = node.pause(node.filled(&node.spec(8)));
    for refused in ["PATCH /vm", "PUT /snapshot/create"] {
        let mut vm = node.resume(&snapshot);
        vm.say("dirty 4 20");
        node.set(|settings| {
            settings.refuses.insert(refused.to_owned(), "not now".to_owned());
        });
        let (mut vm, error) = *node.try_pause(vm).map(drop).expect_err("it was refused");
        assert!(error.to_string().contains("not now"), "{error}");
        node.set(|_| {});
        vm.guest.go_on().expect("it goes on");
        vm.guest.go_on().expect("it runs already");
        assert!(vm.say("tick").starts_with("tick "));
        vm.say("dirty 5 10");
        snapshot = node.pause(vm);
        node.assert_resumes(&snapshot);
    }
}

#[test]
fn a_pause_after_one_that_was_written_and_not_committed_writes_everything() {
    let node = Node::start();
    let mut spec = node.spec(16);
    spec.balloon = Some(rekindle_vmm::firecracker::Balloon { mib: 0, deflates: true });
    let snapshot = node.pause(node.filled(&spec));
    let mut vm = node.resume(&snapshot);
    vm.say("put 4095 9");
    vm.say("put 5 9");
    vm.guest.suspend().expect("it is written");
    // The daemon could not record it: its guest goes on, and what it wrote then is old.
    vm.guest.go_on().expect("it goes on");
    vm.guest.inflate_balloon(1).expect("the balloon takes memory");
    vm.say("put 6 10");
    let snapshot = node.pause(vm);
    assert_eq!(node.last_request("PUT /snapshot/create")["snapshot_type"], "Full");
    let mut vm = node.resume(&snapshot);
    assert_eq!(vm.verify(), 4096);
    node.end(vm);
}

#[test]
fn a_firecracker_that_cuts_the_memory_file_before_it_writes_it_is_captured_as_well() {
    let node = Node::start();
    node.set(|settings| settings.cuts_files = true);
    let mut snapshot = node.pause(node.filled(&node.spec(8)));
    let mut vm = node.resume(&snapshot);
    vm.say("dirty 4 20");
    snapshot = node.pause(vm);
    node.assert_resumes(&snapshot);
}
