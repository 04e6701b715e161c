//! One request and its answer over a connection of its own: as much of HTTP/1.1 as Firecracker's API speaks, bounded.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::CallError;

/// Bytes of an answer's lines before its body.
const LINES_BYTES_MAX: usize = 16 << 10;
/// Bytes of an answer's body: the whole configuration of a VM is a few KiB.
const BODY_BYTES_MAX: usize = 1 << 20;

/// The API socket of one Firecracker.
#[derive(Clone, Debug)]
pub(super) struct ApiSocket {
    path: PathBuf,
}

/// A request that was sent and whose answer has not been taken. Readable when that begins to come.
#[derive(Debug)]
pub(super) struct Asked {
    call: String,
    stream: UnixStream,
}

/// Firecracker's words for a refusal.
#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// An answer, whole.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl ApiSocket {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// True once there is a listener.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        match UnixStream::connect(&self.path) {
            Ok(_stream) => Ok(true),
            Err(error) if is_nobody(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks, and takes an answer with no content.
    pub(super) fn tell(
        &self,
        call: &str,
        body: &serde_json::Value,
        limit: Duration,
    ) -> Result<(), CallError> {
        self.begin(call, Some(body), limit)?.done(limit)
    }

    /// Asks, and takes the answer as JSON.
    pub(super) fn ask<T: DeserializeOwned>(&self, call: &str, limit: Duration) -> Result<T, CallError> {
        let asked = self.begin(call, None, limit)?;
        let call = asked.call.clone();
        let body = asked.answer(limit)?;
        serde_json::from_slice(&body).map_err(|error| CallError::Strange { call, reason: error.to_string() })
    }

    /// Sends a request; `call` is its method and path, like `PUT /actions`.
    pub(super) fn begin(
        &self,
        call: &str,
        body: Option<&serde_json::Value>,
        limit: Duration,
    ) -> Result<Asked, CallError> {
        let unreachable = |source| CallError::Unreachable { socket: self.path.clone(), source };
        let mut stream = UnixStream::connect(&self.path).map_err(unreachable)?;
        stream.set_write_timeout(Some(limit)).map_err(unreachable)?;
        match stream.write_all(&request(call, body)) {
            // An answer sent before the connection closed is there all the same.
            Ok(()) => {}
            Err(error) if is_broken(&error) => {}
            Err(error) => return Err(unreachable(error)),
        }
        Ok(Asked { call: call.to_owned(), stream })
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Asked {
    /// Waits until the request was done.
    pub(super) fn done(self, limit: Duration) -> Result<(), CallError> {
        self.answer(limit).map(drop)
    }

    /// The body of a good answer.
    fn answer(mut self, limit: Duration) -> Result<Vec<u8>, CallError> {
        let answer = self.read(limit)?;
        if (200..300).contains(&answer.status) {
            return Ok(answer.body);
        }
        let fault = match serde_json::from_slice::<Fault>(&answer.body) {
            Ok(fault) => fault.fault_message,
            Err(_) => String::from_utf8_lossy(&answer.body).into_owned(),
        };
        Err(CallError::Refused { call: self.call, status: answer.status, fault })
    }

    fn read(&mut self, limit: Duration) -> Result<Answer, CallError> {
        let deadline = Instant::now() + limit;
        let mut bytes = Vec::new();
        let lines = loop {
            if let Some(end) = end_of_lines(&bytes) {
                break end;
            }
            if bytes.len() > LINES_BYTES_MAX {
                return Err(self.strange("its lines do not end"));
            }
            self.read_more(&mut bytes, deadline, limit)?;
        };
        let (status, length) = parse(&bytes[..lines]).map_err(|reason| self.strange(reason))?;
        if length > BODY_BYTES_MAX {
            return Err(self.strange("its body is too long"));
        }
        // An interim answer: the final one follows.
        if (100..200).contains(&status) {
            return Err(self.strange("it asks for more"));
        }
        while bytes.len() < lines + length {
            self.read_more(&mut bytes, deadline, limit)?;
        }
        bytes.truncate(lines + length);
        Ok(Answer { status, body: bytes.split_off(lines) })
    }

    fn read_more(
        &mut self,
        bytes: &mut Vec<u8>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), CallError> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut buffer = [0; 4096];
        let read = self.stream.set_read_timeout(Some(left)).and_then(|()| self.stream.read(&mut buffer));
        match read {
            Ok(0) => Err(CallError::Gone { call: self.call.clone() }),
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(CallError::Silent { call: self.call.clone(), limit })
            }
            Err(error) if is_broken(&error) => Err(CallError::Gone { call: self.call.clone() }),
            Err(error) => Err(self.strange(&error.to_string())),
        }
    }

    fn strange(&self, reason: &str) -> CallError {
        CallError::Strange { call: self.call.clone(), reason: reason.to_owned() }
    }
}

