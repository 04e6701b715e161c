//! Rows on page faults: cost of the fault server over a bare loop, gain by neighbours, and installing in bulk.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use rekindle_engine::capture::Capture;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions};
use rekindle_engine::store::Store;
use rekindle_engine::tracking::Tracking;
use rekindle_engine::view::{LiveView, View};
use rekindle_guest::process::trace::Pattern;
use rekindle_kernel::{HUGE_PAGE_BYTES, Install, Protect, placement};

use super::row::{Effort, Part, Row, Target, Unit, interleave};
use super::served::{BareLoop, hand_over, reads};
use super::statistics::as_float;
use super::volume::Volumes;

/// Pages of the guests here: 64 MiB.
const PAGES: u32 = 16 << 10;
/// The processor of the handler thread, and of the guest's first thread.
const HANDLER_CPU: usize = 0;
const SEED: u64 = 5;

pub(crate) const BARE: Row = Row {
    name: "fault-vs-bare-loop",
    what: "One fault of a process guest on a page that is in a capture, no neighbours installed; the handler runs on \
           the processor of the guest's first thread.",
    ours: "`FaultServer`",
    reference: "a loop of poll, read and UFFDIO_COPY over the same capture, placed alike",
    fast: false,
    measure: measure_bare,
};

pub(crate) const THROUGHPUT: Row = Row {
    name: "fault-throughput",
    what: "Pages a guest touches each second, in runs of 64 pages and in random order.",
    ours: "`FaultServer` with neighbours installed as the guest's accesses suggest",
    reference: "the bare loop, one page a fault, placed alike",
    fast: false,
    measure: measure_throughput,
};

pub(crate) const BULK: Row = Row {
    name: "bulk-install",
    what: "Installing a working set of 64 MiB that is in a capture ahead of its guest.",
    ours: "`FaultServer::prefetch`, until the last page is counted",
    reference: "UFFDIO_COPY in 2 MiB pieces, nothing else, on the same processor, watched by a thread as ours is",
    fast: false,
    measure: measure_bulk,
};

/// Source that both sides of a fault row serve from.
struct Served {
    capture: Arc<Capture>,
    view: Arc<LiveView>,
    engine: Engine,
    _volumes: Volumes,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for an engine")?;
        let store = Store::directory(&directory.path().join("store"))?;
        let engine = Engine::start(EngineOptions::new(
            directory.path().join("cache"),
            store,
            KeyRing::of_name("default"),
        ))?;
        let volumes = Volumes::new()?;
        let capture = volumes.capture(PAGES, SEED)?;
        let view = Arc::new(LiveView::new(View::captured(Arc::clone(&capture), None)));
        Ok(Self { capture, view, engine, _volumes: volumes, _directory: directory })
    }

    /// Starts the fault server on a new guest.
    fn serve(
        &self,
        handover: rekindle_engine::handover::Handover,
        neighbours: Neighbours,
    ) -> anyhow::Result<FaultServer> {
        let options =
            ServeOptions { tracking: Tracking::Resident, placement: Placement::Cpu(HANDLER_CPU), neighbours };
        Ok(FaultServer::start(Arc::clone(&self.view), handover, self.engine.fetcher().clone(), options)?)
    }

    /// Seconds of one touch of `pattern` under the fault server.
    fn ours(&self, pattern: &Pattern, cpus: &[usize], neighbours: Neighbours) -> anyhow::Result<f64> {
        let (mut guest, handover) = hand_over(PAGES)?;
        let server = self.serve(handover, neighbours)?;
        let times = guest.control.touch_trace(reads(pattern.clone(), cpus)?)?;
        guest.kill()?;
        drop(server);
        Ok(seconds_each_touch(times.nanoseconds, times.touches))
    }

    /// Seconds of one touch of `pattern` under the bare loop.
    fn bare(&self, pattern: &Pattern, cpus: &[usize]) -> anyhow::Result<f64> {
        let (mut guest, handover) = hand_over(PAGES)?;
        let bare = BareLoop::start(handover, &self.capture, HANDLER_CPU)?;
        let times = guest.control.touch_trace(reads(pattern.clone(), cpus)?)?;
        guest.kill()?;
        bare.end()?;
        Ok(seconds_each_touch(times.nanoseconds, times.touches))
    }
}

