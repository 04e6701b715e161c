//! A node of a command's own: a daemon and its keeper in a directory, both gone with it.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rekindle_api::control::{Asked, Control as _};
use rekindle_api::types::{
    CheckpointSandbox, ConsoleOutput, CreateSandbox, ListQuery, PauseSandbox, ResumeSnapshot, Sandbox,
    SandboxCount, Snapshot, SnapshotState,
};
use rekindle_engine::store::Traffic;
use rekindle_guest::process::protocol::Command;
use rekindle_settings::{SettingFlags, Settings};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::daemon::Daemon;
use crate::daemon::Served as _;

/// A running daemon. Dropped, its sandboxes end, and so do the keeper and itself.
#[derive(Debug)]
pub(super) struct PrivateNode {
    daemon: Arc<Daemon>,
}

impl PrivateNode {
    /// A node in `directory`, over the store in `store`. Nodes in directories beside each other share a key ring, which
    /// is beside them, and a domain, which nothing else in the store has.
    pub(super) fn start(directory: &Path, store: &Path) -> anyhow::Result<Self> {
        let set = |name: &str, path: &Path| Some(path.join(name).display().to_string());
        let place = directory.parent().unwrap_or(directory);
        let domain = blake3::hash(place.as_os_str().as_encoded_bytes()).to_hex();
        let flags = SettingFlags::default()
            .with_config(Some("/dev/null".into()))
            .with("state_directory", "--state-directory", set("state", directory))
            .with("run_directory", "--run-directory", set("run", directory))
            .with("store", "--store", Some(store.display().to_string()))
            .with("key_ring", "--key-ring", set("key-ring.json", place))
            .with("domain", "--domain", Some(format!("private-{}", &domain[..16])));
        let settings = Settings::load(&flags).context("the settings of a private node")?;
        Ok(Self { daemon: Daemon::start(&settings)? })
    }

    /// Starts a sandbox.
    pub(super) fn create(&self, wanted: CreateSandbox) -> anyhow::Result<Sandbox> {
        Ok(self.daemon.create_sandbox(Asked::default(), wanted)?)
    }

    /// The sandbox as it is now.
    pub(super) fn sandbox(&self, id: Uuid) -> anyhow::Result<Sandbox> {
        Ok(self.daemon.sandbox(&id.into())?)
    }

    /// Pauses a sandbox.
    pub(super) fn pause(&self, id: Uuid) -> anyhow::Result<Snapshot> {
        Ok(self.daemon.pause_sandbox(&id.into(), Asked::default(), PauseSandbox::default())?)
    }

    /// Takes a snapshot of a sandbox that goes on.
    pub(super) fn checkpoint(&self, id: Uuid) -> anyhow::Result<Snapshot> {
        let how = CheckpointSandbox::default();
        Ok(self.daemon.checkpoint_sandbox(&id.into(), Asked::default(), how)?)
    }

    /// A new sandbox that goes on from a snapshot, before the snapshot is sealed if `early`.
    pub(super) fn resume(&self, snapshot: &Snapshot, early: bool) -> anyhow::Result<Sandbox> {
        let how = ResumeSnapshot { serve_before_seal: Some(early), ..ResumeSnapshot::default() };
        let made = self.daemon.resume_snapshot(&snapshot.id.into(), Asked::default(), how)?;
        made.sandboxes.into_iter().next().context("one sandbox was asked for")
    }

    /// So many new sandboxes that go on from a snapshot.
    pub(super) fn fork(
        &self,
        snapshot: &Snapshot,
        count: SandboxCount,
        early: bool,
    ) -> anyhow::Result<Vec<Sandbox>> {
        let how = ResumeSnapshot { count, serve_before_seal: Some(early), ..ResumeSnapshot::default() };
        Ok(self.daemon.resume_snapshot(&snapshot.id.into(), Asked::default(), how)?.sandboxes)
    }

    /// RAM of the pages that guests of one snapshot share.
    pub(super) fn image_bytes(&self) -> u64 {
        self.metric("rekindle_image_bytes ")
    }

    /// Has a process guest do something.
    pub(super) fn tell<Answer: DeserializeOwned>(
        &self,
        id: Uuid,
        command: &Command,
    ) -> anyhow::Result<Answer> {
        let command = serde_json::to_value(command).expect("commands are plain data");
        let answer = self.daemon.tell_guest(&id.into(), Asked::default(), command)?;
        serde_json::from_value(answer).context("the guest's answer is not understood")
    }

    /// Console output of a machine from `from` on, waited for at most `limit`.
    pub(super) fn console(
        &self,
        id: Uuid,
        from: Option<u64>,
        limit: Duration,
    ) -> anyhow::Result<ConsoleOutput> {
        Ok(self.daemon.console(&id.into(), from, limit)?)
    }

    /// Types at a machine's console.
    pub(super) fn type_console(&self, id: Uuid, text: &str) -> anyhow::Result<()> {
        Ok(self.daemon.type_console(&id.into(), text.as_bytes())?)
    }

    /// Ends a sandbox.
    pub(super) fn remove(&self, id: Uuid) -> anyhow::Result<()> {
        self.daemon.remove_sandbox(&id.into(), Asked::default())?;
        Ok(())
    }

    /// True if the snapshot is not sealed yet.
    pub(super) fn is_unsealed(&self, snapshot: &Snapshot) -> anyhow::Result<bool> {
        Ok(self.daemon.snapshot(&snapshot.id.into())?.state == SnapshotState::Captured)
    }

    /// Waits until a snapshot is in the store.
    pub(super) fn wait_published(&self, snapshot: &Snapshot, limit: Duration) -> anyhow::Result<Snapshot> {
        Ok(self.daemon.wait_snapshot(&snapshot.id.into(), SnapshotState::Published, limit)?)
    }

    /// Deletes a snapshot, and waits until it is deleted from the store too: no later start of this node would do it.
    pub(super) fn delete(&self, snapshot: &Snapshot, limit: Duration) -> anyhow::Result<()> {
        self.daemon.delete_snapshot(&snapshot.id.into())?;
        let is_deleted = self.daemon.wait_deleted(snapshot.id, limit)?;
        ensure!(is_deleted, "snapshot {} was not deleted from the store", snapshot.id);
        Ok(())
    }

    /// Counts of the bytes moved to and from the store.
    pub(super) fn traffic(&self) -> Traffic {
        self.daemon.traffic()
    }

    /// Seconds in which guests stood still for pauses, in all.
    pub(super) fn frozen_seconds(&self) -> f64 {
        self.metric("rekindle_pause_frozen_seconds_sum ")
    }

    /// The same for checkpoints.
    pub(super) fn checkpoint_frozen_seconds(&self) -> f64 {
        self.metric("rekindle_checkpoint_frozen_seconds_sum ")
    }

    /// The value of the metric whose line begins so.
    fn metric<Value: FromStr + Default>(&self, start: &str) -> Value {
        let text = self.daemon.metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(start));
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    fn end(&self) -> anyhow::Result<()> {
        for sandbox in self.daemon.sandboxes(&ListQuery::default())?.sandboxes {
            self.daemon.remove_sandbox(&sandbox.id.into(), Asked::default())?;
        }
        self.daemon.end();
        self.daemon.end_keeper()
    }
}

impl Drop for PrivateNode {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("a private node may be left over: {error:#}");
        }
    }
}
