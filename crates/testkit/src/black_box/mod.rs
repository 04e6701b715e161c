//! The program as users run it: a real `rekindle serve` in directories of its own, killed and started again.
//!
//! The program also has a path of its own, by which all of its processes are recognised, whatever their parent: daemon,
//! keeper and guests.

mod bucket;
mod console;
mod daemon;
mod outage;
mod processes;
mod told;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rekindle_api::client::{Client, ClientError};
use rekindle_keeper::{KeeperClient, KeeperError};
use rekindle_kernel::{ProcessHandle, Signal};
use tempfile::TempDir;

use crate::programs;

pub use bucket::bucket_words;
pub use console::Console;
pub use daemon::RunningDaemon;
pub use outage::Outage;
pub use processes::{Process, Role};
pub use told::Told;

/// Longest wait for anything that must happen. Seals run at idle priority, behind all other work of the host.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Time between two questions to a process that does not report its changes.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// The directories of one daemon after another; on drop every process that was started in them is ended.
#[derive(Debug)]
pub struct BlackBox {
    directory: Mutex<Option<TempDir>>,
    root: PathBuf,
    programs: TempDir,
    program: PathBuf,
    /// Limits of a daemon, as arguments of a shell's `ulimit`.
    limit: Option<String>,
    /// Words of the daemon's command line after `serve`.
    words: Vec<String>,
    /// The network namespace of a daemon.
    network: Option<String>,
}

/// A failure of the program, or of the system under a test.
#[derive(Debug, thiserror::Error)]
pub enum BlackBoxError {
    /// The system failed.
    #[error("{doing}: {source}")]
    System {
        /// The action that failed.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The daemon ended instead of serving.
    #[error("the daemon ended before it was ready ({status}); its log ends with:\n{log}")]
    Ended {
        /// Its status.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// The daemon runs, but does not become ready.
    #[error("the daemon was not ready after {limit:?} ({last}); its log ends with:\n{log}")]
    NotReady {
        /// The limit of the wait.
        limit: Duration,
        /// Its last answer, if any.
        last: String,
        /// The end of its log.
        log: String,
    },
    /// A process did not end.
    #[error("process {pid} has not ended {limit:?} after it was told to")]
    NotEnded {
        /// Its id.
        pid: u32,
        /// The limit of the wait.
        limit: Duration,
    },
    /// A guest gave a wrong answer.
    #[error("the guest of {sandbox}: {why}")]
    Guest {
        /// Its sandbox.
        sandbox: String,
        /// Its fault.
        why: String,
    },
    /// A request to the daemon failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl BlackBox {
    /// New directories for `program`, with default settings.
    pub fn new(program: &Path) -> Result<Self, BlackBoxError> {
        Self::with_settings(program, "")
    }

    /// The same with additional lines of settings.
    pub fn with_settings(program: &Path, settings: &str) -> Result<Self, BlackBoxError> {
        let made = || {
            let program = program.canonicalize()?;
            let beside = program.parent().unwrap_or(Path::new("/"));
            let programs = tempfile::Builder::new().prefix("black-box-").tempdir_in(beside)?;
            let directory = tempfile::Builder::new().prefix("rk-").tempdir()?;
            let root = directory.path().canonicalize()?;
            let named = programs.path().join("rekindle");
            link(&program, &named)?;
            let this = Self {
                directory: Mutex::new(Some(directory)),
                root,
                programs,
                program: named,
                limit: None,
                words: Vec::new(),
                network: None,
            };
            fs::create_dir(this.root.join("home"))?;
            fs::write(this.settings_file(), this.settings(settings))?;
            Ok(this)
        };
        made().map_err(system("making directories for a daemon"))
    }

    /// The settings of a daemon, which evicts nothing because the machine's disk happens to be full, unless `more` says so.
    fn settings(&self, more: &str) -> String {
        let floor = if more.contains("disk_free_bytes_min") { "" } else { "disk_free_bytes_min = 0\n" };
        format!(
            "state_directory = {:?}\nrun_directory = {:?}\nstore = {:?}\n{floor}{more}\n",
            self.state_directory(),
            self.run_directory(),
            self.store_directory()
        )
    }

    /// The daemon's state directory.
    pub fn state_directory(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Directory of its sockets.
    pub fn run_directory(&self) -> PathBuf {
        self.root.join("run")
    }

    /// Directory of its store.
    pub fn store_directory(&self) -> PathBuf {
        self.root.join("store")
    }

    /// File of its keys.
    pub fn key_ring(&self) -> PathBuf {
        self.state_directory().join("key-ring.json")
    }

    /// Puts a copy of another place's keys here, before a daemon starts that is to read the other's store.
    pub fn copy_key_ring(&self, other: &Self) -> Result<(), BlackBoxError> {
        let copied = || {
            fs::create_dir_all(self.state_directory())?;
            fs::copy(other.key_ring(), self.key_ring())
        };
        copied().map(drop).map_err(system("copying a key ring"))
    }

    /// Its settings.
    pub fn settings_file(&self) -> PathBuf {
        self.root.join("rekindle.toml")
    }

    /// File with the standard error of the daemons here.
    pub fn log_file(&self) -> PathBuf {
        self.root.join("daemon.log")
    }

    /// An empty directory to be a user's home.
    pub fn home_directory(&self) -> PathBuf {
        self.root.join("home")
    }

    /// The program, by the path that it has here.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command of the program that finds the daemon here and nothing of the user's.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words);
        self.surround(&mut command);
        command
    }

    /// Limits daemons that start later; the argument is one of a shell's `ulimit`: `-n 256`.
    pub fn limit(&mut self, limit: &str) {
        self.limit = Some(limit.to_owned());
    }

    /// Gives these words to daemons that start later, such as `--accept-store`.
    pub fn serve_with(&mut self, words: &[&str]) {
        self.words = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Runs daemons that start later in this network namespace, which `ip netns` has made.
    pub fn in_network(&mut self, namespace: &str) {
        self.network = Some(namespace.to_owned());
    }

    /// The command that starts a daemon.
    fn serve(&self) -> Command {
        let words = ["serve"].into_iter().chain(self.words.iter().map(String::as_str));
        if self.limit.is_none() && self.network.is_none() {
            return self.command(words);
        }
        let limit = self.limit.iter().map(|limit| format!("ulimit {limit} && "));
        let network = self.network.iter().map(|name| format!("nsenter --net=/run/netns/{name} "));
        let script =
            format!("{}exec {}\"$0\" \"$@\"", limit.collect::<String>(), network.collect::<String>());
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&self.program).args(words);
        self.surround(&mut command);
        command
    }

    /// Makes `command` find the settings here and nothing of the user's, and this program before all others.
    pub fn surround(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REKINDLE_") {
                command.env_remove(name);
            }
        }
        let mut searched = vec![self.programs.path().to_owned()];
        searched.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        command.env("PATH", std::env::join_paths(searched).expect("they were split just now"));
        let home = self.home_directory();
        command.env("REKINDLE_CONFIG", self.settings_file()).env("HOME", &home);
        command.env("XDG_CONFIG_HOME", home.join("config")).env("XDG_STATE_HOME", home.join("state"));
        command.env_remove("XDG_RUNTIME_DIR").env_remove("NOTIFY_SOCKET").current_dir(&self.root);
    }

