//! `rekindle demo`: the whole story, told once with a real guest: filled, paused, rewritten, paused again, forked while
//! that pause is being saved, and at last brought back from nothing but the store. Every page is checked.

pub mod arguments;
mod machine_story;
mod place;
mod private_node;
pub mod report;
mod timeline;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;

use super::status::Status;
use crate::sandbox::{Paused, Sandbox, SandboxShape};
use arguments::{CaptureKind, DemoArguments, PageSize};
use machine_story::MachineStory;
use place::Place;
use rekindle_guest::process::arguments::MemoryKind;
use rekindle_guest::process::history::{Rewrite, Share};
use report::{
    Beside, ColdResume, FirstProgress, Pair, Pause, Publish, Report, Seal, Verified, Window, WindowPause,
    seconds,
};
use timeline::Timeline;

/// Pages that a guest looks at in one step of progress.
const STEP_PAGES: u32 = 64;

/// Longest time of saving before the demo gives up.
const SAVED_LIMIT: Duration = Duration::from_secs(600);

/// Resumes during a seal that are compared with as many of the same kind with nothing else running.
const PAIRS: u64 = 5;

/// Memory that is rewritten for each of them.
const PAIR_BYTES: u64 = 32 << 20;

/// Small resumes in turns: one while its snapshot is being sealed, one with nothing else running. Each is of a snapshot
/// of its own, so that as little is known of what its guest touches first; `resume` is given its number.
fn pairs(
    timeline: &Timeline,
    count: u64,
    resume: impl Fn(u64, Beside) -> anyhow::Result<(f64, bool)>,
) -> anyhow::Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for number in 0..count {
        let (during_seconds, seal_was_running) = resume(2 * number, Beside::Seal)?;
        let (alone_seconds, _) = resume(2 * number + 1, Beside::Nothing)?;
        pairs.push(Pair { during_seconds, alone_seconds, seal_was_running });
    }
    timeline.say(&format!("{count} smaller resumes during seals, {count} with nothing else running"));
    Ok(pairs)
}

/// Runs the demo in a process of its own, and ends as that does. Status 1 means that a page was wrong.
pub fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    if let Some(place) = &arguments.place {
        place::end_with_the_watcher()?;
        return tell(arguments, place).map(ExitCode::from);
    }
    arguments.check()?;
    arguments.store.as_deref().map(check_writable).transpose()?;
    let ended = Place::make()?.run_demo()?;
    Ok(ExitCode::from(ended.status()))
}

/// Tells the story in `place`.
fn tell(arguments: &DemoArguments, place: &Path) -> anyhow::Result<Status> {
    let timeline = Timeline::new(arguments.json);
    let report = match arguments.vm {
        Some(guest) => MachineStory::new(arguments, guest, place, &timeline).tell()?,
        None => Story::new(arguments, place, &timeline)?.tell()?,
    };
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).context("the report as JSON")?);
    } else {
        report.print();
    }
    Ok(if report.verified.mismatches > 0 { Status::CheckFailed } else { Status::Done })
}

/// The stage: an engine, the parts of guests, and the findings so far.
struct Story<'a> {
    timeline: &'a Timeline,
    arguments: &'a DemoArguments,
    shape: SandboxShape,
    place: &'a Path,
    store: PathBuf,
    verified: Verified,
}

impl<'a> Story<'a> {
    fn new(arguments: &'a DemoArguments, place: &'a Path, timeline: &'a Timeline) -> anyhow::Result<Self> {
        let store = arguments.store.clone().unwrap_or_else(|| place.join("store"));
        let program = std::env::current_exe().context("finding this program")?;
        let mut shape = SandboxShape::new(program, arguments.memory.as_u64());
        shape.kind = match (arguments.capture, arguments.pages) {
            (CaptureKind::Adopt, PageSize::Small) => MemoryKind::Shared,
            (CaptureKind::Adopt, PageSize::Huge) => MemoryKind::Huge,
            (CaptureKind::Copy, PageSize::Small) => MemoryKind::Private,
            (CaptureKind::Copy, PageSize::Huge) => MemoryKind::PrivateHuge,
        };
        Ok(Self { timeline, arguments, shape, place, store, verified: Verified::default() })
    }

