//! The driver of the process guest: starts one, freezes and thaws it, ends it.

mod control;
mod error;
mod kept;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rekindle_kernel::{Memfd, ProcessHandle, Signal};
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions};

use crate::guest::arguments::GuestArguments;
use crate::guest::protocol::Hello;

pub use control::{Awaited, GuestControl};
pub use error::GuestError;
pub use kept::{CONTROL, KEEPER, KeptParts, MEMORY, take_process};

/// How long a stopped guest may take until its last thread stands. Threads that wait for a remove to be read
/// stand only after that, so the handler must be serving.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);
/// How often a frozen guest is asked without a pause before it is waited for.
const FREEZE_YIELDS: u32 = 1000;
/// The pause between later questions, cut short when the guest ends.
const FREEZE_PAUSE: Duration = Duration::from_millis(1);

/// How a process guest is started.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// The program that can be a guest.
    pub program: PathBuf,
    /// Its words before the guest's own arguments.
    pub leading: Vec<OsString>,
    /// What guest it is to be.
    pub guest: GuestArguments,
    /// The user it runs as, where not ours; needs root.
    pub user_id: Option<u32>,
    /// The absolute path of a file that gets what it prints, if it is started under the keeper.
    pub log: Option<PathBuf>,
}

/// A running process guest. On drop one that is our child is killed and waited for; one under the keeper goes on.
///
/// Its two sides are separate fields, so that one thread can freeze or kill the process while another waits
/// for an answer.
#[derive(Debug)]
pub struct ProcessGuest {
    /// What the guest is told and answers.
    pub control: GuestControl,
    /// The process it is.
    pub process: GuestProcess,
    hello: Hello,
    memfd: Option<Memfd>,
}

/// The process of a guest. On drop one that is our child is killed and waited for; one under the keeper goes on.
#[derive(Debug)]
pub struct GuestProcess {
    handle: Arc<ProcessHandle>,
    owner: Owner,
}

/// Whose child a guest is, and with whom it ends.
#[derive(Debug)]
enum Owner {
    Us(Child),
    Keeper,
}

impl GuestOptions {
    /// This very program as a guest, by its subcommand `guest`.
    pub fn this_program(guest: GuestArguments) -> io::Result<Self> {
        Ok(Self::program(std::env::current_exe()?, guest))
    }

    /// `program` as a guest, by its subcommand `guest`.
    pub fn program(program: impl Into<PathBuf>, guest: GuestArguments) -> Self {
        Self {
            program: program.into(),
            leading: vec![OsString::from("guest")],
            guest,
            user_id: None,
            log: None,
        }
    }
}

impl ProcessGuest {
    /// Starts a guest and waits until its memory is mapped and, if it is to be served, handed over. The message
    /// waits in the handler's socket until it is accepted, so the caller may listen, spawn, then accept.
    pub fn spawn(options: &GuestOptions) -> Result<Self, GuestError> {
        let failed = |source| GuestError::Start { program: options.program.clone(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&options.program);
        command.args(&options.leading).args(options.guest.to_words());
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        if let Some(user_id) = options.user_id {
            command.uid(user_id);
        }
        let mut child = command.spawn().map_err(failed)?;
        drop(command);
        let handle = match ProcessHandle::open(child.id()) {
            Ok(handle) => handle,
            Err(error) => {
                child.kill().and_then(|()| child.wait()).map_err(failed)?;
                return Err(failed(error));
            }
        };
        let process = GuestProcess { handle: Arc::new(handle), owner: Owner::Us(child) };
        let (control, hello, memfd) = GuestControl::greet(process.id(), ours)?;
        Ok(Self { control, process, hello, memfd })
    }

    /// The guest's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What the guest said of itself at the start.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The guest's memfd, if its memory is shared and nobody serves it.
    pub fn memfd(&self) -> Option<&Memfd> {
        self.memfd.as_ref()
    }

    /// Stops every thread of the guest; returns when the last one stands.
    pub fn freeze(&self) -> Result<(), GuestError> {
        self.process.freeze()
    }

    /// Lets a frozen guest go on.
    pub fn thaw(&self) -> Result<(), GuestError> {
        self.process.thaw()
    }

    /// Ends the guest whatever it does, and waits for its end; see [`GuestProcess::wait`].
    pub fn kill(&mut self) -> Result<Option<ExitStatus>, GuestError> {
        self.process.kill()
    }

    /// Tells the guest to exit and waits for its end; see [`GuestProcess::wait`].
    pub fn exit(&mut self) -> Result<Option<ExitStatus>, GuestError> {
        self.control.exit()?;
        self.process.wait()
    }
}

impl GuestProcess {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.handle.pid()
    }

