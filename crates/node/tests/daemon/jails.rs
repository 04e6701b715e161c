//! Jails of Firecrackers through the daemon: each goes with its machine, and so does one whose machine never was.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;

use rekindle_api::types::{ConnectSandbox, ResumeSandbox};
use rekindle_testkit::skip::skipped;

use crate::peers::{Peers, Standing, entries};

const USER: u32 = 61_234;

/// A node whose Firecrackers are jailed; none where that cannot be.
fn jailing() -> Option<Peers> {
    if !rustix::process::geteuid().is_root() {
        skipped("Firecracker's jailer", "only root can change its root");
        return None;
    }
    Some(Peers::start_with(|scripts, home| {
        let (program, base) = (scripts.join("jailer"), home.join("jails"));
        format!("[firecracker.jailer]\nprogram = {program:?}\nbase = {base:?}\nuid = {USER}\ngid = {USER}\n")
    }))
}

impl Peers {
    fn jails(&self) -> Vec<PathBuf> {
        entries(&self.node.place.home_directory().join("jails/firecracker"))
    }

    /// From now on that script is this one; the answer is what it was.
    fn replace(&self, name: &str, script: &str) -> Vec<u8> {
        let before = fs::read(self.file(name)).expect("it is there");
        self.put(name, script.as_bytes());
        before
    }

    fn put(&self, name: &str, script: &[u8]) {
        let new = self.file("new");
        rekindle_testkit::programs::write(&new, script).expect("there is room");
        fs::rename(&new, self.file(name)).expect("it is ours");
    }
}

#[test]
fn a_jailed_machine_is_paused_resumed_and_found_again_and_its_jail_goes_with_it() {
    let Some(mut peers) = jailing() else { return };
    peers.filled("vm");
    peers.node.pause("vm", "first");
    peers.node.eventually("the jail going", || peers.jails().is_empty());
    peers.node.resume("vm");
    peers.say("vm", "dirty 2 20");
    peers.write_disk("vm", 5, 6);
    assert_eq!(peers.jails().len(), 1);
    peers.node.crash();
    assert_eq!(peers.jails().len(), 1);
    peers.assert_verified("vm");
    peers.node.pause("vm", "second");
    peers.node.resume("vm");
    peers.assert_verified("vm");
    peers.assert_disk("vm", 3, 4);
    peers.assert_disk("vm", 5, 6);
    peers.node.client.remove_sandbox("vm").expect("it is removed");
    peers.node.eventually("all files going", || peers.jails().is_empty() && peers.machine_files().is_empty());
}

#[test]
fn a_jail_made_before_its_daemon_was_killed_goes_whether_the_keeper_knows_of_it_or_not() {
    let Some(mut peers) = jailing() else { return };
    peers.filled("vm");
    peers.node.pause("vm", "first");
    peers.node.eventually("the first guest going", || {
        peers.jails().is_empty() && peers.node.kept("guest/").is_empty()
    });
    // The first is asked for its version once the jail is there, the second is what the keeper starts.
    for name in ["firecracker", "jailer"] {
        // One of its own each time: what stood at the last may not have gone yet.
        let gate = peers.stand_aside();
        let script = format!("#!/bin/sh\nread line < {gate:?}\n");
        let before = peers.replace(name, &script);
        let client = peers.node.client.clone();
        let asking = thread::spawn(move || client.resume_sandbox("vm", &ResumeSandbox::default()).is_err());
        let standing = Standing::wait(&gate);
        assert_eq!(peers.jails().len(), 1, "{name}");
        peers.node.kill();
        assert!(asking.join().expect("the request ends with its daemon"), "{name}");
        assert_eq!(peers.node.kept("guest/").is_empty(), name == "firecracker");
        assert_eq!(peers.jails().len(), 1, "{name}");
        peers.put(name, &before);
        peers.node.start_again();
        drop(standing);
        fs::remove_file(&gate).expect("it is there");
        peers
            .node
            .eventually("all files going", || peers.jails().is_empty() && peers.machine_files().is_empty());
    }
    peers.node.resume("vm");
    peers.assert_verified("vm");
}

#[test]
fn the_channel_of_a_jailed_machine_is_the_socket_in_its_jail_and_nothing_that_was_put_in_its_place() {
    let Some(peers) = jailing() else { return };
    let mut wanted = peers.machine("vm");
    wanted.machine.as_mut().expect("it is a machine").channel = true;
    peers.node.client.create_sandbox(None, &wanted).expect("a machine is made");
    let how = ConnectSandbox { port: Some(52), ..Default::default() };
    let channel = peers.node.client.connect_sandbox("vm", &how).expect("it listens");
    channel.stream().write_all(b"echo").expect("it takes it");
    let mut back = [0; 4];
    channel.stream().read_exact(&mut back).expect("it comes back");
    assert_eq!(&back, b"echo");
    let socket = peers.jails()[0].join("root/vsock.sock");
    let elsewhere = peers.node.place.home_directory().join("elsewhere.sock");
    let _listener = UnixListener::bind(&elsewhere).expect("the path is short");
    fs::remove_file(&socket).and_then(|()| symlink(&elsewhere, &socket)).expect("root may");
    let refused = peers.node.client.connect_sandbox("vm", &how).expect_err("that is another socket");
    assert!(refused.to_string().contains("no socket any more"), "{refused}");
}
