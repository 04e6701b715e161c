//! Descriptors, RAM and files that a daemon and its keeper hold at one instant.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rekindle_api::client::Client;
use rekindle_testkit::black_box::{BlackBox, Process, Role, RunningDaemon, ask_until};
use serde::Serialize;

/// Longest time for layers of deleted snapshots, and for connections, to go.
pub(super) const RESTS_WITHIN: Duration = Duration::from_secs(60);

/// Things held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sample {
    pub(crate) daemon_fds: u64,
    pub(crate) keeper_fds: u64,
    /// RAM that is the daemon's own.
    pub(crate) daemon_bytes: u64,
    pub(crate) keeper_bytes: u64,
    /// RAM that captures hold, as the daemon measures it.
    pub(crate) captures_bytes: u64,
    /// Layers on the local disk.
    pub(crate) layers_bytes: u64,
    pub(crate) catalog_bytes: u64,
    pub(crate) store_bytes: u64,
    /// Snapshots in the store.
    pub(crate) manifests: u64,
}

impl Sample {
    /// Things held now.
    pub(crate) fn now(place: &BlackBox, daemon: &RunningDaemon, client: &Client) -> anyhow::Result<Self> {
        let of = |pid, role| Process { pid, role };
        let keeper = place.keeper().context("finding the keeper")?.identity().pid;
        let (daemon, keeper) = (of(daemon.pid(), Role::Daemon), of(keeper, Role::Keeper));
        let state = place.state_directory();
        Ok(Self {
            daemon_fds: daemon.fds()?,
            keeper_fds: keeper.fds()?,
            daemon_bytes: daemon.own_ram_bytes()?,
            keeper_bytes: keeper.own_ram_bytes()?,
            captures_bytes: captures_bytes(&client.metrics()?),
            layers_bytes: bytes_in(&state.join("layers"))?,
            catalog_bytes: bytes_in(&state.join("catalog.redb"))?,
            store_bytes: bytes_in(&place.store_directory())?,
            manifests: files_in(&place.store_directory().join("manifests"))?,
        })
    }

    /// Things held once nothing more goes, after everything was removed.
    pub(crate) fn at_rest(place: &BlackBox, daemon: &RunningDaemon, client: &Client) -> anyhow::Result<Self> {
        let mut last = Self::now(place, daemon, client)?;
        ask_until(RESTS_WITHIN, || {
            last = Self::now(place, daemon, client).ok()?;
            (last.layers_bytes == 0 && last.captures_bytes == 0 && last.manifests == 0).then_some(())
        });
        Ok(last)
    }

    /// The larger of each.
    pub(crate) fn most(self, other: Self) -> Self {
        Self {
            daemon_fds: self.daemon_fds.max(other.daemon_fds),
            keeper_fds: self.keeper_fds.max(other.keeper_fds),
            daemon_bytes: self.daemon_bytes.max(other.daemon_bytes),
            keeper_bytes: self.keeper_bytes.max(other.keeper_bytes),
            captures_bytes: self.captures_bytes.max(other.captures_bytes),
            layers_bytes: self.layers_bytes.max(other.layers_bytes),
            catalog_bytes: self.catalog_bytes.max(other.catalog_bytes),
            store_bytes: self.store_bytes.max(other.store_bytes),
            manifests: self.manifests.max(other.manifests),
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{} fds, {} at the keeper; {} MiB, {} at the keeper, {} in captures; {} MiB of layers, {} of catalog, {} \
             in the store with {} snapshots",
            self.daemon_fds,
            self.keeper_fds,
            mib(self.daemon_bytes),
            mib(self.keeper_bytes),
            mib(self.captures_bytes),
            mib(self.layers_bytes),
            mib(self.catalog_bytes),
            mib(self.store_bytes),
            self.manifests
        )
    }
}

/// The metric of RAM held by captures.
fn captures_bytes(metrics: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix("rekindle_captures_held_bytes "));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// Files in a directory; none where it is not there.
fn files_in(directory: &Path) -> io::Result<u64> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(u64::try_from(entries.count()).expect("usize is 64 bits")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Files in a directory and all below it; none where it is not there.
pub(super) fn files_below(directory: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    entries
        .map(|entry| {
            let entry = entry?;
            if entry.file_type()?.is_dir() { files_below(&entry.path()) } else { Ok(1) }
        })
        .sum()
}

/// Bytes on the disk of a file, or of everything in a directory; none where it is not there.
fn bytes_in(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let gone = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(0) } else { Err(error) };
    let about = match fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) => return gone(error),
    };
    if !about.is_dir() {
        return Ok(about.blocks() * 512);
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return gone(error),
    };
    entries.map(|entry| bytes_in(&entry?.path())).sum()
}