    /// The process itself, to be asked and ended from anywhere.
    pub fn handle(&self) -> Arc<ProcessHandle> {
        Arc::clone(&self.handle)
    }

    /// Stops every thread of the guest; returns when the last one stands.
    pub fn freeze(&self) -> Result<(), GuestError> {
        self.signal(Signal::Stop, "freeze")?;
        let started = Instant::now();
        let mut questions = 0;
        while !self.has_stopped()? {
            if started.elapsed() > FREEZE_LIMIT {
                return Err(GuestError::NotFrozen { pid: self.id(), limit: FREEZE_LIMIT });
            }
            self.pause(questions)?;
            questions += 1;
        }
        Ok(())
    }

    /// Lets a frozen guest go on.
    pub fn thaw(&self) -> Result<(), GuestError> {
        self.signal(Signal::Continue, "thaw")
    }

    /// Tells the guest to end whatever it does, without waiting for its end.
    pub fn begin_kill(&self) -> Result<(), GuestError> {
        match self.signal(Signal::Kill, "kill") {
            Err(GuestError::Gone { .. }) => Ok(()),
            sent => sent,
        }
    }

    /// Ends the guest whatever it does, and waits for its end; see [`Self::wait`].
    pub fn kill(&mut self) -> Result<Option<ExitStatus>, GuestError> {
        self.begin_kill()?;
        self.wait()
    }

    /// Waits for the guest's end and says how it ended; the end of one under the keeper is told by the keeper alone.
    pub fn wait(&mut self) -> Result<Option<ExitStatus>, GuestError> {
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

    /// Bytes of the guest's memory that are in RAM now.
    pub fn resident_bytes(&self) -> Result<u64, GuestError> {
        let read = || {
            let statm = io::read_to_string(File::open(format!("/proc/{}/statm", self.id()))?)?;
            let pages = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
            pages.map(|pages| pages * 4096).ok_or_else(|| io::Error::other("statm is not numbers"))
        };
        read().map_err(|source| self.failed("reading the size", source))
    }

    /// The kernel tells the parent, and with NOWAIT until the guest goes on; of another's child each thread is asked.
    fn has_stopped(&self) -> Result<bool, GuestError> {
        let stopped = match self.owner {
            Owner::Us(_) => is_told_stopped(self.id()),
            Owner::Keeper => self.handle.is_stopped(),
        };
        // What was read of a guest that has ended is of nobody, or of another process.
        if !self.handle.is_alive() {
            return Err(GuestError::Gone { pid: self.id(), command: "freeze" });
        }
        stopped.map_err(|error| self.failed("freezing", error))
    }

    /// Leaves the CPU to the guest's threads for a moment; an error if the guest has ended.
    fn pause(&self, questions: u32) -> Result<(), GuestError> {
        if questions < FREEZE_YIELDS {
            thread::yield_now();
            return Ok(());
        }
        if self.handle.wait_exit(FREEZE_PAUSE) {
            return Err(GuestError::Gone { pid: self.id(), command: "freeze" });
        }
        Ok(())
    }

    fn signal(&self, signal: Signal, command: &'static str) -> Result<(), GuestError> {
        self.handle.signal(signal).map_err(|source| {
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::SRCH) => GuestError::Gone { pid: self.id(), command },
                _ => self.failed("signalling", source),
            }
        })
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> GuestError {
        GuestError::Process { pid: self.id(), doing, source }
    }
}

/// Whether a child was reported as stopped, which it is once all its threads stand.
fn is_told_stopped(child: u32) -> io::Result<bool> {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw).expect("a child has a process id");
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(rustix::process::waitid(WaitId::Pid(pid), options)?.is_some())
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Keeper) {
            return;
        }
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a process guest may be left behind");
        }
    }
}
