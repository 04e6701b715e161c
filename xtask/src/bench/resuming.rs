//! The row on resuming a snapshot that is being saved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::ensure;
use rekindle_engine::snapshot::Snapshot;
use rekindle_guest::process::history::Share;
use rekindle_kernel::placement;

use super::node::Node;
use super::row::{Effort, Part, Row, Target, Unit, interleave};
use super::statistics::Interval;

const MIB: u64 = 1 << 20;

/// Resumes of each snapshot.
const RESUMES: usize = 5;

pub(crate) const OVERLAP: Row = Row {
    name: "overlap-resume",
    what: "From asking for a resume to the end of the guest's first step, of a snapshot whose every page was written; \
           the median of five resumes, one after the other.",
    ours: "the first begins when comparing has begun, and the last ends before the seal has",
    reference: "the same resume with the seal held back; where cores are awake, threads of idle priority keep them \
                from halting on both sides (waking a halted core costs more than a fault)",
    fast: false,
    measure: measure_overlap,
};

/// The snapshot's seal while its guests are resumed.
#[derive(Clone, Copy)]
enum Seal {
    Runs,
    HeldBack,
}

/// The cores beside what is measured.
#[derive(Clone, Copy)]
enum Cores {
    /// They halt where nothing runs.
    MayHalt,
    /// Threads of idle priority that do nothing keep them from halting.
    Awake,
}

fn measure_overlap(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let node = Node::new()?;
    let mut parts = Vec::new();
    let kinds = [(256, Cores::MayHalt), (256, Cores::Awake), (1024, Cores::MayHalt)];
    for (memory_mib, cores) in kinds.into_iter().take(effort.choose(3, 2)) {
        let base = node.filled(memory_mib * MIB)?;
        let resume = |seal| seconds_to_first_step(&node, &base, seal, cores);
        let pairs = interleave(effort.choose(40, 2), || resume(Seal::Runs), || resume(Seal::HeldBack))?;
        let against = match cores {
            Cores::MayHalt => "against alone",
            Cores::Awake => "cores awake",
        };
        let label = format!("{memory_mib} MiB, {against}");
        parts.push(Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.1) });
        node.forget(&base)?;
    }
    Ok(parts)
}

/// Seconds to the first step on a snapshot just paused.
fn seconds_to_first_step(node: &Node, base: &Arc<Snapshot>, seal: Seal, cores: Cores) -> anyhow::Result<f64> {
    let held = node.hold_seals();
    let paused = node.changed(base, Share { seed: 2, percent: 100, run_pages: 8 })?;
    drop(paused.ending);
    node.wait_held(&paused.snapshot)?;
    let held = match seal {
        Seal::Runs => {
            drop(held);
            None
        }
        Seal::HeldBack => Some(held),
    };
    let step = || median_of_steps(node, &paused.snapshot);
    let seconds = match cores {
        Cores::MayHalt => step()?,
        Cores::Awake => while_spinning(step)?,
    };
    let is_sealed = paused.snapshot.manifest_now().is_some();
    drop(held);
    ensure!(!is_sealed, "the seal was over before the last guest's first step: nothing overlapped");
    node.forget(&paused.snapshot)?;
    Ok(seconds)
}

/// Median seconds to the first steps of guests that are resumed one after the other. One resume alone has a large spread.
fn median_of_steps(node: &Node, snapshot: &Arc<Snapshot>) -> anyhow::Result<f64> {
    let seconds = (0..RESUMES).map(|_| node.first_step(snapshot)).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Interval::of(&seconds).median)
}

/// Does `work` while every core has a thread of idle priority to run.
fn while_spinning<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                if placement::idle_priority().is_ok() {
                    while !over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                }
            });
        }
        let done = work();
        over.store(true, Ordering::Relaxed);
        done
    })
}
