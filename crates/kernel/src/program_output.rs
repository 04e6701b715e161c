//! Runs a program for its output, within limits of time and length.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use crate::process::ProcessHandle;
use crate::wakeup::wait_readable;

/// Longest output. The longest that is used, QEMU's list of machines, has some 10 KiB.
const OUTPUT_BYTES_MAX: usize = 256 << 10;

/// Status and output of a program that has ended.
#[derive(Debug)]
pub struct ProgramOutput {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub errors: String,
}

/// One of a program's two output streams.
struct Stream {
    /// None once it has ended.
    from: Option<OwnedFd>,
    bytes: Vec<u8>,
}

/// Runs a command and returns its status and output. A program that takes longer than `limit` or writes too much is
/// killed, with every process that it has started.
pub fn output_within(limit: Duration, command: &mut Command) -> io::Result<ProgramOutput> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let said = until_exit(limit, &mut child);
    // It was not waited for yet, so its pid, which is its group's, is still its own. An error means that the group is
    // gone.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        rustix::process::kill_process_group(group, Signal::KILL).ok();
    }
    let status = child.wait()?;
    let [out, errors] = said?.map(|stream| String::from_utf8_lossy(&stream.bytes).into_owned());
    Ok(ProgramOutput { status, out, errors })
}

/// Reads a child's output and error streams until its end.
fn until_exit(limit: Duration, child: &mut Child) -> io::Result<[Stream; 2]> {
    let process = ProcessHandle::open(child.id())?;
    let streams = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
    streams.iter().flatten().try_for_each(|stream| rustix::io::ioctl_fionbio(stream, true))?;
    let [mut out, mut errors] = streams.map(|from| Stream { from, bytes: Vec::new() });
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let [_, _, end] = wait_readable([out.fd(), errors.fd(), Some(process.as_fd())], Some(left))?;
        // All of its output is in the streams by now; other processes that still have them open add none of its output.
        out.take()?;
        errors.take()?;
        if end.readable {
            return Ok([out, errors]);
        }
        if left.is_zero() {
            let why = format!("it does not answer within {limit:?}, and was ended");
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    }
}

impl Stream {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.from.as_ref().map(OwnedFd::as_fd)
    }

    /// Reads the bytes that are in it now.
    fn take(&mut self) -> io::Result<()> {
        let mut step = [0; 4096];
        while let Some(from) = &self.from {
            match rustix::io::read(from, &mut step) {
                Ok(0) => self.from = None,
                Ok(count) => self.bytes.extend_from_slice(&step[..count]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
            if self.bytes.len() > OUTPUT_BYTES_MAX {
                return Err(io::Error::other("it says more than 256 KiB, and was ended"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than any of these programs takes.
    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_that_does_not_answer_is_ended_at_the_limit() {
        let limit = Duration::from_millis(20);
        let error = output_within(limit, &mut shell("sleep 1000")).expect_err("it only sleeps");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "it does not answer within 20ms, and was ended");
    }

    #[test]
    fn a_program_that_says_too_much_is_ended() {
        let error = output_within(LONG, &mut Command::new("/usr/bin/yes")).expect_err("it never ends");
        assert_eq!(error.to_string(), "it says more than 256 KiB, and was ended");
    }

    #[test]
    fn what_a_program_leaves_running_is_neither_waited_for_nor_left() {
        let script = "sleep 1000 & echo $!; echo no >&2; exit 3";
        let said = output_within(LONG, &mut shell(script)).expect("it answers");
        assert_eq!((said.status.code(), said.errors.as_str()), (Some(3), "no\n"));
        let left: u32 = said.out.trim().parse().expect("a process id");
        // A process that cannot be opened is gone.
        assert!(ProcessHandle::open(left).map_or(true, |left| left.wait_exit(LONG)), "{left} runs on");
    }

    #[test]
    fn an_answer_that_a_pipe_does_not_hold_is_read_whole() {
        let script = "head -c 200000 /dev/zero";
        let said = output_within(LONG, &mut shell(script)).expect("it answers");
        assert_eq!(said.out.len(), 200_000);
    }
}
