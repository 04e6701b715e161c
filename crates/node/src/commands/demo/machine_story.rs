//! `rekindle demo --vm`: the demo's story with a real virtual machine, through a daemon of the demo's own. The guest
//! counts and judges its memory itself; the demo talks to it at its serial console.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytesize::ByteSize;
use rekindle_guest::machine::{self, LinuxKernel};

use super::arguments::{DemoArguments, MachineWord};
use super::private_node::{Machine, PrivateNode};
use super::report::{
    Beside, ColdResume, FirstProgress, GuestReport, Pause, Publish, Report, Seal, Verified, Window,
    WindowPause, seconds,
};
use super::timeline::Timeline;
use super::{SAVED_LIMIT, pairs};
use crate::api::types::{self, Accelerator, CreateSandbox, Labels, MemoryBacking, Snapshot, VmmKind};

/// Memory that a Linux guest is left for itself.
const LINUX_OWN_MIB: u64 = 96;

/// Resumes during a seal that are compared with as many with nothing else running: each starts a VMM twice.
const PAIRS: u64 = 3;

/// Percent of the memory that is rewritten for each of them.
const PAIR_PERCENT: u8 = 10;

/// The demo's output, and its findings so far.
pub(super) struct MachineStory<'a> {
    timeline: &'a Timeline,
    arguments: &'a DemoArguments,
    guest: MachineWord,
    place: &'a Path,
    store: PathBuf,
    verified: Verified,
}

impl<'a> MachineStory<'a> {
    pub(super) fn new(
        arguments: &'a DemoArguments,
        guest: MachineWord,
        place: &'a Path,
        timeline: &'a Timeline,
    ) -> Self {
        let store = arguments.store.clone().unwrap_or_else(|| place.join("store"));
        Self { timeline, arguments, guest, place, store, verified: Verified::default() }
    }

    pub(super) fn tell(mut self) -> anyhow::Result<Report> {
        let node = self.node("node")?;
        let wanted = self.wanted()?;
        let accelerator = wanted.machine.as_ref().and_then(|machine| machine.accelerator);
        let base = self.first_pause(&node, wanted)?;
        let frozen_before = node.frozen_seconds();
        let (snapshot, counted, answer) = self.changed_pause(&node, &base)?;
        let frozen_seconds = node.frozen_seconds() - frozen_before;
        let window = self.window(&node, &snapshot, counted)?;
        let saved = self.wait_published(&node, &[&base, &snapshot, &window.last])?;
        let stored_bytes = node.traffic().stored_bytes;
        let pairs = pairs(self.timeline, PAIRS, |_, beside| self.small_resume(&node, &base, beside))?;
        drop(node);
        let cold_resume = self.cold(&window.last)?;
        Ok(Report {
            memory_bytes: self.memory_bytes(),
            pause: Pause { answer_seconds: answer.as_secs_f64(), frozen_seconds },
            overlap_resume: window.overlap_resume(pairs),
            waiting_resume: window.waiting,
            window_pause: window.pause,
            seal: seal_of(&saved[1])?,
            publish: Publish { stored_bytes },
            cold_resume,
            verified: self.verified,
            guest: Some(GuestReport {
                vmm: "qemu",
                kernel: self.guest.name(),
                accelerator: match accelerator {
                    Some(Accelerator::Kvm) => "kvm",
                    Some(Accelerator::Tcg) | None => "tcg",
                },
            }),
        })
    }

    fn node(&self, name: &str) -> anyhow::Result<PrivateNode> {
        PrivateNode::start(&self.place.join(name), &self.store)
    }

    fn memory_bytes(&self) -> u64 {
        self.arguments.memory.as_u64()
    }

    /// The machine as the daemon is asked for it; its boot files are made here.
    fn wanted(&self) -> anyhow::Result<CreateSandbox> {
        let (kernel, initrd, command_line) = match self.guest {
            MachineWord::Tiny => (self.boot_file("tiny", machine::tiny_kernel())?, None, String::new()),
            MachineWord::Linux => {
                let (kernel, initrd) = self.linux()?;
                (kernel, Some(initrd), machine::linux_command_line())
            }
        };
        let machine = types::Machine {
            kernel: path_text(&kernel)?,
            initrd: initrd.as_deref().map(path_text).transpose()?,
            command_line: Some(command_line),
            cpus: 1,
            board: types::Board::Microvm,
            accelerator: Some(self.arguments.accelerator.into()),
            cpu: None,
            disks: Vec::new(),
            taps: Vec::new(),
        };
        Ok(CreateSandbox {
            name: None,
            labels: Labels::new(),
            vmm: VmmKind::Qemu,
            memory_bytes: self.memory_bytes(),
            backing: MemoryBacking::Shared,
            machine: Some(machine),
        })
    }

