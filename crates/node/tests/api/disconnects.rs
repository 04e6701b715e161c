//! Clients that go away, and a daemon that does.

use std::io::Write as _;

use rekindle_api::problem::Code;
use rekindle_api::types::{PauseSandbox, SandboxState};

use crate::raw;
use crate::served::Served;

/// Case 22: the caller goes away while its guest is frozen.
#[test]
fn a_client_that_goes_away_does_not_interrupt_its_pause() {
    let served = Served::new();
    let sandbox = served.sandbox("web");
    served.fake.hold_pauses();
    let mut stream = raw::connect(&served.socket());
    stream
        .write_all(b"POST /v1/sandboxes/web/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    served.fake.until_pauses_begun(1);
    drop(stream);
    assert_eq!(served.client().sandbox("web").unwrap().state, SandboxState::Running);
    served.fake.release_pauses();
    served.fake.until_sandbox(sandbox.id, SandboxState::Paused);
}

#[test]
fn a_request_that_is_being_answered_is_answered_before_the_daemon_ends() {
    let mut served = Served::new();
    served.sandbox("web");
    served.fake.hold_pauses();
    let client = served.client();
    let pausing = std::thread::spawn(move || client.pause_sandbox("web", None, &PauseSandbox::default()));
    served.fake.until_pauses_begun(1);
    served.end();
    served.fake.release_pauses();
    served.ended();
    assert!(pausing.join().unwrap().is_ok());
    assert!(!served.socket().exists());
}

#[test]
fn half_a_request_does_not_hold_the_daemons_end() {
    let mut served = Served::new();
    let mut half_a_head = raw::connect(&served.socket());
    half_a_head.write_all(b"POST /v1/sandboxes HTTP/1.1\r\nHost: loc").unwrap();
    let mut half_a_body = raw::connect(&served.socket());
    half_a_body
        .write_all(b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        .unwrap();
    // A connection made later is answered, so both are known to the daemon.
    assert!(served.client().health().unwrap().healthy);
    served.ended();
    let answer = raw::read(half_a_body);
    assert!(answer.is_none_or(|answer| answer.code() == Code::Ending.name()));
    assert!(raw::read(half_a_head).is_none());
}

#[test]
fn a_wait_ends_with_the_daemon() {
    let mut served = Served::new();
    served.sandbox("web");
    let client = served.client();
    let id = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap().id.to_string();
    let line = format!("GET /v1/snapshots/{id}/wait?state=sealed HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut waiting = raw::connect(&served.socket());
    waiting.write_all(line.as_bytes()).unwrap();
    // A connection made later is answered, so the wait is known to the daemon, or refused as it ends.
    assert!(client.health().unwrap().healthy);
    served.ended();
    let answer = raw::read(waiting);
    assert!(answer.is_none_or(|answer| answer.code() == Code::Ending.name()));
}

#[test]
fn a_verification_hears_that_its_client_went_away() {
    let served = Served::new();
    served.sandbox("web");
    let id = served.client().pause_sandbox("web", None, &PauseSandbox::default()).unwrap().id;
    served.fake.hold_verifications();
    let mut stream = raw::connect(&served.socket());
    let request =
        format!("POST /v1/snapshots/{id}/verify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    served.fake.until_verifications_begun(1);
    drop(stream);
    served.fake.until_verifications_over(1);
}
