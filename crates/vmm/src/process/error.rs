//! Errors of a process guest.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::vmm_process::ProcessError;

/// A process guest did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The program could not be run.
    #[error("{} could not be started as a process guest: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The process ran but is no guest; the reason names what the host lacks.
    #[error("process guest {pid} could not set up: {reason}")]
    SetUp {
        /// Its process id.
        pid: u32,
        /// The reason, in the guest's words.
        reason: String,
    },
    /// The guest could not run a command and said why.
    #[error("process guest {pid} could not {command}: {reason}")]
    Refused {
        /// Its process id.
        pid: u32,
        /// The command.
        command: &'static str,
        /// The reason, in the guest's words.
        reason: String,
    },
    /// No answer came in time: the guest is frozen or waits for a page.
    #[error(
        "process guest {pid} did not answer {command} within {limit:?}: it is frozen or waits for a page"
    )]
    Silent {
        /// Its process id.
        pid: u32,
        /// The command.
        command: &'static str,
        /// The limit of the wait.
        limit: Duration,
    },
    /// The guest ended before it answered.
    #[error("process guest {pid} ended before it answered {command}")]
    Gone {
        /// Its process id.
        pid: u32,
        /// The command.
        command: &'static str,
    },
    /// The answer was not understood.
    #[error("process guest {pid} answered {command} with something else: {source}")]
    Answer {
        /// Its process id.
        pid: u32,
        /// The command.
        command: &'static str,
        /// The fault in it.
        source: serde_json::Error,
    },
    /// Its process did not do what it was told to.
    #[error("process guest: {0}")]
    Vmm(#[from] ProcessError),
    /// The kernel refused something about the process.
    #[error("{doing} process guest {pid}: {source}")]
    Process {
        /// Its process id.
        pid: u32,
        /// The action that failed.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
}
