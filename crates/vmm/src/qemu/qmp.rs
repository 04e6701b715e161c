//! Our end of QEMU's control connection (QMP): one command at a time, each answered by a line; events between.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rekindle_kernel::fd_passing;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use uuid::Uuid;

use super::error::QemuError;
use crate::last_words::last_words;

/// Longest time from QEMU's start to its greeting.
const GREETING_LIMIT: Duration = Duration::from_secs(30);
/// Longest time for an answer. To stop, every CPU of the guest must first have the page it waits for.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The longest line QEMU may say; those asked for here have a few hundred bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Length of the part of a bad answer that is shown.
const TOLD_BYTES: usize = 300;

/// A byte that is in no command: QEMU forgets the part of a command that came before it (QMP specification, 2.6).
const FORGET: &[u8] = b"\xff\n";

/// The control connection of one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    pid: u32,
    lines: BufReader<UnixStream>,
    line: Vec<u8>,
    next_number: u64,
    log: PathBuf,
}

/// A message of QEMU.
#[derive(Debug, Deserialize)]
pub(super) enum Message {
    #[serde(rename = "QMP")]
    Greeting(IgnoredAny),
    #[serde(untagged)]
    Event(Event),
    #[serde(untagged)]
    Answer(Answer),
}

/// Something that happened by itself.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub(super) event: String,
    #[serde(default)]
    pub(super) data: Value,
}

/// The answer to the command of that number; to none where QEMU understood none.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) id: Option<u64>,
    #[serde(rename = "return")]
    pub(super) done: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lines.get_ref().as_fd()
    }
}

impl Event {
    /// State of a migration, if that is what it tells.
    pub(super) fn migration(&self) -> Option<&str> {
        (self.event == "MIGRATION").then(|| self.data["status"].as_str()).flatten()
    }
}

