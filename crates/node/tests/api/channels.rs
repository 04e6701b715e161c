//! Connections that go on as bytes after their answer.

use std::io::{Read as _, Write as _};

use rekindle_api::problem::Code;
use rekindle_api::types::ConnectSandbox;

use crate::raw;
use crate::served::Served;

#[test]
fn an_upgraded_connection_carries_bytes_both_ways_until_the_guest_ends_it() {
    let served = Served::new();
    served.sandbox("web");
    let channel = served.client().connect_sandbox("web", &ConnectSandbox::default()).unwrap();
    channel.stream().write_all(b"one\ntwo\nend\n").unwrap();
    let mut all = String::new();
    channel.stream().read_to_string(&mut all).unwrap();
    assert_eq!(all, "one\ntwo\n");
}

#[test]
fn bytes_that_come_with_the_request_are_the_guests() {
    let served = Served::new();
    served.sandbox("web");
    let mut stream = raw::connect(&served.socket());
    stream
        .write_all(
            b"POST /v1/sandboxes/web/connect HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
              Upgrade: Rekindle-Channel\r\n\r\nearly\nend\n",
        )
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    let (head, bytes) = all.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.to_lowercase().contains("upgrade: rekindle-channel"), "{head}");
    assert_eq!(bytes, "early\n");
}

#[test]
fn a_request_without_an_upgrade_and_one_that_is_refused_are_answered_with_the_problem() {
    let served = Served::new();
    served.sandbox("web");
    let line = "POST /v1/sandboxes/web/connect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut stream = raw::connect(&served.socket());
    stream.write_all(line.as_bytes()).unwrap();
    let answer = raw::read(stream).unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (400, Code::InvalidRequest.name()));
    assert!(answer.body.contains("Upgrade: rekindle-channel"), "{}", answer.body);
    let refused = ConnectSandbox { take_over: Some(false), ..Default::default() };
    let error = served.client().connect_sandbox("web", &refused).unwrap_err();
    assert_eq!(error.code(), Some(Code::WrongState));
}

#[test]
fn a_connection_ends_with_the_daemon_and_with_its_client() {
    let mut served = Served::new();
    served.sandbox("web");
    let client = served.client();
    drop(client.connect_sandbox("web", &ConnectSandbox::default()).unwrap());
    let channel = client.connect_sandbox("web", &ConnectSandbox::default()).unwrap();
    served.end();
    served.ended();
    let mut rest = Vec::new();
    channel.stream().read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}
