//! Exit statuses of the program, and the errors that lead to each.

use std::process::ExitCode;

use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;

/// Result of a command, as its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was done.
    Done,
    /// It was done, and what it checked is not as it must be.
    CheckFailed,
    /// It was not done.
    Error,
    /// The thing it is about does not exist.
    NotFound,
    /// It cannot be done in the state things are in.
    Refused,
    /// No daemon answers.
    NoDaemon,
}

/// The statuses as `--help` tells of them.
pub const EXIT_STATUSES: &str = "\
Exit status:
  0  done
  1  done, and a check failed: a wrong page, a failing line of doctor, a wait that ended too early
  2  error: not done, or not understood
  3  there is no such sandbox or snapshot
  4  refused in this state: it is not running, its name is taken, there is no RAM for a capture, ...
  5  no daemon answers";

impl Status {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::CheckFailed => 1,
            Self::Error => 2,
            Self::NotFound => 3,
            Self::Refused => 4,
            Self::NoDaemon => 5,
        }
    }

    /// The status that an error means.
    pub fn of_error(error: &anyhow::Error) -> Self {
        let client = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>());
        let is_missing = error.chain().any(|cause| cause.is::<NoSuchThing>());
        let is_refused = error.chain().any(|cause| cause.is::<NeverPaused>());
        match client {
            _ if is_missing => Self::NotFound,
            _ if is_refused => Self::Refused,
            Some(error) => Self::of_client_error(error),
            None => Self::Error,
        }
    }

    fn of_client_error(error: &ClientError) -> Self {
        match error.code() {
            Some(Code::NotFound) => Self::NotFound,
            Some(
                Code::WrongState
                | Code::NameTaken
                | Code::NoRam
                | Code::TooManyUnsealed
                | Code::Drained
                | Code::TooManyUnpublished
                | Code::Lost
                | Code::Gone,
            ) => Self::Refused,
            Some(Code::NotYet) => Self::CheckFailed,
            Some(_) => Self::Error,
            None if error.is_unreachable() => Self::NoDaemon,
            None => Self::Error,
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status.number())
    }
}

/// The reference names neither a sandbox nor a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("there is no {what} `{reference}`; `rekindle list` shows them all")]
pub struct NoSuchThing {
    /// Kind of thing that was looked for.
    pub what: &'static str,
    /// The name or id.
    pub reference: String,
}

/// The operation needs a sandbox's snapshot, and it has none.
#[derive(Debug, thiserror::Error)]
#[error("{sandbox} has never been paused, so there is no snapshot of it; `rekindle pause` makes one")]
pub struct NeverPaused {
    /// The sandbox, as it is called in sentences.
    pub sandbox: String,
}
