//! Starts children of the keeper, and notes their ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rekindle_kernel::{Spawner, placement};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::worker::Worker;
use crate::error::Refusal;
use crate::wire::Spawn;

/// A child that was just started.
#[derive(Debug)]
pub(super) struct NewChild {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

/// Starts a program with `fds` open under their numbers. Fails without a child.
pub(super) fn start(
    spawner: &Spawner,
    ends: &Ends,
    spawn: &Spawn,
    fds: Vec<(i32, OwnedFd)>,
) -> Result<NewChild, Refusal> {
    let numbers: BTreeSet<i32> = fds.iter().map(|(number, _)| *number).collect();
    let possible = |number: &i32| (0..=2).contains(number) || spawner.has_reserved(*number);
    if numbers.len() < fds.len() || !numbers.iter().all(possible) {
        let why = "a child's descriptors have different numbers from 0 to 31, free when the keeper started";
        return Err(Refusal::Malformed { why: why.to_owned() });
    }
    let paths = [Some(&spawn.program), spawn.log.as_ref(), spawn.directory.as_ref()];
    if paths.into_iter().flatten().any(|path| !path.is_absolute()) {
        let why = "programs, logs and directories have absolute paths";
        return Err(Refusal::Malformed { why: why.to_owned() });
    }
    let failed =
        |error: io::Error| Refusal::NotStarted { why: error.to_string(), os_error: error.raw_os_error() };
    started(spawner, ends, spawn, fds).map_err(failed)
}

fn started(spawner: &Spawner, ends: &Ends, spawn: &Spawn, fds: Vec<(i32, OwnedFd)>) -> io::Result<NewChild> {
    let mut command = Command::new(&spawn.program);
    command.args(&spawn.arguments).env_clear().envs(spawn.environment.iter().cloned());
    if let Some(user_id) = spawn.user_id {
        command.uid(user_id);
    }
    if let Some(directory) = &spawn.directory {
        command.current_dir(directory);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(path) = &spawn.log {
        let log = open_log(path)?;
        command.stdout(log.try_clone()?).stderr(log);
    }
    let mut others = Vec::new();
    for (number, fd) in fds {
        match number {
            0 => {
                command.stdin(fd);
            }
            1 => {
                command.stdout(fd);
            }
            2 => {
                command.stderr(fd);
            }
            _ => others.push((number, fd)),
        }
    }
    let others: Vec<_> = others.iter().map(|(number, fd)| (*number, fd.as_fd())).collect();
    let mut child = spawner.spawn(command, &others)?;
    let watched = pidfd_of(child.id()).and_then(|pidfd| {
        let child = NewChild { pid: child.id(), pidfd };
        ends.watch(&child).map(|()| child)
    });
    match watched {
        Ok(child) => Ok(child),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

/// A file to write at the end of; never waits for a reader, should it be a pipe.
fn open_log(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?))
}

fn pidfd_of(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// The ends of children: noted as soon as each has ended, reaped on a thread that delays no request.
///
/// A parent that reaps a process while the last of its threads still take their entries out of /proc spins until they
/// have; and those of a paused guest run behind everybody else.
#[derive(Debug)]
pub(super) struct Ends {
    epoll: OwnedFd,
    undertaker: Worker<Pid>,
}

impl Ends {
    pub(super) fn new() -> io::Result<Self> {
        // If the priority cannot be lowered, the thread reaps with the keeper's own.
        let undertaker = Worker::start("undertaker", || drop(placement::idle_priority()), reap);
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, undertaker })
    }

    fn watch(&self, child: &NewChild) -> io::Result<()> {
        // Told once: another tracer's child is not waited for until that lets go of it, which is told again.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, &child.pidfd, epoll::EventData::new_u64(child.pid.into()), flags)?)
    }

    /// Waits until a child has ended, at most `limit`; false if none has.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        let mut polled = [PollFd::new(&self.epoll, PollFlags::IN)];
        let limit = Timespec::try_from(limit).ok();
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, limit.as_ref()))
            .is_ok_and(|ready| ready > 0)
    }

    /// A child that has ended, with how.
    pub(super) fn next(&self) -> Option<(u32, i32)> {
        loop {
            let mut event = [MaybeUninit::uninit()];
            let (events, _) = epoll::wait(&self.epoll, &mut event, Some(&Timespec::default())).ok()?;
            let pid = i32::try_from(events.first()?.data.u64()).ok().and_then(Pid::from_raw)?;
            let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if let Ok(Some(status)) = rustix::process::waitid(WaitId::Pid(pid), how) {
                self.undertaker.hand(pid);
                return Some((u32::try_from(pid.as_raw_nonzero().get()).ok()?, raw_status(&status)));
            }
        }
    }
}

impl AsFd for Ends {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Kills a child that was not noted as ended: until it is reaped, no other process has its number.
pub(super) fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // One that has ended meanwhile is as good.
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
}

fn reap(pid: Pid) {
    while matches!(rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED), Err(Errno::INTR)) {}
}

/// As wait(2) tells it.
fn raw_status(status: &WaitIdStatus) -> i32 {
    let core = if status.dumped() { 0x80 } else { 0 };
    status.exit_status().map(|code| code << 8).or(status.terminating_signal()).unwrap_or_default() | core
}
