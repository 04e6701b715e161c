//! The demo's directory, and the process that makes it: it runs the demo as a process of its own, so that the directory
//! goes however the demo ends. The next demo removes the directory of one that was killed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rekindle_keeper::KeeperClient;
use rekindle_kernel::ProcessHandle;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tempfile::NamedTempFile;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Prefix of the name of a demo's directory; the number of its process follows.
const PREFIX: &str = "rekindle-demo-";

/// The file in it that is locked as long as its process lives.
const LOCK: &str = "lock";

/// The longest path of a socket (`sun_path`, unix(7)), less what the nodes in a directory add to it.
const PATH_BYTES_MAX: usize = 107 - "/1/run/handover-01234567-0123-0123-0123-0123456789ab.sock".len();

/// Longest time for a keeper to end.
const KEEPER_LIMIT: Duration = Duration::from_secs(10);

/// The directory of one demo. Dropped, the keepers in it end, and it is removed.
#[derive(Debug)]
pub(in crate::commands) struct Place {
    directory: PathBuf,
    _lock: File,
}

/// End of the demo's own process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Itself(ExitStatus),
    /// Because this process was told to end, by the signal of this number.
    Told(i32),
}

impl Ended {
    /// The exit status to end with, as shells have it for signals.
    pub(super) fn status(self) -> u8 {
        let signalled = |number: i32| u8::try_from(128 + number).unwrap_or(u8::MAX);
        match self {
            Self::Told(number) => signalled(number),
            Self::Itself(status) => match (status.code(), status.signal()) {
                (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
                (None, number) => signalled(number.unwrap_or_default()),
            },
        }
    }
}

impl Place {
    /// Makes one, after removing those that dead demos left.
    pub(in crate::commands) fn make() -> anyhow::Result<Self> {
        let above = std::env::temp_dir();
        remove_left_over(&above);
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(&above);
        let made = made.with_context(|| format!("making a directory in {}", above.display()))?;
        ensure!(
            made.path().as_os_str().len() <= PATH_BYTES_MAX,
            "{} is too long for the paths of sockets: set TMPDIR to a directory with a shorter path, for instance /tmp",
            made.path().display()
        );
        let lock = locked_in(made.path()).with_context(|| format!("locking {}", made.path().display()))?;
        Ok(Self { directory: made.keep(), _lock: lock })
    }

    /// The directory.
    pub(in crate::commands) fn path(&self) -> &Path {
        &self.directory
    }

    /// Runs this program once more, with the words it was given, in this directory.
    pub(super) fn run_demo(&self) -> anyhow::Result<Ended> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.run_until_told()).context("running the demo")
    }

    async fn run_until_told(&self) -> io::Result<Ended> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut program = Command::new(std::env::current_exe()?);
        program.args(std::env::args_os().skip(1)).arg("--place").arg(&self.directory);
        // A group of its own, which its guests are in as well and end with.
        let mut demo = program.process_group(0).spawn()?;
        let group = Pid::from_child(&demo);
        let (tell, told) = oneshot::channel();
        let waiting = std::thread::spawn(move || drop(tell.send(demo.wait())));
        let told_to_end = async {
            tokio::select! {
                _ = interrupt.recv() => Signal::INT,
                _ = terminate.recv() => Signal::TERM,
                _ = hang_up.recv() => Signal::HUP,
                _ = quit.recv() => Signal::QUIT,
            }
        };
        let ended = tokio::select! {
            status = told => Ended::Itself(status.map_err(io::Error::other)??),
            signal = told_to_end => Ended::Told(signal.as_raw()),
        };
        // Its guests may be left where it ended by itself, and there may be none.
        kill_process_group(group, Signal::KILL).unwrap_or_default();
        waiting.join().map_err(|_| io::Error::other("waiting for the demo failed"))?;
        Ok(ended)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            eprintln!("rekindle: {} is left over: {error}", self.directory.display());
        }
    }
}

/// Lets this process end with the one that started it.
pub(super) fn end_with_the_watcher() -> io::Result<()> {
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// A lock in `directory`, which is there from its first instant on only locked.
fn locked_in(directory: &Path) -> io::Result<File> {
    let file = NamedTempFile::new_in(directory)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file.persist(directory.join(LOCK))?)
}

/// Removes the directories of demos of this user that were killed together with the process that watched them.
fn remove_left_over(above: &Path) {
    let Ok(entries) = fs::read_dir(above) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_ours(&path) && is_dead(&path) {
            match remove(&path) {
                Ok(()) => eprintln!("rekindle: removed {}, which a killed demo left", path.display()),
                Err(error) => eprintln!("rekindle: {} is left over: {error}", path.display()),
            }
        }
    }
}

fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw())
}

/// True if the lock that each living demo holds is free.
fn is_dead(directory: &Path) -> bool {
    File::open(directory.join(LOCK))
        .is_ok_and(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// Ends the keepers of the nodes in a directory, each with the machines it holds, and removes the directory.
fn remove(directory: &Path) -> io::Result<()> {
    for node in fs::read_dir(directory)?.flatten() {
        let socket = node.path().join("run/keeper.sock");
        if let Ok(keeper) = KeeperClient::connect(&socket) {
            let process = ProcessHandle::open(keeper.identity().pid)?;
            keeper.shutdown(true).map_err(io::Error::other)?;
            process.wait_exit(KEEPER_LIMIT);
        }
    }
    fs::remove_dir_all(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_demo_and_what_a_dead_one_left_with_the_next() {
        let above = tempfile::tempdir().expect("a directory");
        let make = |name: &str| {
            let path = above.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&path).expect("it can be made");
            path
        };
        let (alive, dead, unlocked, other) = (make("1-a"), make("2-b"), make("3-c"), above.path().join("x"));
        fs::create_dir(&other).expect("it can be made");
        let held = Place { _lock: locked_in(&alive).expect("nobody has it"), directory: alive.clone() };
        drop(locked_in(&dead).expect("nobody has it"));
        drop(locked_in(&other).expect("nobody has it"));
        remove_left_over(above.path());
        assert!(alive.exists() && other.exists() && !dead.exists());
        assert!(unlocked.exists(), "one that is just being made is not locked yet");
        drop(held);
        assert!(!alive.exists());
    }

    #[test]
    fn a_demo_that_was_told_to_end_ends_as_shells_expect() {
        assert_eq!(Ended::Told(Signal::TERM.as_raw()).status(), 143);
        assert_eq!(Ended::Itself(ExitStatus::from_raw(2 << 8)).status(), 2);
        assert_eq!(Ended::Itself(ExitStatus::from_raw(9)).status(), 137);
    }
}
