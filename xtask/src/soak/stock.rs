//! Snapshots that lie in the store while the daemon works, more of them than its cache takes.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use rekindle_api::client::Client;
use rekindle_api::types::SnapshotState;
use rekindle_guest::process::protocol::Command;
use rekindle_testkit::black_box::PATIENCE;
use rekindle_testkit::random::Random;

use crate::crash::{Watchdog, check_snapshot};
use crate::load::{Findings, Limits, Operation, Shard, SnapshotModel};

/// Bytes of each snapshot.
const SNAPSHOT_BYTES: u64 = 64 << 20;

/// The snapshots, all of them published.
#[derive(Debug, Default)]
pub(super) struct Stock(Vec<SnapshotModel>);

impl Stock {
    /// Makes snapshots of so many bytes together.
    pub(super) fn make(
        client: &Client,
        bytes: u64,
        random: &mut Random,
        watchdog: &Watchdog,
    ) -> anyhow::Result<Self> {
        let mut shard = Shard::new("stock".to_owned());
        let limits =
            Limits { sandboxes_max: 1, snapshots_max: usize::MAX, memory_bytes: vec![SNAPSHOT_BYTES] };
        let mut findings = Findings::default();
        for _ in 0..bytes.div_ceil(SNAPSHOT_BYTES) {
            let create = shard.create(&limits, random);
            do_one(&mut shard, &create, client, &mut findings)?;
            let sandbox = *shard.sandboxes.keys().next().context("a sandbox was made")?;
            let fill = Operation::Tell { sandbox, command: Command::Fill { seed: random.number() } };
            do_one(&mut shard, &fill, client, &mut findings)?;
            let pause = Operation::Pause { sandbox, name: shard.new_name("snapshot") };
            do_one(&mut shard, &pause, client, &mut findings)?;
            let snapshot = *shard.snapshots.keys().next_back().context("a snapshot was made")?;
            client.wait_snapshot(&snapshot.to_string(), SnapshotState::Published, PATIENCE)?;
            do_one(&mut shard, &Operation::RemoveSandbox { sandbox }, client, &mut findings)?;
            watchdog.is_alive();
        }
        Ok(Self(shard.snapshots.into_values().collect()))
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Resumes one after the other, compares every page, and removes the sandbox, until it is told to stop. Returns the
    /// number of snapshots read.
    pub(super) fn read(
        &self,
        reader: usize,
        client: &Client,
        mut random: Random,
        stop: &AtomicBool,
    ) -> (u64, Findings) {
        let (mut read, mut findings) = (0, Findings::default());
        while !stop.load(Ordering::Acquire) && findings.is_clean() {
            let snapshot = self.0[random.position(self.0.len())].clone();
            check_snapshot(client, snapshot, format!("reader{reader}-{read}"), &mut findings);
            read += 1;
        }
        (read, findings)
    }
}

fn do_one(
    shard: &mut Shard,
    operation: &Operation,
    client: &Client,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let outcome = operation.ask(client)?;
    shard.answered(operation, &outcome, findings);
    if !findings.is_clean() {
        bail!("filling the store: {:?}", findings.words);
    }
    Ok(())
}
