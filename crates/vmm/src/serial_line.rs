//! Our ends of a guest's serial line: one to read what it prints, one to write what it reads.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::pipe::PipeFlags;

/// Bytes that a guest can print while no daemon reads: the largest pipe that a user may make where nothing else is set
/// (`/proc/sys/fs/pipe-max-size`). They take memory only while they wait.
const OUTPUT_BYTES: usize = 1 << 20;

/// Our two ends of a serial line. Of a socket both are the same file.
#[derive(Debug)]
pub struct SerialLine {
    /// The guest's output comes out here.
    pub output: OwnedFd,
    /// Bytes written here are the guest's input.
    pub input: OwnedFd,
}

/// The VMM's two ends of a serial line that is made of pipes.
#[derive(Debug)]
pub(super) struct VmmEnds {
    /// For its standard input.
    pub(super) input: OwnedFd,
    /// For its standard output.
    pub(super) output: OwnedFd,
}

impl SerialLine {
    /// A line of two pipes, the one for what is printed as large as this user may make it.
    pub(super) fn pipes() -> io::Result<(Self, VmmEnds)> {
        let (their_input, input) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (output, their_output) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if let Err(error) = rustix::pipe::fcntl_setpipe_size(&output, OUTPUT_BYTES) {
            tracing::debug!(%error, "a console's pipe stays as large as pipes are");
        }
        Ok((Self { output, input }, VmmEnds { input: their_input, output: their_output }))
    }

    /// A line that is a socket.
    pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { output: socket.try_clone_to_owned()?, input: socket.try_clone_to_owned()? })
    }

    /// Further handles of the same ends.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { output: self.output.try_clone()?, input: self.input.try_clone()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_prints_far_more_than_a_socket_holds_while_nobody_reads() {
        let (line, theirs) = SerialLine::pipes().unwrap();
        rustix::io::ioctl_fionbio(&theirs.output, true).unwrap();
        for _ in 0..60_000 {
            assert_eq!(rustix::io::write(&theirs.output, b"x").unwrap(), 1);
        }
        rustix::io::write(&line.input, b"typed\n").unwrap();
        let mut typed = [0; 16];
        assert_eq!(rustix::io::read(&theirs.input, &mut typed).unwrap(), 6);
    }
}
