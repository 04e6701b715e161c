//! A node of the demo's own: a daemon and its keeper under a temporary directory, gone with it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle_guest::machine::Said;

use crate::api::control::{Asked, Control as _, Served as _};
use crate::api::types::{
    CreateSandbox, ListQuery, PauseSandbox, ResumeSnapshot, Sandbox, Snapshot, SnapshotState,
};
use crate::daemon::Daemon;
use crate::settings::{SettingFlags, Settings};

/// Longest time for a guest to answer a line.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// Longest wait of one request for console output.
const TURN: Duration = Duration::from_millis(500);

/// A running daemon. Dropped, its sandboxes end, and so do the keeper and itself.
#[derive(Debug)]
pub(super) struct PrivateNode {
    daemon: Arc<Daemon>,
}

/// A machine of the node, and where its console was read to.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    node: &'a PrivateNode,
    pub(super) sandbox: Sandbox,
    read_to: Option<u64>,
    said: Said,
}

impl PrivateNode {
    /// A node in `directory`, over the store in `store`.
    pub(super) fn start(directory: &Path, store: &Path) -> anyhow::Result<Self> {
        let set = |name: &str, path: &Path| Some(path.join(name).display().to_string());
        let flags = SettingFlags::default()
            .with_config(Some("/dev/null".into()))
            .with("state_directory", "--state-directory", set("state", directory))
            .with("run_directory", "--run-directory", set("run", directory))
            .with("store", "--store", Some(store.display().to_string()));
        let settings = Settings::load(&flags).context("the settings of the demo's node")?;
        Ok(Self { daemon: Daemon::start(&settings)? })
    }

    /// Starts a machine.
    pub(super) fn create(&self, wanted: CreateSandbox) -> anyhow::Result<Machine<'_>> {
        let sandbox = self.daemon.create_sandbox(Asked::default(), wanted)?;
        Ok(self.machine(sandbox))
    }

    /// Pauses a machine; the snapshot, and how long that took.
    pub(super) fn pause(&self, machine: &Machine<'_>) -> anyhow::Result<(Snapshot, Duration)> {
        let asked = Instant::now();
        let snapshot = self.daemon.pause_sandbox(
            &machine.sandbox.id.to_string(),
            Asked::default(),
            PauseSandbox::default(),
        )?;
        Ok((snapshot, asked.elapsed()))
    }

    /// A new machine that goes on from a snapshot.
    pub(super) fn resume(&self, snapshot: &Snapshot, early: bool) -> anyhow::Result<Machine<'_>> {
        let how = ResumeSnapshot { serve_before_seal: Some(early), ..ResumeSnapshot::default() };
        let made = self.daemon.resume_snapshot(&snapshot.id.to_string(), Asked::default(), how)?;
        let sandbox = made.sandboxes.into_iter().next().context("one sandbox was asked for")?;
        Ok(self.machine(sandbox))
    }

    /// The snapshot as it is now.
    pub(super) fn snapshot(&self, snapshot: &Snapshot) -> anyhow::Result<Snapshot> {
        Ok(self.daemon.snapshot(&snapshot.id.to_string())?)
    }

    /// True if the snapshot is not sealed yet.
    pub(super) fn is_unsealed(&self, snapshot: &Snapshot) -> anyhow::Result<bool> {
        Ok(self.snapshot(snapshot)?.state == SnapshotState::Captured)
    }

    /// Waits until a snapshot is in the store.
    pub(super) fn wait_published(&self, snapshot: &Snapshot, limit: Duration) -> anyhow::Result<Snapshot> {
        Ok(self.daemon.wait_snapshot(&snapshot.id.to_string(), SnapshotState::Published, limit)?)
    }

    /// Deletes a snapshot, also from the store.
    pub(super) fn delete(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.daemon.delete_snapshot(&snapshot.id.to_string())?;
        Ok(())
    }

    /// Counts of the bytes moved to and from the store.
    pub(super) fn traffic(&self) -> rekindle_engine::store::Traffic {
        self.daemon.traffic()
    }

    /// Seconds in which guests stood still for pauses, in all.
    pub(super) fn frozen_seconds(&self) -> f64 {
        let text = self.daemon.metrics();
        let line = text.lines().find_map(|line| line.strip_prefix("rekindle_pause_frozen_seconds_sum "));
        line.and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    fn machine(&self, sandbox: Sandbox) -> Machine<'_> {
        Machine { node: self, sandbox, read_to: None, said: Said::default() }
    }

    fn end(&self) -> anyhow::Result<()> {
        for sandbox in self.daemon.sandboxes(&ListQuery::default())?.sandboxes {
            self.daemon.remove_sandbox(&sandbox.id.to_string(), Asked::default())?;
        }
        self.daemon.end();
        self.daemon.end_keeper()
    }
}

impl Drop for PrivateNode {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("the demo's node may be left over: {error:#}");
        }
    }
}

impl Machine<'_> {
    /// Waits for a line that begins with `start`, and gives the rest of it.
    pub(super) fn wait_line(&mut self, start: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let id = self.sandbox.id.to_string();
        loop {
            if let Some(rest) = self.said.answer(start)? {
                return Ok(rest);
            }
            let output = self.node.daemon.console(&id, self.read_to, TURN)?;
            self.read_to = Some(output.next);
            self.said.add(&BASE64_STANDARD.decode(&output.bytes)?);
            if Instant::now() > deadline {
                let state = self.node.daemon.sandbox(&id)?;
                bail!(
                    "the guest said nothing that begins with {start:?} within {ANSWER_LIMIT:?}; it is {:?}",
                    state.state
                );
            }
        }
    }

    /// Types a line, and gives the rest of the answer, which begins with `start`.
    pub(super) fn ask(&mut self, line: &str, start: &str) -> anyhow::Result<String> {
        self.node.daemon.type_console(&self.sandbox.id.to_string(), format!("{line}\n").as_bytes())?;
        self.wait_line(start)
    }

    /// Lets the guest count one step, and returns its count.
    pub(super) fn tick(&mut self) -> anyhow::Result<u64> {
        Ok(self.ask("tick", "tick ")?.parse()?)
    }

    /// Has the guest check all of its memory: pages, and those that were wrong.
    pub(super) fn verify(&mut self) -> anyhow::Result<(u64, u64)> {
        let answer = self.ask("verify", "verified ")?;
        let mut numbers = answer.split_whitespace();
        let mut next = || numbers.next().and_then(|word| word.parse().ok());
        next().zip(next()).with_context(|| format!("the guest verified {answer:?}"))
    }

    /// Pages it was given from captures so far.
    pub(super) fn pages_from_capture(&self) -> anyhow::Result<u64> {
        let now = self.node.daemon.sandbox(&self.sandbox.id.to_string())?;
        Ok(now.served.map_or(0, |served| served.from_capture))
    }

    /// Ends it.
    pub(super) fn end(&self) -> anyhow::Result<()> {
        self.node.daemon.remove_sandbox(&self.sandbox.id.to_string(), Asked::default())?;
        Ok(())
    }
}
