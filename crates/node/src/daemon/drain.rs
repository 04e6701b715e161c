//! Pauses the sandboxes of a node for a time, so that the machine can go down: the next daemon resumes them, or this one
//! when it is told to. Those that another node takes go on there.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{Drain, DrainNode, DrainedSandbox, Labels, ResumeSandbox};
use uuid::Uuid;

use super::Daemon;
use super::entry::Entry;
use super::events::About;
use super::record::RecordedLife;
use super::references::Named as _;
use super::sandboxes::Sandboxes;
use super::spreading::{Drained, Spread, shown};

/// Longest wait for guests that were being made when the node was closed.
const MADE_WITHIN: Duration = Duration::from_secs(60);
/// Sandboxes that were moved by drains and are told: the newest.
const MOVED_TOLD_MAX: usize = 10_000;

/// Sandboxes of which a drain has more to say than that they are paused.
type Told = BTreeMap<Uuid, DrainedSandbox>;

impl Daemon {
    /// Pauses the sandboxes that have all of the labels; without labels all of them, and no new guest is taken. Those that
    /// another node takes go on there.
    pub(super) fn drain_node(&self, how: &DrainNode) -> Answer<Drain> {
        let (sandboxes, mut told) = (&self.guests.sandboxes, Told::new());
        let mut spread = sandboxes.spread_over(&how.to)?;
        if how.labels.is_empty() {
            if sandboxes.room.close() {
                self.events.say("daemon.drained", About::default(), None);
            }
            // Those that run need not wait for those that are being made.
            sandboxes.drain_all(&how.labels, &mut spread, &mut told);
            if !sandboxes.room.wait_until_made(MADE_WITHIN) {
                let why = "guests that were being made when the node was closed are not done yet: ask again. Sandboxes that \
                           were paused or moved stay so";
                return Err(Problem::new(Code::NotYet, why));
            }
        }
        sandboxes.drain_all(&how.labels, &mut spread, &mut told);
        let Drain { sandboxes: mut all, closed, fault_sockets } = self.drain_now();
        all.retain(|drained| !told.contains_key(&drained.sandbox));
        all.extend(told.into_values());
        Ok(Drain { closed, sandboxes: all, fault_sockets })
    }

    /// The sandboxes that a drain has paused or moved.
    pub(super) fn drain_now(&self) -> Drain {
        let sockets = self.guests.fault_sockets.all();
        let served = sockets.iter().map(|socket| socket.show()).filter(|socket| socket.pid.is_some());
        Drain {
            closed: self.guests.sandboxes.room.is_closed(),
            sandboxes: self.guests.sandboxes.drained_or_moved(),
            fault_sockets: served.map(|socket| socket.id).collect(),
        }
    }

    /// Takes new guests again, and resumes what a drain has paused; those that it moved are told a last time.
    pub(super) fn undo_drain_of_node(&self) -> Drain {
        let sandboxes = &self.guests.sandboxes;
        if sandboxes.room.open() {
            self.events.say("daemon.reopened", About::default(), None);
        }
        let moved = sandboxes.moved().drain(..).collect::<Vec<_>>();
        let resumed = sandboxes.drained().into_iter().map(|drained| {
            let answer =
                sandboxes.resume(&drained.sandbox.into(), &Asked::default(), &ResumeSandbox::default());
            DrainedSandbox { problem: answer.err().map(|problem| problem.body()), ..drained }
        });
        Drain { sandboxes: resumed.chain(moved).collect(), ..self.drain_now() }
    }
}

impl Sandboxes {
    /// Drains the sandboxes that have all of `labels`. Those that no node took before are not asked for again.
    fn drain_all(&self, labels: &Labels, spread: &mut Spread, told: &mut Told) {
        let has_labels = |entry: &Entry| labels.iter().all(|(name, value)| entry.has_label(name, value));
        for entry in self.registry.all().into_iter().filter(|entry| has_labels(entry)) {
            let life = entry.record().life;
            let is_refused = told.get(&entry.id()).is_some_and(|told| told.not_moved.is_some());
            let is_wanted = match life {
                RecordedLife::Running(_) => true,
                RecordedLife::Drained { .. } => spread.is_asked_for(),
                RecordedLife::Paused
                | RecordedLife::Forked
                | RecordedLife::Stopped { .. }
                | RecordedLife::Lost { .. }
                | RecordedLife::Undecided { .. } => false,
            };
            if !is_wanted || is_refused {
                continue;
            }
            match self.drain_one(&entry, spread) {
                Ok(Drained::Ended | Drained::Paused(None)) => drop(told.remove(&entry.id())),
                Ok(Drained::Paused(not_moved @ Some(_))) => {
                    told.insert(entry.id(), DrainedSandbox { not_moved, ..shown(&entry) });
                }
                Ok(Drained::Moved(moved)) => {
                    told.remove(&entry.id());
                    let mut all = self.moved();
                    let too_many = (all.len() + 1).saturating_sub(MOVED_TOLD_MAX);
                    all.drain(..too_many);
                    all.push(*moved);
                }
                Err(problem) => {
                    tracing::warn!(sandbox = %entry.id(), error = %problem, "a sandbox is not drained");
                    let problem = Some(problem.body());
                    told.insert(entry.id(), DrainedSandbox { problem, ..shown(&entry) });
                }
            }
        }
    }

    /// The sandboxes that drains have moved to other nodes.
    fn moved(&self) -> MutexGuard<'_, Vec<DrainedSandbox>> {
        self.moved_by_drains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drained_or_moved(&self) -> Vec<DrainedSandbox> {
        let mut all = self.drained();
        all.extend(self.moved().iter().cloned());
        all
    }

    /// The sandboxes that are paused by a drain.
    fn drained(&self) -> Vec<DrainedSandbox> {
        let all = self.registry.all();
        let drained = all.iter().filter(|entry| matches!(entry.record().life, RecordedLife::Drained { .. }));
        drained.map(|entry| shown(entry)).collect()
    }

    /// Resumes those that a drain of an earlier daemon paused, until `is_over`; whether none is left.
    pub(super) fn resume_the_drained(&self, is_over: impl Fn() -> bool) -> bool {
        let mut none_is_left = true;
        for entry in self.registry.all() {
            let life = entry.record().life;
            let is_theirs = matches!(life, RecordedLife::Drained { daemon } if daemon != self.daemon);
            if !is_theirs || is_over() {
                continue;
            }
            let resumed = self.resume(&entry.id().into(), &Asked::default(), &ResumeSandbox::default());
            if let Err(error) = resumed {
                tracing::warn!(sandbox = %entry.id(), %error, "a sandbox that a drain paused is resumed later");
                none_is_left = false;
            }
        }
        none_is_left
    }
}