    /// A kernel, the one that was named or Debian's, and a first file system with our own first process.
    fn linux(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (image, initrd) = match &self.arguments.kernel {
            Some(image) => (image.clone(), machine::initrd(&[])),
            None => {
                let kept = kernels_directory();
                let kernel = LinuxKernel::of_debian(&kept).with_context(|| {
                    format!("getting Debian's kernel into {}; name another by --kernel FILE", kept.display())
                })?;
                (kernel.image.clone(), kernel.initrd())
            }
        };
        Ok((image, self.boot_file("initrd", &initrd)?))
    }

    fn boot_file(&self, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let path = self.place.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// A machine boots, fills its memory and is paused; its snapshot is saved.
    fn first_pause(&mut self, node: &PrivateNode, wanted: CreateSandbox) -> anyhow::Result<Snapshot> {
        let asked = Instant::now();
        let mut machine = node.create(wanted)?;
        let pages = machine.wait_line(&format!("rekindle {} guest, ", self.guest.name()))?;
        self.timeline.say(&format!(
            "a {} guest in QEMU was up after {}: {pages}",
            self.guest.name(),
            seconds(asked.elapsed().as_secs_f64())
        ));
        let fill = match self.guest {
            MachineWord::Tiny => "fill 1".to_owned(),
            MachineWord::Linux => format!("fill 1 {}", (self.memory_bytes() >> 20) - LINUX_OWN_MIB),
        };
        let filled: u64 = machine.ask(&fill, "filled ")?.parse()?;
        self.timeline.say(&format!("it filled {}", ByteSize::kib(4 * filled)));
        let (snapshot, answer) = node.pause(&machine)?;
        self.timeline.say(&format!("it was paused in {}", seconds(answer.as_secs_f64())));
        self.wait_published(node, &[&snapshot])?;
        Ok(snapshot)
    }

    /// Resumes the guest, lets it rewrite a share of its memory, and pauses it again; also returns its count.
    fn changed_pause(
        &mut self,
        node: &PrivateNode,
        base: &Snapshot,
    ) -> anyhow::Result<(Snapshot, u64, Duration)> {
        let asked = Instant::now();
        let mut machine = node.resume(base, self.is_early())?;
        machine.tick()?;
        self.timeline.say(&format!("resumed, first tick after {}", seconds(asked.elapsed().as_secs_f64())));
        let dirtied = machine.ask(&format!("dirty 2 {}", self.arguments.dirty), "dirtied ")?;
        self.timeline.say(&format!("it rewrote {dirtied} pages of it"));
        let counted = machine.tick()?;
        let (snapshot, answer) = node.pause(&machine)?;
        self.timeline.say(&format!("it was paused in {}; the seal begins", seconds(answer.as_secs_f64())));
        Ok((snapshot, counted, answer))
    }

    /// Two forks while the seal runs, a third that waits for it; one fork is paused and resumed again.
    fn window(
        &mut self,
        node: &PrivateNode,
        snapshot: &Snapshot,
        counted: u64,
    ) -> anyhow::Result<Window<Snapshot>> {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let (machine, took) = first_tick(node, snapshot, false, counted)?;
                machine.end().map(|()| took)
            });
            let (first, overlap_seconds) = first_tick(node, snapshot, self.is_early(), counted)?;
            let seal_was_running = node.is_unsealed(snapshot)?;
            let (second, _) = first_tick(node, snapshot, self.is_early(), counted)?;
            self.timeline.say(&format!(
                "forked twice while it was {}: counting on from {counted} after {}",
                if seal_was_running { "being sealed" } else { "sealed already" },
                seconds(overlap_seconds)
            ));
            let (pause, last, from_second) = self.fork_again(node, snapshot, second)?;
            let from_first = self.verify_and_write_on(first, "first fork")?;
            let waited = waiting.join().map_err(|_| anyhow::anyhow!("the waiting resume panicked"))?;
            let waiting = FirstProgress { first_progress_seconds: waited? };
            let took = seconds(waiting.first_progress_seconds);
            self.timeline.say(&format!("a resume that waits for the seal: {took}"));
            let pages_from_capture = from_first + from_second;
            Ok(Window { overlap_seconds, waiting, seal_was_running, pages_from_capture, pause, last })
        })
    }

    /// The second fork writes, is paused, resumed, and verifies everything.
    fn fork_again(
        &mut self,
        node: &PrivateNode,
        parent: &Snapshot,
        mut fork: Machine<'_>,
    ) -> anyhow::Result<(WindowPause, Snapshot, u64)> {
        fork.ask("dirty 3 5", "dirtied ")?;
        let from_capture = fork.pages_from_capture()?;
        let counted = fork.tick()?;
        let (snapshot, answer) = node.pause(&fork)?;
        let parent_was_unsealed = node.is_unsealed(parent)?;
        self.timeline.say(&format!(
            "the second fork wrote on and was paused in {}{}",
            seconds(answer.as_secs_f64()),
            if parent_was_unsealed { ", its parent still unsealed" } else { "" }
        ));
        let (resumed, _) = first_tick(node, &snapshot, self.is_early(), counted)?;
        let more = self.verify_and_write_on(resumed, "second fork, paused and resumed")?;
        let pause = WindowPause { answer_seconds: answer.as_secs_f64(), parent_was_unsealed };
        Ok((pause, snapshot, from_capture + more))
    }

    /// Has a guest verify every page, write some, and verify again; the pages it was given from captures.
    fn verify_and_write_on(&mut self, mut machine: Machine<'_>, who: &str) -> anyhow::Result<u64> {
        self.verify(&mut machine, &format!("{who}, as it was resumed"))?;
        machine.ask("dirty 4 5", "dirtied ")?;
        self.verify(&mut machine, &format!("{who}, after writing on"))?;
        let from_capture = machine.pages_from_capture()?;
        machine.end()?;
        Ok(from_capture)
    }

    fn verify(&mut self, machine: &mut Machine<'_>, who: &str) -> anyhow::Result<()> {
        let asked = Instant::now();
        let (pages, wrong) = machine.verify()?;
        self.verified.pages += pages;
        self.verified.mismatches += wrong;
        let took = seconds(asked.elapsed().as_secs_f64());
        self.timeline.say(&format!("{who}: {pages} pages verified by the guest, {wrong} wrong, in {took}"));
        Ok(())
    }

    /// Pauses a machine that rewrote a little of `base`, resumes it once, and takes the time to its first tick; also
    /// whether its snapshot was being sealed then.
    fn small_resume(
        &self,
        node: &PrivateNode,
        base: &Snapshot,
        beside: Beside,
    ) -> anyhow::Result<(f64, bool)> {
        let mut machine = node.resume(base, self.is_early())?;
        machine.ask(&format!("dirty 2 {}", self.arguments.dirty.min(PAIR_PERCENT)), "dirtied ")?;
        let counted = machine.tick()?;
        let (twin, _) = node.pause(&machine)?;
        if beside == Beside::Nothing {
            node.wait_published(&twin, SAVED_LIMIT)?;
        }
        let (resumed, took) = first_tick(node, &twin, self.is_early(), counted)?;
        let seal_was_running = node.is_unsealed(&twin)?;
        resumed.end()?;
        node.wait_published(&twin, SAVED_LIMIT)?;
        machine.end()?;
        node.delete(&twin)?;
        Ok((took, seal_was_running))
    }

    /// A new node, with nothing but the store.
    fn cold(&mut self, last: &Snapshot) -> anyhow::Result<ColdResume> {
        let node = self.node("another-node")?;
        let asked = Instant::now();
        let mut machine = node.resume(last, self.is_early())?;
        machine.tick()?;
        let first_progress_seconds = asked.elapsed().as_secs_f64();
        self.timeline.say(&format!(
            "everything local forgotten; resumed from the store, first tick after {}",
            seconds(first_progress_seconds)
        ));
        self.verify(&mut machine, "cold guest")?;
        machine.end()?;
        let traffic = node.traffic();
        Ok(ColdResume {
            first_progress_seconds,
            fetched_bytes: traffic.fetched_bytes,
            fetches: traffic.fetches,
        })
    }

    fn is_early(&self) -> bool {
        !self.arguments.no_early_serve
    }

    fn wait_published(&self, node: &PrivateNode, snapshots: &[&Snapshot]) -> anyhow::Result<Vec<Snapshot>> {
        let saved = snapshots.iter().map(|snapshot| node.wait_published(snapshot, SAVED_LIMIT));
        let saved = saved.collect::<anyhow::Result<_>>()?;
        let total = node.traffic().stored_bytes;
        self.timeline.say(&format!("sealed and published; the store holds {}", ByteSize::b(total)));
        Ok(saved)
    }
}

