//! Starting children of the keeper, and taking note of their ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rekindle_kernel::Spawner;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions};

use crate::keeper::error::Refusal;
use crate::keeper::wire::Spawn;

/// A child that was just started.
#[derive(Debug)]
pub(super) struct NewChild {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

/// Starts a program with `fds` open under their numbers. Fails without a child.
pub(super) fn start(spawner: &Spawner, spawn: &Spawn, fds: Vec<(i32, OwnedFd)>) -> Result<NewChild, Refusal> {
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
    started(spawner, spawn, fds).map_err(failed)
}

fn started(spawner: &Spawner, spawn: &Spawn, fds: Vec<(i32, OwnedFd)>) -> io::Result<NewChild> {
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
    let_be_chosen(child.id());
    match pidfd_of(child.id()) {
        Ok(pidfd) => Ok(NewChild { pid: child.id(), pidfd }),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

/// Where the keeper is more or less protected than others when memory runs out (`oom_score_adj`, proc(5)), a child is
/// not.
fn let_be_chosen(child: u32) {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj");
    if own.is_ok_and(|own| own.trim() != "0") {
        // A child that cannot be told runs as the keeper does.
        std::fs::write(format!("/proc/{child}/oom_score_adj"), "0").ok();
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

/// A child that has ended, with how: its process id is free from now on.
pub(super) fn next_ended() -> Option<(u32, i32)> {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let pid = u32::try_from(pid.as_raw_nonzero().get()).ok()?;
                return Some((pid, status.as_raw()));
            }
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}
