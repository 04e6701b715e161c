use std::io::{self, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

/// A writer whose lines can be read.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn options(level: &str, format: LogFormat) -> TelemetryOptions {
    TelemetryOptions {
        log_level: level.to_owned(),
        log_format: format,
        otlp_endpoint: None,
        service_name: "a-node".into(),
    }
}

#[test]
fn level_and_format_change_while_a_span_is_open() {
    let lines = Lines::default();
    let (telemetry, dispatch) =
        Telemetry::prepare(&options("warn", LogFormat::Human), lines.clone()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let span = tracing::warn_span!("pause", snapshot = "s1").entered();
        tracing::info!("not asked for");
        tracing::warn!(pages = 3, "of people");
        let human = lines.take();
        assert!(human.contains("of people") && human.contains("pages=3"), "{human}");
        assert!(human.contains("pause{snapshot=\"s1\"}") && !human.contains("not asked for"), "{human}");

        telemetry.change_logging("debug", LogFormat::Json).unwrap();
        tracing::debug!(pages = 4, "of programs");
        drop(span);
        let _second = tracing::info_span!("seal", snapshot = "s2").entered();
        tracing::info!("in a span");
        let json = lines.take();
        let objects: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(objects.len(), 2, "{json}");
        assert_eq!(objects[0]["fields"]["pages"], 4);
        assert_eq!(objects[1]["span"]["snapshot"], "s2");
    });
}

#[test]
fn a_level_that_is_none_is_refused_and_changes_nothing() {
    let lines = Lines::default();
    let (telemetry, dispatch) =
        Telemetry::prepare(&options("info", LogFormat::Human), lines.clone()).unwrap();
    let refused = telemetry.change_logging("rekindle=loud", LogFormat::Json).unwrap_err();
    assert!(refused.to_string().contains("rekindle=loud"), "{refused}");
    assert!(Telemetry::prepare(&options("=,", LogFormat::Human), lines.clone()).is_err());
    tracing::dispatcher::with_default(&dispatch, || tracing::info!("as before"));
    assert!(lines.take().contains("as before"));
}

/// One request of HTTP/1.1 with a length: its path and its body.
fn receive(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "a request is complete");
        bytes.extend_from_slice(&piece[..count]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
            break (head, end + 4 + length.unwrap_or(0_usize));
        }
    };
    let have = bytes.len();
    bytes.resize(length.max(have), 0);
    stream.read_exact(&mut bytes[have..]).unwrap();
    let body = bytes.split_off(head.len() + 4);
    (head.lines().next().unwrap().to_owned(), body)
}

#[test]
fn spans_reach_a_collector_whatever_is_logged() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let received = receive(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        received
    });
    let wanted = TelemetryOptions { otlp_endpoint: Some(endpoint), ..options("off", LogFormat::Human) };
    let (telemetry, dispatch) = Telemetry::prepare(&wanted, Lines::default()).unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        let _pause = tracing::info_span!("pause", snapshot = "s1").entered();
        let _seal = tracing::info_span!("seal").entered();
    });
    drop(telemetry);
    let (request, body) = collector.join().unwrap();
    assert_eq!(request, "POST /v1/traces HTTP/1.1");
    for text in ["pause", "seal", "snapshot", "s1", "service.name", "a-node"] {
        let found = body.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(found, "{text} is in {}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn an_endpoint_with_tls_is_refused_by_name() {
    let wanted = TelemetryOptions {
        otlp_endpoint: Some("https://collector:4318".into()),
        ..options("info", LogFormat::Human)
    };
    let refused = Telemetry::prepare(&wanted, Lines::default()).unwrap_err();
    assert!(refused.to_string().contains("https://collector:4318"), "{refused}");
}
