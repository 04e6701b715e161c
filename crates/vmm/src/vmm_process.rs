//! The process of a VMM: started under the keeper or by us, frozen, thawed, ended, found again.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rekindle_keeper::{Held, KeeperClient, KeeperError, PROCESS, Refusal, Role, Spawn};
use rekindle_kernel::wakeup::wait_readable;
use rekindle_kernel::{ProcessHandle, Signal};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions};

/// The name of a VMM's pidfd at a keeper that is not its parent: the one that was is gone.
const PIDFD: &str = "pidfd";

/// The word of a VMM's environment that says at which socket its keeper listens.
pub const KEEPER: &str = "REKINDLE_KEEPER";

/// Longest time from a VMM's stop until its last thread stands still. Threads that wait for a remove to be read stand
/// only after that, so the handler must be serving.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// Number of times that a frozen VMM is checked without a pause before each check waits.
const FREEZE_YIELDS: u32 = 1000;
/// The pause between later questions, cut short when the VMM ends.
const FREEZE_PAUSE: Duration = Duration::from_millis(1);

/// The process of a VMM. On drop one that is our child is killed and waited for; one under the keeper goes on.
#[derive(Debug)]
pub struct VmmProcess {
    handle: Arc<ProcessHandle>,
    owner: Owner,
}

/// Parent of a VMM, which also decides with whom it ends.
#[derive(Debug)]
enum Owner {
    Us(Child),
    Keeper,
}

