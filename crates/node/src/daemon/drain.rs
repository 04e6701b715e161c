//! Pauses the sandboxes of a node for a time, so that the machine can go down: the next daemon resumes them, or this one
//! when it is told to.

use std::time::Duration;

use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{Drain, DrainNode, DrainedSandbox, Labels, PauseSandbox, ResumeSandbox};
use rekindle_engine::identity::SnapshotId;
use uuid::Uuid;

use super::Daemon;
use super::entry::{Entry, PAUSING};
use super::events::About;
use super::record::RecordedLife;
use super::references::Named as _;
use super::sandboxes::Sandboxes;

/// Longest wait for guests that were being made when the node was closed.
const MADE_WITHIN: Duration = Duration::from_secs(60);

impl Daemon {
    /// Pauses the sandboxes that have all of the labels; without labels all of them, and no new guest is taken.
    pub(super) fn drain_node(&self, how: &DrainNode) -> Answer<Drain> {
        let sandboxes = &self.guests.sandboxes;
        if how.labels.is_empty() {
            if sandboxes.room.close() {
                self.events.say("daemon.drained", About::default(), None);
            }
            // Those that run need not wait for those that are being made.
            sandboxes.pause_for_drain(&how.labels);
            if !sandboxes.room.wait_until_made(MADE_WITHIN) {
                let why = "guests that were being made when the node was closed are not done yet: ask again. What was \
                           paused stays paused";
                return Err(Problem::new(Code::NotYet, why));
            }
        }
        let refused = sandboxes.pause_for_drain(&how.labels);
        Ok(Drain { sandboxes: sandboxes.drained().into_iter().chain(refused).collect(), ..self.drain_now() })
    }

    /// The sandboxes that are paused by a drain.
    pub(super) fn drain_now(&self) -> Drain {
        let sockets = self.guests.fault_sockets.all();
        let served = sockets.iter().map(|socket| socket.show()).filter(|socket| socket.pid.is_some());
        Drain {
            closed: self.guests.sandboxes.room.is_closed(),
            sandboxes: self.guests.sandboxes.drained(),
            fault_sockets: served.map(|socket| socket.id).collect(),
        }
    }

    /// Takes new guests again, and resumes what a drain has paused.
    pub(super) fn undo_drain_of_node(&self) -> Drain {
        let sandboxes = &self.guests.sandboxes;
        if sandboxes.room.open() {
            self.events.say("daemon.reopened", About::default(), None);
        }
        let resumed = sandboxes.drained().into_iter().map(|drained| {
            let answer =
                sandboxes.resume(&drained.sandbox.into(), &Asked::default(), &ResumeSandbox::default());
            DrainedSandbox { problem: answer.err().map(|problem| problem.body()), ..drained }
        });
        Drain { sandboxes: resumed.collect(), ..self.drain_now() }
    }
}

impl Sandboxes {
    /// Pauses the guests of the sandboxes that have all of `labels`; those that could not be paused.
    fn pause_for_drain(&self, labels: &Labels) -> Vec<DrainedSandbox> {
        let has_labels = |entry: &Entry| labels.iter().all(|(name, value)| entry.has_label(name, value));
        let all = self.registry.all().into_iter().filter(|entry| has_labels(entry));
        let running = all.filter(|entry| entry.record().guest().is_some());
        let refused = running.filter_map(|entry| {
            let pause = || {
                let mut turn = entry.turn(PAUSING, self.host.settings().pause_wait, &Asked::default())?;
                if turn.live.is_none() {
                    // It ended, or was paused, meanwhile.
                    return Ok(());
                }
                let drained = RecordedLife::Drained { daemon: self.daemon };
                let (id, how) = (SnapshotId::from(Uuid::now_v7()), PauseSandbox::default());
                let asker = Asked::default().asker;
                self.pause_in_turn(&mut turn, id, how, (drained, Vec::new()), &asker).map(drop)
            };
            let problem = pause().err()?;
            Some(DrainedSandbox { problem: Some(problem.body()), ..shown(&entry) })
        });
        refused.collect()
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

fn shown(entry: &Entry) -> DrainedSandbox {
    let sandbox = entry.show();
    DrainedSandbox { sandbox: sandbox.id, name: sandbox.name, snapshot: sandbox.snapshot, problem: None }
}
