//! The demo's story. The guest counts its steps and judges its memory itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use bytesize::ByteSize;
use rekindle_api::types::{Accelerator, CreateSandbox, SandboxCount, Snapshot};

use super::arguments::{DemoArguments, MachineWord};
use super::guest::Guest;
use super::report::{
    Beside, ColdResume, FirstProgress, GuestReport, Pair, Pause, Publish, Report, Seal, Verified, Window,
    WindowPause, seconds,
};
use super::timeline::Timeline;
use super::wanted::wanted;
use crate::commands::private_node::PrivateNode;
use crate::memory_left::resident_bytes;

/// Longest time of saving before the demo gives up.
const SAVED_LIMIT: Duration = Duration::from_secs(600);

/// Memory that a Linux guest is left for itself.
const LINUX_OWN_MIB: u64 = 96;

/// Resumes during a seal that are compared with as many of the same kind with nothing else running.
const PAIRS: u64 = 5;

/// The same of machines: each starts a VMM twice.
const MACHINE_PAIRS: u64 = 3;

/// Guests that are made of a checkpoint of a machine; they share its pages.
const MACHINE_FORKS: u32 = 10;

/// Memory that is rewritten for each of them.
const PAIR_BYTES: u64 = 32 << 20;

/// The demo's output, and its findings so far.
pub(super) struct Story<'a> {
    timeline: &'a Timeline,
    arguments: &'a DemoArguments,
    place: &'a Path,
    store: PathBuf,
    verified: Verified,
}

impl<'a> Story<'a> {
    pub(super) fn new(arguments: &'a DemoArguments, place: &'a Path, timeline: &'a Timeline) -> Self {
        let store = arguments.store.clone().unwrap_or_else(|| place.join("store"));
        Self { timeline, arguments, place, store, verified: Verified::default() }
    }