/// Error of a VMM's process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The system could not start it.
    #[error("not started: {source}")]
    NotStarted {
        /// The reason.
        source: io::Error,
    },
    /// The keeper did not do its part.
    #[error("VMM under {key}: {source}")]
    Keeper {
        /// The key it is held under.
        key: String,
        /// The reason.
        source: KeeperError,
    },
    /// It has ended.
    #[error("process {pid} had ended before it could be told to {doing}")]
    Gone {
        /// Its process id.
        pid: u32,
        /// The task it was given.
        doing: &'static str,
    },
    /// Some thread of it went on after it was told to stop.
    #[error("process {pid} did not stop within {limit:?}: is its fault handler serving?")]
    NotFrozen {
        /// Its process id.
        pid: u32,
        /// The limit of the wait.
        limit: Duration,
    },
    /// The kernel refused something about it.
    #[error("{doing} process {pid}: {source}")]
    Failed {
        /// Its process id.
        pid: u32,
        /// The action that failed.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// A VMM under the keeper that is not all there yet; killed on drop.
#[derive(Debug)]
pub struct Unfinished {
    process: Option<VmmProcess>,
}

/// Takes the pidfd of a VMM out of the keeper's holdings under its key, with any parent.
pub fn take_process(held: &mut Held) -> Option<OwnedFd> {
    held.fds.remove(PROCESS).or_else(|| held.fds.remove(PIDFD))
}

impl VmmProcess {
    /// The process of a child of ours.
    pub(super) fn of_child(mut child: Child) -> io::Result<Self> {
        match ProcessHandle::open(child.id()) {
            Ok(handle) => Ok(Self { handle: Arc::new(handle), owner: Owner::Us(child) }),
            Err(error) => {
                child.kill().and_then(|()| child.wait())?;
                Err(error)
            }
        }
    }

    /// Starts a VMM as a child of the keeper, which holds its pidfd, and what else is asked for, under `key`.
    pub(super) fn spawn_under(
        keeper: &KeeperClient,
        key: &str,
        spawn: &Spawn,
        fds: &[(Role<'_>, BorrowedFd<'_>)],
    ) -> Result<Unfinished, ProcessError> {
        let mut spawn = spawn.clone();
        spawn.environment.push((OsString::from(KEEPER), keeper.socket().as_os_str().to_owned()));
        let spawned = keeper.spawn(key, &spawn, fds).map_err(|error| match not_started(&error) {
            Some(source) => ProcessError::NotStarted { source },
            None => ProcessError::Keeper { key: key.to_owned(), source: error },
        })?;
        let process = Self::attach(spawned.pid, spawned.process.as_fd());
        if process.is_err() {
            // One that has ended by itself cannot be told to.
            rustix::process::pidfd_send_signal(&spawned.process, rustix::process::Signal::KILL).ok();
        }
        Ok(Unfinished { process: Some(process?) })
    }

    /// The process that `pidfd` is of, which is the keeper's child and has `pid` as long as it has not ended.
    pub(super) fn attach(pid: u32, pidfd: BorrowedFd<'_>) -> Result<Self, ProcessError> {
        let handle = ProcessHandle::open(pid);
        // Its pid was not another's when the handle was made, if it has not ended by now.
        let ended = wait_readable([Some(pidfd)], Some(Duration::ZERO)).map(|[pidfd]| pidfd.readable);
        match (handle, ended) {
            (_, Ok(true)) => Err(ProcessError::Gone { pid, doing: "attach" }),
            (Ok(handle), Ok(false)) => Ok(Self { handle: Arc::new(handle), owner: Owner::Keeper }),
            (Err(source), _) | (_, Err(source)) => {
                Err(ProcessError::Failed { pid, doing: "attaching to", source })
            }
        }
    }

    /// Hands the process to a keeper that does not hold it, with `fds`: the one that did is gone.
    pub(super) fn keep_under(
        &self,
        keeper: &KeeperClient,
        key: &str,
        fds: &[(&str, BorrowedFd<'_>)],
    ) -> Result<(), KeeperError> {
        let mut all = vec![(PIDFD, self.handle.as_fd())];
        all.extend_from_slice(fds);
        keeper.add(key, &all)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.handle.pid()
    }

    /// The process itself, to be asked and ended from anywhere.
    pub fn handle(&self) -> Arc<ProcessHandle> {
        Arc::clone(&self.handle)
    }

    /// Stops every thread of the guest; returns when the last one stands.
    pub fn freeze(&self) -> Result<(), ProcessError> {
        self.signal(Signal::Stop, "freeze")?;
        let started = Instant::now();
        let mut questions = 0;
        while !self.has_stopped()? {
            if started.elapsed() > FREEZE_LIMIT {
                return Err(ProcessError::NotFrozen { pid: self.id(), limit: FREEZE_LIMIT });
            }
            self.pause(questions)?;
            questions += 1;
        }
        Ok(())
    }

    /// Lets a frozen guest go on.
    pub fn thaw(&self) -> Result<(), ProcessError> {
        self.signal(Signal::Continue, "thaw")
    }

    /// Tells the guest to end, in any state, without waiting for its end.
    pub fn begin_kill(&self) -> Result<(), ProcessError> {
        match self.signal(Signal::Kill, "kill") {
            Err(ProcessError::Gone { .. }) => Ok(()),
            sent => sent,
        }
    }

    /// Ends the guest in any state, and waits for its end; see [`Self::wait`].
    pub fn kill(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.begin_kill()?;
        self.wait()
    }

    /// Waits for the guest's end and says how it ended; the end of one under the keeper is told by the keeper alone.
    pub fn wait(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        match &mut self.owner {
            Owner::Us(child) => {
                let waited = child.wait();
                waited.map(Some).map_err(|source| self.failed("waiting for the end", source))
            }
            Owner::Keeper => {
                while !self.ends_within(Duration::MAX) {}
                Ok(None)
            }
        }
    }

    /// Waits for the guest's end, at most `limit`; the answer is whether it has ended.
    pub fn ends_within(&self, limit: Duration) -> bool {
        self.handle.wait_exit(limit)
    }

    /// The kernel tells the parent, and with NOWAIT until the guest goes on; of another's child each thread is asked.
    fn has_stopped(&self) -> Result<bool, ProcessError> {
        let stopped = match self.owner {
            Owner::Us(_) => is_told_stopped(self.id()),
            Owner::Keeper => self.handle.is_stopped(),
        };
        // Bytes read of a guest that has ended have no owner, or are of another process.
        if !self.handle.is_alive() {
            return Err(ProcessError::Gone { pid: self.id(), doing: "freeze" });
        }
        stopped.map_err(|error| self.failed("freezing", error))
    }

    /// Leaves the CPU to the guest's threads for a moment; an error if the guest has ended.
    fn pause(&self, questions: u32) -> Result<(), ProcessError> {
        if questions < FREEZE_YIELDS {
            thread::yield_now();
            return Ok(());
        }
        if self.handle.wait_exit(FREEZE_PAUSE) {
            return Err(ProcessError::Gone { pid: self.id(), doing: "freeze" });
        }
        Ok(())
    }

    fn signal(&self, signal: Signal, command: &'static str) -> Result<(), ProcessError> {
        self.handle.signal(signal).map_err(|source| {
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::SRCH) => ProcessError::Gone { pid: self.id(), doing: command },
                _ => self.failed("signalling", source),
            }
        })
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> ProcessError {
        ProcessError::Failed { pid: self.id(), doing, source }
    }
}

/// True if a child was reported as stopped, which it is once all its threads stand still.
fn is_told_stopped(child: u32) -> io::Result<bool> {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw).expect("a child has a process id");
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(rustix::process::waitid(WaitId::Pid(pid), options)?.is_some())
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Keeper) {
            return;
        }
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a VMM may be left behind");
        }
    }
}

impl Unfinished {
    /// The process, while what there is of it is not worth keeping yet.
    pub(super) fn process(&self) -> &VmmProcess {
        self.process.as_ref().expect("it is there until it is finished")
    }

    /// The process, which goes on from here on.
    pub(super) fn finish(mut self) -> VmmProcess {
        self.process.take().expect("it is there until it is finished")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(process) = &self.process {
            // One that has ended by itself cannot be told to.
            process.begin_kill().ok();
        }
    }
}

/// The kernel's error if the keeper could not start a program.
fn not_started(error: &KeeperError) -> Option<io::Error> {
    match error.refusal()? {
        Refusal::NotStarted { os_error: Some(number), .. } => Some(io::Error::from_raw_os_error(*number)),
        Refusal::NotStarted { why, os_error: None } => Some(io::Error::other(why.clone())),
        Refusal::Malformed { .. }
        | Refusal::TooMuch { .. }
        | Refusal::Unknown { .. }
        | Refusal::ProcessThere { .. }
        | Refusal::Holding { .. }
        | Refusal::NotEnded { .. } => None,
    }
}