fn request(call: &str, body: Option<&serde_json::Value>) -> Vec<u8> {
    let body = body.map(serde_json::Value::to_string).unwrap_or_default();
    let mut request = format!("{call} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n");
    if !body.is_empty() {
        request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += &body;
    request.into_bytes()
}

/// Start of the body, once the empty line before it is there.
fn end_of_lines(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The status of an answer and the length of its body.
fn parse(lines: &[u8]) -> Result<(u16, usize), &'static str> {
    let text = std::str::from_utf8(lines).map_err(|_error| "its lines are not text")?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err("it does not speak HTTP/1.1");
    }
    let status = words.next().and_then(|word| word.parse().ok()).ok_or("it has no status")?;
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("its length is not told before it");
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_error| "its length is no number")?;
        }
    }
    Ok((status, length))
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn is_broken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A client's result for these bytes as the answer to one request.
    fn answered(bytes: &'static [u8]) -> Result<serde_json::Value, CallError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 1024];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /version HTTP/1.1\r\n"));
            stream.write_all(bytes).unwrap();
        });
        let answer = ApiSocket::at(&path).ask("GET /version", LIMIT);
        serving.join().unwrap();
        answer
    }

    #[test]
    fn answers_are_taken_as_firecracker_writes_them() {
        let version = answered(
            b"HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: 32\r\n\r\n{\"firecracker_version\":\"1.13.1\"}",
        );
        assert_eq!(version.unwrap()["firecracker_version"], "1.13.1");
        let refused = answered(
            b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nContent-Length: 29\r\n\r\n{\"fault_message\":\"not today\"}",
        );
        let Err(CallError::Refused { call, status: 400, fault }) = refused else { panic!("{refused:?}") };
        assert_eq!((call.as_str(), fault.as_str()), ("GET /version", "not today"));
    }

    #[test]
    fn an_answer_that_does_not_come_is_waited_for_no_longer_than_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = ApiSocket::at(&path).begin("GET /version", None, LIMIT).unwrap();
        let silent = asked.done(Duration::from_millis(1));
        assert!(
            matches!(&silent, Err(CallError::Silent { call, .. }) if call == "GET /version"),
            "{silent:?}"
        );
        drop(listener);
        let nobody = ApiSocket::at(&path).begin("GET /version", None, LIMIT);
        assert!(matches!(nobody, Err(CallError::Unreachable { .. })), "{nobody:?}");
    }

    #[test]
    fn what_is_no_answer_is_an_error_that_says_so() {
        for strange in [
            &b"SSH-2.0-OpenSSH\r\n\r\n"[..],
            b"HTTP/1.1 fine\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{x",
            b"\xff\xff\r\n\r\n",
        ] {
            let answer = answered(strange);
            assert!(matches!(answer, Err(CallError::Strange { .. })), "{answer:?}");
        }
        for ended in
            [&b""[..], b"HTTP/1.1 200 \r\nContent-Le", b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{"]
        {
            let answer = answered(ended);
            assert!(matches!(answer, Err(CallError::Gone { .. })), "{answer:?}");
        }
    }
}
