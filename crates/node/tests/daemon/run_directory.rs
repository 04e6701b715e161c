//! A run directory that is removed under the daemon, as by a logout, or a cleaner of temporary files.

use std::fs;

use rekindle_api::types::{FaultSocketState, OpenFaultSocket, SandboxState};
use rekindle_testkit::black_box::BlackBox;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::support::{Node, program};

#[test]
fn a_daemon_whose_run_directory_is_removed_listens_again_and_so_does_its_keeper() {
    let mut node = Node::start();
    node.filled("a", 1);
    node.pause("a", "base");
    node.resume("a");
    let wanted = OpenFaultSocket {
        snapshot: "base".parse().expect("it is a name"),
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

#[test]
fn a_start_that_finds_a_pipe_in_the_place_of_one_of_its_files_ends_and_names_it() {
    let names = [
        "run/api.sock.lock",
        "run/keeper.lock",
        "run/keeper.log",
        "state/catalog.redb",
        "state/catalog.lock",
    ];
    for name in names {
        let place = BlackBox::new(&program()).expect("directories");
        let root = place.run_directory().parent().expect("it has one").to_owned();
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("there is room");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        let refused = place.start().expect_err("a pipe is no file").to_string();
        // The keeper says it in its own log.
        let said = match name {
            "run/keeper.lock" => fs::read_to_string(root.join("run/keeper.log")).expect("it was started"),
            _ => refused,
        };
        assert!(said.contains(&path.display().to_string()), "{name}: {said}");
    }
}
