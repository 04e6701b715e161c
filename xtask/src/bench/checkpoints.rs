//! Rows on checkpoints and fault sockets at a real daemon.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use rekindle_api::client::Client;
use rekindle_api::types::{CheckpointSandbox, OpenFaultSocket, PauseSandbox, ResumeSandbox, SnapshotState};
use rekindle_guest::process::arguments::{GuestArguments, MemoryKind, TrackingKind};
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::Command;
use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace, TraceTimes};
use rekindle_kernel::{Backing, GuestMemory, Memfd, PAGE_BYTES, PageKind};
use rekindle_testkit::black_box::{Console, PATIENCE, Told};
use rekindle_vmm::process::{GuestOptions, ProcessGuest};
use serde_json::json;

use super::daemon::Served;
use super::machines::Host;
use super::row::{Effort, Part, Row, Target, Unit, interleave};
use super::sharing::random_pages;

const MIB: u64 = 1 << 20;
/// The stop of a guest for each GiB that it has to copy.
const SECONDS_A_GIB: f64 = 40e-3;
/// The cost of a stop besides: a record on the disk, and of a machine its device state.
const BESIDES: [f64; 2] = [10e-3, 50e-3];
/// Memory whose pages are written after a checkpoint, and that many of them.
const WRITTEN_MEMORY: u64 = 64 * MIB;
const WRITTEN: u32 = 8192;
/// Memory that is walked twice.
const WALKED_MEMORY: u64 = 16 * MIB;

pub(crate) const STOP: Row = Row {
    name: "checkpoint-stop",
    what: "Time that a guest stands still for a checkpoint. All of its memory was written since the last one, or 5 % of it.",
    ours: "`rekindle_checkpoint_frozen_seconds` of one checkpoint",
    reference: "a pause of the same guest and its resume, from asking for the one to the answer of the other",
    fast: false,
    measure: measure_stop,
};

pub(crate) const WRITE: Row = Row {
    name: "checkpoint-write",
    what: "The first write of a guest to a page after a checkpoint, pages in random order.",
    ours: "a process guest of a daemon, which was resumed before its checkpoint",
    reference: "the first write to a page of a private mapping of a memory file, copied by the kernel",
    fast: false,
    measure: measure_write,
};

pub(crate) const FAULT_SOCKET: Row = Row {
    name: "fault-socket",
    what: "A guest walks 16 MiB of a published snapshot twice, page by page.",
    ours: "its VMM was started by another program, has private memory, and is served at a fault socket, as Firecracker is",
    reference: "it was resumed by the daemon's own driver",
    fast: false,
    measure: measure_fault_socket,
};

/// A guest that runs at a daemon and can be told to write.
struct Guest<'a> {
    client: &'a Client,
    /// Writes its pages, with another seed each time.
    write: Box<dyn Fn(u64) -> anyhow::Result<()> + 'a>,
    seed: std::cell::Cell<u64>,
}

impl Guest<'_> {
    fn write(&self) -> anyhow::Result<()> {
        self.seed.set(self.seed.get() + 1);
        (self.write)(self.seed.get())
    }

    fn forget(&self, snapshot: &str) -> anyhow::Result<()> {
        self.client.wait_snapshot(snapshot, SnapshotState::Published, PATIENCE)?;
        self.client.delete_snapshot(snapshot)?;
        Ok(())
    }

    /// Seconds that a checkpoint stops it.
    fn stop(&self) -> anyhow::Result<f64> {
        self.write()?;
        let how = CheckpointSandbox { name: Some("moment".parse().expect("a name")), ..Default::default() };
        let before = frozen_seconds(self.client)?;
        self.client.checkpoint_sandbox("guest", None, &how)?;
        let seconds = frozen_seconds(self.client)? - before;
        self.forget("moment")?;
        Ok(seconds)
    }

    /// Seconds of a pause and a resume.
    fn pause_and_resume(&self) -> anyhow::Result<f64> {
        self.write()?;
        let how = PauseSandbox { name: Some("moment".parse().expect("a name")), ..Default::default() };
        let asked = Instant::now();
        self.client.pause_sandbox("guest", None, &how)?;
        self.client.resume_sandbox("guest", &ResumeSandbox::default())?;
        let seconds = asked.elapsed().as_secs_f64();
        self.forget("moment")?;
        Ok(seconds)
    }
}

