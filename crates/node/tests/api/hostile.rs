//! Peers that send bytes no client would send: each harms only itself.

use std::io::Write as _;

use rekindle_api::limits;

use crate::raw;
use crate::served::Served;

fn refused(served: &Served, what: &str, bytes: &[u8]) {
    let answer = raw::send(&served.socket(), bytes);
    assert!(answer.as_ref().is_none_or(|answer| (400..500).contains(&answer.status)), "{what}: {answer:?}");
    assert!(served.client().health().unwrap().healthy, "{what}");
}

#[test]
fn what_is_no_http_is_refused() {
    let served = Served::new();
    refused(&served, "nothing", b"");
    refused(&served, "zeroes", &[0; 100_000]);
    refused(&served, "noise", &(0..=255).cycle().take(100_000).collect::<Vec<u8>>());
    refused(&served, "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    refused(&served, "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    refused(&served, "half a line", b"GET /v1/heal");
    refused(&served, "no version", b"GET /v1/health\r\n\r\n");
    refused(&served, "no method", b" /v1/health HTTP/1.1\r\n\r\n");
    refused(&served, "no path", b"GET  HTTP/1.1\r\n\r\n");
    refused(&served, "bytes in the path", b"GET /\xff\xfe HTTP/1.1\r\n\r\n");
    refused(&served, "a field without a name", b"GET /v1/health HTTP/1.1\r\n: x\r\n\r\n");
    refused(&served, "an end in a field", b"GET /v1/health HTTP/1.1\r\nA: b\0c\r\n\r\n");
}

#[test]
fn heads_without_an_end_are_refused() {
    let served = Served::new();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(2 * limits::HEAD_BYTES_MAX));
    refused(&served, "a long path", long.as_bytes());
    let long = format!("GET /v1/health HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(2 * limits::HEAD_BYTES_MAX));
    refused(&served, "a long field", long.as_bytes());
    let many: String = (0..=limits::HEAD_FIELDS_MAX).map(|number| format!("A{number}: b\r\n")).collect();
    refused(&served, "many fields", format!("GET /v1/health HTTP/1.1\r\n{many}\r\n").as_bytes());
}

#[test]
fn bodies_that_contradict_themselves_are_refused() {
    let served = Served::new();
    let post = |fields: &str, body: &str| {
        format!("POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n{body}")
    };
    let sandbox = r#"{"memory_bytes":4096}"#;
    for (what, fields, body) in [
        ("two lengths", "Content-Length: 21\r\nContent-Length: 20\r\n", sandbox),
        ("a negative length", "Content-Length: -1\r\n", sandbox),
        ("a length that is none", "Content-Length: 0x15\r\n", sandbox),
        ("a length and chunks", "Content-Length: 21\r\nTransfer-Encoding: chunked\r\n", "x\r\n"),
        ("chunks that are none", "Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n"),
        ("chunks without an end", "Transfer-Encoding: chunked\r\n", "15\r\n{\"memory_bytes\":4096}"),
        ("an unknown coding", "Transfer-Encoding: gzip\r\n", sandbox),
        ("half a body", "Content-Length: 100\r\n", sandbox),
        ("bytes that are no text", "Content-Length: 4\r\n", "\u{ff}\u{fe}"),
        ("a deep body", "Content-Length: 100000\r\n", &"[".repeat(100_000)),
    ] {
        refused(&served, what, post(fields, body).as_bytes());
    }
    assert_eq!(served.client().all_sandboxes(&[]).unwrap(), []);
}

#[test]
fn a_peer_that_asks_and_never_reads_does_not_keep_others_out() {
    let served = Served::new();
    let ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut deaf: Vec<_> = (0..limits::PROBES_MAX * 4).map(|_| raw::connect(&served.socket())).collect();
    for stream in &mut deaf {
        stream.write_all(&ask.repeat(100)).unwrap();
    }
    assert!(served.client().health().unwrap().healthy);
}

#[test]
fn several_requests_at_once_are_answered_in_order() {
    let served = Served::new();
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n");
    let both = ask("/v1/version", "") + &ask("/v1/health", "Connection: close\r\n");
    let mut stream = raw::connect(&served.socket());
    stream.write_all(both.as_bytes()).unwrap();
    let answer = raw::read(stream).unwrap();
    let (version, health) = answer.body.split_once("HTTP/1.1 200").unwrap();
    assert!(version.contains("started_unix_ms") && health.contains("healthy"));
}
