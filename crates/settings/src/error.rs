//! Errors in settings: the setting, its place, and what to write instead.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Bytes of a unix socket's path, without its end (sun_path, unix(7)).
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Place of a setting's value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nowhere: it is the default.
    Default,
    /// In a line of a settings file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
    },
    /// In an environment variable.
    Variable(String),
    /// In a flag of the command line, with its dashes.
    Flag(String),
}

/// Reason that settings could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A settings file that should be read cannot be.
    #[error(
        "settings file {} cannot be read: {source}; make it readable, or name another with --config",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A settings file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The fault found there.
        message: String,
    },
    /// A name in a settings file that no setting has.
    #[error("{place}: there is no setting `{name}`; {}", did_you_mean(*suggestion))]
    UnknownKey {
        /// The value's place.
        place: Source,
        /// The name.
        name: String,
        /// The setting that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// An environment variable that looks like a setting's and is none.
    #[error("no setting is read from {name}; did you mean {suggestion}?")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The one that was probably meant.
        suggestion: String,
    },
    /// A value that the setting cannot have.
    #[error("{place}: {key} cannot be {given}: it must be {expected}")]
    Value {
        /// The value's place.
        place: Source,
        /// The setting.
        key: &'static str,
        /// The value given.
        given: String,
        /// The values allowed.
        expected: String,
    },
    /// A setting that means nothing without another.
    #[error("{place}: {key} needs {missing} as well")]
    Incomplete {
        /// Place of the first.
        place: Source,
        /// The setting.
        key: &'static str,
        /// Those that are missing.
        missing: String,
    },
    /// A directory whose sockets would have longer paths than Linux binds.
    #[error(
        "{place}: {key} is {}, which has {} bytes: the socket {} in it would have a path of {bytes} bytes, and Linux \
         allows {SOCKET_PATH_BYTES_MAX}; set {key} to a path of at most {} bytes",
        path.display(),
        path.as_os_str().len(),
        file.display(),
        (SOCKET_PATH_BYTES_MAX + path.as_os_str().len()).saturating_sub(*bytes)
    )]
    LongSocket {
        /// The value's place.
        place: Source,
        /// The setting.
        key: &'static str,
        /// The directory.
        path: PathBuf,
        /// The socket, below it.
        file: PathBuf,
        /// Bytes of the socket's path.
        bytes: usize,
    },
    /// No home directory, and nothing said instead of the defaults that lie in it.
    #[error(
        "there is no default state directory: neither HOME nor XDG_STATE_HOME is set; give --state-directory PATH"
    )]
    NoHome,
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(name) => format!("did you mean `{name}`?"),
        None => "`rekindle settings` lists all there are".to_owned(),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}