/// Seconds that all guests of a daemon stood still for checkpoints.
fn frozen_seconds(client: &Client) -> anyhow::Result<f64> {
    let metrics = client.metrics()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("rekindle_checkpoint_frozen_seconds_sum "));
    Ok(line.context("the metric of stops is there")?.parse()?)
}

fn measure_stop(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let mut parts = Vec::new();
    let sizes = [64 * MIB, 256 * MIB, 1024 * MIB];
    for memory_bytes in sizes.into_iter().take(effort.choose(3, 1)) {
        for percent in [100, 5] {
            let served = Served::start()?;
            served.create("guest", memory_bytes)?;
            let told = Told::new(&served.client, "guest");
            told.fill(1)?;
            let write = |seed| {
                let share = Share { seed, percent, run_pages: 8 };
                told.rewrite(Rewrite { share, zero_percent: 0, same_percent: 0 }).map(drop)?;
                Ok(())
            };
            parts.push(stops(effort, &served.client, ("process", memory_bytes, percent), Box::new(write))?);
        }
    }
    for memory_bytes in sizes.into_iter().take(effort.choose(2, 1)) {
        let host = Host::start()?;
        host.client.create_sandbox(None, &host.tiny_machine("guest", memory_bytes)?)?;
        let mut console = Console::of(&host.client, "guest");
        console.line("rekindle tiny guest, ")?;
        console.ask("fill 1", "filled ")?;
        let write = |seed| {
            Console::from_now(&host.client, "guest")?.ask(&format!("fill {seed}"), "filled ")?;
            Ok(())
        };
        parts.push(stops(effort, &host.client, ("QEMU", memory_bytes, 100), Box::new(write))?);
    }
    Ok(parts)
}

/// The part of a guest called `guest`, which has run from nothing so far.
fn stops<'a>(
    effort: Effort,
    client: &'a Client,
    (vmm, memory_bytes, percent): (&str, u64, u8),
    write: Box<dyn Fn(u64) -> anyhow::Result<()> + 'a>,
) -> anyhow::Result<Part> {
    let guest = Guest { client, write, seed: std::cell::Cell::new(1) };
    // From then on it runs from a snapshot, and what it writes is tracked.
    guest.pause_and_resume()?;
    let pairs = interleave(effort.choose(10, 1), || guest.stop(), || guest.pause_and_resume())?;
    let [process, machine] = BESIDES;
    let besides = if vmm == "QEMU" { machine } else { process };
    let gib = f64::from(u32::try_from(memory_bytes / MIB)?) / 1024.0;
    let label = format!("{vmm}, {percent} % of {} MiB", memory_bytes / MIB);
    let target = Target::OursAtMost(gib * SECONDS_A_GIB + besides);
    Ok(Part { label, unit: Unit::Seconds, pairs, target })
}

fn trace(pattern: Pattern, access: Access) -> Trace {
    Trace { pattern, access, threads: std::num::NonZeroUsize::MIN, cpus: Vec::new(), timing: Timing::Whole }
}

fn measure_write(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let served = Served::start()?;
    served.filled("base", WRITTEN_MEMORY)?;
    let pairs = interleave(effort.heavy_pairs(), || written_after(&served), copied_by_the_kernel)?;
    let (label, target) = ("64 MiB".to_owned(), Target::RatioAtMost(1.1));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}