    fn tell(mut self) -> anyhow::Result<Report> {
        let engine = self.engine("node")?;
        let base = self.first_pause(&engine)?;
        let changed = self.changed_pause(&engine, &base)?;
        let (pause, snapshot) = (pause_of(&changed), Arc::clone(&changed.snapshot));
        let window = self.window(&engine, &snapshot)?;
        drop(changed);
        self.wait_published(&engine, &[&base, &snapshot, &window.last])?;
        let stored_bytes = engine.traffic().stored_bytes;
        let small_resume = |number, beside| self.small_resume(&engine, &base, number, beside);
        let pairs = pairs(self.timeline, PAIRS, small_resume)?;
        let seal = seal_of(&snapshot)?;
        let (overlap_resume, last) = (window.overlap_resume(pairs), window.last.id());
        drop((base, snapshot, window.last, engine));
        let cold_resume = self.cold(last)?;
        Ok(Report {
            memory_bytes: self.shape.memory_bytes,
            pause,
            overlap_resume,
            waiting_resume: window.waiting,
            window_pause: window.pause,
            seal,
            publish: Publish { stored_bytes },
            cold_resume,
            verified: self.verified,
            guest: None,
        })
    }

    fn engine(&self, name: &str) -> anyhow::Result<Engine> {
        let store = Store::directory(&self.store)
            .with_context(|| format!("opening the store in {}", self.store.display()))?;
        let options = EngineOptions::new(self.place.join(name), store);
        Engine::start(options).context("starting the engine")
    }

    /// A guest on empty memory fills it and is paused; its snapshot is saved.
    fn first_pause(&mut self, engine: &Engine) -> anyhow::Result<Arc<Snapshot>> {
        let mut sandbox = Sandbox::start(self.shape.clone())?;
        let process = &sandbox.guest.process;
        let resident = || process.resident_bytes().unwrap_or(0);
        let control = &mut sandbox.guest.control;
        let fill = || control.fill(1);
        let written = self.timeline.during("filling memory", self.shape.memory_bytes, resident, fill)?;
        self.timeline.say(&format!("a guest filled {} of memory", pages_as_bytes(written.pages())));
        let paused = sandbox.pause(engine)?;
        self.timeline.say(&format!("it was paused in {}", seconds(paused.answer_time.as_secs_f64())));
        self.wait_published(engine, &[&paused.snapshot])?;
        Ok(paused.snapshot)
    }

    /// The guest comes back, rewrites a share of its memory and is paused again.
    fn changed_pause(&mut self, engine: &Engine, base: &Arc<Snapshot>) -> anyhow::Result<Paused> {
        let (mut sandbox, took) = self.resume(engine, base)?;
        self.timeline.say(&format!("resumed, first step after {}", seconds(took)));
        let share = Share { seed: 2, percent: self.arguments.dirty, run_pages: 8 };
        let written = sandbox.guest.control.rewrite(Rewrite { share, zero_percent: 10, same_percent: 10 })?;
        self.timeline.say(&format!("it rewrote {} of it", pages_as_bytes(written.pages())));
        let paused = sandbox.pause(engine)?;
        self.timeline
            .say(&format!("it was paused in {}; the seal begins", seconds(paused.answer_time.as_secs_f64())));
        Ok(paused)
    }

