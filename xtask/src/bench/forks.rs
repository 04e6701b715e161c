//! Rows on a hundred forks of one snapshot at a real daemon: their RAM, and the time until all of them run.

use std::time::Instant;

use anyhow::{Context, ensure};
use rekindle_api::client::Client;
use rekindle_api::types::{CreateSandbox, PauseSandbox, ResumeSnapshot, Sandbox, SnapshotState};
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_testkit::black_box::{BlackBox, PATIENCE, RunningDaemon, Told};
use serde_json::json;

use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave};
use super::statistics::as_float;

const MIB: u64 = 1 << 20;
/// Forks, and the memory of each, in a full run and in a quick one.
const SIZES: [Forks; 2] =
    [Forks { count: 100, memory_bytes: 256 * MIB }, Forks { count: 5, memory_bytes: 16 * MIB }];
/// Memory of each fork whose start is timed.
const TIMED_MEMORY: u64 = 64 * MIB;

pub(crate) const RAM: Row = Row {
    name: "fork-100-ram",
    what: "RAM of the memory of 100 forks of a guest of 256 MiB that each read all of it and wrote 5 %, as the kernel \
           counts it (Pss).",
    ours: "forks on shared pages",
    reference: "the guest's memory once, and the pages that each fork wrote",
    fast: false,
    measure: measure_ram,
};

pub(crate) const TIME: Row = Row {
    name: "fork-100-time",
    what: "From asking for 100 sandboxes of a published snapshot of 64 MiB until each has answered a step.",
    ours: "`memory_mode` shared",
    reference: "`memory_mode` own",
    fast: false,
    measure: measure_time,
};

#[derive(Clone, Copy)]
struct Forks {
    count: usize,
    memory_bytes: u64,
}

/// A daemon with a published snapshot, `base`, of a guest that was filled.
struct Served {
    client: Client,
    _daemon: RunningDaemon,
    _place: BlackBox,
}

impl Served {
    fn start(memory_bytes: u64) -> anyhow::Result<Self> {
        let place = BlackBox::new(&crate::load::program(&crate::workspace_root()?)?)?;
        let served = Self { _daemon: place.start()?, client: place.client(), _place: place };
        let wanted: CreateSandbox =
            serde_json::from_value(json!({ "name": "base", "memory_bytes": memory_bytes }))?;
        served.client.create_sandbox(None, &wanted)?;
        Told::new(&served.client, "base").fill(1)?;
        let how = PauseSandbox { name: Some("base".parse().expect("it is a name")), ..Default::default() };
        served.client.pause_sandbox("base", None, &how)?;
        served.client.wait_snapshot("base", SnapshotState::Published, PATIENCE)?;
        Ok(served)
    }

    fn resume(&self, count: usize, mode: &str) -> anyhow::Result<Vec<Sandbox>> {
        let how: ResumeSnapshot =
            serde_json::from_value(json!({ "name": "fork", "count": count, "memory_mode": mode }))?;
        Ok(self.client.resume_snapshot("base", None, &how)?)
    }

    fn remove(&self, forks: &[Sandbox]) -> anyhow::Result<()> {
        forks.iter().try_for_each(|fork| Ok(self.client.remove_sandbox(&fork.id.to_string())?))
    }
}

fn measure_ram(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let [full, quick] = SIZES;
    let Forks { count, memory_bytes } = effort.choose(full, quick);
    let served = Served::start(memory_bytes)?;
    let mut pairs = Pairs::default();
    for _ in 0..effort.choose(2, 1) {
        let forks = served.resume(count, "shared")?;
        let mut written = 0;
        for (fork, seed) in forks.iter().zip(2..) {
            let (id, share) = (fork.id.to_string(), Share { seed, percent: 5, run_pages: 1 });
            let told = Told::new(&served.client, &id);
            ensure!(told.verify()?.mismatches == 0, "{id} found wrong pages");
            written += told.rewrite(Rewrite { share, zero_percent: 0, same_percent: 0 })?.pages();
        }
        let held: u64 = forks.iter().map(memory_held).sum::<anyhow::Result<u64>>()?;
        pairs.ours.push(as_float(usize::try_from(held)?));
        pairs.reference.push(as_float(usize::try_from(memory_bytes + u64::from(written) * 4096)?));
        served.remove(&forks)?;
    }
    let label = format!("{count} forks of {} MiB", memory_bytes / MIB);
    Ok(vec![Part { label, unit: Unit::Bytes, pairs, target: Target::RatioAtMost(1.1) }])
}

/// RAM of a guest's memory, its part of what it shares with others (proc(5), smaps).
fn memory_held(fork: &Sandbox) -> anyhow::Result<u64> {
    let pid = fork.pid.context("it runs")?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut is_memory, mut held) = (false, 0);
    for line in maps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            is_memory = line.contains("/memfd:rekindle-image");
        } else if let (true, Some(rest)) = (is_memory, line.strip_prefix("Pss:")) {
            held += rest.trim().trim_end_matches(" kB").parse::<u64>().context("a number of kB")? * 1024;
        }
    }
    Ok(held)
}

fn measure_time(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let count = effort.choose(SIZES[0].count, SIZES[1].count);
    let served = Served::start(TIMED_MEMORY)?;
    let timed = |mode: &str| {
        let asked = Instant::now();
        let forks = served.resume(count, mode)?;
        for fork in &forks {
            let ticked = Told::new(&served.client, fork.id.to_string()).tick(64)?;
            ensure!(ticked.verified.mismatches == 0, "a fork found wrong pages");
        }
        let seconds = asked.elapsed().as_secs_f64();
        served.remove(&forks)?;
        anyhow::Ok(seconds)
    };
    let pairs = interleave(effort.choose(10, 1), || timed("shared"), || timed("own"))?;
    let label = format!("{count} forks of {} MiB", TIMED_MEMORY / MIB);
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(0.7) }])
}
