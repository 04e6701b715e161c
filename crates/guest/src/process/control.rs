//! The guest's command loop: lines in, lines out, until the other end closes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::thread;

use anyhow::Context as _;
use rekindle_kernel::{FaultScope, fd_passing, placement};
use rustix::event::{PollFd, PollFlags};
use serde_json::{Value, json};

use super::handover::HandedOver;
use super::memory::GuestSpace;
use super::protocol::{Command, Hello, NOT_A_COMMAND, NumberOnly, Numbered, Reply};
use super::workload::Workload;

/// The guest's end of the control socket.
pub(super) struct Control {
    stream: UnixStream,
}

/// The guest's decision after a command: go on, or end.
enum Next {
    Continue,
    End,
}

impl Control {
    /// Takes the control socket from standard input; an error if there is no socket.
    pub(super) fn from_standard_input() -> anyhow::Result<Self> {
        let fd = std::io::stdin().as_fd().try_clone_to_owned().context("standard input is not open")?;
        Self::of(fd)
    }

    fn of(fd: OwnedFd) -> anyhow::Result<Self> {
        let stream = UnixStream::from(fd);
        stream.local_addr().context(
            "standard input is not a control socket: a process guest is started by rekindle, not by hand",
        )?;
        Ok(Self { stream })
    }

    /// Sends the hello. A guest that starts with its own memory sends its memfd too; one that is served has given it to
    /// its handler, if at all.
    pub(super) fn send_hello(
        &self,
        memory: &GuestSpace,
        handed_over: Option<&HandedOver>,
    ) -> anyhow::Result<()> {
        let user_only = |scope| matches!(scope, FaultScope::UserOnly);
        let hello = Hello {
            pid: process::id(),
            regions: memory.regions(),
            user_faults_only: handed_over.and_then(HandedOver::scope).map(user_only),
        };
        let memfd = memory.memfd().filter(|_| handed_over.is_none());
        let fds: Vec<_> = memfd.iter().map(|memfd| memfd.as_fd()).collect();
        let line = line_of(&Reply::Done(hello))?;
        fd_passing::send(&self.stream, &line, &fds).context("sending the hello")
    }

    /// Sends the reason that the guest could not start.
    pub(super) fn send_failure(&self, error: &anyhow::Error) -> anyhow::Result<()> {
        let line = line_of(&Reply::<Hello>::Failed(format!("{error:#}")))?;
        (&self.stream).write_all(&line).context("reporting why the guest did not start")
    }

    /// Starts a thread that ends the process when the other end closes its socket, even if the guest waits for a page
    /// that never comes. The thread lives as long as the process.
    pub(super) fn end_with_other_side(&self) -> anyhow::Result<()> {
        let stream = self.stream.try_clone()?;
        let watch = move || {
            let mut watched = [PollFd::new(&stream, PollFlags::RDHUP)];
            while let Err(rustix::io::Errno::INTR) = rustix::event::poll(&mut watched, None) {}
            process::exit(0);
        };
        thread::Builder::new().name("control-watch".to_owned()).spawn(watch)?;
        Ok(())
    }

    /// Runs and answers commands, one after the other, until one says exit or the other end is closed.
    pub(super) fn run(&self, workload: &mut Workload) -> anyhow::Result<()> {
        let mut lines = BufReader::new(&self.stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match lines.read_until(b'\n', &mut line)? {
                0 => return Ok(()),
                // A driver that takes over first ends a line that the one before it may have begun.
                1 if line == b"\n" => continue,
                _ => {}
            }
            let (number, command) = command_of(&line);
            let (reply, next) = match command {
                Ok(command) => answer(command, workload),
                Err(error) => (Err(error.into()), Next::Continue),
            };
            let message = reply.map_or_else(|error| Reply::Failed(format!("{error:#}")), Reply::Done);
            (&self.stream).write_all(&line_of(&Numbered { number, message })?)?;
            if matches!(next, Next::End) {
                return Ok(());
            }
        }
    }
}

/// The command in a line, and the number of its reply.
fn command_of(line: &[u8]) -> (u64, Result<Command, serde_json::Error>) {
    match serde_json::from_slice(line) {
        Ok(Numbered { number, message }) => (number, Ok(message)),
        Err(error) => {
            let number = serde_json::from_slice(line).map_or(NOT_A_COMMAND, |NumberOnly { number }| number);
            (number, Err(error))
        }
    }
}

fn answer(command: Command, workload: &mut Workload) -> (anyhow::Result<Value>, Next) {
    let next = if matches!(command, Command::Exit) { Next::End } else { Next::Continue };
    (run_command(command, workload), next)
}

fn run_command(command: Command, workload: &mut Workload) -> anyhow::Result<Value> {
    Ok(match command {
        Command::Fill { seed } => json!(workload.fill(seed)),
        Command::Rewrite(rewrite) => json!(workload.rewrite(&rewrite)),
        Command::Discard { share, how } => {
            json!(workload.discard(&share, how).with_context(|| format!("discarding by {how:?}"))?)
        }
        Command::Verify => json!(workload.verify()),
        Command::Checksums { first, pages } => json!(workload.checksums(first, pages)),
        Command::Tick { pages } => json!(workload.tick(pages)),
        Command::TouchTrace(trace) => json!(trace.run(workload.memory(), &workload.state().history)?),
        Command::Place { cpu } => {
            cpu.map_or_else(placement::run_anywhere, placement::run_on).context("placing the guest")?;
            Value::Null
        }
        Command::State => json!(workload.state()),
        Command::Restore { state } => {
            workload.restore(state);
            Value::Null
        }
        Command::Exit => Value::Null,
    })
}

fn line_of(message: &impl serde::Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}