impl Qmp {
    /// The connection of process `pid`, which prints to `log`. Its commands have numbers that no other driver's have.
    pub(super) fn new(pid: u32, stream: UnixStream, log: PathBuf) -> Self {
        let (_, number) = Uuid::now_v7().as_u64_pair();
        Self { pid, lines: BufReader::new(stream), line: Vec::new(), next_number: number >> 2, log }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until QEMU is up and ready for commands.
    pub(super) fn greet(&mut self) -> Result<(), QemuError> {
        let deadline = Instant::now() + GREETING_LIMIT;
        loop {
            match self.next("start", deadline, GREETING_LIMIT)? {
                Message::Greeting(_) => break,
                Message::Event(_) => {}
                Message::Answer(_) => return Err(self.not_understood("start")),
            }
        }
        self.execute("get ready", "qmp_capabilities", &Value::Null).map(drop)
    }

    /// Begins to receive events, after any driver before and even if QEMU is not up yet; never waits.
    pub(super) fn begin(&mut self, doing: &'static str) -> Result<(), QemuError> {
        self.send(doing, FORGET, &[])?;
        self.tell(doing, "qmp_capabilities", &Value::Null, &[]).map(drop)
    }

    /// True if a message of QEMU was received and not handled yet.
    pub(super) fn has_read_ahead(&self) -> bool {
        !self.lines.buffer().is_empty()
    }

    /// Takes over from a driver that is gone, even in the middle of a command.
    pub(super) fn take_over(&mut self) -> Result<(), QemuError> {
        self.send("answer a new driver", FORGET, &[])?;
        match self.execute("answer a new driver", "qmp_capabilities", &Value::Null) {
            // It was made ready before.
            Ok(_) | Err(QemuError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Has QEMU do a command; `doing` names it for people.
    pub(super) fn execute(
        &mut self,
        doing: &'static str,
        command: &'static str,
        arguments: &Value,
    ) -> Result<Value, QemuError> {
        let number = self.tell(doing, command, arguments, &[])?;
        self.answer(doing, number)
    }

    /// Gives QEMU a descriptor by a name that later commands use.
    pub(super) fn give(
        &mut self,
        doing: &'static str,
        name: &str,
        fd: BorrowedFd<'_>,
    ) -> Result<(), QemuError> {
        let number = self.tell(doing, "getfd", &json!({ "fdname": name }), &[fd])?;
        self.answer(doing, number).map(drop)
    }

    /// Says a command without waiting for its answer; the answer has this number.
    pub(super) fn tell(
        &mut self,
        doing: &'static str,
        command: &'static str,
        arguments: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, QemuError> {
        let number = self.next_number;
        self.next_number += 1;
        let mut message = json!({ "execute": command, "id": number });
        if !arguments.is_null() {
            message["arguments"] = arguments.clone();
        }
        let line = format!("{message}\n");
        self.send(doing, line.as_bytes(), fds)?;
        Ok(number)
    }

    /// Waits for the answer of that number.
    pub(super) fn answer(&mut self, doing: &'static str, number: u64) -> Result<Value, QemuError> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let answer = match self.next(doing, deadline, ANSWER_LIMIT)? {
                Message::Answer(answer) if answer.id == Some(number) => answer,
                // A message without a waiter: an answer to another driver, or an event.
                Message::Answer(_) | Message::Event(_) | Message::Greeting(_) => continue,
            };
            return match (answer.done, answer.error) {
                (Some(done), None) => Ok(done),
                (_, Some(refusal)) => Err(QemuError::Refused { pid: self.pid, doing, reason: refusal.desc }),
                (None, None) => Err(self.not_understood(doing)),
            };
        }
    }

    /// Waits for an event until `deadline`, `limit` after the wait began.
    pub(super) fn event(
        &mut self,
        doing: &'static str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Event, QemuError> {
        loop {
            if let Message::Event(event) = self.next(doing, deadline, limit)? {
                return Ok(event);
            }
        }
    }

    /// The error of a QEMU that has ended while it was `doing` something.
    pub(super) fn ended(&self, doing: &'static str) -> QemuError {
        QemuError::Ended { pid: self.pid, doing, log: last_words(&self.log) }
    }

    fn send(&mut self, doing: &'static str, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), QemuError> {
        let stream = self.lines.get_ref();
        let sent = stream.set_write_timeout(Some(ANSWER_LIMIT));
        let sent = sent.and_then(|()| fd_passing::send(stream, bytes, fds));
        sent.map_err(|error| self.failed(doing, error, ANSWER_LIMIT))
    }

    /// The next line that says anything.
    pub(super) fn next(
        &mut self,
        doing: &'static str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Message, QemuError> {
        loop {
            self.read_line(doing, deadline, limit)?;
            let line = std::mem::take(&mut self.line);
            // The first line that a new driver hears may be the end of one.
            if let Ok(said) = serde_json::from_slice(&line) {
                return Ok(said);
            }
        }
    }

    /// Reads up to the end of the line; if the deadline ends the reading, the bytes so far stay in `line`.
    fn read_line(
        &mut self,
        doing: &'static str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<(), QemuError> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let room = LINE_BYTES_MAX.saturating_sub(u64::try_from(self.line.len()).unwrap_or(u64::MAX));
        let mut read = || {
            self.lines.get_ref().set_read_timeout(Some(left))?;
            (&mut self.lines).take(room).read_until(b'\n', &mut self.line)
        };
        let read = read().map_err(|error| self.failed(doing, error, limit))?;
        if self.line.ends_with(b"\n") {
            return Ok(());
        }
        if u64::try_from(read).is_ok_and(|read| read == room) {
            return Err(self.not_understood(doing));
        }
        Err(self.ended(doing))
    }

    fn not_understood(&self, doing: &'static str) -> QemuError {
        let told = &self.line[..self.line.len().min(TOLD_BYTES)];
        QemuError::Answer { pid: self.pid, doing, answer: String::from_utf8_lossy(told).into_owned() }
    }

    fn failed(&self, doing: &'static str, error: io::Error, limit: Duration) -> QemuError {
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            QemuError::Silent { pid: self.pid, doing, limit }
        } else if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            self.ended(doing)
        } else {
            QemuError::Connection { pid: self.pid, doing, source: error }
        }
    }
}
