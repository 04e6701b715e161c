//! Errors of a Firecracker VM.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rekindle_engine::read_plan::ReadError;
use rekindle_kernel::memfd::AdoptError;

use super::found::NotFirecracker;
use super::jailer::NoJail;
use super::misfit::Misfit;
use super::spec::SpecError;
use crate::last_words::last_words;
use crate::vmm_process::ProcessError;

/// A Firecracker VM did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum FirecrackerError {
    /// There can be no such VM.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The program is no Firecracker.
    #[error(transparent)]
    Program(#[from] NotFirecracker),
    /// It cannot be jailed as the settings ask.
    #[error(transparent)]
    Jail(#[from] NoJail),
    /// The VM does not fit what is here.
    #[error("the VM cannot run here: {0}")]
    Misfit(#[from] Misfit),
    /// Its process did not do what it was told to.
    #[error("Firecracker: {0}")]
    Process(#[from] ProcessError),
    /// A call of its API did not succeed.
    #[error("Firecracker: {0}")]
    Call(#[from] CallError),
    /// It did not do what it was to do, and its log has words about it.
    #[error("{source}; its log says: {words}")]
    Logged {
        /// The first error.
        source: Box<Self>,
        /// The last lines of its log.
        words: String,
    },
    /// A file it needs is not what its spec says.
    #[error("{}: its bytes are not those that the VM was made with (BLAKE3 {expected}, found {found})", path.display())]
    OtherBytes {
        /// The file.
        path: PathBuf,
        /// The digest the spec has.
        expected: String,
        /// The digest of what is there.
        found: String,
    },
    /// A disk's file is of another size than its spec says.
    #[error("disk {drive}: {} has {found} bytes, not {expected}", path.display())]
    OtherSize {
        /// The disk.
        drive: String,
        /// Its file.
        path: PathBuf,
        /// The size the spec has.
        expected: u64,
        /// The size of what is there.
        found: u64,
    },
    /// A file could not be handled.
    #[error("{doing} {}: {source}", path.display())]
    File {
        /// The action that failed.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{doing}: {source}")]
    System {
        /// The action that failed.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The memory that Firecracker wrote cannot be captured.
    #[error("the memory that Firecracker wrote cannot be captured: {0}")]
    Capture(#[from] AdoptError),
    /// The memory that Firecracker wrote has another size than the VM's.
    #[error("Firecracker wrote {found} bytes of memory, the VM has {expected}")]
    CaptureSize {
        /// Bytes of the VM's memory.
        expected: u64,
        /// Bytes of what was written.
        found: u64,
    },
    /// The state is longer than a snapshot takes.
    #[error("Firecracker's state has {bytes} bytes, more than {bytes_max}")]
    StateTooLong {
        /// Its length.
        bytes: u64,
        /// Its largest length.
        bytes_max: u64,
    },
    /// The snapshot has no such volume.
    #[error("the snapshot has no volume for disk {drive}")]
    NoVolume {
        /// The disk.
        drive: String,
    },
    /// A disk's bytes could not be had from its snapshot.
    #[error("disk {drive}: {source}")]
    Content {
        /// The disk.
        drive: String,
        /// The reason.
        source: ReadError,
    },
    /// Nothing is being loaded.
    #[error("the VM was not told to load anything")]
    NotLoading,
}

/// Reason that a call of the API did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No process answers at the socket.
    #[error("its API cannot be reached at {}: {source}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It ended, or closed the connection, before it answered.
    #[error("it ended before it answered {call}")]
    Gone {
        /// The call.
        call: String,
    },
    /// It did not answer in time.
    #[error("it did not answer {call} within {} s", limit.as_secs())]
    Silent {
        /// The call.
        call: String,
        /// The limit of the wait.
        limit: Duration,
    },
    /// It refused, and said why.
    #[error("it refused {call} ({status}): {fault}")]
    Refused {
        /// The call.
        call: String,
        /// The status of its answer.
        status: u16,
        /// Its own words.
        fault: String,
    },
    /// It answered something that is no answer of Firecracker.
    #[error("it answered {call} with something else: {reason}")]
    Strange {
        /// The call.
        call: String,
        /// The fault in it.
        reason: String,
    },
}

impl FirecrackerError {
    /// The same with the last lines of the log of the process that it is about, if it is about one.
    pub(super) fn with_words(self, log: &Path) -> Self {
        match self {
            // Its refusals are in its answers as well.
            Self::Call(CallError::Refused { .. }) => self,
            Self::Process(_) | Self::Call(_) => match last_words(log) {
                words if words.is_empty() => self,
                words => Self::Logged { source: Box::new(self), words },
            },
            Self::Spec(_)
            | Self::Program(_)
            | Self::Jail(_)
            | Self::Misfit(_)
            | Self::Logged { .. }
            | Self::OtherBytes { .. }
            | Self::OtherSize { .. }
            | Self::File { .. }
            | Self::System { .. }
            | Self::Capture(_)
            | Self::CaptureSize { .. }
            | Self::StateTooLong { .. }
            | Self::NoVolume { .. }
            | Self::Content { .. }
            | Self::NotLoading => self,
        }
    }

    /// Makes an error about a file out of what the system said.
    pub(super) fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }

    /// Makes an error out of what the system said.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }
}
