//! One round: a trouble for a node under load, at a random instant of the phase aimed at.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_api::client::Client;
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_testkit::black_box::{BlackBox, Outage, PATIENCE, RunningDaemon, ask_until};
use rekindle_testkit::random::Random;

use super::phase::{Durations, Phase};
use super::report::Tally;
use super::saving::{Saved, Saving};
use super::small_disk::SmallDisk;
use super::ticker::{Ticker, Told};
use super::trouble::Trouble;
use crate::load::{Actor, Ended, Findings, Kind, News, Operation};

/// SIGKILL.
const KILLED: i32 = 9;
/// Longest wait for a phase; then the daemon is killed in any phase.
const MOMENT_WITHIN: Duration = Duration::from_secs(5);

/// Longest time that a keeper is gone, a daemon stopped or a disk full, before the load ends.
const WHILE: Duration = Duration::from_millis(400);

/// Longest time for a daemon that is ready to say so.
const AT_ONCE: Duration = Duration::from_millis(2);

/// Parts that a round works with.
pub(crate) struct Round<'a> {
    pub(crate) place: &'a BlackBox,
    pub(crate) client: &'a Client,
    pub(crate) target: Phase,
    pub(crate) trouble: Trouble,
    /// Disk of the state directory, if it can be made full.
    pub(crate) disk: Option<&'a SmallDisk>,
    pub(crate) random: &'a mut Random,
    pub(crate) durations: &'a mut Durations,
    pub(crate) tally: &'a mut Tally,
}

/// State after a round: a daemon that was started when the one before was killed, or the same one.
pub(crate) struct Restarted {
    pub(crate) daemon: RunningDaemon,
    pub(crate) actors: Vec<Actor>,
    /// The requests whose answer was lost, by the actor that made them.
    pub(crate) lost: Vec<(usize, Operation)>,
    pub(crate) saved: Saved,
    /// The events of a daemon that lives on.
    pub(crate) saving: Option<Saving>,
}

/// Fate of the daemon.
enum Fate {
    Killed,
    Alive(RunningDaemon),
}