/// Resumes, and takes the time to the guest's first tick, which follows on what it had counted to.
fn first_tick<'a>(
    node: &'a PrivateNode,
    snapshot: &Snapshot,
    early: bool,
    counted: u64,
) -> anyhow::Result<(Machine<'a>, f64)> {
    let asked = Instant::now();
    let mut machine = node.resume(snapshot, early)?;
    let tick = machine.tick()?;
    let took = asked.elapsed().as_secs_f64();
    ensure!(tick == counted + 1, "the guest had counted to {counted} and goes on with {tick}");
    Ok((machine, took))
}

fn seal_of(snapshot: &Snapshot) -> anyhow::Result<Seal> {
    let classes = snapshot.classes.context("a published snapshot was compared")?;
    let pages = |count: u64| u32::try_from(count).context("a volume has fewer pages");
    Ok(Seal {
        seconds: snapshot.seal_seconds.context("a published snapshot was sealed")?,
        dirty_pages: pages(classes.dirty)?,
        zero_pages: pages(classes.zero)?,
        equal_pages: pages(classes.equal)?,
        kept_pages: pages(classes.kept)?,
    })
}

/// Directory in which a kernel that was downloaded once is found again.
fn kernels_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("rekindle/kernels")
}

fn path_text(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize().with_context(|| format!("looking for the file {}", path.display()))?;
    path.into_os_string().into_string().ok().context("the path is not UTF-8")
}
