//! HTTP written by hand, for requests that no honest client sends.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Longest wait for an answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// An answer, taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The fields, in lower case, a line each.
    pub(crate) fields: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| unreachable!("{error} in {:?}", self.body))
    }

    pub(crate) fn code(&self) -> String {
        assert!(self.fields.contains("content-type: application/problem+json"), "{self:?}");
        self.json()["code"].as_str().unwrap().to_owned()
    }
}

pub(crate) fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(ANSWERED_WITHIN)).unwrap();
    stream
}

/// Sends bytes as they are and reads the answer to its end; none where the peer just closes.
pub(crate) fn send(socket: &Path, bytes: &[u8]) -> Option<Answer> {
    let mut stream = connect(socket);
    // The peer may close before it has read everything.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(std::net::Shutdown::Write));
    read(stream)
}

/// Reads an answer until the peer closes.
pub(crate) fn read(mut stream: UnixStream) -> Option<Answer> {
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the peer neither answers nor closes");
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let (line, fields) = head.split_once("\r\n")?;
    let status = line.split(' ').nth(1)?.parse().unwrap();
    Some(Answer { status, fields: fields.to_lowercase(), body: body.to_owned() })
}

/// Asks with a method, a path, more fields and a body, on a connection that closes behind the answer.
pub(crate) fn ask(socket: &Path, line: &str, fields: &str, body: &str) -> Answer {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
    );
    let mut stream = connect(socket);
    drop(stream.write_all(request.as_bytes()));
    read(stream).unwrap()
}
