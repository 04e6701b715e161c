//! The driver of the process guest: starts one, freezes and thaws it, ends it.

mod control;
mod error;
mod kept;
mod shape;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use rekindle_guest::process::arguments::GuestArguments;
use rekindle_guest::process::protocol::Hello;
use rekindle_kernel::Memfd;

use super::vmm_process::VmmProcess;

pub use control::{Awaited, GuestControl};
pub use error::GuestError;
pub use kept::{CONTROL, KeptParts, MEMORY};
pub use shape::GuestShape;

/// Options of starting a process guest.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// The program that can be a guest.
    pub program: PathBuf,
    /// Its words before the guest's own arguments.
    pub leading: Vec<OsString>,
    /// The guest to start.
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
    /// Commands to the guest, and its answers.
    pub control: GuestControl,
    /// The process it is.
    pub process: VmmProcess,
    hello: Hello,
    memfd: Option<Memfd>,
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
        let child = command.spawn().map_err(failed)?;
        drop(command);
        let process = VmmProcess::of_child(child).map_err(failed)?;
        let (control, hello, memfd) = GuestControl::greet(process.id(), ours)?;
        Ok(Self { control, process, hello, memfd })
    }

    /// The guest's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The guest's own facts from its start.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The guest's memfd, if its memory is shared and not served.
    pub fn memfd(&self) -> Option<&Memfd> {
        self.memfd.as_ref()
    }

    /// Closes the guest's memfd.
    pub fn close_memory(&mut self) {
        self.memfd = None;
    }

    /// Stops every thread of the guest; returns when the last one stands.
    pub fn freeze(&self) -> Result<(), GuestError> {
        Ok(self.process.freeze()?)
    }

    /// Lets a frozen guest go on.
    pub fn thaw(&self) -> Result<(), GuestError> {
        Ok(self.process.thaw()?)
    }

    /// Ends the guest in any state, and waits for its end; see [`VmmProcess::wait`].
    pub fn kill(&mut self) -> Result<Option<ExitStatus>, GuestError> {
        Ok(self.process.kill()?)
    }

    /// Tells the guest to exit and waits for its end; see [`VmmProcess::wait`].
    pub fn exit(&mut self) -> Result<Option<ExitStatus>, GuestError> {
        self.control.exit()?;
        Ok(self.process.wait()?)
    }
}