    /// Two forks while the seal runs, a third that waits for it; one fork is paused and resumed again.
    fn window(&mut self, engine: &Engine, snapshot: &Arc<Snapshot>) -> anyhow::Result<Window<Arc<Snapshot>>> {
        let (shape, early) = (self.shape.clone(), !self.arguments.no_early_serve);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| first_step(engine, snapshot, shape, false));
            let (first, overlap_seconds) = self.resume(engine, snapshot)?;
            let seal_was_running = snapshot.manifest_now().is_none();
            let (second, _) = self.resume(engine, snapshot)?;
            self.timeline.say(&format!(
                "forked twice while it was {}: first step after {}",
                if seal_was_running { "being sealed" } else { "sealed already" },
                seconds(overlap_seconds)
            ));
            let (pause, last, from_second) = self.fork_again(engine, snapshot, second)?;
            let from_first = self.verify_and_write_on(first, "first fork")?;
            let waited = waiting.join().map_err(|_| anyhow::anyhow!("the waiting resume panicked"))?;
            let (waiter, waiting_seconds) = waited?;
            drop(waiter);
            let what = if early { "a resume that waits for the seal" } else { "the third fork" };
            self.timeline.say(&format!("{what}: first step after {}", seconds(waiting_seconds)));
            Ok(Window {
                overlap_seconds,
                waiting: FirstProgress { first_progress_seconds: waiting_seconds },
                seal_was_running,
                pages_from_capture: from_first + from_second,
                pause,
                last,
            })
        })
    }

    /// The second fork writes, is paused, resumed, and verifies everything.
    fn fork_again(
        &mut self,
        engine: &Engine,
        parent: &Arc<Snapshot>,
        mut fork: Sandbox,
    ) -> anyhow::Result<(WindowPause, Arc<Snapshot>, u64)> {
        fork.guest.control.rewrite(small_rewrite(3))?;
        let from_capture = pages_from_capture(&fork);
        let paused = fork.pause(engine)?;
        let parent_was_unsealed = parent.manifest_now().is_none();
        let answer_seconds = paused.answer_time.as_secs_f64();
        self.timeline.say(&format!(
            "the second fork wrote on and was paused in {}{}",
            seconds(answer_seconds),
            if parent_was_unsealed { ", its parent still unsealed" } else { "" }
        ));
        let (resumed, _) = self.resume(engine, &paused.snapshot)?;
        let more = self.verify_and_write_on(resumed, "second fork, paused and resumed")?;
        let pause = WindowPause { answer_seconds, parent_was_unsealed };
        Ok((pause, paused.snapshot, from_capture + more))
    }

    /// Verifies every page, writes some, verifies again; the pages it was given from captures.
    fn verify_and_write_on(&mut self, mut sandbox: Sandbox, who: &str) -> anyhow::Result<u64> {
        self.verify(&mut sandbox, &format!("{who}, as it was resumed"))?;
        sandbox.guest.control.rewrite(small_rewrite(4))?;
        self.verify(&mut sandbox, &format!("{who}, after writing on"))?;
        Ok(pages_from_capture(&sandbox))
    }

    fn verify(&mut self, sandbox: &mut Sandbox, who: &str) -> anyhow::Result<()> {
        let total = self.shape.memory_bytes;
        let (control, installed) = sandbox.control_and_progress();
        let verify = || control.verify();
        let verified = self.timeline.during(&format!("{who}: verifying"), total, installed, verify)?;
        self.verified.pages += u64::from(verified.pages);
        self.verified.mismatches += u64::from(verified.mismatches);
        self.timeline.say(&format!(
            "{who}: {} pages verified, {} wrong, in {}",
            verified.pages,
            verified.mismatches,
            seconds(Duration::from_nanos(verified.nanoseconds).as_secs_f64())
        ));
        Ok(())
    }

    /// Pauses a guest that rewrote a little of `base`, resumes it once, and takes the time to its first step; also
    /// whether its snapshot was being sealed then.
    fn small_resume(
        &self,
        engine: &Engine,
        base: &Arc<Snapshot>,
        number: u64,
        beside: Beside,
    ) -> anyhow::Result<(f64, bool)> {
        let (mut sandbox, _) = self.resume(engine, base)?;
        let share = (PAIR_BYTES * 100).div_ceil(self.shape.memory_bytes);
        let percent = u8::try_from(share).unwrap_or(100).min(self.arguments.dirty);
        let share = Share { seed: number + 10, percent, run_pages: 8 };
        sandbox.guest.control.rewrite(Rewrite { share, zero_percent: 10, same_percent: 10 })?;
        let paused = sandbox.pause(engine)?;
        let saved = || paused.snapshot.wait_state(SnapshotState::Published, SAVED_LIMIT);
        if beside == Beside::Nothing {
            ensure!(saved(), "snapshot {} was not published within {SAVED_LIMIT:?}", paused.snapshot.id());
        }
        let (resumed, took) = self.resume(engine, &paused.snapshot)?;
        let seal_was_running = paused.snapshot.manifest_now().is_none();
        drop(resumed);
        ensure!(saved(), "snapshot {} was not published within {SAVED_LIMIT:?}", paused.snapshot.id());
        engine.delete(&paused.snapshot)?;
        Ok((took, seal_was_running))
    }

    /// A new engine, with nothing but the store.
    fn cold(&mut self, id: SnapshotId) -> anyhow::Result<ColdResume> {
        let engine = self.engine("another-node")?;
        let asked = Instant::now();
        let snapshot = engine.open(id)?;
        let (mut sandbox, _) = self.resume(&engine, &snapshot)?;
        let first_progress_seconds = asked.elapsed().as_secs_f64();
        self.timeline.say(&format!(
            "everything local forgotten; resumed from the store, first step after {}",
            seconds(first_progress_seconds)
        ));
        self.verify(&mut sandbox, "cold guest")?;
        drop(sandbox);
        let traffic = engine.traffic();
        Ok(ColdResume {
            first_progress_seconds,
            fetched_bytes: traffic.fetched_bytes,
            fetches: traffic.fetches,
        })
    }

    fn resume(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> anyhow::Result<(Sandbox, f64)> {
        first_step(engine, snapshot, self.shape.clone(), !self.arguments.no_early_serve)
    }

    fn wait_published(&self, engine: &Engine, snapshots: &[&Arc<Snapshot>]) -> anyhow::Result<()> {
        let before = engine.traffic().sent_bytes;
        let sent = || engine.traffic().sent_bytes - before;
        let published =
            || snapshots.iter().find(|snapshot| !snapshot.wait_state(SnapshotState::Published, SAVED_LIMIT));
        if let Some(late) = self.timeline.during("saving", self.shape.memory_bytes / 2, sent, published) {
            let why = late.status().failure.unwrap_or_else(|| "it is still being saved".into());
            bail!("snapshot {} was not published within {SAVED_LIMIT:?}: {why}", late.id());
        }
        let total = engine.traffic().stored_bytes;
        self.timeline.say(&format!("sealed and published; the store holds {}", ByteSize::b(total)));
        Ok(())
    }
}

