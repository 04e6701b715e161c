//! The driver's end of a guest's control socket: a typed call for each command.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::{
    Command, DeviceState, DiscardHow, Discarded, Hello, NOT_A_COMMAND, NumberOnly, Numbered, Reply, Ticked,
    Verified, Written,
};
use rekindle_guest::process::trace::{Trace, TraceTimes};
use rekindle_kernel::{Memfd, fd_passing};
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::error::GuestError;

/// Longest time for a guest to set up.
const HELLO_LIMIT: Duration = Duration::from_secs(30);
/// The longest hello: 128 regions of less than 100 bytes, with room to spare.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// Longest time for an answer unless the caller says otherwise.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// The longest line a guest may answer: the checksums of 32 GiB.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Commands to a guest and its answers, one command at a time.
#[derive(Debug)]
pub struct GuestControl {
    pid: u32,
    lines: BufReader<UnixStream>,
    line: Vec<u8>,
    next_number: u64,
    /// True if the guest may have got a part of a line, which must be ended before another begins.
    line_is_open: bool,
    answer_limit: Duration,
}

/// A command that was sent and whose answer has not been taken. Dropping it gives the answer up.
#[must_use = "the guest's answer is taken by wait"]
#[derive(Debug)]
pub struct Awaited<'a, Answer> {
    control: &'a mut GuestControl,
    command: &'static str,
    number: u64,
    answer: PhantomData<fn() -> Answer>,
}

impl AsFd for GuestControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lines.get_ref().as_fd()
    }
}

impl GuestControl {
    /// Takes the guest's hello and the memfd that came with it.
    pub(super) fn greet(pid: u32, stream: UnixStream) -> Result<(Self, Hello, Option<Memfd>), GuestError> {
        let failed = |source| GuestError::Process { pid, doing: "greeting", source };
        stream.set_read_timeout(Some(HELLO_LIMIT)).map_err(failed)?;
        let mut control = Self::of(pid, stream, NOT_A_COMMAND + 1);
        let mut buffer = vec![0; HELLO_BYTES_MAX];
        let received = fd_passing::receive(control.lines.get_ref(), &mut buffer, 1);
        let (bytes, fds) = received.map_err(|error| control.read_failed(error, "hello", HELLO_LIMIT))?;
        control.line.extend_from_slice(&buffer[..bytes]);
        if !control.line.ends_with(b"\n") {
            control.read_line("hello", HELLO_LIMIT)?;
        }
        let hello = serde_json::from_slice(&std::mem::take(&mut control.line));
        let hello = match hello.map_err(|source| GuestError::Answer { pid, command: "hello", source })? {
            Reply::Done(hello) => hello,
            Reply::Failed(reason) => return Err(GuestError::SetUp { pid, reason }),
        };
        let adopt = |fd| Memfd::adopt(fd).map_err(|error| failed(io::Error::other(error)));
        let memfd = fds.into_iter().next().map(adopt).transpose()?;
        Ok((control, hello, memfd))
    }

    /// Takes over a guest whose hello another driver took. A line begun by that driver is ended, and the answers to it
    /// are skipped: it began at another number, as no two drivers begin at one.
    pub(super) fn take_over(pid: u32, stream: UnixStream) -> Self {
        let (_, number) = Uuid::now_v7().as_u64_pair();
        Self { line_is_open: true, ..Self::of(pid, stream, number >> 1) }
    }

    fn of(pid: u32, stream: UnixStream, next_number: u64) -> Self {
        let (lines, line) = (BufReader::new(stream), Vec::new());
        Self { pid, lines, line, next_number, line_is_open: false, answer_limit: ANSWER_LIMIT }
    }

    /// Sets how long the typed calls wait for an answer.
    pub fn set_answer_limit(&mut self, limit: Duration) {
        self.answer_limit = limit;
    }

    /// Writes every page.
    pub fn fill(&mut self, seed: u64) -> Result<Written, GuestError> {
        self.begin_fill(seed)?.wait()
    }

