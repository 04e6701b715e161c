//! Drivers that are gone in the middle of something, and those that go on after them.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rekindle_kernel::fd_passing;
use rekindle_vmm::qemu::QemuError;

use super::support::{Console, Host, Running, spec_of, state_of};

const STOP: &[u8] = b"{\"execute\":\"stop\",\"id\":5}\n";

fn assert_goes_on(host: &Host, running: &mut Running) {
    running.attach_again(host);
    let ticks = {
        running.guest.go_on().expect("it goes on");
        running.tick()
    };
    running.guest.go_on().expect("one that runs goes on");
    assert_eq!(running.tick(), ticks + 1);
}

#[test]
fn whatever_a_driver_was_about_to_say_or_hear_the_next_one_makes_the_guest_run() {
    let Some(host) = Host::start() else { return };
    let mut running = host.boot(host.tiny(16));
    running.console.ask("fill 1");
    for cut in 0..=STOP.len() {
        let mut raw = running.raw_control(&host);
        // An answer that is not taken, then a command without an end; a whole one stops the guest.
        raw.write_all(b"{\"execute\":\"query-status\",\"id\":4}\n").expect("told");
        raw.write_all(&STOP[..cut]).expect("told");
        assert_goes_on(&host, &mut running);
    }
    for half in [&b"{\"execute\":\"st"[..], b"{\"a\":[[{\"b\":", b"\xff\xff{", b"]}]}"] {
        running.raw_control(&host).write_all(half).expect("told");
        assert_goes_on(&host, &mut running);
    }
    running.verify();
    let snapshot = running.pause(&host);
    host.resume(&snapshot).verify();
}

/// Begins what `suspend` does, and gives our end of the device state's connection.
fn begin_to_suspend(host: &Host, running: &Running) -> UnixStream {
    let mut raw = running.raw_control(host);
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    raw.write_all(STOP).expect("told");
    let give = b"{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"other\"}}\n";
    fd_passing::send(&raw, give, &[theirs.as_fd()]).expect("told");
    raw.write_all(b"{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"fd:other\"}}\n").expect("told");
    ours
}

#[test]
fn a_driver_that_is_gone_while_device_state_is_saved_leaves_a_guest_that_goes_on() {
    let Some(host) = Host::start() else { return };
    let mut running = host.boot(host.tiny(16));
    running.console.ask("fill 1");
    // The stream is not read, and then cannot be: the migration fails, or is complete in the socket's buffer.
    drop(begin_to_suspend(&host, &running));
    assert_goes_on(&host, &mut running);
    // A reader has taken a part.
    let mut ours = begin_to_suspend(&host, &running);
    ours.read_exact(&mut [0; 100]).expect("it begins");
    drop(ours);
    assert_goes_on(&host, &mut running);
    // All was read, and nothing done with it.
    let mut ours = begin_to_suspend(&host, &running);
    let mut all = Vec::new();
    ours.read_to_end(&mut all).expect("it ends");
    assert!(all.len() > 1000);
    assert_goes_on(&host, &mut running);
    // The stream is not read, and the socket stays open for another.
    let ours = begin_to_suspend(&host, &running);
    assert_goes_on(&host, &mut running);
    drop(ours);
    running.verify();
    let snapshot = running.pause(&host);
    host.resume(&snapshot).verify();
}

#[test]
fn a_pause_that_was_given_up_is_made_again() {
    let Some(host) = Host::start() else { return };
    let mut running = host.boot(host.tiny(16));
    running.console.ask("fill 1");
    for _ in 0..3 {
        let ticks = running.tick();
        let state = running.guest.suspend().expect("it stands");
        assert!(state.len() > 1000);
        running.guest.process.freeze().expect("it freezes");
        running.attach_again(&host);
        running.guest.process.thaw().expect("it thaws");
        running.guest.go_on().expect("it goes on");
        assert_eq!(running.tick(), ticks + 1);
    }
    let snapshot = running.pause(&host);
    let mut again = host.resume(&snapshot);
    again.console.ask("dirty 5 20");
    again.guest.suspend().expect("it stands");
    again.guest.go_on().expect("it goes on");
    again.verify();
    again.attach_again(&host);
    again.verify();
    let snapshot = again.pause(&host);
    host.resume(&snapshot).verify();
}

#[test]
fn a_guest_that_was_never_loaded_is_not_said_to_run() {
    let Some(host) = Host::start() else { return };
    let snapshot = host.boot(host.tiny(16)).pause(&host);
    let (guest, server, disks, key) = host.hand_over(&snapshot);
    let (console, spec) = (Console::of(&guest), spec_of(&snapshot));
    let mut running = Running { key, guest, console, origin: None, served: None, disks, spec };
    running.attach_again(&host);
    let error = running.guest.go_on().expect_err("there is nothing to run");
    assert!(matches!(error, QemuError::NotLoaded { .. }), "{error}");
    running.guest.load(state_of(&snapshot)).expect("another driver may load it");
    running.tick();
    running.guest.process.kill().expect("it ends");
    drop(server);
}
