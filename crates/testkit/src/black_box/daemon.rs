//! A daemon process of a test, from its start to its end.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rekindle_api::client::Client;
use rekindle_kernel::{ProcessHandle, Signal};

use super::{ASK_EVERY, BlackBox, BlackBoxError, PATIENCE, system};

/// A started daemon; it is killed and waited for on drop.
#[derive(Debug)]
pub struct RunningDaemon {
    child: Child,
    handle: ProcessHandle,
    client: Client,
    log: PathBuf,
}

impl RunningDaemon {
    pub(super) fn begin(place: &BlackBox) -> Result<Self, BlackBoxError> {
        let failed = || system("starting a daemon");
        let log = OpenOptions::new().create(true).append(true).open(place.log_file()).map_err(failed())?;
        let mut command = place.serve();
        let output = log.try_clone().map_err(failed())?;
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        let mut child = command.spawn().map_err(failed())?;
        match ProcessHandle::open(child.id()) {
            Ok(handle) => Ok(Self { child, handle, client: place.client(), log: place.log_file() }),
            Err(error) => {
                child.kill().and_then(|()| child.wait()).map_err(failed())?;
                Err(failed()(error))
            }
        }
    }

    /// Waits until it reports that it is ready.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<(), BlackBoxError> {
        let started = Instant::now();
        loop {
            let last = match self.client.readiness() {
                // It answers once it has recovered; a test may start it on a full disk, for instance.
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if self.handle.wait_exit(ASK_EVERY) {
                let status = self.child.wait().map_err(system("waiting for a daemon"))?;
                return Err(BlackBoxError::Ended { status, log: log_end(&self.log) });
            }
            if started.elapsed() > limit {
                return Err(BlackBoxError::NotReady { limit, last, log: log_end(&self.log) });
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.handle.pid()
    }

    /// Its client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Kills it by SIGKILL and waits for its end.
    pub fn kill(mut self) -> Result<ExitStatus, BlackBoxError> {
        self.end_now().map_err(system("killing a daemon"))
    }

    /// Asks it to end by SIGTERM and waits for that.
    pub fn terminate(mut self) -> Result<ExitStatus, BlackBoxError> {
        self.handle.signal(Signal::Terminate).map_err(system("telling a daemon to end"))?;
        if !self.handle.wait_exit(PATIENCE) {
            return Err(BlackBoxError::NotEnded { pid: self.pid(), limit: PATIENCE });
        }
        self.child.wait().map_err(system("waiting for a daemon"))
    }

    fn end_now(&mut self) -> std::io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for RunningDaemon {
    fn drop(&mut self) {
        // Killing a process that was waited for does nothing.
        if let Err(error) = self.end_now() {
            eprintln!("daemon {} may be left over: {error}", self.pid());
        }
    }
}

/// The last lines of a log.
pub(super) fn log_end(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
