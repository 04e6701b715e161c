//! Rows through a real daemon, as its clients meet it: answers of the control API, a restart, RAM.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use rekindle_api::client::Client;
use rekindle_api::types::{CreateSandbox, PauseSandbox, ResumeSnapshot, Sandbox as Listed, SnapshotState};
use rekindle_engine::snapshot::Snapshot;
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_testkit::black_box::{BlackBox, PATIENCE, Process, Role, RunningDaemon, Told, ask_until};
use rekindle_testkit::sandbox::Sandbox;
use serde_json::json;

use super::node::{Node, shape};
use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave};
use super::statistics::as_float;

const MIB: u64 = 1 << 20;
/// Guest memory whose pauses and resumes are asked for.
const ANSWER_MEMORY: [u64; 2] = [64 * MIB, 256 * MIB];
/// Cost allowed for a request beyond its work: a record on the disk, the keeper's answers, HTTP.
const ASKING_SECONDS: f64 = 10e-3;
/// Sandboxes that do nothing, and the memory of each.
const IDLE: usize = 200;
const IDLE_MEMORY: u64 = 4 * MIB;
/// RAM of the daemon with which 4096 sandboxes have room in 1 GiB.
const IDLE_BYTES: f64 = 256.0 * 1024.0 * 200.0;
/// Sandboxes that are made by one request.
const MADE_AT_ONCE: usize = 50;

pub(crate) const RESUME: Row = Row {
    name: "resume-answer",
    what: "From asking a daemon for a resume of a published snapshot to its answer, the guest running.",
    ours: "`POST /v1/snapshots/{reference}/resume` at a real daemon: its record is on the disk, and its guest at the \
           keeper, before it answers",
    reference: "`Sandbox::resume` of as much memory in this process: no API, no keeper, no record",
    fast: false,
    measure: |effort| measure_answers(effort, |answers| answers.resume),
};

pub(crate) const RESTART: Row = Row {
    name: "restart-stall",
    what: "From `kill -9` of the daemon to the first step of a guest of 64 MiB whose pages are yet to be served, the \
           next daemon being started once the first has ended.",
    ours: "until a step is answered that was asked for after the kill",
    reference: "the same kill and start of a daemon that has no guest, until it answers",
    fast: false,
    measure: measure_restart,
};

pub(crate) const SANDBOXES: Row = Row {
    name: "sandboxes-per-gib",
    what: "RAM of a daemon's own with 200 idle process guests of 4 MiB, mapped files left out. The target leaves room \
           for 4096 of them in 1 GiB.",
    ours: "with the sandboxes: new ones, and ones resumed of one snapshot, each with its fault server",
    reference: "the same daemon before they were made",
    fast: false,
    measure: measure_idle,
};

/// A daemon in directories of its own.
pub(super) struct Served {
    daemon: RunningDaemon,
    pub(super) client: Client,
    pub(super) place: BlackBox,
}

/// Seconds from asking to the answer.
#[derive(Clone, Copy)]
struct Answers {
    pause: f64,
    resume: f64,
}

/// The parts of `pause-answer` that are asked of a daemon.
pub(crate) fn pause_parts(effort: Effort) -> anyhow::Result<Vec<Part>> {
    measure_answers(effort, |answers| answers.pause)
}

fn measure_answers(effort: Effort, of: fn(Answers) -> f64) -> anyhow::Result<Vec<Part>> {
    let (served, node) = (Served::start()?, Node::new()?);
    let mut parts = Vec::new();
    for memory_bytes in ANSWER_MEMORY.into_iter().take(effort.choose(2, 1)) {
        let base = node.filled(memory_bytes)?;
        let name = format!("base-{}", memory_bytes / MIB);
        served.filled(&name, memory_bytes)?;
        let pairs = interleave(
            effort.heavy_pairs(),
            || served.answers(&name).map(of),
            || answers_here(&node, &base).map(of),
        )?;
        node.forget(&base)?;
        let label = format!("{} MiB, asked of a daemon", memory_bytes / MIB);
        let target = Target::BeyondReferenceAtMost(ASKING_SECONDS);
        parts.push(Part { label, unit: Unit::Seconds, pairs, target });
    }
    Ok(parts)
}

/// A guest's writes between its resume and its pause.
fn written() -> Rewrite {
    Rewrite { share: Share { seed: 3, percent: 10, run_pages: 8 }, zero_percent: 10, same_percent: 10 }
}

/// A resume of `base` and a pause of what was resumed, without a daemon.
fn answers_here(node: &Node, base: &Arc<Snapshot>) -> anyhow::Result<Answers> {
    let asked = Instant::now();
    let mut sandbox = Sandbox::resume(&node.engine, base, shape(u64::from(base.memory().pages()) * 4096)?)?;
    let resume = asked.elapsed().as_secs_f64();
    sandbox.guest.control.rewrite(written())?;
    let paused = sandbox.pause(&node.engine)?;
    drop(paused.ending);
    node.forget(&paused.snapshot)?;
    Ok(Answers { pause: paused.answer_time.as_secs_f64(), resume })
}

impl Served {
    pub(super) fn start() -> anyhow::Result<Self> {
        let program = crate::load::program(&crate::workspace_root()?)?;
        let place = BlackBox::new(&program)?;
        Ok(Self { daemon: place.start()?, client: place.client(), place })
    }

