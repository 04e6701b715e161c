//! Rows with virtual machines: real QEMUs, started and resumed through a real daemon, whose guests count.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rekindle_api::client::Client;
use rekindle_api::types::{CreateSandbox, PauseSandbox, Prefault, ResumeSnapshot, SnapshotState};
use rekindle_guest::machine::{LinuxKernel, linux_command_line, tiny_kernel};
use rekindle_testkit::black_box::{BlackBox, Console, PATIENCE, RunningDaemon, Told};
use serde_json::json;

use super::eager::Saved;
use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave};

const MIB: u64 = 1 << 20;
/// Memory of the machines.
const MEMORY: u64 = 64 * MIB;
/// Memory of a machine with Linux, and what its guest fills of it.
const LINUX_MEMORY: u64 = 192 * MIB;
const LINUX_FILLED_MIB: u64 = 48;
/// Cost allowed for the machine's own part of a pause: stopping it, and 40 KB of device state through a pipe.
const DEVICE_STATE_SECONDS: f64 = 40e-3;

pub(crate) const PAUSE: Row = Row {
    name: "vm-pause-answer",
    what: "From asking a daemon for the pause of a guest that rewrote a tenth of its 64 MiB to its answer.",
    ours: "a machine in QEMU: stopped, its device state taken, its memory captured as it is",
    reference: "a process guest of as much memory at the same daemon",
    fast: false,
    measure: measure_pause,
};

pub(crate) const OVERLAP: Row = Row {
    name: "vm-overlap-resume",
    what: "From asking for a resume of a machine of 64 MiB, half of it rewritten, to its guest's next tick \
           (`vm-control-resume` is the reference).",
    ours: "while the snapshot is being sealed",
    reference: "the resume of a snapshot like it with nothing else running, once that is in the store",
    fast: false,
    measure: measure_overlap,
};

pub(crate) const COLD: Row = Row {
    name: "vm-cold-resume",
    what: "From asking for a resume of a machine of 64 MiB to its guest's next tick.",
    ours: "at another daemon, which has the snapshot in its store only, and ran another machine before",
    reference: "at the daemon that made the snapshot",
    fast: false,
    measure: measure_cold,
};

pub(crate) const FULL: Row = Row {
    name: "vm-full-restore",
    what: "From asking for a machine of 64 MiB that was filled to its guest's next tick.",
    ours: "a resume at a daemon, page by page, with its checks and its records",
    reference: "QEMU by itself, restoring all of it from a file in the page cache",
    fast: false,
    measure: measure_full,
};

pub(crate) const WORKING_SET: Row = Row {
    name: "vm-faults-with-working-set",
    what: "Page faults of a Linux guest from its resume until it has read 48 MiB of its memory, and how long that takes.",
    ours: "with the pages installed ahead that its first resume touched",
    reference: "its first resume, which had nothing to go by",
    fast: false,
    measure: measure_working_set,
};

/// A daemon in directories of its own, and boot files for its machines.
pub(super) struct Host {
    pub(super) client: Client,
    _daemon: RunningDaemon,
    place: BlackBox,
}

impl Host {
    pub(super) fn start() -> anyhow::Result<Self> {
        Self::start_in(Self::place()?)
    }

    /// A daemon of its own that has what is in the store of this one, and has run a machine: the first one of a daemon's
    /// life waits for the questions that the daemon asks QEMU at its start.
    fn elsewhere(&self) -> anyhow::Result<Self> {
        let place = Self::place()?;
        // Before the daemon starts: it looks at its store at once.
        let (from, to) = (self.place.store_directory(), place.store_directory());
        let copied = std::process::Command::new("cp").arg("-rT").arg(from).arg(to).status()?;
        ensure!(copied.success(), "the store could not be copied");
        place.copy_key_ring(&self.place)?;
        let host = Self::start_in(place)?;
        host.client.create_sandbox(None, &host.tiny_machine("first", MEMORY)?)?;
        host.client.remove_sandbox("first")?;
        Ok(host)
    }

    fn place() -> anyhow::Result<BlackBox> {
        Ok(BlackBox::new(&crate::load::program(&crate::workspace_root()?)?)?)
    }

    fn start_in(place: BlackBox) -> anyhow::Result<Self> {
        Ok(Self { _daemon: place.start()?, client: place.client(), place })
    }

