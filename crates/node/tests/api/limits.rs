//! Limits on bodies, requests and streams, and refusals beyond them.

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use rekindle_api::client::{ClientError, Events};
use rekindle_api::limits;
use rekindle_api::problem::Code;
use rekindle_api::types::{PauseSandbox, PlacementQuery, ResumeSandbox, SnapshotState};

use crate::raw;
use crate::served::Served;

#[test]
fn a_long_body_is_refused_and_a_captures_may_be_longer() {
    let served = Served::new();
    let long = "x".repeat(limits::BODY_BYTES_MAX + 1);
    let answer = raw::ask(&served.socket(), "POST /v1/sandboxes", "", &long);
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
    let answer = raw::ask(&served.socket(), "POST /v1/captures", "", &long);
    assert_eq!(answer.code(), "invalid_request");
}

#[test]
fn a_long_body_that_does_not_say_its_length_is_refused() {
    let served = Served::new();
    let mut stream = raw::connect(&served.socket());
    let head = "POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    // The daemon answers after a mebibyte and reads no more.
    while stream.write_all(chunk.as_bytes()).is_ok() {}
    assert!(raw::read(stream).is_none_or(|answer| answer.status == 413));
    assert!(served.client().health().unwrap().healthy);
}

#[test]
fn more_requests_than_there_are_places_are_refused_and_probes_are_answered() {
    let served = Served::new();
    served.sandbox("web");
    served.fake.hold_pauses();
    let client = served.client();
    thread::scope(|threads| {
        let pause = || client.pause_sandbox("web", None, &PauseSandbox::default());
        let pausing: Vec<_> = (0..limits::REQUESTS_MAX).map(|_| threads.spawn(pause)).collect();
        served.fake.until_pauses_begun(limits::REQUESTS_MAX);
        assert_eq!(client.sandbox("web").unwrap_err().code(), Some(Code::TooMany));
        assert!(client.health().unwrap().healthy && client.readiness().unwrap().ready);
        assert!(client.metrics().is_ok() && client.version().is_ok());
        assert!(client.node_placement(&PlacementQuery::default()).is_ok());
        served.fake.release_pauses();
        let done = pausing.into_iter().map(|pause| pause.join().unwrap()).filter(Result::is_ok).count();
        assert_eq!(done, limits::REQUESTS_MAX, "the fake pauses as often as it was asked to while running");
    });
    assert!(client.sandbox("web").is_ok());
}

#[test]
fn a_place_is_kept_by_work_whose_client_is_gone() {
    let served = Served::new();
    served.sandbox("web");
    served.fake.hold_pauses();
    let pause = b"POST /v1/sandboxes/web/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    for begun in 1..=limits::REQUESTS_MAX {
        let mut stream = raw::connect(&served.socket());
        stream.write_all(pause).unwrap();
        served.fake.until_pauses_begun(begun);
    }
    assert_eq!(served.client().sandbox("web").unwrap_err().code(), Some(Code::TooMany));
}

#[test]
fn waits_have_places_of_their_own_which_those_who_go_away_leave() {
    let served = Served::new();
    served.sandbox("web");
    let client = served.client();
    let id = client.pause_sandbox("web", None, &PauseSandbox::default()).unwrap().id.to_string();
    let wait = || client.wait_snapshot(&id, SnapshotState::Sealed, Duration::ZERO).unwrap_err().code();
    let line = format!("GET /v1/snapshots/{id}/wait?state=sealed HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut waiting = Vec::new();
    while wait() == Some(Code::NotYet) {
        let mut stream = raw::connect(&served.socket());
        stream.write_all(line.as_bytes()).unwrap();
        waiting.push(stream);
    }
    assert_eq!(wait(), Some(Code::TooMany));
    assert!(waiting.len() >= limits::WAITS_MAX);
    assert!(client.resume_sandbox("web", &ResumeSandbox::default()).is_ok());
    drop(waiting);
    // Their turns end soon.
    assert!((0..1_000_000).any(|_| wait() == Some(Code::NotYet)));
}

#[test]
fn connections_beyond_the_bound_are_told_so_and_taken_again_when_one_has_gone() {
    let served = Served::with_connections(2);
    let idle = [raw::connect(&served.socket()), raw::connect(&served.socket())];
    let answer = raw::ask(&served.socket(), "GET /v1/health", "", "");
    assert_eq!((answer.status, answer.code().as_str()), (429, "too_many"));
    assert!(answer.json()["detail"].as_str().unwrap().contains("api.connections_max"));
    assert_eq!(served.client().health().unwrap_err().code(), Some(Code::TooMany));
    drop(idle);
    // The daemon learns of it when it looks at the connections next.
    assert!((0..100_000).any(|_| served.client().health().is_ok()));
}

#[test]
fn event_streams_have_places_of_their_own() {
    let served = Served::new();
    let client = served.client();
    let mut streams: Vec<Events> =
        (0..limits::EVENT_STREAMS_MAX).map(|_| client.events(None).unwrap()).collect();
    let refused = client.events(None).map(drop).unwrap_err();
    assert_eq!(refused.code(), Some(Code::TooMany));
    assert!(client.all_sandboxes(&[]).is_ok());
    drop(streams.pop());
    // The daemon learns of it when it looks at the connection next; the place is free soon.
    let again = (0..100_000).map(|_| client.events(None)).find(|again| !is_full(again));
    assert!(again.unwrap().is_ok());
}

fn is_full(answer: &Result<Events, ClientError>) -> bool {
    answer.as_ref().is_err_and(|error| error.code() == Some(Code::TooMany))
}
