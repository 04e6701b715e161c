//! QEMUs that end at every step: each time a clear error, and nothing left.

use std::path::Path;
use std::thread;
use std::time::Duration;

use rekindle_engine::handover::Handover;
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_vmm::qemu::{QemuError, QemuGuest, QemuOptions};
use rekindle_vmm::vmm_process::ProcessError;

use super::support::{Host, LIMIT, spec_of, state_of};

/// The log of a QEMU that ended.
fn log_of(error: &QemuError) -> &str {
    let QemuError::Ended { log, .. } = error else { unreachable!("it ended by itself: {error}") };
    log
}

/// True if the error says that the process is gone.
fn says_gone(error: &QemuError) -> bool {
    matches!(error, QemuError::Ended { .. } | QemuError::Process(ProcessError::Gone { .. }))
}

/// Kills a process after some milliseconds, unless it has ended by then.
fn kill_after(pid: u32, milliseconds: u64) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let Ok(process) = ProcessHandle::open(pid) else { return };
        if !process.wait_exit(Duration::from_millis(milliseconds)) {
            process.signal(Signal::Kill).ok();
        }
    })
}

#[test]
fn a_qemu_that_cannot_start_says_why_and_is_gone() {
    let Some(host) = Host::start() else { return };
    let options = QemuOptions { cpu_model: "no-such-cpu".to_owned(), ..host.tiny(16) };
    let (key, spec) = (host.new_key(), host.settle(options));
    let error = QemuGuest::start(&host.keeper, &key, &host.launch(&key, &spec)).expect_err("no such CPU");
    assert!(log_of(&error).contains("no-such-cpu"), "{error}");
    host.wait_for_nobody();
}

#[test]
fn a_qemu_that_nobody_would_serve_does_not_start() {
    let Some(host) = Host::start() else { return };
    let snapshot = host.boot(host.tiny(16)).pause(&host);
    let (key, spec) = (host.new_key(), spec_of(&snapshot));
    let (listener, _) = host.listen();
    let nobody = Path::new("/no/such/socket");
    let guest =
        QemuGuest::resume(&host.keeper, &key, &host.launch(&key, &spec), nobody, None).expect("it starts");
    let error = guest.handed_over(&listener, LIMIT).expect_err("it ends");
    assert!(log_of(&error).contains("rekindle: not started: guest memory cannot be handed over"), "{error}");
    host.wait_for_nobody();
}

#[test]
fn device_state_that_is_not_all_there_ends_qemu_with_its_own_words() {
    let Some(host) = Host::start() else { return };
    let snapshot = host.boot(host.tiny(16)).pause(&host);
    let state = state_of(&snapshot);
    for bytes in [0, 1, 100, state.len() / 2] {
        let (mut guest, server, _, _) = host.hand_over(&snapshot);
        let error = guest.load(&state[..bytes]).expect_err("a part is not enough");
        assert!(
            matches!(error, QemuError::Ended { .. } | QemuError::DeviceState { moved: "loaded", .. }),
            "{bytes}: {error}"
        );
        guest.process.kill().expect("it ends");
        drop(server);
    }
    host.wait_for_nobody();
}

#[test]
fn a_qemu_killed_while_it_starts_is_said_to_be_gone() {
    let Some(host) = Host::start() else { return };
    let spec = host.settle(host.tiny(16));
    for milliseconds in [0, 5, 20, 40, 60] {
        let key = host.new_key();
        let launch = host.launch(&key, &spec);
        thread::scope(|scope| {
            let started = scope.spawn(|| QemuGuest::start(&host.keeper, &key, &launch));
            let process = loop {
                let held = host.keeper.get(&key).expect("the keeper answers");
                if let Some(process) = held.and_then(|held| held.process) {
                    break process;
                }
            };
            kill_after(process.pid, milliseconds).join().expect("it kills");
            match started.join().expect("no panic") {
                Ok(mut guest) => assert!(guest.suspend().is_err_and(|error| says_gone(&error))),
                Err(error) => assert!(says_gone(&error), "{error}"),
            }
        });
    }
    host.wait_for_nobody();
}

#[test]
fn a_qemu_killed_while_it_resumes_is_said_to_be_gone() {
    let Some(host) = Host::start() else { return };
    let snapshot = host.boot(host.tiny(16)).pause(&host);
    let spec = spec_of(&snapshot);
    for milliseconds in [0, 10, 20, 40, 60, 80] {
        let key = host.new_key();
        let (listener, socket) = host.listen();
        let guest = QemuGuest::resume(&host.keeper, &key, &host.launch(&key, &spec), &socket, None);
        let mut guest = guest.expect("it starts");
        let killing = kill_after(guest.id(), milliseconds);
        let error = match guest.handed_over(&listener, LIMIT) {
            Err(error) => error,
            Ok(stream) => {
                // It is not served: it ends while it waits for a page, if it comes to that.
                let handover = Handover::receive(stream, snapshot.memory().pages(), LIMIT);
                let loaded = guest.load(state_of(&snapshot));
                assert!(guest.process.ends_within(LIMIT), "it is killed in the end");
                drop(handover);
                loaded.and_then(|()| guest.suspend().map(drop)).expect_err("it was killed")
            }
        };
        assert!(says_gone(&error), "{milliseconds} ms: {error}");
        killing.join().expect("it kills");
    }
    host.wait_for_nobody();
}

#[test]
fn a_qemu_killed_while_it_is_paused_is_said_to_be_gone() {
    let Some(host) = Host::start() else { return };
    for milliseconds in [0, 1, 2, 4, 8, 16] {
        let mut running = host.boot(host.tiny(16));
        running.guest.process.freeze().expect("it freezes");
        let killing = kill_after(running.guest.id(), milliseconds);
        if milliseconds % 2 == 0 {
            running.guest.process.thaw().ok();
        }
        if let Err(error) = running.guest.suspend() {
            assert!(says_gone(&error), "{milliseconds} ms: {error}");
        }
        killing.join().expect("it kills");
        assert!(running.guest.process.ends_within(LIMIT));
        let error = running.guest.go_on().expect_err("it is gone");
        assert!(says_gone(&error), "{error}");
    }
    host.wait_for_nobody();
}
