//! A run directory that is removed under the daemon, as by a logout, or a cleaner of temporary files.

use std::fs;

use rekindle::api::types::{FaultSocketState, OpenFaultSocket, SandboxState};

use crate::support::Node;

#[test]
fn a_daemon_whose_run_directory_is_removed_listens_again_and_so_does_its_keeper() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    node.resume("a");
    let wanted = OpenFaultSocket {
        snapshot: "base".to_owned(),
        serve_before_seal: None,
        tracking: Default::default(),
    };
    let socket = node.client.open_fault_socket(&wanted).expect("a socket is opened");
    let keeper = node.place.keeper().expect("a keeper runs").identity();
    fs::remove_dir_all(node.place.run_directory()).expect("it is removed");
    node.eventually("the daemon listening again", || node.client.version().is_ok());
    node.eventually("the same keeper listening again", || {
        node.place.keeper().is_ok_and(|again| again.identity() == keeper)
    });
    node.eventually("its fault socket being there again", || fs::exists(&socket.path).unwrap_or(false));
    node.assert_verified("a");
    node.filled("b", 2);
    node.crash();
    node.assert_verified("a");
    node.assert_verified("b");
    let listed = node.client.fault_socket(socket.id).expect("it is known");
    assert_eq!(listed.state, FaultSocketState::Listening);
    assert_eq!(node.client.sandbox("a").expect("it is listed").state, SandboxState::Running);
}
