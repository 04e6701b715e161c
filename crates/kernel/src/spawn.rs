//! Starts programs as sessions of their own, with open files under chosen numbers.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};

/// The numbers that may be reserved for children's descriptors.
pub const CHILD_NUMBERS: Range<RawFd> = 3..32;

/// The right to start programs with descriptors under numbers of [`CHILD_NUMBERS`].
///
/// While it lives no other descriptor of this process gets these numbers, so they are free for a child's descriptors.
#[derive(Debug)]
pub struct Spawner {
    reserved: Vec<OwnedFd>,
    open_files: Rlimit,
    oom_score: Option<i16>,
}

impl Spawner {
    /// Reserves the numbers that are free now, and raises this process's limit of open files to the hard limit;
    /// children get the limit from before.
    pub fn prepare() -> io::Result<Self> {
        let open_files = rustix::process::getrlimit(Resource::Nofile);
        let most = Rlimit { current: open_files.maximum, maximum: open_files.maximum };
        rustix::process::setrlimit(Resource::Nofile, most)?;
        let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
        let mut reserved = Vec::new();
        loop {
            let next = rustix::io::fcntl_dupfd_cloexec(&null, CHILD_NUMBERS.start)?;
            if !CHILD_NUMBERS.contains(&next.as_raw_fd()) {
                break;
            }
            reserved.push(next);
        }
        if CHILD_NUMBERS.contains(&null.as_raw_fd()) {
            reserved.push(null);
        }
        Ok(Self { reserved, open_files, oom_score: None })
    }

    /// Starts children with this `oom_score_adj` (proc(5)), by which the kernel chooses the process to end when memory
    /// runs out. Raising it needs no privilege.
    #[must_use]
    pub fn with_oom_score(self, score: i16) -> Self {
        Self { oom_score: Some(score), ..self }
    }

    /// True if a child can be given a descriptor under `number`, besides the standard streams.
    pub fn has_reserved(&self, number: RawFd) -> bool {
        self.reserved.iter().any(|fd| fd.as_raw_fd() == number)
    }

    /// Starts `command` as [`in_own_session`] does, but with `fds` open in it under the numbers beside them, which are
    /// reserved and each named once.
    pub fn spawn(&self, mut command: Command, fds: &[(RawFd, BorrowedFd<'_>)]) -> io::Result<Child> {
        let repeated = |at: usize| fds[..at].iter().any(|(number, _)| *number == fds[at].0);
        if (0..fds.len()).any(|at| !self.has_reserved(fds[at].0) || repeated(at)) {
            let why = "a child's descriptors have reserved numbers, each once";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let moves: Vec<(RawFd, RawFd)> = fds.iter().map(|(to, fd)| (fd.as_raw_fd(), *to)).collect();
        let open_files = self.open_files;
        let oom_score = self.oom_score.map(|score| score.to_string().into_bytes());
        let enter = move || {
            begin_session()?;
            if let Some(score) = &oom_score {
                take_oom_score(score);
            }
            for (from, to) in &moves {
                place_fd(*from, *to)?;
            }
            Ok(rustix::process::setrlimit(Resource::Nofile, open_files)?)
        };
        // SAFETY: between fork and exec it makes system calls and nothing else; `from` is open in the child, whose
        // parent borrows it during the call, and `to` is a placeholder of ours there.
        unsafe { command.pre_exec(enter) };
        command.spawn()
    }
}

/// Starts `command` in a session of its own, which a terminal's signals do not reach, with every signal at its default
/// and unblocked, and with no descriptors but its standard streams, not even inherited ones.
pub fn in_own_session(mut command: Command) -> io::Result<Child> {
    // SAFETY: between fork and exec it makes system calls and nothing else.
    unsafe { command.pre_exec(begin_session) };
    command.spawn()
}

/// Runs before exec, so that processes that the program starts have the same score. If it is not allowed, the child
/// starts all the same.
fn take_oom_score(score: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
        rustix::io::write(&file, score).ok();
    }
}

/// Duplicates `from` as `to`, which stays open on exec.
fn place_fd(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: touches no memory; the owner of `to` meant it to be replaced.
    let result = unsafe { libc::dup2(from, to) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn begin_session() -> io::Result<()> {
    rustix::process::setsid()?;
    // SAFETY: closes nothing before exec, and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: default actions refer to no code of ours. SIGKILL, SIGSTOP and the C library's own are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut none = std::mem::MaybeUninit::uninit();
    // SAFETY: it fills what it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was filled; no former mask is asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Mutex;

    /// All tests share the process's numbers.
    static NUMBERS: Mutex<()> = Mutex::new(());

    #[test]
    fn only_reserved_numbers_are_given_each_once() {
        let _alone = NUMBERS.lock().unwrap();
        let spawner = Spawner::prepare().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = { CHILD_NUMBERS }.find(|number| spawner.has_reserved(*number)).unwrap();
        let fd = file.as_fd();
        for wrong in [&[(0, fd)][..], &[(-1, fd)], &[(CHILD_NUMBERS.end, fd)], &[(number, fd), (number, fd)]]
        {
            let error = spawner.spawn(Command::new("/bin/true"), wrong).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
        let mut child = spawner.spawn(Command::new("/bin/true"), &[(number, fd)]).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(in_own_session(Command::new("/no such program")).is_err());
    }

    #[test]
    fn a_child_has_its_standard_streams_and_what_it_was_given() {
        let _alone = NUMBERS.lock().unwrap();
        let spawner = Spawner::prepare().unwrap();
        let number = CHILD_NUMBERS.rev().find(|number| spawner.has_reserved(*number)).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        // As left by a careless program.
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cd /proc/self/fd && for fd in *; do [ -e $fd ] && echo $fd; done"]);
        command.stdout(std::process::Stdio::piped());
        let child = spawner.spawn(command, &[(number, file.as_fd())]).unwrap();
        let printed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let mut numbers: Vec<RawFd> = printed.lines().map(|line| line.parse().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, number]);
    }
}