fn seconds_each_touch(nanoseconds: u64, touches: u64) -> f64 {
    let [nanoseconds, touches] =
        [nanoseconds, touches].map(|count| as_float(usize::try_from(count).expect("counts here fit memory")));
    nanoseconds * 1e-9 / touches
}

fn measure_bare(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let served = Served::new()?;
    let pattern = Pattern::Random { seed: SEED, pages: 6000 };
    let mut parts = Vec::new();
    for (label, cpus) in
        [("one thread", vec![HANDLER_CPU]), ("two threads", vec![HANDLER_CPU, HANDLER_CPU + 1])]
    {
        let pairs = interleave(
            effort.pairs(),
            || served.ours(&pattern, &cpus, Neighbours::None),
            || served.bare(&pattern, &cpus),
        )?;
        let label = label.to_owned();
        parts.push(Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.1) });
    }
    Ok(parts)
}

fn measure_throughput(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let served = Served::new()?;
    let runs = Pattern::Runs { seed: SEED, runs: PAGES / 64 / 2, run_pages: 64 };
    let random = Pattern::Random { seed: SEED, pages: 6000 };
    let cpus = [HANDLER_CPU];
    let mut parts = Vec::new();
    for (label, pattern, ratio_min) in [("runs of 64 pages", runs, 2.0), ("random pages", random, 1.0)] {
        let pairs = interleave(
            effort.pairs(),
            || Ok(1.0 / served.ours(&pattern, &cpus, Neighbours::Adaptive)?),
            || Ok(1.0 / served.bare(&pattern, &cpus)?),
        )?;
        let label = label.to_owned();
        parts.push(Part {
            label,
            unit: Unit::PagesPerSecond,
            pairs,
            target: Target::RatioAtLeast(ratio_min),
        });
    }
    Ok(parts)
}

fn measure_bulk(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let served = Served::new()?;
    placement::run_on(HANDLER_CPU + 1)?;
    let pairs = interleave(effort.pairs(), || prefetch(&served), || copy_all(&served))?;
    placement::run_anywhere()?;
    let label = "64 MiB of a capture".to_owned();
    Ok(vec![Part { label, unit: Unit::BytesPerSecond, pairs, target: Target::RatioAtLeast(1.0) }])
}

/// Bytes a second that the fault server installs ahead.
fn prefetch(served: &Served) -> anyhow::Result<f64> {
    let (mut guest, handover) = hand_over(PAGES)?;
    let server = served.serve(handover, Neighbours::None)?;
    let wanted = PageSet::full(PAGES);
    let start = Instant::now();
    server.prefetch(wanted);
    watch(|| server.stats().pages_prefetched >= u64::from(PAGES));
    let seconds = start.elapsed().as_secs_f64();
    guest.kill()?;
    drop(server);
    Ok(as_float(usize::try_from(bytes_of_pages(PAGES))?) / seconds)
}

/// Waits until `done`, on a processor kept awake. Most of the time goes to pauses: looking takes from the other thread
/// what the cores share, and not as much on either side.
fn watch(done: impl Fn() -> bool) {
    while !done() {
        (0..1000).for_each(|_| std::hint::spin_loop());
    }
}

/// Bytes a second that bare ioctls install.
fn copy_all(served: &Served) -> anyhow::Result<f64> {
    let (mut guest, handover) = hand_over(PAGES)?;
    let region = *handover.regions.iter().next().context("the guest has a region")?;
    let mapping = served.capture.mapping();
    let copied = std::thread::scope(|scope| {
        let copying = scope.spawn(|| -> anyhow::Result<f64> {
            placement::run_on(HANDLER_CPU)?;
            let start = Instant::now();
            for (offset, to) in
                (0..mapping.bytes()).step_by(HUGE_PAGE_BYTES).zip((region.start..).step_by(HUGE_PAGE_BYTES))
            {
                let install =
                    handover.userfaultfd.copy(to, mapping.source(offset, HUGE_PAGE_BYTES), Protect::Writable);
                anyhow::ensure!(matches!(install, Install::Installed), "installing 2 MiB: {install:?}");
            }
            Ok(start.elapsed().as_secs_f64())
        });
        // The other side has a thread that watches its counter; it takes from the handler what the cores share.
        watch(|| copying.is_finished());
        copying.join().expect("copying does not panic")
    });
    guest.kill()?;
    Ok(as_float(mapping.bytes()) / copied?)
}
