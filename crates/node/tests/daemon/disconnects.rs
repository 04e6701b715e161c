//! Clients that go away in the middle of a request.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rekindle_api::types::SandboxState;

use crate::support::{BLOCK_BYTES, MEMORY_BYTES, Node, pause_as, rewrite};

/// Asks for a pause of a sandbox, with a key.
fn ask(node: &Node, sandbox: &str, name: &str) -> UnixStream {
    let socket = node.place.run_directory().join("api.sock");
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    let body = format!("{{\"name\":\"{name}\"}}");
    let request = format!(
        "POST /v1/sandboxes/{sandbox}/pause HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Idempotency-Key: {name}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("the daemon takes it");
    stream
}

/// Asks for a pause of `a` and goes away, at once or after a moment in which it is being done.
fn ask_and_go(node: &Node, name: &str, stay: Option<Duration>) {
    let mut stream = ask(node, "a", name);
    if let Some(stay) = stay {
        stream.set_read_timeout(Some(stay)).expect("a limit is set");
        // The answer may come in that time or not.
        let _came = stream.read(&mut [0; 16]).unwrap_or_default();
    }
    stream.shutdown(Shutdown::Both).expect("it can be closed");
}

#[test]
fn case_14_a_guest_whose_pauser_went_away_runs_or_is_paused_and_listed() {
    let node = Node::start();
    node.filled("a", 1);
    for round in 0..20_u64 {
        let name = format!("round-{round}");
        ask_and_go(&node, &name, (round % 4 != 0).then(|| Duration::from_micros(1 + 700 * round)));
        let shown = node.client.sandbox("a").expect("it is listed");
        match shown.state {
            SandboxState::Paused => {
                let snapshot = node.client.snapshot(&name).expect("it is listed");
                assert_eq!(shown.snapshot, Some(snapshot.id));
            }
            SandboxState::Running | SandboxState::Stalled => {}
            SandboxState::Stopped | SandboxState::Lost | SandboxState::Undecided => {
                unreachable!("its guest was not ended: {shown:?}")
            }
        }
        // Asked again under its name it is done, with any outcome of the first time: it is paused from here on.
        let paused = node.client.pause_sandbox("a", Some(&name), &pause_as(&name)).expect("it is paused");
        let shown = node.client.sandbox("a").expect("it is listed");
        assert_eq!((shown.state, shown.snapshot), (SandboxState::Paused, Some(paused.id)));
        node.resume("a");
        node.told("a").rewrite(rewrite(round)).expect("rewrites");
    }
    node.assert_verified("a");
    assert_eq!(node.client.all_snapshots(&[]).expect("a list").len(), 20);
}

#[test]
fn a_daemon_killed_while_clients_come_and_go_has_what_it_answered() {
    let mut node = Node::start();
    node.filled("a", 1);
    let state = node.told("a").state().expect("answers");
    ask_and_go(&node, "left", Some(Duration::from_millis(3)));
    node.crash();
    let shown = node.client.sandbox("a").expect("it is listed");
    let snapshot = node.client.snapshot("left");
    match shown.state {
        SandboxState::Paused => {
            assert_eq!(shown.snapshot, Some(snapshot.expect("it is listed").id));
            node.resume("a");
        }
        SandboxState::Running | SandboxState::Stalled => {
            assert!(snapshot.is_err(), "nothing of a pause that was not done: {snapshot:?}");
        }
        SandboxState::Stopped | SandboxState::Lost | SandboxState::Undecided => {
            unreachable!("its guest was not ended: {shown:?}")
        }
    }
    assert_eq!(node.told("a").state().expect("answers"), state);
    node.assert_verified("a");
}

#[test]
fn a_pause_that_waits_for_ram_ends_when_its_client_goes_away_and_its_guest_runs_on() {
    let mut node = Node::start_with("capture_bytes_max = \"20MiB\"\npause_wait = \"1h\"\n");
    node.filled("a", 1);
    node.filled("b", 2);
    node.kill();
    // The first capture stays in RAM, as its layer is more than a file may have.
    node.place.limit(&format!("-f {}", MEMORY_BYTES / 2 / BLOCK_BYTES));
    node.start_again();
    node.pause("a", "base");
    let mut waiting = ask(&node, "b", "never");
    // A moment for it to begin to wait; what follows holds also where it has not.
    waiting.set_read_timeout(Some(Duration::from_millis(500))).expect("a limit is set");
    assert!(waiting.read(&mut [0; 16]).is_err(), "it is not answered");
    drop(waiting);
    // It gets its turn once the pause has ended, which would be in an hour.
    node.assert_verified("b");
    assert!(node.client.snapshot("never").is_err(), "nothing was done");
}