    /// A published snapshot of a guest that was filled, called `name`.
    pub(super) fn filled(&self, name: &str, memory_bytes: u64) -> anyhow::Result<()> {
        self.create(name, memory_bytes)?;
        Told::new(&self.client, name).fill(1)?;
        self.pause(name, name)?;
        self.client.wait_snapshot(name, SnapshotState::Published, PATIENCE)?;
        Ok(())
    }

    pub(super) fn create(&self, name: &str, memory_bytes: u64) -> anyhow::Result<()> {
        let wanted: CreateSandbox =
            serde_json::from_value(json!({ "name": name, "memory_bytes": memory_bytes }))?;
        self.client.create_sandbox(None, &wanted)?;
        Ok(())
    }

    fn pause(&self, sandbox: &str, name: &str) -> anyhow::Result<()> {
        let how = PauseSandbox { name: Some(name.parse().expect("it is a name")), ..Default::default() };
        self.client.pause_sandbox(sandbox, None, &how)?;
        Ok(())
    }

    pub(super) fn resume(&self, snapshot: &str, name: &str, count: usize) -> anyhow::Result<Vec<Listed>> {
        let how: ResumeSnapshot = serde_json::from_value(json!({ "name": name, "count": count }))?;
        Ok(self.client.resume_snapshot(snapshot, None, &how)?)
    }

    /// A resume of the snapshot `base` and a pause of what was resumed; both are removed afterwards.
    fn answers(&self, base: &str) -> anyhow::Result<Answers> {
        let asked = Instant::now();
        self.resume(base, "resumed", 1)?;
        let resume = asked.elapsed().as_secs_f64();
        Told::new(&self.client, "resumed").rewrite(written())?;
        let asked = Instant::now();
        self.pause("resumed", "paused")?;
        let pause = asked.elapsed().as_secs_f64();
        self.client.wait_snapshot("paused", SnapshotState::Published, PATIENCE)?;
        self.client.remove_sandbox("resumed")?;
        self.client.delete_snapshot("paused")?;
        Ok(Answers { pause, resume })
    }

    /// Kills the daemon and starts the next, which may not serve yet.
    fn restart(self) -> anyhow::Result<(Self, Instant)> {
        let Self { daemon, client, place } = self;
        let killed = Instant::now();
        daemon.kill()?;
        let daemon = place.begin()?;
        Ok((Self { daemon, client, place }, killed))
    }

    /// RAM that is the daemon's own.
    fn ram_bytes(&self) -> anyhow::Result<f64> {
        let bytes = Process { pid: self.daemon.pid(), role: Role::Daemon }.own_ram_bytes()?;
        Ok(as_float(usize::try_from(bytes)?))
    }
}

fn measure_restart(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let (guest, alone) = (Served::start()?, Served::start()?);
    guest.filled("base", ANSWER_MEMORY[0])?;
    let (mut guest, mut alone) = (Some(guest), Some(alone));
    let pairs = interleave(
        effort.heavy_pairs(),
        || {
            let (served, seconds) = step_after_restart(guest.take().context("the last one went well")?)?;
            guest = Some(served);
            Ok(seconds)
        },
        || {
            let (served, killed) = alone.take().context("the last one went well")?.restart()?;
            until(|| served.client.version().ok())?;
            let seconds = killed.elapsed().as_secs_f64();
            alone = Some(served);
            Ok(seconds)
        },
    )?;
    let target = Target::OursAtMost(0.25);
    Ok(vec![Part { label: "64 MiB".to_owned(), unit: Unit::Seconds, pairs, target }])
}

/// Seconds from the kill of a daemon to the first step of its guest, which was resumed just before.
fn step_after_restart(served: Served) -> anyhow::Result<(Served, f64)> {
    served.resume("base", "steps", 1)?;
    let (mut served, killed) = served.restart()?;
    let guest = Told::new(&served.client, "steps");
    let ticked = until(|| guest.tick(8).ok())?;
    let seconds = killed.elapsed().as_secs_f64();
    ensure!(ticked.verified.mismatches == 0, "the guest found wrong pages after a restart");
    served.daemon.wait_ready(PATIENCE)?;
    served.client.remove_sandbox("steps")?;
    Ok((served, seconds))
}

fn until<T>(ask: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    ask_until(PATIENCE, ask).context("the daemon did not come to answer")
}

/// Makes idle sandboxes.
type MakeIdle = fn(&Served) -> anyhow::Result<()>;

const IDLE_KINDS: [(&str, MakeIdle); 2] =
    [("200 new sandboxes", create_idle), ("200 resumed sandboxes", resume_idle)];

fn create_idle(served: &Served) -> anyhow::Result<()> {
    (0..IDLE).try_for_each(|number| served.create(&format!("idle-{number}"), IDLE_MEMORY))
}

fn resume_idle(served: &Served) -> anyhow::Result<()> {
    let mut batches = 0..IDLE / MADE_AT_ONCE;
    batches.try_for_each(|batch| served.resume("base", &format!("idle-{batch}"), MADE_AT_ONCE).map(drop))
}

fn measure_idle(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (label, make) in IDLE_KINDS {
        let mut pairs = Pairs::default();
        for _ in 0..effort.choose(6, 1) {
            let served = Served::start()?;
            served.filled("base", IDLE_MEMORY)?;
            pairs.reference.push(served.ram_bytes()?);
            make(&served)?;
            pairs.ours.push(served.ram_bytes()?);
        }
        let target = Target::BeyondReferenceAtMost(IDLE_BYTES);
        parts.push(Part { label: label.to_owned(), unit: Unit::Bytes, pairs, target });
    }
    Ok(parts)
}