/// A store that cannot be written would only be noticed when everything waits for it.
fn check_writable(store: &Path) -> anyhow::Result<()> {
    let probe = || std::fs::create_dir_all(store).and_then(|()| tempfile::tempfile_in(store));
    probe().map(drop).with_context(|| format!("--store {}: it cannot be written", store.display()))
}

/// Resumes, and takes the time to the guest's first step.
fn first_step(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    shape: SandboxShape,
    early: bool,
) -> anyhow::Result<(Sandbox, f64)> {
    let asked = Instant::now();
    if !early {
        snapshot.wait_manifest(SAVED_LIMIT).context("waiting for the seal, as asked")?;
    }
    let mut sandbox = Sandbox::resume(engine, snapshot, shape)?;
    let ticked = sandbox.guest.control.tick(STEP_PAGES)?;
    let took = asked.elapsed().as_secs_f64();
    if ticked.verified.mismatches > 0 {
        bail!("the guest's first step found {} wrong pages", ticked.verified.mismatches);
    }
    Ok((sandbox, took))
}

fn small_rewrite(seed: u64) -> Rewrite {
    Rewrite { share: Share { seed, percent: 5, run_pages: 4 }, zero_percent: 10, same_percent: 0 }
}

fn pages_from_capture(sandbox: &Sandbox) -> u64 {
    sandbox.server().map_or(0, |server| server.stats().pages_from_capture)
}

fn pause_of(paused: &Paused) -> Pause {
    Pause {
        answer_seconds: paused.answer_time.as_secs_f64(),
        frozen_seconds: paused.frozen_time.as_secs_f64(),
    }
}

fn seal_of(snapshot: &Snapshot) -> anyhow::Result<Seal> {
    let status = snapshot.status();
    let classes = status.classes.context("a published snapshot was compared")?;
    let time = status.seal_time.context("a published snapshot was sealed")?;
    Ok(Seal {
        seconds: time.as_secs_f64(),
        dirty_pages: classes.dirty,
        zero_pages: classes.zero,
        equal_pages: classes.equal,
        kept_pages: classes.kept,
    })
}

fn pages_as_bytes(pages: u32) -> ByteSize {
    ByteSize::kib(u64::from(pages) * 4)
}
