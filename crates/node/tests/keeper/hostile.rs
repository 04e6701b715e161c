//! Clients that misbehave: they can do nothing to the keeper.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use rekindle_kernel::fd_passing;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::support::{LIMIT, TestKeeper, eventually, file_of, raw_answer};

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| file_of(b"").into()).collect()
}

fn put_line(names: &[&str]) -> Vec<u8> {
    let request = json!({ "request": "put", "key": "key", "note": { "whole": true }, "names": names });
    format!("{request}\n").into_bytes()
}

#[test]
fn garbage_is_refused_and_the_keeper_goes_on() {
    let keeper = TestKeeper::start();
    let stream = keeper.connect();
    let deep = format!("{{\"request\":\"put\",\"key\":\"k\",\"names\":[],\"note\":{}\n", "[".repeat(100_000));
    let lines: [&[u8]; 10] = [
        b"\n",
        b"null\n",
        b"{}\n",
        b"\xff\xfe\x00\n",
        b"{\"request\":\"unheard\"}\n",
        b"{\"request\":\"get\"}\n",
        b"{\"request\":\"get\",\"key\":\"\"}\n",
        b"{\"request\":\"put\",\"key\":\"k\",\"names\":[\"x\"],\"note\":null}\n",
        b"{\"request\":\"spawn\",\"key\":\"k\",\"number\":7,\"spawn\":{},\"roles\":[]}\n",
        deep.as_bytes(),
    ];
    for line in lines {
        let answer = raw_answer(&stream, line, &[]).expect("it is answered");
        assert_eq!(answer["refused"]["refusal"], "malformed", "{answer}");
    }
    let answer = raw_answer(&stream, b"{\"request\":\"get\",\"key\":\"k\"}\n", &fds(1)).expect("answered");
    assert_eq!(answer["refused"]["refusal"], "malformed", "{answer}");
    assert_eq!(keeper.client.list().expect("answers"), []);
}

#[test]
fn a_request_without_an_end_and_one_with_too_many_descriptors_are_refused_with_the_limit() {
    let keeper = TestKeeper::start();
    let fds_before = keeper.open_fds();
    let endless = vec![b' '; 4 << 20];
    let answer = raw_answer(&keeper.connect(), &endless, &[]).expect("it is answered");
    assert_eq!(answer["refused"]["refusal"], "too_much", "{answer}");

    let stream = keeper.connect();
    let some = fds(200);
    let some: Vec<_> = some.iter().map(|fd| fd.as_fd()).collect();
    fd_passing::send(&stream, b" ", &some).expect("the keeper reads");
    let answer = raw_answer(&stream, b" ", &fds(200)).expect("it is answered");
    assert_eq!(answer["refused"]["refusal"], "too_much", "{answer}");
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest).ok();
    assert!(rest.is_empty(), "the connection is closed");

    let two = [put_line(&[]), put_line(&[])].concat();
    let answer = raw_answer(&keeper.connect(), &two, &[]).expect("it is answered");
    assert_eq!(answer["refused"]["refusal"], "malformed", "{answer}");
    drop(stream);
    eventually("everything is closed", || keeper.open_fds() == fds_before);
    assert_eq!(keeper.client.list().expect("answers"), []);
}

#[test]
fn a_request_cut_anywhere_is_not_done_and_leaves_nothing_open() {
    let keeper = TestKeeper::start();
    let fds_before = keeper.open_fds();
    let line = put_line(&["one", "two"]);
    let files = fds(2);
    for end in 1..line.len() {
        let stream = keeper.connect();
        let both: Vec<_> = files.iter().map(|fd| fd.as_fd()).collect();
        fd_passing::send(&stream, &line[..end], &both).expect("the keeper listens");
    }
    assert_eq!(keeper.client.list().expect("answers"), []);
    eventually("everything is closed", || keeper.open_fds() == fds_before);

    // The same in parts, and then its end: it is done.
    let stream = keeper.connect();
    let (head, tail) = line.split_at(line.len() / 2);
    fd_passing::send(&stream, head, &[files[0].as_fd()]).expect("the keeper reads");
    assert_eq!(raw_answer(&stream, tail, &files[1..]), Some(json!({ "done": Value::Null })));
    let held = keeper.client.get("key").expect("answers").expect("it is held");
    assert_eq!((held.note, held.fds.len()), (json!({ "whole": true }), 2));
}

#[test]
fn clients_that_say_nothing_make_room_for_those_that_do() {
    let keeper = TestKeeper::start();
    let silent: Vec<UnixStream> = (0..100).map(|_| keeper.connect()).collect();
    keeper.another_client().note("key", &json!(1)).expect("held");
    assert_eq!(keeper.client.list().expect("its connection was closed, so it makes another").len(), 1);
    drop(silent);
}

#[test]
fn a_client_that_has_asked_keeps_its_connection_whatever_hundreds_of_others_do() {
    let keeper = TestKeeper::start();
    let asks = keeper.connect();
    let ask = || raw_answer(&asks, b"{\"request\":\"get\",\"key\":\"k\"}\n", &[]);
    assert_eq!(ask(), Some(json!({ "done": Value::Null })));
    let silent: Vec<UnixStream> = (0..300).map(|_| keeper.connect()).collect();
    let begin = |_| {
        let mut stream = keeper.connect();
        // One that is closed already takes nothing.
        stream.write_all(b"{").ok();
        stream
    };
    let begun: Vec<UnixStream> = (0..300).map(begin).collect();
    assert_eq!(ask(), Some(json!({ "done": Value::Null })), "its connection is still the same");
    keeper.another_client().note("key", &json!(1)).expect("a newcomer is let in as well");
    drop((silent, begun));
}

#[test]
fn clients_that_never_finish_a_request_are_given_up() {
    let keeper = TestKeeper::start();
    let begin = |_| {
        let mut stream = keeper.connect();
        stream.write_all(b"{").expect("the keeper listens");
        stream
    };
    let slow: Vec<UnixStream> = (0..20).map(begin).collect();
    keeper.another_client().note("key", &json!(1)).expect("held once the others are given up");
    for mut stream in &slow {
        stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        // Bytes that were sent and not read show as a reset, which is an end too.
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "the connection is closed");
    }
    assert_eq!(keeper.client.list().expect("answers").len(), 1);
}

#[test]
fn a_client_that_reads_no_answers_is_given_up() {
    let keeper = TestKeeper::start();
    let long = "n".repeat(10_000);
    for at in 0..10 {
        keeper.client.note(&format!("key/{at}"), &json!(long)).expect("held");
    }
    let mut stream = keeper.connect();
    let waiting =
        |stream: &UnixStream| rustix::io::ioctl_fionread(stream).expect("a socket counts its bytes");
    let mut answered = 0;
    while stream.write_all(b"{\"request\":\"list\",\"after\":null}\n").is_ok() {
        let is_closed = |stream: &UnixStream| {
            let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
            rustix::event::poll(&mut polled, Some(&Timespec::default())).expect("poll") > 0
        };
        eventually("an answer or the end", || waiting(&stream) > answered || is_closed(&stream));
        answered = waiting(&stream);
    }
    assert_eq!(keeper.client.list().expect("answers").len(), 10);
}
