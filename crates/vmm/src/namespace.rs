//! Network namespaces that VMMs run in. A process of its own enters one and becomes the VMM, so no thread of the daemon
//! or the keeper ever leaves theirs.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use rekindle_keeper::{KeeperClient, KeeperError, Role, Spawn};
use rekindle_kernel::wakeup::wait_readable;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::taps::{self, TapError};

/// The hidden subcommand that enters one.
const SUBCOMMAND: &str = "enter";
/// Printed by it where it only looks, and nothing is missing.
const FITS: &str = "fits";
/// Longest time of a look.
const CHECK_LIMIT: Duration = Duration::from_secs(30);

/// A network namespace, and the program of ours that enters it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The absolute path of its file.
    pub file: PathBuf,
    /// The program `rekindle`.
    pub starter: PathBuf,
}

/// Arguments of the subcommand that enters a network namespace and becomes another program.
#[derive(Args, Clone, Debug)]
pub struct EnterArguments {
    /// The file of the network namespace
    #[arg(long, value_name = "FILE")]
    netns: PathBuf,
    /// A tap device that must be there; again for each
    #[arg(long = "tap", value_name = "DEVICE")]
    taps: Vec<String>,
    /// A further variable of the program's environment; again for each
    #[arg(long = "set", value_name = "NAME=VALUE")]
    variables: Vec<OsString>,
    /// The program and its words; without them only the namespace and the taps are checked
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Reason that no VMM can run in a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Its file cannot be opened.
    #[error("the network namespace {} cannot be opened: {source}; `ip netns add` makes one", file.display())]
    Closed {
        /// Its file.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It cannot be entered.
    #[error("the network namespace {} cannot be entered: {source}{}", file.display(), advice(source))]
    Barred {
        /// Its file.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A tap device cannot be used there.
    #[error("{0}")]
    Tap(TapError),
    /// The program that is to run there cannot be run.
    #[error("{} cannot be run in a network namespace: {source}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No process can be started to look.
    #[error("looking at a network namespace: {0}")]
    Keeper(KeeperError),
    /// The process that was to look did not end.
    #[error("the process that was to look at a network namespace did not end within {CHECK_LIMIT:?}: {0}")]
    Silent(io::Error),
    /// The program that entered it found one of these, in its words.
    #[error("{0}")]
    Found(String),
}

impl Namespace {
    /// Checks that the namespace can be entered and has these tap devices, by a process under the keeper: the daemon may
    /// have no right to enter one. The key is free again after it.
    pub fn check<'a>(
        &self,
        keeper: &KeeperClient,
        key: &str,
        taps: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), NamespaceError> {
        let mut arguments = self.words();
        arguments.extend(taps.into_iter().flat_map(|tap| ["--tap".into(), tap.into()]));
        let told = told_by(keeper, key, &Spawn::new(&self.starter, arguments));
        keeper.forget(key).map_err(NamespaceError::Keeper)?;
        match told?.trim_end() {
            FITS => Ok(()),
            told => Err(NamespaceError::Found(told.strip_prefix("rekindle: ").unwrap_or(told).to_owned())),
        }
    }

    fn words(&self) -> Vec<OsString> {
        vec![SUBCOMMAND.into(), "--netns".into(), self.file.clone().into()]
    }

    /// The command that does the same in the namespace.
    pub fn enter(&self, spawn: Spawn) -> Spawn {
        let mut arguments = self.words();
        for (name, value) in spawn.environment {
            let mut variable = name;
            variable.push("=");
            variable.push(value);
            arguments.extend(["--set".into(), variable]);
        }
        arguments.extend(["--".into(), spawn.program.into()]);
        arguments.extend(spawn.arguments);
        Spawn { program: self.starter.clone(), arguments, environment: Vec::new(), ..spawn }
    }
}

impl EnterArguments {
    /// Enters the namespace, and becomes the program if one is named: then it returns only an error.
    pub fn run(&self) -> Result<(), NamespaceError> {
        enter(&self.netns)?;
        taps::check(Some(&self.netns), self.taps.iter().map(String::as_str)).map_err(NamespaceError::Tap)?;
        let Some((program, words)) = self.command.split_first() else {
            println!("{FITS}");
            return Ok(());
        };
        let variables = self.variables.iter().filter_map(|variable| {
            let bytes = variable.as_bytes();
            let at = bytes.iter().position(|byte| *byte == b'=')?;
            Some((OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..])))
        });
        let source = Command::new(program).args(words).envs(variables).exec();
        Err(NamespaceError::Program { program: program.into(), source })
    }
}

/// All that a process of this prints.
fn told_by(keeper: &KeeperClient, key: &str, spawn: &Spawn) -> Result<String, NamespaceError> {
    let (reader, writer) = io::pipe().map_err(NamespaceError::Silent)?;
    let fds = [(Role::Child(1), writer.as_fd()), (Role::Child(2), writer.as_fd())];
    let spawned = keeper.spawn(key, spawn, &fds).map_err(NamespaceError::Keeper)?;
    drop(writer);
    let ended = wait_readable([Some(spawned.process.as_fd())], Some(CHECK_LIMIT));
    let [process] = ended.map_err(NamespaceError::Silent)?;
    if !process.readable {
        return Err(NamespaceError::Silent(io::ErrorKind::TimedOut.into()));
    }
    io::read_to_string(reader).map_err(NamespaceError::Silent)
}

/// Moves this thread, which is the only one, into the namespace.
fn enter(file: &Path) -> Result<(), NamespaceError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = rustix::fs::open(file, flags, Mode::empty());
    let open =
        open.map_err(|error| NamespaceError::Closed { file: file.to_owned(), source: error.into() })?;
    let moved = move_into_link_name_space(open.as_fd(), Some(LinkNameSpaceType::Network));
    moved.map_err(|error| NamespaceError::Barred { file: file.to_owned(), source: error.into() })
}

/// Advice that the system's words lack.
fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => "; the keeper needs CAP_SYS_ADMIN for that",
        Some(Errno::INVAL) => "; it is no network namespace",
        Some(_) | None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_gets_its_own_environment_and_words_behind_the_namespace() {
        let namespace = Namespace { file: "/run/netns/blue".into(), starter: "/usr/bin/rekindle".into() };
        let plain = Spawn {
            environment: vec![("LD_PRELOAD".into(), "/proc/self/fd/9".into())],
            log: Some("/log".into()),
            ..Spawn::new("/usr/bin/qemu", vec!["-m".into(), "64".into()])
        };
        let entering = namespace.enter(plain);
        assert_eq!(entering.program, Path::new("/usr/bin/rekindle"));
        let words = "enter --netns /run/netns/blue --set LD_PRELOAD=/proc/self/fd/9 -- /usr/bin/qemu -m 64";
        assert_eq!(entering.arguments, words.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(entering.environment.is_empty() && entering.log.is_some());
    }

    #[test]
    fn a_file_that_is_no_network_namespace_is_refused_by_name() {
        let absent = enter(Path::new("/run/netns/rk-is-not-here")).expect_err("there is none");
        assert!(matches!(absent, NamespaceError::Closed { .. }), "{absent}");
        let other = enter(Path::new("/proc/self/ns/uts")).expect_err("it is another kind");
        assert!(other.to_string().contains("/proc/self/ns/uts cannot be entered"), "{other}");
    }
}
