//! Signals to this process, received by reading a descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// Every signal that can be blocked, blocked for the thread that made this and for threads that it starts later.
#[derive(Debug)]
pub struct SignalReader(OwnedFd);

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// SIGTERM or SIGINT: a request to end.
    End,
    /// SIGCHLD: a child ended, stopped or went on.
    Child,
    /// Any other.
    Other,
}

/// Signals that a thread raises by its own fault, which cannot be blocked.
const OWN_MISTAKES: [libc::c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];

impl SignalReader {
    /// Blocks signals for the calling thread; for a program's first thread, before it starts others.
    pub fn block() -> io::Result<Self> {
        let set = all_that_wait()?;
        // SAFETY: `set` is initialized; no former mask is asked for.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: `set` is initialized, and -1 asks for a new descriptor.
        let number = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(number) }))
    }

    /// The next signal that has arrived, if any; never blocks.
    pub fn next(&self) -> io::Result<Option<Arrived>> {
        // A struct signalfd_siginfo is 128 bytes and begins with the signal's number (signalfd(2)).
        let mut record = [0; 128];
        match rustix::io::read(&self.0, &mut record) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let [a, b, c, d, ..] = record;
        Ok(Some(match libc::c_int::try_from(u32::from_ne_bytes([a, b, c, d])) {
            Ok(libc::SIGTERM | libc::SIGINT) => Arrived::End,
            Ok(libc::SIGCHLD) => Arrived::Child,
            _ => Arrived::Other,
        }))
    }
}

impl AsFd for SignalReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn all_that_wait() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: it fills what it is given.
    let result = unsafe { libc::sigfillset(set.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was filled.
    let mut set = unsafe { set.assume_init() };
    for signal in OWN_MISTAKES {
        // SAFETY: `set` is initialized.
        let result = unsafe { libc::sigdelset(&raw mut set, signal) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_to_a_thread_that_holds_them_back_are_read_in_turn() {
        let read = std::thread::spawn(|| {
            let signals = SignalReader::block().unwrap();
            assert_eq!(signals.next().unwrap(), None);
            for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGCHLD, libc::SIGPIPE] {
                // SAFETY: touches no memory.
                let this_thread = unsafe { libc::pthread_self() };
                // SAFETY: the thread lives, and holds the signal back.
                let result = unsafe { libc::pthread_kill(this_thread, signal) };
                assert_eq!(result, 0);
            }
            let mut read = Vec::new();
            while let Some(signal) = signals.next().unwrap() {
                read.push(signal);
            }
            read
        });
        let read = read.join().unwrap();
        let count = |signal| read.iter().filter(|one| **one == signal).count();
        assert_eq!((count(Arrived::End), count(Arrived::Child), count(Arrived::Other)), (1, 1, 2));
    }
}