    pub(super) fn tell(mut self) -> anyhow::Result<Report> {
        let node = self.node("1")?;
        let wanted = wanted(self.arguments, self.place)?;
        let accelerator = wanted.machine.as_ref().and_then(|machine| machine.accelerator);
        let base = self.first_pause(&node, wanted)?;
        let frozen_before = node.frozen_seconds();
        let (snapshot, counted, answer) = self.changed_pause(&node, &base)?;
        let frozen_seconds = node.frozen_seconds() - frozen_before;
        let window = self.window(&node, &snapshot, counted)?;
        let saved = self.wait_published(&node, &[&base, &snapshot, &window.last])?;
        let stored_bytes = node.traffic().stored_bytes;
        let pairs = self.pairs(&node, &base)?;
        drop(node);
        let (cold_resume, checkpoint) = self.cold(&window.last)?;
        Ok(Report {
            memory_bytes: self.memory_bytes(),
            pause: Pause { answer_seconds: answer.as_secs_f64(), frozen_seconds },
            overlap_resume: window.overlap_resume(pairs),
            waiting_resume: window.waiting,
            window_pause: window.pause,
            seal: seal_of(&saved[1])?,
            publish: Publish { stored_bytes },
            cold_resume,
            checkpoint,
            verified: self.verified,
            guest: self.arguments.vm.map(|guest| GuestReport {
                vmm: "qemu",
                kernel: guest.name(),
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

    /// A guest fills its memory and is paused; its snapshot is saved.
    fn first_pause(&mut self, node: &PrivateNode, wanted: CreateSandbox) -> anyhow::Result<Snapshot> {
        let asked = Instant::now();
        let mut guest = Guest::create(node, wanted)?;
        if let Some(kernel) = self.arguments.vm.map(MachineWord::name) {
            let pages = guest.wait_line(&format!("rekindle {kernel} guest, "))?;
            let took = seconds(asked.elapsed().as_secs_f64());
            self.timeline.say(&format!("a {kernel} guest in QEMU was up after {took}: {pages}"));
        }
        let is_linux = self.arguments.vm == Some(MachineWord::Linux);
        let mib = is_linux.then(|| (self.memory_bytes() >> 20) - LINUX_OWN_MIB);
        let pid = guest.pid();
        let resident = || pid.map_or(0, resident_bytes);
        let fill = || guest.fill(mib);
        let filled = self.timeline.during("filling memory", self.memory_bytes(), resident, fill)?;
        self.timeline.say(&format!("a guest filled {} of memory", ByteSize::kib(4 * filled)));
        let (snapshot, answer) = guest.pause()?;
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
        let mut guest = Guest::resume(node, base, self.is_early())?;
        guest.step()?;
        self.timeline.say(&format!("resumed, first step after {}", seconds(asked.elapsed().as_secs_f64())));
        let rewritten = guest.rewrite(2, self.arguments.dirty)?;
        self.timeline.say(&format!("it rewrote {rewritten} pages of it"));
        let counted = guest.step()?;
        let (snapshot, answer) = guest.pause()?;
        self.timeline.say(&format!("it was paused in {}; the seal begins", seconds(answer.as_secs_f64())));
        Ok((snapshot, counted, answer))
    }

    /// Two forks while the seal runs, a third that waits for it; one fork is paused and resumed again.
    fn window(&mut self, node: &PrivateNode, snapshot: &Snapshot, counted: u64) -> anyhow::Result<Window> {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let (guest, took) = first_step(node, snapshot, false, counted)?;
                guest.end().map(|()| took)
            });
            let (first, overlap_seconds) = first_step(node, snapshot, self.is_early(), counted)?;
            let seal_was_running = node.is_unsealed(snapshot)?;
            let (second, _) = first_step(node, snapshot, self.is_early(), counted)?;
            self.timeline.say(&format!(
                "forked twice while it was {}: first step after {}",
                if seal_was_running { "being sealed" } else { "sealed already" },
                seconds(overlap_seconds)
            ));
            let (pause, last, from_second) = self.fork_again(node, snapshot, second)?;
            let from_first = self.verify_and_write_on(first, "first fork")?;
            let waited = waiting.join().map_err(|_| anyhow::anyhow!("the waiting resume panicked"))?;
            let waiting = FirstProgress { first_progress_seconds: waited? };
            let took = seconds(waiting.first_progress_seconds);
            self.timeline.say(&format!("a resume that waits for the seal: first step after {took}"));
            let pages_from_capture = from_first + from_second;
            Ok(Window { overlap_seconds, waiting, seal_was_running, pages_from_capture, pause, last })
        })
    }

    /// The second fork writes, is paused, resumed, and verifies everything.
    fn fork_again(
        &mut self,
        node: &PrivateNode,
        parent: &Snapshot,
        mut fork: Guest<'_>,
    ) -> anyhow::Result<(WindowPause, Snapshot, u64)> {
        fork.rewrite(3, 5)?;
        let from_capture = fork.pages_from_capture()?;
        let counted = fork.step()?;
        let (snapshot, answer) = fork.pause()?;
        let parent_was_unsealed = node.is_unsealed(parent)?;
        self.timeline.say(&format!(
            "the second fork wrote on and was paused in {}{}",
            seconds(answer.as_secs_f64()),
            if parent_was_unsealed { ", its parent still unsealed" } else { "" }
        ));
        let (resumed, _) = first_step(node, &snapshot, self.is_early(), counted)?;
        let more = self.verify_and_write_on(resumed, "second fork, paused and resumed")?;
        let pause = WindowPause { answer_seconds: answer.as_secs_f64(), parent_was_unsealed };
        Ok((pause, snapshot, from_capture + more))
    }

    /// Has a guest verify every page, write some, and verify again; the pages it was given from captures.
    fn verify_and_write_on(&mut self, mut guest: Guest<'_>, who: &str) -> anyhow::Result<u64> {
        self.verify(&mut guest, &format!("{who}, as it was resumed"))?;
        guest.rewrite(4, 5)?;
        self.verify(&mut guest, &format!("{who}, after writing on"))?;
        let from_capture = guest.pages_from_capture()?;
        guest.end()?;
        Ok(from_capture)
    }

    fn verify(&mut self, guest: &mut Guest<'_>, who: &str) -> anyhow::Result<()> {
        let (asked, served) = (Instant::now(), guest.served_bytes());
        let work = || guest.verify();
        let (pages, wrong) =
            self.timeline.during(&format!("{who}: verifying"), self.memory_bytes(), served, work)?;
        self.verified.pages += pages;
        self.verified.mismatches += wrong;
        let took = seconds(asked.elapsed().as_secs_f64());
        self.timeline.say(&format!("{who}: {pages} pages verified by the guest, {wrong} wrong, in {took}"));
        Ok(())
    }

    /// Small resumes in turns: one while its snapshot is being sealed, one with nothing else running. Each is of a
    /// snapshot of its own, so that as little is known of what its guest touches first.
    fn pairs(&self, node: &PrivateNode, base: &Snapshot) -> anyhow::Result<Vec<Pair>> {
        let count = if self.arguments.vm.is_some() { MACHINE_PAIRS } else { PAIRS };
        let mut pairs = Vec::new();
        for number in 0..count {
            let (during_seconds, seal_was_running) =
                self.small_resume(node, base, 2 * number, Beside::Seal)?;
            let (alone_seconds, _) = self.small_resume(node, base, 2 * number + 1, Beside::Nothing)?;
            pairs.push(Pair { during_seconds, alone_seconds, seal_was_running });
        }
        self.timeline
            .say(&format!("{count} smaller resumes during seals, {count} with nothing else running"));
        Ok(pairs)
    }

    /// Pauses a guest that rewrote a little of `base`, resumes it once, and takes the time to its first step; also
    /// whether its snapshot was being sealed then.
    fn small_resume(
        &self,
        node: &PrivateNode,
        base: &Snapshot,
        number: u64,
        beside: Beside,
    ) -> anyhow::Result<(f64, bool)> {
        let mut guest = Guest::resume(node, base, self.is_early())?;
        let share = (PAIR_BYTES * 100).div_ceil(self.memory_bytes());
        let percent = u8::try_from(share).unwrap_or(100).min(self.arguments.dirty);
        guest.rewrite(number + 10, percent)?;
        let counted = guest.step()?;
        let (twin, _) = guest.pause()?;
        if beside == Beside::Nothing {
            node.wait_published(&twin, SAVED_LIMIT)?;
        }
        let (resumed, took) = first_step(node, &twin, self.is_early(), counted)?;
        let seal_was_running = node.is_unsealed(&twin)?;
        resumed.end()?;
        node.wait_published(&twin, SAVED_LIMIT)?;
        guest.end()?;
        node.delete(&twin, SAVED_LIMIT)?;
        Ok((took, seal_was_running))
    }

    /// A new node, with nothing but the store.
    fn cold(&mut self, last: &Snapshot) -> anyhow::Result<(ColdResume, Pause)> {
        let node = self.node("2")?;
        let asked = Instant::now();
        let mut guest = Guest::resume(&node, last, self.is_early())?;
        guest.step()?;
        let first_progress_seconds = asked.elapsed().as_secs_f64();
        self.timeline.say(&format!(
            "everything local forgotten; resumed from the store, first step after {}",
            seconds(first_progress_seconds)
        ));
        self.verify(&mut guest, "cold guest")?;
        let traffic = node.traffic();
        let checkpoint = self.checkpoint(&node, guest)?;
        let cold = ColdResume {
            first_progress_seconds,
            fetched_bytes: traffic.fetched_bytes,
            fetches: traffic.fetches,
        };
        Ok((cold, checkpoint))
    }

    /// A snapshot of a guest that goes on: others are resumed from it, and all of them verify everything.
    fn checkpoint(&mut self, node: &PrivateNode, mut guest: Guest<'_>) -> anyhow::Result<Pause> {
        guest.rewrite(5, 5)?;
        let counted = guest.step()?;
        let (snapshot, answer) = guest.checkpoint()?;
        let (answer_seconds, frozen_seconds) = (answer.as_secs_f64(), node.checkpoint_frozen_seconds());
        self.timeline.say(&format!(
            "checkpointed in {}, standing for {} of it",
            seconds(answer_seconds),
            seconds(frozen_seconds)
        ));
        guest.rewrite(6, 5)?;
        let count = guest.step()?;
        ensure!(count == counted + 1, "the guest had counted to {counted} and goes on with {count}");
        self.fork(node, &snapshot, counted)?;
        self.verify(&mut guest, "the guest that went on")?;
        guest.end()?;
        node.wait_published(&snapshot, SAVED_LIMIT)?;
        Ok(Pause { answer_seconds, frozen_seconds })
    }

    /// Forks a checkpoint: all forks run at the same time, and verify everything.
    fn fork(&mut self, node: &PrivateNode, snapshot: &Snapshot, counted: u64) -> anyhow::Result<()> {
        let count = if self.arguments.vm.is_some() { MACHINE_FORKS } else { 1 };
        let count = SandboxCount::try_from(count).map_err(|_| anyhow!("{count} forks are a few"))?;
        let mut forks = Guest::fork(node, snapshot, count, self.is_early())?;
        for (fork, number) in forks.iter_mut().zip(1..) {
            let found = fork.step()?;
            ensure!(found == counted + 1, "the guest had counted to {counted}, and fork {number} to {found}");
            self.verify(fork, &format!("fork {number} of the checkpoint"))?;
        }
        if forks.len() > 1 {
            let shared = ByteSize::b(node.image_bytes());
            self.timeline
                .say(&format!("the pages that the {} forks share take {shared} of RAM", forks.len()));
        }
        forks.into_iter().try_for_each(Guest::end)
    }

    fn is_early(&self) -> bool {
        !self.arguments.no_early_serve
    }

    fn wait_published(&self, node: &PrivateNode, snapshots: &[&Snapshot]) -> anyhow::Result<Vec<Snapshot>> {
        let before = node.traffic().sent_bytes;
        let sent = || node.traffic().sent_bytes - before;
        let published =
            || snapshots.iter().map(|snapshot| node.wait_published(snapshot, SAVED_LIMIT)).collect();
        let saved: anyhow::Result<_> =
            self.timeline.during("saving", self.memory_bytes() / 2, sent, published);
        let total = node.traffic().stored_bytes;
        self.timeline.say(&format!("sealed and published; the store holds {}", ByteSize::b(total)));
        saved
    }
}

/// Resumes, and takes the time to the guest's first step, which follows on what it had counted to.
fn first_step<'a>(
    node: &'a PrivateNode,
    snapshot: &Snapshot,
    early: bool,
    counted: u64,
) -> anyhow::Result<(Guest<'a>, f64)> {
    let asked = Instant::now();
    let mut guest = Guest::resume(node, snapshot, early)?;
    let count = guest.step()?;
    let took = asked.elapsed().as_secs_f64();
    ensure!(count == counted + 1, "the guest had counted to {counted} and goes on with {count}");
    Ok((guest, took))
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
