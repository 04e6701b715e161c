//! Takes the checkpoints of sandboxes that have a period for them, one sandbox after another, and deletes the old ones.
//!
//! The moments at which a sandbox is due follow from its id and the time of day alone: so sandboxes of one period are spread
//! over it, and neither a restart of the daemon nor a checkpoint that took long moves them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_api::types::{CheckpointSandbox, Labels, PeriodicCheckpoints};
use rekindle_engine::identity::SnapshotId;
use rekindle_input::asker::{Asker, Waiting};
use rekindle_kernel::wakeup::wait_any;
use rekindle_metrics::PeriodicOutcome;
use uuid::Uuid;

use super::clock::unix_ms;
use super::entry::{CHECKPOINTING, Entry, Turn};
use super::events::About;
use super::known::can_be_gone_on_from;
use super::over::Over;
use super::periodic_line::{Periodic, is_periodic, is_settled, superfluous};
use super::record::SandboxRecord;
use super::references::Named as _;
use super::sandboxes::Sandboxes;

/// Time between two looks for sandboxes that are due: their periods are whole seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The thread that takes them. A drop ends it: a checkpoint that waits for room is given up, no period is waited for.
#[derive(Debug)]
pub(super) struct PeriodicCheckpointing {
    over: Arc<Over>,
    wanted: Option<Waiting>,
    thread: Option<JoinHandle<()>>,
}

/// Results of the looks before this one.
#[derive(Debug, Default)]
struct Looks {
    /// The turn that each sandbox has had last, and the period that it was counted in.
    turns: HashMap<Uuid, (u64, u32)>,
    /// Sandboxes of whose checkpoints some may still come further, or go; none before the first look at all of them.
    unsettled: Option<HashSet<Uuid>>,
}

impl PeriodicCheckpointing {
    pub(super) fn start(sandboxes: &Arc<Sandboxes>) -> io::Result<Self> {
        let (over, asker) = (Over::not_yet()?, Asker::default());
        let wanted = Some(asker.waits());
        let (sandboxes, heard) = (Arc::downgrade(sandboxes), Arc::clone(&over));
        let work = move || take_until_over(&sandboxes, &heard, &asker);
        let thread = std::thread::Builder::new().name("checkpoints".into()).spawn(work)?;
        Ok(Self { over, wanted, thread: Some(thread) })
    }
}

impl Drop for PeriodicCheckpointing {
    fn drop(&mut self) {
        drop(self.wanted.take());
        self.over.end();
        if let Some(thread) = self.thread.take() {
            // A panic in it ended the program already.
            drop(thread.join());
        }
    }
}

