//! Another process: its end, signals to it, its open files, its memory.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use crate::guest_range::GuestRange;
use crate::number::{size, word};

/// A handle of a process; a later process with the same pid is not mistaken for it.
#[derive(Debug)]
pub struct ProcessHandle {
    fd: OwnedFd,
    pid: u32,
}

/// The signals that are sent to guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// A part of another process's memory that could not be read; the requested bytes before it were read.
#[derive(Debug, thiserror::Error)]
#[error("memory {:#x}+{:#x} of process {pid} cannot be read: {source}", range.start, range.bytes)]
pub struct UnreadableMemory {
    /// The process.
    pub pid: u32,
    /// The unread rest of the range.
    pub range: GuestRange,
    /// The kernel's error.
    pub source: io::Error,
}

/// Most ranges in one process_vm_readv (UIO_MAXIOV).
const RANGES_MAX: usize = 1024;

/// Most bytes asked for in one process_vm_readv; the kernel's limit is just under 2 GiB.
const READ_BYTES_MAX: usize = 1 << 30;

impl ProcessHandle {
    /// The process that has `pid` now.
    pub fn open(pid: u32) -> io::Result<Self> {
        let fd = rustix::process::pidfd_open(pid_of(pid)?, PidfdFlags::empty())?;
        Ok(Self { fd, pid })
    }

    /// Takes over a pidfd that another process opened.
    ///
    /// An error of kind `NotFound` if the process has ended and was waited for, or cannot be seen from here.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        Ok(Self { fd, pid: pid_told(&text)? })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let signal = match signal {
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Continue => rustix::process::Signal::CONT,
            Signal::Terminate => rustix::process::Signal::TERM,
            Signal::Kill => rustix::process::Signal::KILL,
        };
        Ok(rustix::process::pidfd_send_signal(&self.fd, signal)?)
    }

    /// True if it has not ended; a zombie has ended.
    pub fn is_alive(&self) -> bool {
        !self.wait_exit(Duration::ZERO)
    }

    /// Waits at most `limit` until it has ended; true if it has.
    pub fn wait_exit(&self, limit: Duration) -> bool {
        let started = Instant::now();
        loop {
            let left = Timespec::try_from(limit.saturating_sub(started.elapsed())).ok();
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(ready) => return ready > 0,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// True if each of its threads is stopped, by [`Signal::Stop`] or by a tracer; it need not be a child of this
    /// process. An error of kind `NotFound` if it has ended.
    pub fn is_stopped(&self) -> io::Result<bool> {
        let stopped = self.threads_stand();
        // It is alive, so the pid was its own throughout.
        if self.is_alive() {
            stopped
        } else {
            Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"))
        }
    }

    fn threads_stand(&self) -> io::Result<bool> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid));
        let first = OsString::from(self.pid.to_string());
        let mut last = stat_of(&tasks.join(&first))?;
        let mut listed = 1;
        if last.stands && last.of_threads > 1 {
            for task in std::fs::read_dir(&tasks)? {
                let task = task?;
                if task.file_name() == first {
                    continue;
                }
                listed += 1;
                match stat_of(&task.path()) {
                    Ok(stat) => last = stat,
                    // The next list does not have it.
                    Err(error) if is_of_ended_thread(&error) => return Ok(false),
                    Err(error) => return Err(error),
                }
                if !last.stands {
                    break;
                }
            }
        }
        // Only a thread that still ran when the list was read can have made one that is not in it. So if all listed
        // threads were stopped, and the list is as long as the process's number of threads, it misses none.
        Ok(last.stands && last.of_threads == listed)
    }

    /// A handle of the file that it has open as `remote_fd`; needs the right to trace it.
    pub fn duplicate_fd(&self, remote_fd: RawFd) -> io::Result<OwnedFd> {
        Ok(rustix::process::pidfd_getfd(&self.fd, remote_fd, PidfdGetfdFlags::empty())?)
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads the `remote` ranges of process `pid`, one after the other, into `into`, which they fill exactly.
///
/// If a range cannot be read completely the error contains an [`UnreadableMemory`]. A page that is missing under a
/// userfaultfd blocks the caller until it is served.
pub fn read_memory(pid: u32, remote: &[GuestRange], into: &mut [u8]) -> io::Result<()> {
    let wanted = remote.iter().try_fold(0_u64, |sum, range| sum.checked_add(range.bytes));
    if wanted != Some(word(into.len())) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the ranges fill the buffer exactly"));
    }
    let process = pid_of(pid)?.as_raw_pid();
    let mut pieces = Pieces { ranges: remote, first_done: 0 };
    let mut vectors = Vec::with_capacity(RANGES_MAX.min(remote.len()));
    let mut done = 0;
    while done < into.len() {
        let bytes = pieces.next_call(&mut vectors);
        let local = libc::iovec { iov_base: into[done..done + bytes].as_mut_ptr().cast(), iov_len: bytes };
        let count = libc::c_ulong::try_from(vectors.len()).expect("at most 1024");
        // SAFETY: `local` is that many writable bytes of ours; the remote addresses are checked by the kernel.
        let read =
            unsafe { libc::process_vm_readv(process, &raw const local, 1, vectors.as_ptr(), count, 0) };
        match usize::try_from(read) {
            Ok(read) if read > 0 => {
                done += read;
                pieces.advance(read);
            }
            _ => {
                let source = if read < 0 { io::Error::last_os_error() } else { Errno::FAULT.into() };
                let unreadable = UnreadableMemory { pid, range: pieces.first(), source };
                return Err(io::Error::new(unreadable.source.kind(), unreadable));
            }
        }
    }
    Ok(())
}