impl Round<'_> {
    /// Does to `daemon` and what is around it what the round is for, while `actors` work with it.
    pub(crate) fn run(
        &mut self,
        daemon: RunningDaemon,
        actors: Vec<Actor>,
        ticker: &mut Ticker,
    ) -> anyhow::Result<Restarted> {
        let saving = Saving::follow(self.client).context("asking for events")?;
        let outage = (self.trouble == Trouble::StoreAway).then(|| Outage::of(&self.place.store_directory()));
        let (stop, told) = (AtomicBool::new(false), Told::default());
        let client = self.client;
        thread::scope(|scope| {
            let ticking = scope.spawn(|| {
                let mut findings = Findings::default();
                let answered = ticker.tick(client, &told, &mut findings);
                (answered, findings)
            });
            let (news, heard) = channel();
            let working = self.begin(scope, actors, &stop, &news);
            drop(news);
            self.wait_for_moment(&heard, &saving);
            let begun_at = Instant::now();
            let fate = self.make_trouble(daemon);
            stop.store(true, Ordering::Release);
            let ended: Vec<Ended> = working.into_iter().map(joined).collect();
            heard.iter().for_each(|news| self.note(news));
            // The guest went with its keeper, or its fate is unknown: its next tick is not waited for.
            let is_over = self.trouble == Trouble::BothKilled || fate.is_err();
            told.over.store(is_over, Ordering::Release);
            let went_on = fate.and_then(|fate| self.go_on(fate, saving, outage, &ended));
            told.killed.store(true, Ordering::Release);
            if went_on.is_err() {
                told.over.store(true, Ordering::Release);
            }
            let (answered, findings) = joined(ticking);
            self.tally.findings.take_in(findings);
            self.tally.stalls.extend(answered.map(|answered| answered.duration_since(begun_at)));
            let (daemon, saved, saving) = went_on?;
            let (actors, lost) = self.sorted(ended);
            Ok(Restarted { daemon, actors, lost, saved, saving })
        })
    }

    /// Starts another daemon where the one before was killed, when no request to it is left.
    fn go_on(
        &mut self,
        fate: Fate,
        saving: Saving,
        outage: Option<Outage>,
        ended: &[Ended],
    ) -> anyhow::Result<(RunningDaemon, Saved, Option<Saving>)> {
        let (daemon, saved, saving) = match fate {
            Fate::Alive(daemon) => (Some(daemon), saving.so_far(), Some(saving)),
            Fate::Killed => (None, saving.finish(self.durations), None),
        };
        self.count(ended, &saved);
        let daemon = match daemon {
            Some(daemon) => daemon,
            None => self.restart(outage)?,
        };
        Ok((daemon, saved, saving))
    }

    /// Does it, all of it that is done under load.
    fn make_trouble(&mut self, daemon: RunningDaemon) -> anyhow::Result<Fate> {
        match self.trouble {
            Trouble::DaemonKilled | Trouble::StoreAway => self.kill_now(daemon),
            Trouble::BothKilled => {
                let status = self.kill_both(daemon)?;
                Ok(self.was_killed(status))
            }
            Trouble::KeeperKilled => {
                let pid = self.place.keeper().context("finding the keeper")?.identity().pid;
                self.place.kill(pid)?;
                self.tally.keeper_kills += 1;
                self.wait_a_while();
                Ok(Fate::Alive(daemon))
            }
            Trouble::DaemonStopped => {
                let process = ProcessHandle::open(daemon.pid()).context("finding the daemon's process")?;
                process.signal(Signal::Stop)?;
                self.wait_a_while();
                process.signal(Signal::Continue)?;
                Ok(Fate::Alive(daemon))
            }
            Trouble::DiskFull => {
                let disk = self.disk.context("there is a disk that can be full")?;
                disk.fill()?;
                self.wait_a_while();
                disk.free()?;
                self.kill_now(daemon)
            }
        }
    }

    /// Lets a random part of [`WHILE`] go by.
    fn wait_a_while(&mut self) {
        wait(self.part_of(WHILE));
    }

    fn begin<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        actors: Vec<Actor>,
        stop: &'scope AtomicBool,
        news: &std::sync::mpsc::Sender<News>,
    ) -> Vec<ScopedJoinHandle<'scope, Ended>> {
        let is_idle = self.target == Phase::Idle;
        actors
            .into_iter()
            .map(|actor| {
                let (news, client) = (news.clone(), self.client.clone());
                scope.spawn(move || match is_idle {
                    true => Ended { actor, lost: None, findings: Findings::default(), answered: 0 },
                    false => actor.work(&client, stop, Some(&news)),
                })
            })
            .collect()
    }

    /// Waits until the phase aimed at has begun, and then a random part of what it takes.
    fn wait_for_moment(&mut self, heard: &Receiver<News>, saving: &Saving) {
        match self.target {
            Phase::Idle => saving.wait_saved(MOMENT_WITHIN),
            Phase::Publishing => saving.wait_sealed(MOMENT_WITHIN),
            Phase::Sealing => self.wait_for(heard, |news| matches!(news, News::Answered(Kind::Pause, _))),
            Phase::Recovery => self.wait_for(heard, |news| matches!(news, News::Begun(_))),
            Phase::Fork
            | Phase::Create
            | Phase::Delete
            | Phase::Resume
            | Phase::Pause
            | Phase::Checkpoint
            | Phase::GuestFaulting
            | Phase::Sharing
            | Phase::SharedFaulting => {
                let target = self.target;
                self.wait_for(
                    heard,
                    move |news| matches!(news, News::Begun(kind) if Phase::of(kind) == target),
                );
            }
        }
        let part = self.part_of(self.durations.of(self.target));
        wait(part);
    }

    /// Waits for the first to third news that is wanted.
    fn wait_for(&mut self, heard: &Receiver<News>, is_wanted: impl Fn(News) -> bool) {
        let mut left = 1 + self.random.below(3);
        let deadline = Instant::now() + MOMENT_WITHIN;
        while left > 0 {
            match heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(news) => {
                    self.note(news);
                    left -= u32::from(is_wanted(news));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn note(&mut self, news: News) {
        if let News::Answered(kind, took) = news {
            self.durations.note(Phase::of(kind), took);
        }
    }

    fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(f64::from(self.random.below(1000)) / 1000.0)
    }

    fn kill_now(&mut self, daemon: RunningDaemon) -> anyhow::Result<Fate> {
        let status = daemon.kill()?;
        Ok(self.was_killed(status))
    }

    fn was_killed(&mut self, status: ExitStatus) -> Fate {
        if status.signal() != Some(KILLED) {
            self.tally.findings.wrong(format!("the daemon ended by itself: {status}"));
        }
        Fate::Killed
    }

    fn kill_both(&mut self, daemon: RunningDaemon) -> anyhow::Result<ExitStatus> {
        let pid = self.place.keeper().context("finding the keeper")?.identity().pid;
        let keeper = ProcessHandle::open(pid).context("finding the keeper's process")?;
        let keeper_first = self.random.percent(50);
        if keeper_first {
            keeper.signal(Signal::Kill)?;
        }
        let status = daemon.kill()?;
        if !keeper_first {
            keeper.signal(Signal::Kill)?;
        }
        anyhow::ensure!(keeper.wait_exit(PATIENCE), "a killed keeper did not end");
        self.tally.keeper_kills += 1;
        Ok(status)
    }

    /// Counts the kill by what was going on.
    fn count(&mut self, ended: &[Ended], saved: &Saved) {
        let lost = ended.iter().filter_map(|ended| ended.lost.as_ref().map(|(_, kind)| Phase::of(*kind)));
        let seen: BTreeSet<Phase> = lost.chain(saved.phases()).collect();
        let phase = if seen.contains(&self.target) { Some(self.target) } else { seen.first().copied() };
        // If no answer was lost, the phase aimed at was under way.
        let phase = phase.unwrap_or(if self.trouble.ends_daemon() { Phase::Idle } else { self.target });
        self.tally.killed(self.trouble, phase);
    }

    /// Starts the next daemon; where recovery was aimed at, the one after the next.
    fn restart(&mut self, outage: Option<Outage>) -> anyhow::Result<RunningDaemon> {
        if self.target == Phase::Recovery {
            let first = self.place.begin()?;
            let usual = self.durations.of(Phase::Recovery);
            wait(self.part_of(usual));
            // A daemon that is not ready listens already, and answers when it is.
            let at_once = self.client.clone().answered_within(AT_ONCE);
            let phase = if at_once.health().is_ok() { Phase::Idle } else { Phase::Recovery };
            first.kill()?;
            self.tally.killed(Trouble::DaemonKilled, phase);
        }
        let begun = Instant::now();
        let mut daemon = self.place.begin().context("starting the daemon again")?;
        if let Some(outage) = outage {
            // Without its store it may say that it is not ready, but it answers.
            let answers = ask_until(PATIENCE, || self.client.all_sandboxes(&[]).ok().map(drop));
            anyhow::ensure!(answers.is_some(), "a daemon does not start without its store");
            outage.end();
        }
        daemon.wait_ready(PATIENCE).context("starting the daemon again")?;
        self.durations.note(Phase::Recovery, begun.elapsed());
        Ok(daemon)
    }

    fn sorted(&mut self, ended: Vec<Ended>) -> (Vec<Actor>, Vec<(usize, Operation)>) {
        let (mut actors, mut lost) = (Vec::new(), Vec::new());
        for (number, ended) in ended.into_iter().enumerate() {
            self.tally.findings.take_in(ended.findings);
            lost.extend(ended.lost.map(|(operation, _)| (number, operation)));
            actors.push(ended.actor);
        }
        (actors, lost)
    }
}

/// Waits for the random instant: the one thing here that no event tells of.
fn wait(length: Duration) {
    let started = Instant::now();
    while let Some(left) = length.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().expect("no thread of a round panics")
}
