//! Starts a keeper unless one runs.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rekindle_engine::private::{self, make_directory};
use rekindle_kernel::spawn::in_own_session;
use rekindle_kernel::wakeup::wait_readable;
use rustix::fs::FlockOperation;

use super::error::{KeeperError, nobody_listens};

/// Longest time from a keeper's start until it listens.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Longest time for a service manager to start the keeper again.
const SUPERVISED_LIMIT: Duration = Duration::from_secs(5);
/// Time between two checks if it has.
const SUPERVISED_ASK: Duration = Duration::from_millis(20);

/// Variables that a service manager gives its service, and not the keeper.
const OF_THE_SERVICE: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
];

/// Origin of a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It ran.
    Running,
    /// It was started.
    Started,
}

/// Starts `program` as the keeper at `socket` and waits until it listens, unless another program did meanwhile.
pub(super) fn start(socket: &Path, program: &Path) -> Result<Found, KeeperError> {
    let start = || {
        let socket = std::path::absolute(socket)?;
        if let Some(directory) = socket.parent() {
            make_directory(directory)?;
        }
        // One starts it at a time, so that the others find it.
        let path = socket.with_extension("starting");
        let starting = private::open(&path, private::options().create(true).truncate(false))?;
        rustix::fs::flock(&starting, FlockOperation::LockExclusive)?;
        match connect(&socket, supervised().then_some(SUPERVISED_LIMIT)) {
            Ok(_) => Ok(Found::Running),
            Err(error) if nobody_listens(&error) => run(&socket, program),
            Err(error) => Err(error),
        }
    };
    start().map_err(|source| KeeperError::NotStarted { program: program.to_owned(), source })
}

/// True if systemd started this program as a service, and so, most likely, starts the keeper again too: one that we
/// started would be in our control group, and in the way of that one.
fn supervised() -> bool {
    ["NOTIFY_SOCKET", "INVOCATION_ID"].iter().all(|name| std::env::var_os(name).is_some())
}

/// A connection to the keeper at `socket`, once one listens there, within `limit`.
fn connect(socket: &Path, limit: Option<Duration>) -> io::Result<UnixStream> {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(error) if nobody_listens(&error) && limit.is_some_and(|limit| begun.elapsed() < limit) => {
                std::thread::park_timeout(SUPERVISED_ASK);
            }
            connected => return connected,
        }
    }
}

/// The keeper says on its standard output that it listens; its log goes to a file beside its socket.
fn run(socket: &Path, program: &Path) -> io::Result<Found> {
    let log_path = socket.with_extension("log");
    let log = private::open(&log_path, OpenOptions::new().create(true).append(true).mode(0o600))?;
    private::restrict(&log_path, private::OTHERS)?;
    let (mut said, says) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(["keeper", "--socket"]).arg(socket).current_dir("/");
    command.stdin(Stdio::null()).stdout(says).stderr(log);
    for name in OF_THE_SERVICE {
        command.env_remove(name);
    }
    let mut keeper = in_own_session(command)?;
    let [says_something] = wait_readable([Some(said.as_fd())], Some(START_LIMIT))?;
    if !says_something.readable {
        keeper.kill()?;
    } else if said.read(&mut [0; 64])? > 0 {
        return Ok(Found::Started);
    }
    let status = keeper.wait()?;
    Err(io::Error::other(format!("it did not come to listen ({status}); see {}", log_path.display())))
}
