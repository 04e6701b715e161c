//! Messages between a client and the keeper: one JSON line a request and one an answer, descriptors beside them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::error::Refusal;
use super::key::{FdName, Key};

/// The version of what is said here. Additions that older sides ignore leave it as it is.
pub(super) const PROTOCOL: u32 = 1;

/// Longest note, as JSON.
pub const NOTE_BYTES_MAX: usize = 16 << 10;
/// Keys held at once: with the longest notes, 512 MiB.
pub const KEYS_MAX: usize = 32 << 10;
/// Descriptors under one key: with a pidfd they fit in one message (SCM_MAX_FD is 253).
pub const FDS_PER_KEY_MAX: usize = 128;
/// Longest request: a long command line with its environment, each byte as a number.
pub(super) const REQUEST_BYTES_MAX: usize = 512 << 10;
/// A list is answered in parts that stop growing here; an answer fits into an empty socket at once.
pub(super) const LIST_BYTES: usize = 32 << 10;
/// Longest answer a client reads: a list's last entry may be a long note with many names.
pub(super) const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Clients connected at once.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Longest time of a request from its first byte to its last.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// A client's request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub(super) enum Request {
    /// Asks for the keeper's identity. Answered by [`Identified`].
    Identify,
    /// Hold these descriptors under the key as well, and this note if there is one; answered by null.
    Put {
        key: Key,
        note: Option<Value>,
        /// A name for each descriptor beside the request.
        names: Vec<FdName>,
    },
    /// Asks for the holdings under the key. Answered by [`HeldNow`] or null.
    Get { key: Key },
    /// Hold nothing under the key any more; answered by null, also where nothing was.
    Forget { key: Key },
    /// Asks for the holdings under keys after this one. Answered by [`Listed`].
    List { after: Option<Key> },
    /// Start a process under the key; answered by [`Started`], with its pidfd.
    Spawn {
        key: Key,
        /// The same number asked again is answered by the same process.
        number: Uuid,
        spawn: Spawn,
        /// Use of each descriptor beside the request.
        roles: Vec<SentRole>,
    },
    /// End; answered by null.
    Shutdown {
        /// Also while something is held; the processes under the keeper are killed first.
        force: bool,
    },
}

/// Use of a descriptor sent with [`Request::Spawn`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SentRole {
    Child(i32),
    Held(FdName),
}

/// A program to be started, with no environment but this one, as a session of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spawn {
    /// Its absolute path.
    pub program: PathBuf,
    /// Its words.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The absolute path of a file that gets its output, at the end; without one its output is dropped.
    pub log: Option<PathBuf>,
    /// The user it runs as, where not the keeper's; needs root.
    pub user_id: Option<u32>,
    /// The absolute path of the directory it starts in; none: `/`. A keeper from before this was said takes no notice.
    #[serde(default)]
    pub directory: Option<PathBuf>,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer<T> {
    Done(T),
    Refused(Refusal),
}

/// Identity of this keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Identified {
    pub(super) pid: u32,
    pub(super) instance: Uuid,
    pub(super) protocol: u32,
}

/// The holdings under a key; the descriptors are beside it, in the order of their names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HeldNow {
    pub(super) key: String,
    pub(super) note: Value,
    pub(super) names: Vec<String>,
    pub(super) process: Option<ProcessNow>,
}

/// A process under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessNow {
    /// Its process id; once it has ended, perhaps another's.
    pub pid: u32,
    /// Its exit status, as wait(2) gives it and `ExitStatus::from_raw` takes it; none while it lives.
    pub exited: Option<i32>,
}

/// Some of what is held, in the order of keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) entries: Vec<HeldNow>,
    /// True if there are keys after the last of them.
    pub(super) more: bool,
}

/// A process that was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) pid: u32,
}

impl Spawn {
    /// `program` with `arguments`, and nothing else.
    pub fn new(program: impl Into<PathBuf>, arguments: Vec<OsString>) -> Self {
        let program = program.into();
        Self { program, arguments, environment: Vec::new(), log: None, user_id: None, directory: None }
    }
}