fn take_until_over(sandboxes: &Weak<Sandboxes>, over: &Over, asker: &Asker) {
    let mut looks = Looks::default();
    while !over.is_over() {
        let Some(here) = sandboxes.upgrade() else { return };
        here.take_periodic_checkpoints(&mut looks, asker);
        here.delete_old_checkpoints(&mut looks);
        drop(here);
        if let Err(error) = wait_any(&[over.wakeup().as_fd()], Some(LOOK_EVERY)) {
            tracing::debug!(%error, "checkpoints are looked for late");
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

/// The number of a sandbox's turn at a time. It goes up once in each period, at a moment that the sandbox's id gives.
fn turn_at(unix_ms: u64, every_seconds: u32, sandbox: Uuid) -> u64 {
    let period_ms = u64::from(every_seconds.max(1)) * 1000;
    let (_, random) = sandbox.as_u64_pair();
    (unix_ms + random % period_ms) / period_ms
}

impl Looks {
    /// True if a sandbox has not had the turn that it has now. The first look at it counts from its last snapshot.
    fn is_due(
        &mut self,
        sandbox: Uuid,
        every_seconds: u32,
        last_unix_ms: impl Fn() -> u64,
        now: u64,
    ) -> bool {
        let counted = self.turns.get(&sandbox).filter(|(_, every)| *every == every_seconds);
        let last = match counted {
            Some((last, _)) => *last,
            None => turn_at(last_unix_ms(), every_seconds, sandbox),
        };
        self.turns.insert(sandbox, (last, every_seconds));
        turn_at(now, every_seconds, sandbox) != last
    }
}

impl Sandboxes {
    /// Takes a checkpoint of each sandbox that is due. One that something else is done with is due again at the next look.
    fn take_periodic_checkpoints(&self, looks: &mut Looks, asker: &Asker) {
        let entries = self.registry.all();
        let there: HashSet<Uuid> = entries.iter().map(|entry| entry.id()).collect();
        looks.turns.retain(|id, _| there.contains(id));
        for entry in entries {
            let record = entry.record();
            let (Some(PeriodicCheckpoints { every_seconds, .. }), Some(_)) =
                (record.checkpoints, record.guest())
            else {
                continue;
            };
            let now = unix_ms();
            if asker.is_gone() || !looks.is_due(record.id, every_seconds, || self.last_unix_ms(&record), now)
            {
                continue;
            }
            let Ok(mut turn) = entry.turn_at_once(CHECKPOINTING) else { continue };
            looks.turns.insert(record.id, (turn_at(now, every_seconds, record.id), every_seconds));
            let outcome = self.take_periodic_checkpoint(&entry, &mut turn, asker);
            drop(turn);
            if outcome == Some(PeriodicOutcome::Taken) {
                self.let_go_of_images(record.id);
                if let Some(unsettled) = &mut looks.unsettled {
                    unsettled.insert(record.id);
                }
            }
            if let Some(outcome) = outcome {
                self.host.metrics.periodic_checkpoint(outcome);
            }
        }
    }

    /// Takes one of a guest that may have changed since its last snapshot; nothing came of it where its guest is gone.
    fn take_periodic_checkpoint(
        &self,
        entry: &Entry,
        turn: &mut Turn,
        asker: &Asker,
    ) -> Option<PeriodicOutcome> {
        let record = turn.record();
        let live = turn.live.as_ref().filter(|live| live.process().is_alive())?;
        // A guest that cannot be asked may have changed: a checkpoint is taken.
        if self.stands_on_its_last(&record) && matches!(live.may_have_changed(), Ok(false)) {
            return Some(PeriodicOutcome::Unchanged);
        }
        let id = SnapshotId::from(Uuid::now_v7());
        let reference = entry.reference().parse().expect("the name or the id of a sandbox");
        let how = CheckpointSandbox { labels: Labels::periodic(&reference), ..Default::default() };
        match self.checkpoint_in_turn(turn, id, how, Vec::new(), asker) {
            Ok(_) => {
                let about = About::both(record.id, id.uuid());
                self.events.say("sandbox.checkpointed", about, Some("its period is over".to_owned()));
                Some(PeriodicOutcome::Taken)
            }
            Err(_) if asker.is_gone() => None,
            Err(problem) => {
                let detail = format!("{}; it is tried again in its next period", problem.detail);
                self.events.say("sandbox.not_checkpointed", About::sandbox(record.id), Some(detail));
                Some(PeriodicOutcome::Failed)
            }
        }
    }

    /// True if its guest goes on from the sandbox's last snapshot, and that can be gone on from again.
    fn stands_on_its_last(&self, record: &SandboxRecord) -> bool {
        let last = record.snapshot.filter(|last| record.origin() == Some(*last));
        let known = last.and_then(|last| self.snapshots.listed().find(&last.into()).ok());
        known.is_some_and(|known| can_be_gone_on_from(&known))
    }

    /// When its last snapshot was made, or it was itself.
    fn last_unix_ms(&self, record: &SandboxRecord) -> u64 {
        let last = record.snapshot.and_then(|last| self.host.engine.snapshot(last.into()));
        last.map_or(record.created_unix_ms, |last| last.created_unix_ms())
    }

    /// Deletes the checkpoints that the sandboxes' numbers of them leave out, unless a sandbox runs from them.
    fn delete_old_checkpoints(&self, looks: &mut Looks) {
        let unsettled = looks.unsettled.get_or_insert_with(|| {
            let all = self.registry.all().into_iter().map(|entry| entry.record());
            all.filter(|record| record.checkpoints.is_some()).map(|record| record.id).collect()
        });
        if unsettled.is_empty() {
            return;
        }
        let mut lines: HashMap<Uuid, Vec<_>> = unsettled.iter().map(|id| (*id, Vec::new())).collect();
        for known in self.snapshots.all().into_iter().filter(|known| is_periodic(&known.about)) {
            if let Some(line) = known.about.sandbox.and_then(|sandbox| lines.get_mut(&sandbox)) {
                line.push(known);
            }
        }
        let users = self.users();
        for (sandbox, mut known) in lines {
            known.sort_by_key(|known| known.id());
            let line = Periodic::line(&known);
            let checkpoints = self.registry.get(sandbox).and_then(|entry| entry.record().checkpoints);
            let Some(PeriodicCheckpoints { keep, .. }) = checkpoints else {
                unsettled.remove(&sandbox);
                continue;
            };
            let keep = usize::try_from(keep).expect("a number of 32 bits");
            let old = superfluous(&line, keep);
            for known in known.iter().filter(|known| old.contains(&known.id())) {
                if users.contains_key(&known.id()) {
                    continue;
                }
                if let Err(error) = self.delete_known(known) {
                    tracing::warn!(snapshot = %known.id(), %error, "an old checkpoint is deleted later");
                }
            }
            if is_settled(&line) {
                unsettled.remove(&sandbox);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sandbox_is_due_once_in_a_period_and_sandboxes_of_one_period_at_different_moments() {
        let (from, every) = (1_700_000_000_000, 300);
        let moment = |sandbox: Uuid| {
            let turns = (0..=300).map(|second| turn_at(from + second * 1000, every, sandbox));
            let turns: Vec<u64> = turns.collect();
            assert_eq!(turns.last(), Some(&(turns[0] + 1)), "once in a period");
            turns.iter().position(|turn| *turn != turns[0])
        };
        let moments: HashSet<_> = (0..1000).map(|_| moment(Uuid::now_v7())).collect();
        assert!(moments.len() > 200, "{} of 300 seconds have a sandbox", moments.len());
    }
}