    /// A published snapshot of a machine whose guest filled its memory.
    fn filled(&self, name: &str, wanted: &CreateSandbox, up: &str, fill: &str) -> anyhow::Result<()> {
        self.client.create_sandbox(None, wanted)?;
        let mut console = Console::of(&self.client, name);
        console.line(up)?;
        console.ask(fill, "filled ")?;
        self.pause(name, name)?;
        self.client.wait_snapshot(name, SnapshotState::Published, PATIENCE)?;
        Ok(())
    }

    fn filled_tiny(&self, name: &str) -> anyhow::Result<()> {
        self.filled(name, &self.tiny_machine(name, MEMORY)?, "rekindle tiny guest, ", "fill 1")
    }

    pub(super) fn tiny_machine(&self, name: &str, memory_bytes: u64) -> anyhow::Result<CreateSandbox> {
        let kernel = self.boot_file("tiny.elf", tiny_kernel())?;
        machine(name, memory_bytes, &json!({ "kernel": kernel, "command_line": "" }))
    }

    fn boot_file(&self, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.place.home_directory().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    }

    fn pause(&self, sandbox: &str, name: &str) -> anyhow::Result<f64> {
        let how = PauseSandbox { name: Some(name.parse().expect("it is a name")), ..Default::default() };
        let asked = Instant::now();
        self.client.pause_sandbox(sandbox, None, &how)?;
        Ok(asked.elapsed().as_secs_f64())
    }

    fn resume(&self, snapshot: &str, name: &str) -> anyhow::Result<()> {
        let how = ResumeSnapshot { name: Some(name.parse().expect("it is a name")), ..Default::default() };
        self.client.resume_snapshot(snapshot, None, &how)?;
        Ok(())
    }

    /// The same with all pages ahead: what the guest touches is not recorded, so its next snapshot inherits no working set.
    fn resume_unrecorded(&self, snapshot: &str, name: &str) -> anyhow::Result<()> {
        let (name, prefault) = (Some(name.parse().expect("it is a name")), Some(Prefault::All));
        let how = ResumeSnapshot { name, prefault, ..Default::default() };
        self.client.resume_snapshot(snapshot, None, &how)?;
        Ok(())
    }

    /// Seconds from asking for a resume to the guest's next tick; the machine is removed.
    fn first_tick(&self, snapshot: &str) -> anyhow::Result<f64> {
        let asked = Instant::now();
        self.resume(snapshot, "ticking")?;
        Console::of(&self.client, "ticking").tick()?;
        let took = asked.elapsed().as_secs_f64();
        self.client.remove_sandbox("ticking")?;
        Ok(took)
    }

    fn forget(&self, sandbox: &str, snapshot: &str) -> anyhow::Result<()> {
        self.client.remove_sandbox(sandbox)?;
        self.client.delete_snapshot(snapshot)?;
        Ok(())
    }
}

fn machine(name: &str, memory_bytes: u64, rest: &serde_json::Value) -> anyhow::Result<CreateSandbox> {
    let mut machine = rest.clone();
    machine["accelerator"] = json!("tcg");
    let wanted = json!({ "name": name, "vmm": "qemu", "memory_bytes": memory_bytes, "machine": machine });
    serde_json::from_value(wanted).context("a machine as the API has it")
}

fn part(label: &str, unit: Unit, pairs: Pairs, target: Target) -> Vec<Part> {
    vec![Part { label: label.to_owned(), unit, pairs, target }]
}

fn measure_pause(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let host = Host::start()?;
    host.filled_tiny("vm")?;
    let process: CreateSandbox =
        serde_json::from_value(json!({ "name": "process", "memory_bytes": MEMORY }))?;
    host.client.create_sandbox(None, &process)?;
    Told::new(&host.client, "process").fill(1)?;
    host.pause("process", "process")?;
    host.client.wait_snapshot("process", SnapshotState::Published, PATIENCE)?;
    let paused = |of: &str, dirty: &dyn Fn() -> anyhow::Result<()>| {
        host.resume(of, "pausing")?;
        dirty()?;
        let took = host.pause("pausing", "paused")?;
        host.client.wait_snapshot("paused", SnapshotState::Published, PATIENCE)?;
        host.forget("pausing", "paused")?;
        anyhow::Ok(took)
    };
    let of_machine = || Ok(Console::of(&host.client, "pausing").ask("dirty 2 10", "dirtied ").map(drop)?);
    let of_process = || {
        let command = json!({ "command": "rewrite", "share": { "seed": 2, "percent": 10, "run_pages": 8 },
                              "zero_percent": 10, "same_percent": 10 });
        Ok(host.client.tell_guest("pausing", &command).map(drop)?)
    };
    let pairs =
        interleave(effort.heavy_pairs(), || paused("vm", &of_machine), || paused("process", &of_process))?;
    Ok(part("64 MiB", Unit::Seconds, pairs, Target::BeyondReferenceAtMost(DEVICE_STATE_SECONDS)))
}

