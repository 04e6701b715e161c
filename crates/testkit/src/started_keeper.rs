//! The program's own keeper, started for a test; every process under it ends with it.

use std::ops::Deref;
use std::path::Path;

use rekindle_keeper::{KeeperClient, KeeperError};
use rekindle_kernel::{ProcessHandle, Signal};

use crate::site::PATIENCE;

/// A keeper that a test started. On drop it ends, and every VMM under it is killed.
#[derive(Debug)]
pub struct StartedKeeper(KeeperClient);

impl StartedKeeper {
    /// Starts `program` as a keeper whose socket is in `directory`.
    pub fn start(program: &Path, directory: &Path) -> Result<Self, KeeperError> {
        let (client, _found) = KeeperClient::connect_or_start(&directory.join("keeper.sock"), program)?;
        Ok(Self(client))
    }

    /// The VMMs under it that have not ended.
    pub fn living(&self) -> Result<Vec<ProcessHandle>, KeeperError> {
        let processes = self.0.list()?.into_iter().filter_map(|entry| entry.process);
        let living = processes.filter(|process| process.exited.is_none());
        // A process that cannot be opened has ended meanwhile.
        Ok(living.filter_map(|process| ProcessHandle::open(process.pid).ok()).collect())
    }
}

impl Deref for StartedKeeper {
    type Target = KeeperClient;

    fn deref(&self) -> &KeeperClient {
        &self.0
    }
}

impl Drop for StartedKeeper {
    fn drop(&mut self) {
        for process in self.living().unwrap_or_default() {
            // An error means that it has ended.
            process.signal(Signal::Kill).ok();
            process.wait_exit(PATIENCE);
        }
        self.0.shutdown(true).ok();
    }
}
