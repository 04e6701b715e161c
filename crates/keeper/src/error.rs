//! Errors between a client and its keeper.

use std::io;
use std::path::PathBuf;

use rekindle_kernel::ProcessHandle;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A request that the keeper did not do, and that changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// It was not understood, or its parts do not fit together.
    #[error("not a request: {why}")]
    Malformed {
        /// The fault in it.
        why: String,
    },
    /// It would pass one of the keeper's limits.
    #[error("{what} has a limit of {max}")]
    TooMuch {
        /// The things there would be too many of.
        what: String,
        /// The limit.
        max: u64,
    },
    /// Nothing is held under the key.
    #[error("nothing is held under {key}")]
    Unknown {
        /// The key.
        key: String,
    },
    /// There is a process under the key already.
    #[error("process {pid} was started under {key} before")]
    ProcessThere {
        /// The key.
        key: String,
        /// The process.
        pid: u32,
    },
    /// The program could not be started.
    #[error("the program could not be started: {why}")]
    NotStarted {
        /// The kernel's error.
        why: String,
        /// Its number, where it has one.
        os_error: Option<i32>,
    },
    /// It still holds something, and was not told to let go of it.
    #[error("{keys} keys are held and {processes} processes run under the keeper")]
    Holding {
        /// Keys.
        keys: u64,
        /// Processes that have not ended.
        processes: u64,
    },
    /// Processes were killed and have not ended, so the keeper stays.
    #[error("processes {processes:?} under the keeper were killed and have not ended yet")]
    NotEnded {
        /// Their process ids.
        processes: Vec<u32>,
    },
}

/// A call to the keeper that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// No keeper runs, and none could be started.
    #[error("no keeper could be started as {}: {source}", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The keeper lives and did not answer in time, or has not since; what it was asked may be done yet.
    #[error("the keeper (process {pid}) does not answer{}", advice(*pid, *is_stopped))]
    Silent {
        /// Its process.
        pid: u32,
        /// True if that was stopped by a signal.
        is_stopped: bool,
    },
    /// The keeper cannot be reached.
    #[error("the keeper at {} cannot be reached: {source}", socket.display())]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another keeper answers: the holdings of the one before it are gone.
    #[error("the keeper at {} is another one ({now}) than before ({before}): what it held is gone", socket.display())]
    Replaced {
        /// Its socket.
        socket: PathBuf,
        /// The instance that this client was made for.
        before: Uuid,
        /// The instance that answers now.
        now: Uuid,
    },
    /// The keeper is of another version of rekindle, and they do not understand each other.
    #[error("the keeper at {} speaks protocol {theirs}, this program {ours}", socket.display())]
    Protocol {
        /// Its socket.
        socket: PathBuf,
        /// Its protocol.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The keeper understood and did not do it; nothing changed.
    #[error("the keeper refused to {request}: {refusal}")]
    Refused {
        /// The request.
        request: &'static str,
        /// The refusal.
        refusal: Refusal,
    },
    /// The request cannot be written down.
    #[error("a request to the keeper to {request} cannot be written: {source}")]
    Unsendable {
        /// The request.
        request: &'static str,
        /// The reason.
        source: serde_json::Error,
    },
}

/// True if a connection failed because there is no keeper.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The way to an answer from a keeper that gives none.
fn advice(pid: u32, is_stopped: bool) -> String {
    match is_stopped {
        true => format!("; it is stopped: `kill -CONT {pid}` lets it go on"),
        false => "; its log is beside its socket".to_owned(),
    }
}

impl KeeperError {
    /// A keeper that gives no answer, as its process is now.
    pub(crate) fn silent(pid: u32) -> Self {
        let is_stopped = ProcessHandle::open(pid).and_then(|process| process.is_stopped());
        // One that cannot be looked at is not known to be stopped.
        Self::Silent { pid, is_stopped: is_stopped.unwrap_or(false) }
    }

    /// True if no keeper runs.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if nobody_listens(source))
    }

    /// The keeper's refusal, if that is the error.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            Self::NotStarted { .. }
            | Self::Silent { .. }
            | Self::Unreachable { .. }
            | Self::Replaced { .. }
            | Self::Protocol { .. }
            | Self::Unsendable { .. } => None,
        }
    }
}