    /// Begins to write every page.
    pub fn begin_fill(&mut self, seed: u64) -> Result<Awaited<'_, Written>, GuestError> {
        self.begin("fill", &Command::Fill { seed })
    }

    /// Writes a share of the pages.
    pub fn rewrite(&mut self, rewrite: Rewrite) -> Result<Written, GuestError> {
        self.begin_rewrite(rewrite)?.wait()
    }

    /// Begins to write a share of the pages.
    pub fn begin_rewrite(&mut self, rewrite: Rewrite) -> Result<Awaited<'_, Written>, GuestError> {
        self.begin("rewrite", &Command::Rewrite(rewrite))
    }

    /// Gives a share of the pages back to the kernel.
    pub fn discard(&mut self, share: Share, how: DiscardHow) -> Result<Discarded, GuestError> {
        self.begin("discard", &Command::Discard { share, how })?.wait()
    }

    /// Compares every page with what it must hold.
    pub fn verify(&mut self) -> Result<Verified, GuestError> {
        self.begin_verify()?.wait()
    }

    /// Begins to compare every page with what it must hold.
    pub fn begin_verify(&mut self) -> Result<Awaited<'_, Verified>, GuestError> {
        self.begin("verify", &Command::Verify)
    }

    /// The checksum of each page of a range, see [`rekindle_guest::process::content::checksum`]; `None` where bytes are
    /// lost.
    pub fn checksums(&mut self, first: u32, pages: u32) -> Result<Vec<Option<u64>>, GuestError> {
        self.begin("checksums", &Command::Checksums { first, pages })?.wait()
    }

    /// Compares `pages` pages and counts a step of progress.
    pub fn tick(&mut self, pages: u32) -> Result<Ticked, GuestError> {
        self.begin_tick(pages)?.wait()
    }

    /// Begins a step of progress: the way to see a guest stall.
    pub fn begin_tick(&mut self, pages: u32) -> Result<Awaited<'_, Ticked>, GuestError> {
        self.begin("tick", &Command::Tick { pages })
    }

    /// Touches pages in an order and takes the time.
    pub fn touch_trace(&mut self, trace: Trace) -> Result<TraceTimes, GuestError> {
        self.begin_touch_trace(trace)?.wait()
    }

    /// Begins to touch pages in an order.
    pub fn begin_touch_trace(&mut self, trace: Trace) -> Result<Awaited<'_, TraceTimes>, GuestError> {
        self.begin("touch_trace", &Command::TouchTrace(trace))
    }

    /// Lets the guest's main thread run on one CPU alone, or anywhere.
    pub fn place(&mut self, cpu: Option<usize>) -> Result<(), GuestError> {
        self.begin("place", &Command::Place { cpu })?.wait()
    }

    /// All of the guest that is not memory.
    pub fn state(&mut self) -> Result<DeviceState, GuestError> {
        self.begin("state", &Command::State)?.wait()
    }

    /// Lets the guest go on from a device state.
    pub fn restore(&mut self, state: DeviceState) -> Result<(), GuestError> {
        self.begin("restore", &Command::Restore { state })?.wait()
    }

    /// Begins to tell the guest any command; what it answers is taken as it is.
    pub fn begin_tell(&mut self, command: &Command) -> Result<Awaited<'_, Value>, GuestError> {
        self.begin("what it was told", command)
    }

    pub(super) fn exit(&mut self) -> Result<(), GuestError> {
        self.begin("exit", &Command::Exit)?.wait()
    }

    fn begin<Answer: DeserializeOwned>(
        &mut self,
        name: &'static str,
        command: &Command,
    ) -> Result<Awaited<'_, Answer>, GuestError> {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1).max(NOT_A_COMMAND + 1);
        let mut line = if self.line_is_open { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, &Numbered { number, message: command })
            .expect("commands are plain data");
        line.push(b'\n');
        self.line_is_open = true;
        let write = |mut stream: &UnixStream| {
            stream.set_write_timeout(Some(self.answer_limit))?;
            stream.write_all(&line)
        };
        let written = write(self.lines.get_ref());
        written.map_err(|error| self.read_failed(error, name, self.answer_limit))?;
        self.line_is_open = false;
        Ok(Awaited { control: self, command: name, number, answer: PhantomData })
    }

    /// The answer of that number, after those that were not taken; an error if it takes longer than `limit`.
    fn answer_to<Answer: DeserializeOwned>(
        &mut self,
        number: u64,
        command: &'static str,
        limit: Duration,
    ) -> Result<Answer, GuestError> {
        let started = Instant::now();
        loop {
            let left = limit.saturating_sub(started.elapsed());
            self.read_line(command, left)?;
            let line = std::mem::take(&mut self.line);
            if serde_json::from_slice(&line).is_ok_and(|only: NumberOnly| only.number == number) {
                return self.answer_in(&line, command);
            }
            if left.is_zero() {
                return Err(GuestError::Silent { pid: self.pid, command, limit });
            }
        }
    }

    /// Reads up to the end of the line; if a limit ends the reading, the bytes so far stay in `line`.
    fn read_line(&mut self, command: &'static str, limit: Duration) -> Result<(), GuestError> {
        let at_least = limit.max(Duration::from_millis(1));
        let room = LINE_BYTES_MAX.saturating_sub(u64::try_from(self.line.len()).unwrap_or(u64::MAX));
        let mut read = || {
            self.lines.get_ref().set_read_timeout(Some(at_least))?;
            (&mut self.lines).take(room).read_until(b'\n', &mut self.line)
        };
        let read = read().map_err(|error| self.read_failed(error, command, limit))?;
        if self.line.ends_with(b"\n") {
            return Ok(());
        }
        if u64::try_from(read).is_ok_and(|read| read == room) {
            let source = io::Error::new(io::ErrorKind::InvalidData, "its line has no end");
            return Err(GuestError::Process { pid: self.pid, doing: "talking to", source });
        }
        Err(GuestError::Gone { pid: self.pid, command })
    }

    fn answer_in<Answer: DeserializeOwned>(
        &self,
        line: &[u8],
        command: &'static str,
    ) -> Result<Answer, GuestError> {
        let reply: Result<Numbered<Reply<Answer>>, _> = serde_json::from_slice(line);
        match reply.map_err(|source| GuestError::Answer { pid: self.pid, command, source })?.message {
            Reply::Done(answer) => Ok(answer),
            Reply::Failed(reason) => Err(GuestError::Refused { pid: self.pid, command, reason }),
        }
    }

    fn read_failed(&self, error: io::Error, command: &'static str, limit: Duration) -> GuestError {
        let pid = self.pid;
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) {
            GuestError::Silent { pid, command, limit }
        } else if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            GuestError::Gone { pid, command }
        } else {
            GuestError::Process { pid, doing: "talking to", source: error }
        }
    }
}

impl<Answer: DeserializeOwned> Awaited<'_, Answer> {
    /// Waits for the answer as long as the guest's answer limit allows.
    pub fn wait(self) -> Result<Answer, GuestError> {
        let limit = self.control.answer_limit;
        self.control.answer_to(self.number, self.command, limit)
    }

    /// Waits as long as that, and gives the command back once `is_wanted`, which is asked after each `step`, says no.
    pub fn wait_while(
        mut self,
        step: Duration,
        mut is_wanted: impl FnMut() -> bool,
    ) -> Result<Result<Answer, Self>, GuestError> {
        let (started, limit) = (Instant::now(), self.control.answer_limit);
        while started.elapsed() < limit {
            match self.wait_for(step)? {
                Err(again) if is_wanted() => self = again,
                came => return Ok(came),
            }
        }
        Err(GuestError::Silent { pid: self.control.pid, command: self.command, limit })
    }

    /// Waits for the answer; gives the command back if there is none within `limit`.
    pub fn wait_for(self, limit: Duration) -> Result<Result<Answer, Self>, GuestError> {
        match self.control.answer_to(self.number, self.command, limit) {
            Err(GuestError::Silent { .. }) => Ok(Err(self)),
            answer => answer.map(Ok),
        }
    }
}