/// Seconds of a first write after a checkpoint.
fn written_after(served: &Served) -> anyhow::Result<f64> {
    served.resume("base", "writing", 1)?;
    let told = Told::new(&served.client, "writing");
    told.rewrite(Rewrite {
        share: Share { seed: 3, percent: 100, run_pages: 8 },
        zero_percent: 0,
        same_percent: 0,
    })?;
    let how = CheckpointSandbox { name: Some("moment".parse().expect("a name")), ..Default::default() };
    served.client.checkpoint_sandbox("writing", None, &how)?;
    // The seal is not what is measured.
    served.client.wait_snapshot("moment", SnapshotState::Published, PATIENCE)?;
    let writes = trace(Pattern::Random { seed: 5, pages: WRITTEN }, Access::Write);
    let times: TraceTimes = told.tell(&Command::TouchTrace(writes))?;
    served.client.remove_sandbox("writing")?;
    served.client.delete_snapshot("moment")?;
    Ok(seconds_each(&times))
}

fn seconds_each(times: &TraceTimes) -> f64 {
    std::time::Duration::from_nanos(times.nanoseconds / times.touches).as_secs_f64()
}

/// Seconds of a first write to a private mapping, whose pages were read before.
fn copied_by_the_kernel() -> anyhow::Result<f64> {
    let memfd = Memfd::create("bench-image", WRITTEN_MEMORY, PageKind::Small)?;
    let pages = u32::try_from(WRITTEN_MEMORY / 4096)?;
    for page in 0..pages {
        memfd.write_at(&[7; PAGE_BYTES], u64::from(page) * 4096)?;
    }
    let memory = GuestMemory::map(Backing::PrivateOf(&memfd, 0), usize::try_from(WRITTEN_MEMORY)?, 0)?;
    (0..memory.bytes()).step_by(PAGE_BYTES).for_each(|offset| {
        std::hint::black_box(memory.touch(offset));
    });
    let order = random_pages(&memory, WRITTEN)?;
    let begun = Instant::now();
    for page in order {
        memory.touch_write(page.offset(), 7);
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(WRITTEN))
}

fn measure_fault_socket(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let served = Served::start()?;
    served.filled("base", WALKED_MEMORY)?;
    let pairs = interleave(effort.heavy_pairs(), || at_socket(&served), || at_driver(&served))?;
    let (label, target) = ("16 MiB".to_owned(), Target::RatioAtMost(1.1));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}

fn walk() -> anyhow::Result<Trace> {
    Ok(trace(Pattern::Sequential { first: 0, pages: u32::try_from(WALKED_MEMORY / 4096)? }, Access::Read))
}

fn seconds_of(times: &[TraceTimes; 2]) -> f64 {
    times.iter().map(|times| std::time::Duration::from_nanos(times.nanoseconds).as_secs_f64()).sum()
}

fn at_socket(served: &Served) -> anyhow::Result<f64> {
    let wanted: OpenFaultSocket = serde_json::from_value(json!({ "snapshot": "base" }))?;
    let socket = served.client.open_fault_socket(&wanted)?;
    let arguments = GuestArguments {
        kind: MemoryKind::Private,
        handover: Some(socket.path.into()),
        tracking: TrackingKind::Resident,
        send_memfd: false,
        ..GuestArguments::fresh(WALKED_MEMORY)
    };
    let mut guest = ProcessGuest::spawn(&GuestOptions::program(served.place.program(), arguments))?;
    let seconds = seconds_of(&[guest.control.touch_trace(walk()?)?, guest.control.touch_trace(walk()?)?]);
    guest.kill()?;
    served.client.close_fault_socket(socket.id)?;
    Ok(seconds)
}

fn at_driver(served: &Served) -> anyhow::Result<f64> {
    // A VMM at a socket gets no pages ahead either.
    let how = json!({ "name": "walking", "prefault": "none", "memory_mode": "own" });
    served.client.resume_snapshot("base", None, &serde_json::from_value(how)?)?;
    let told = Told::new(&served.client, "walking");
    let walk = || anyhow::Ok(told.tell::<TraceTimes>(&Command::TouchTrace(walk()?))?);
    let seconds = seconds_of(&[walk()?, walk()?]);
    ensure!(seconds > 0.0, "a walk takes time");
    served.client.remove_sandbox("walking")?;
    Ok(seconds)
}
