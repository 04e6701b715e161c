//! Event streams: known events, new ones, where a stream goes on, and the events left out.

use std::io::{BufRead as _, BufReader, Write as _};
use std::time::Duration;

use rekindle_api::client::{Client, ClientError, Events};

use crate::raw;
use crate::served::Served;

const SOON: Duration = Duration::from_secs(60);

fn ids(events: &mut Events, count: usize) -> Vec<u64> {
    events.take(count).map(|event| event.unwrap().id).collect()
}

#[test]
fn known_events_come_first_and_new_ones_follow() {
    let served = Served::new();
    ["a", "b", "c"].iter().for_each(|kind| served.fake.say(kind));
    let mut all = served.client().events(Some(0)).unwrap();
    let mut later = served.client().events(Some(2)).unwrap();
    let mut new = served.client().events(None).unwrap();
    served.fake.say("d");
    assert_eq!(ids(&mut all, 4), [1, 2, 3, 4]);
    assert_eq!(ids(&mut later, 2), [3, 4]);
    let event = new.next_within(SOON).unwrap().unwrap();
    assert_eq!((event.id, event.kind.as_str()), (4, "d"));
    assert!(new.next_within(Duration::ZERO).unwrap().is_none());
}

#[test]
fn a_stream_goes_on_behind_the_last_event_its_client_had() {
    let served = Served::new();
    ["a", "b", "c"].iter().for_each(|kind| served.fake.say(kind));
    let mut stream = raw::connect(&served.socket());
    let head = "GET /v1/events?after=0 HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    let mut message = lines.skip_while(|line| !line.starts_with("id:"));
    assert_eq!(message.next().as_deref(), Some("id: 3"));
    assert_eq!(message.next().as_deref(), Some("event: c"));
    assert!(message.next().unwrap().starts_with("data: {\"id\":3,"));
    for id in ["x", "-1", "1.0"] {
        let answer = raw::ask(&served.socket(), "GET /v1/events", &format!("Last-Event-ID: {id}\r\n"), "");
        assert_eq!(answer.code(), "invalid_request");
    }
}

#[test]
fn a_client_that_is_too_slow_is_told_what_it_missed() {
    let served = Served::new();
    served.fake.burst(20);
    let mut events = served.client().events(Some(0)).unwrap();
    let told = events.next().unwrap().unwrap_err();
    assert!(matches!(told, ClientError::EventsLost { missed: 12, .. }), "{told}");
    assert!(events.next().is_none());
}

#[test]
fn a_client_is_told_where_what_is_known_does_not_follow_on_what_it_had() {
    let served = Served::new();
    let mut stream = raw::connect(&served.socket());
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 7\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.is_empty()), "the stream has begun");
    ["a", "b"].iter().for_each(|kind| served.fake.say(kind));
    let mut message = lines.skip_while(|line| !line.starts_with("event:"));
    let told: Vec<_> = message.by_ref().take(3).collect();
    assert_eq!(told, ["event: lost", "data: {\"missed\":0}", "id: 0"]);
}

#[test]
fn a_stream_ends_with_the_daemon() {
    let mut served = Served::new();
    served.fake.say("a");
    let mut events = served.client().events(Some(0)).unwrap();
    assert_eq!(ids(&mut events, 1), [1]);
    served.ended();
    assert!(events.next().is_none());
    assert!(Client::of_socket(served.socket()).events(None).map(drop).unwrap_err().is_unreachable());
}