fn measure_overlap(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let host = Host::start()?;
    host.filled_tiny("vm")?;
    let mut pairs = Pairs::default();
    for round in 0..effort.heavy_pairs() {
        // Two snapshots that are alike: of neither anything is known yet of what a guest touches first.
        for name in ["control", "overlap"] {
            host.resume_unrecorded("vm", name)?;
            Console::of(&host.client, name).ask(&format!("dirty {round} 50"), "dirtied ")?;
        }
        host.pause("control", "control")?;
        host.client.wait_snapshot("control", SnapshotState::Published, PATIENCE)?;
        pairs.reference.push(host.first_tick("control")?);
        host.pause("overlap", "overlap")?;
        pairs.ours.push(host.first_tick("overlap")?);
        host.client.wait_snapshot("overlap", SnapshotState::Published, PATIENCE)?;
        host.forget("control", "control")?;
        host.forget("overlap", "overlap")?;
    }
    Ok(part("64 MiB, half of it dirty", Unit::Seconds, pairs, Target::RatioAtMost(1.1)))
}

fn measure_cold(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let host = Host::start()?;
    host.filled_tiny("vm")?;
    let id = host.client.snapshot("vm")?.id.to_string();
    let cold = || host.elsewhere()?.first_tick(&id);
    let pairs = interleave(effort.choose(30, 2), cold, || host.first_tick("vm"))?;
    Ok(part("64 MiB", Unit::Seconds, pairs, Target::RatioAtMost(2.0)))
}

fn measure_full(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let host = Host::start()?;
    host.filled_tiny("vm")?;
    let saved = Saved::new(&host.boot_file("plain.elf", tiny_kernel())?, MEMORY)?;
    let pairs = interleave(effort.heavy_pairs(), || host.first_tick("vm"), || saved.first_tick())?;
    Ok(part("64 MiB", Unit::Seconds, pairs, Target::RatioAtMost(1.0)))
}

fn measure_working_set(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let host = Host::start()?;
    let kernel = LinuxKernel::of_debian(&rekindle_testkit::linux::directory())?;
    let initrd = host.boot_file("initrd", &kernel.initrd())?;
    let rest = json!({ "kernel": kernel.image, "initrd": initrd, "command_line": linux_command_line() });
    let wanted = machine("vm", LINUX_MEMORY, &rest)?;
    let fill = format!("fill 1 {LINUX_FILLED_MIB}");
    host.filled("vm", &wanted, "rekindle linux guest, ", &fill)?;
    let (mut faults, mut seconds) = (Pairs::default(), Pairs::default());
    for round in 0..effort.choose(20, 1) {
        // A snapshot of its own each time, so that nothing is known of it.
        host.resume_unrecorded("vm", "making")?;
        Console::of(&host.client, "making").ask(&format!("dirty {round} 1"), "dirtied ")?;
        host.pause("making", "made")?;
        host.client.wait_snapshot("made", SnapshotState::Published, PATIENCE)?;
        let (first, second) = (read_through(&host)?, read_through(&host)?);
        host.forget("making", "made")?;
        faults.reference.push(first.faults);
        faults.ours.push(second.faults);
        seconds.reference.push(first.seconds);
        seconds.ours.push(second.seconds);
    }
    let mut parts = part("faults", Unit::Count, faults, Target::RatioAtMost(0.05));
    parts.extend(part("time", Unit::Seconds, seconds, Target::RatioAtMost(1.0)));
    Ok(parts)
}

/// Time and counts of a machine that verifies the memory it filled.
struct ReadThrough {
    faults: f64,
    seconds: f64,
}

fn read_through(host: &Host) -> anyhow::Result<ReadThrough> {
    let asked = Instant::now();
    host.resume("made", "faulting")?;
    let (pages, wrong) = Console::of(&host.client, "faulting").verify()?;
    ensure!(pages > 0 && wrong == 0, "{wrong} of {pages} pages are wrong");
    let seconds = asked.elapsed().as_secs_f64();
    let served = host.client.sandbox("faulting")?.served.context("it is served")?;
    // A recording is made in the first seconds, and written down after them or at the end.
    std::thread::park_timeout(std::time::Duration::from_secs(6));
    host.client.remove_sandbox("faulting")?;
    Ok(ReadThrough { faults: f64::from(u32::try_from(served.faults)?), seconds })
}