    /// Starts a daemon without waiting until it is ready.
    pub fn begin(&self) -> Result<RunningDaemon, BlackBoxError> {
        RunningDaemon::begin(self)
    }

    /// Starts a daemon and waits until it is ready.
    pub fn start(&self) -> Result<RunningDaemon, BlackBoxError> {
        let mut daemon = self.begin()?;
        daemon.wait_ready(PATIENCE)?;
        Ok(daemon)
    }

    /// A client of the daemon that runs here.
    pub fn client(&self) -> Client {
        Client::of_socket(self.run_directory().join("api.sock")).answered_within(PATIENCE)
    }

    /// A client of the keeper that runs here.
    pub fn keeper(&self) -> Result<KeeperClient, KeeperError> {
        KeeperClient::connect(&self.run_directory().join("keeper.sock"))
    }

    /// Replaces the program by another file with the same content, like an upgrade.
    pub fn upgrade(&mut self) -> Result<(), BlackBoxError> {
        let upgraded = || {
            let directory = self.programs.path().join("upgraded");
            fs::create_dir(&directory)?;
            programs::copy(&self.program, &directory.join("rekindle"))?;
            fs::remove_file(&self.program)?;
            Ok(directory.join("rekindle"))
        };
        self.program = upgraded().map_err(system("putting another program in place"))?;
        Ok(())
    }

    /// Every process that runs the program here, and every VMM that it started.
    pub fn processes(&self) -> Result<Vec<Process>, BlackBoxError> {
        processes::of(self.programs.path(), &self.root).map_err(system("listing processes"))
    }

    /// Kills the process with `pid`, if it is one of these, and waits for its end.
    pub fn kill(&self, pid: u32) -> Result<(), BlackBoxError> {
        let Ok(handle) = ProcessHandle::open(pid) else { return Ok(()) };
        // The handle is of the process that has the pid now, so that process is checked after the handle was made.
        if !processes::belongs(pid, self.programs.path(), &self.root) {
            return Ok(());
        }
        // An error means that it has ended.
        handle.signal(Signal::Kill).ok();
        match handle.wait_exit(PATIENCE) {
            true => Ok(()),
            false => Err(BlackBoxError::NotEnded { pid, limit: PATIENCE }),
        }
    }

    /// Ends everything that runs here.
    pub fn end_all(&self) -> Result<(), BlackBoxError> {
        // A process may start another before it is killed, so the search is repeated until it finds none.
        loop {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            for process in processes {
                self.kill(process.pid)?;
            }
        }
    }

    /// Keeps the directories when this is dropped; returns their path.
    pub fn leave(&self) -> &Path {
        if let Some(directory) = self.directory.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _kept = directory.keep();
        }
        &self.root
    }

    /// The end of the daemon's log.
    pub fn log_end(&self) -> String {
        daemon::log_end(&self.log_file())
    }
}

impl Drop for BlackBox {
    fn drop(&mut self) {
        if let Err(error) = self.end_all() {
            eprintln!("processes of {} may be left over: {error}", self.root.display());
        }
    }
}

/// Asks until there is an answer, at most `limit`: for things that do not report their changes.
pub fn ask_until<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if started.elapsed() >= limit {
            return None;
        }
        thread::park_timeout(ASK_EVERY);
    }
}

/// A second name for a file; a copy if the file system has no links.
fn link(file: &Path, name: &Path) -> io::Result<()> {
    fs::hard_link(file, name).or_else(|_| programs::copy(file, name))
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> BlackBoxError {
    move |source| BlackBoxError::System { doing, source }
}