/// The ranges that are still to be read.
struct Pieces<'a> {
    ranges: &'a [GuestRange],
    /// Bytes of the first range that have been read.
    first_done: u64,
}

impl Pieces<'_> {
    fn first(&self) -> GuestRange {
        self.ranges.first().map_or(GuestRange { start: 0, bytes: 0 }, |first| GuestRange {
            start: first.start + self.first_done,
            bytes: first.bytes - self.first_done,
        })
    }

    /// Fills `vectors` with the ranges of the next call; the result is their number of bytes.
    fn next_call(&self, vectors: &mut Vec<libc::iovec>) -> usize {
        vectors.clear();
        let mut bytes = 0;
        let mut skip = self.first_done;
        for range in self.ranges {
            if vectors.len() == RANGES_MAX || bytes == READ_BYTES_MAX {
                break;
            }
            let length = size(range.bytes - skip).min(READ_BYTES_MAX - bytes);
            let start = std::ptr::without_provenance_mut(size(range.start + skip));
            vectors.push(libc::iovec { iov_base: start, iov_len: length });
            bytes += length;
            skip = 0;
        }
        bytes
    }

    fn advance(&mut self, bytes: usize) {
        self.first_done += word(bytes);
        while let Some(first) = self.ranges.first().filter(|first| first.bytes <= self.first_done) {
            self.first_done -= first.bytes;
            self.ranges = &self.ranges[1..];
        }
    }
}

/// Takes over a descriptor that this process inherited under `number`, once.
///
/// For the start of a program, and a number that its parent gave it; an error if it is not open. From then on the
/// descriptor closes on exec.
pub fn inherited_fd(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the standard streams are not taken over"));
    }
    // SAFETY: F_GETFD touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a descriptor that closes on exec was not inherited",
        ));
    }
    // SAFETY: it is open and, not closing on exec as all of Rust's own do, has no owner here.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// The pid that /proc shows for a pidfd: -1 once the process was waited for, 0 if it is not in this pid namespace.
fn pid_told(fdinfo: &str) -> io::Result<u32> {
    let not_a_pidfd = || io::Error::new(io::ErrorKind::InvalidData, "the descriptor is not a pidfd");
    let pid = fdinfo.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or_else(not_a_pidfd)?;
    match pid.trim().parse::<i32>().map_err(|_| not_a_pidfd())? {
        pid @ 1.. => Ok(pid.unsigned_abs()),
        _ => {
            let why = "the process of the pidfd has ended, or is hidden by its pid namespace";
            Err(io::Error::new(io::ErrorKind::NotFound, why))
        }
    }
}

/// Content of the stat file of a thread (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ThreadStat {
    /// True if it cannot run an instruction: stopped, traced, or ended.
    stands: bool,
    /// Number of threads of its process.
    of_threads: usize,
}

fn stat_of(thread: &Path) -> io::Result<ThreadStat> {
    let stat = std::fs::read(thread.join("stat"))?;
    thread_stat(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Fields 3 and 20. The name before them may contain any bytes, also parentheses and bytes that are not text.
fn thread_stat(stat: &[u8]) -> Option<ThreadStat> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = stat.get(name_end + 2..)?.split(|byte| *byte == b' ');
    let stands = matches!(fields.next()?, b"T" | b"t" | b"Z" | b"X");
    let of_threads = std::str::from_utf8(fields.nth(20 - 4)?).ok()?.parse().ok()?;
    Some(ThreadStat { stands, of_threads })
}

fn is_of_ended_thread(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

pub(crate) fn pid_of(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a pid is a positive number of 31 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfd_is_told_from_other_descriptors_and_from_those_of_ended_processes() {
        assert_eq!(pid_told("pos:\t0\nPid:\t4711\nNSpid:\t4711\n").unwrap(), 4711);
        for gone in ["Pid:\t-1\n", "Pid:\t0\n"] {
            assert_eq!(pid_told(gone).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        for other in ["", "pos:\t0\n", "Pid:\tx\n"] {
            assert_eq!(pid_told(other).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_threads_state_is_found_behind_any_name() {
        let line = |state: &str| {
            let fields: Vec<String> = (4..=52).map(|field| field.to_string()).collect();
            thread_stat(format!("7 (a) T (b) {state} {}\n", fields.join(" ")).as_bytes())
        };
        for (state, stands) in
            [("T", true), ("t", true), ("Z", true), ("R", false), ("S", false), ("D", false)]
        {
            assert_eq!(line(state), Some(ThreadStat { stands, of_threads: 20 }), "{state}");
        }
        let not_text = [&b"7 (\xff\xfe) T"[..], &b" 1".repeat(30)[..]].concat();
        assert_eq!(thread_stat(&not_text), Some(ThreadStat { stands: true, of_threads: 1 }));
        for cut in [&b""[..], b"7 (x)", b"7 (x) ", b"7 (x) T 1 2"] {
            assert_eq!(thread_stat(cut), None);
        }
    }
}
