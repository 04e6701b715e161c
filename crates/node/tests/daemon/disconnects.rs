//! Clients that go away in the middle of a request.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rekindle::api::types::{ResumeSandbox, SandboxState};

use crate::support::{Node, rewrite};

/// Sends a request and goes away, at once or after a moment in which it is being done.
fn ask_and_go(node: &Node, path: &str, body: &str, stay: Option<Duration>) {
    let socket = node.place.run_directory().join("api.sock");
    let mut stream = UnixStream::connect(socket).expect("the daemon listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("the daemon takes it");
    if let Some(stay) = stay {
        stream.set_read_timeout(Some(stay)).expect("a limit is set");
        // Whether the answer comes in that time does not matter.
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
        let stay = (round % 4 != 0).then(|| Duration::from_micros(1 + 700 * round));
        ask_and_go(&node, "/v1/sandboxes/a/pause", &format!("{{\"name\":\"{name}\"}}"), stay);
        node.eventually("the sandbox being one or the other", || {
            match node.client.sandbox("a").expect("it is listed") {
                shown if shown.state == SandboxState::Paused => {
                    let snapshot = shown.snapshot.expect("it is paused in a snapshot").to_string();
                    let snapshot = node.client.snapshot(&snapshot).expect("it is listed");
                    assert_eq!(snapshot.name.as_deref(), Some(name.as_str()));
                    node.client.resume_sandbox("a", &ResumeSandbox::default()).is_ok()
                }
                // The request may still come, or may never have been read whole: its guest answers either way.
                shown => shown.state == SandboxState::Running && node.told("a").tick(1).is_ok(),
            }
        });
        if node.client.sandbox("a").expect("it is listed").state == SandboxState::Paused {
            node.resume("a");
        }
        // A pause that comes only now is over before this is answered, or begins after it.
        if node.told("a").rewrite(rewrite(round)).is_err() {
            node.resume("a");
        }
    }
    if node.client.sandbox("a").expect("it is listed").state == SandboxState::Paused {
        node.resume("a");
    }
    node.assert_verified("a");
}

#[test]
fn a_daemon_killed_while_clients_come_and_go_has_what_it_answered() {
    let mut node = Node::start();
    node.filled("a", 1);
    let state = node.told("a").state().expect("answers");
    ask_and_go(&node, "/v1/sandboxes/a/pause", "{\"name\":\"left\"}", Some(Duration::from_millis(3)));
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
        SandboxState::Stopped | SandboxState::Lost => unreachable!("its guest was not ended: {shown:?}"),
    }
    assert_eq!(node.told("a").state().expect("answers"), state);
    node.assert_verified("a");
}
