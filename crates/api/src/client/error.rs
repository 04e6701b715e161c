//! Errors between a client and the daemon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::problem::Code;
use crate::types::ProblemBody;

/// A call did not come to its answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon says why it did not do it.
    #[error("{}", .0.detail)]
    Problem(Box<ProblemBody>),
    /// No daemon can be reached there.
    #[error("no rekindle daemon can be reached at {endpoint}: {source}{}", hint(.source))]
    Unreachable {
        /// The address.
        endpoint: String,
        /// The reason.
        source: io::Error,
    },
    /// The connection broke before the answer came.
    #[error(
        "the connection to {endpoint} broke before the answer came ({reason}): it is not known whether the request \
         was done"
    )]
    Broken {
        /// The address.
        endpoint: String,
        /// The reason.
        reason: String,
    },
    /// No answer came in time.
    #[error("{endpoint} did not answer within {within:?}: it is not known whether the request was done")]
    Silent {
        /// The address.
        endpoint: String,
        /// The limit of the wait.
        within: Duration,
    },
    /// Something answered that is not rekindle, or not this version of it.
    #[error("{endpoint} answered {status} with something that is not rekindle's: {reason}")]
    Strange {
        /// The address.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The part that could not be understood.
        reason: String,
    },
    /// Events came faster than they were taken, or the daemon does not know them any more.
    #[error(
        "up to {missed} events were left out: they came faster than they were taken, or the daemon has forgotten them, \
         as after a restart; those it still knows are had without an id to begin after"
    )]
    EventsLost {
        /// Number of events missed, at most.
        missed: u64,
        /// The event to go on behind, where that is not the last one that came.
        go_on_behind: Option<u64>,
    },
    /// The URL of a daemon cannot be understood.
    #[error("{given:?} is no address of a daemon: write https://host:port, such as https://node1:7433")]
    Address {
        /// The value given.
        given: String,
    },
    /// A file that TCP needs cannot be used.
    #[error("the file of {option}, {}, {reason}", path.display())]
    Secret {
        /// The option that names it.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// The fault in it, with its verb.
        reason: String,
    },
}

impl ClientError {
    /// The code of the problem the daemon answered with, if it did and it is known here.
    pub fn code(&self) -> Option<Code> {
        self.problem().and_then(|problem| Code::named(&problem.code))
    }

    /// The problem the daemon answered with, if it did.
    pub fn problem(&self) -> Option<&ProblemBody> {
        match self {
            Self::Problem(problem) => Some(problem),
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Silent { .. }
            | Self::Strange { .. }
            | Self::EventsLost { .. }
            | Self::Address { .. }
            | Self::Secret { .. } => None,
        }
    }

    /// True if no daemon was reached: nothing was requested, and the same may be requested again.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// True if the daemon may have done what was asked although there is no answer: ask again with the same key.
    pub fn is_undecided(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Silent { .. })
    }
}

/// Advice on a connection that cannot be made.
fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "; ask as root or as the daemon's user, or have your user added to api.allowed_uids"
    } else if source.kind() == io::ErrorKind::InvalidData {
        // It answered, and the words of the error say what to do.
        ""
    } else {
        "; is `rekindle serve` running?"
    }
}
