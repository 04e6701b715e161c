//! Stages that snapshots have reached, from the daemon's events.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rekindle_api::client::{Client, ClientError, Events};
use rekindle_api::types::{Event, SnapshotState};
use uuid::Uuid;

use super::phase::{Durations, Phase};
use crate::load::{ById, World};

/// Follows the events of one daemon until it is gone.
#[derive(Debug)]
pub(crate) struct Saving {
    known: Arc<(Mutex<Known>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// Knowledge from the events.
#[derive(Debug, Default)]
struct Known {
    states: ById<(SnapshotState, u64)>,
    sealed_count: u64,
    durations: Vec<(Phase, Duration)>,
}

/// Stages that snapshots had reached when the daemon ended.
#[derive(Debug)]
pub(crate) struct Saved {
    states: ById<(SnapshotState, u64)>,
}

impl Saving {
    /// Follows the daemon that `client` is of.
    pub(crate) fn follow(client: &Client) -> Result<Self, ClientError> {
        let events = client.events(None)?;
        // Listed after the events were asked for: what comes between is in both.
        let mut known = Known::default();
        for snapshot in World::of(client)?.snapshots.into_values() {
            known.states.insert(snapshot.id, (snapshot.state, 0));
        }
        let known = Arc::new((Mutex::new(known), Condvar::new()));
        let thread = thread::spawn({
            let known = Arc::clone(&known);
            move || listen(events, &known)
        });
        Ok(Self { known, thread: Some(thread) })
    }

    /// Waits until one more snapshot is sealed.
    pub(crate) fn wait_sealed(&self, limit: Duration) {
        let known = lock(&self.known.0);
        let before = known.sealed_count;
        let waited = self.known.1.wait_timeout_while(known, limit, |known| known.sealed_count == before);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until nothing is being saved.
    pub(crate) fn wait_saved(&self, limit: Duration) {
        let is_saving = |known: &mut Known| {
            let busy =
                |state: &SnapshotState| matches!(state, SnapshotState::Captured | SnapshotState::Sealed);
            known.states.values().any(|(state, _)| busy(state))
        };
        let waited = self.known.1.wait_timeout_while(lock(&self.known.0), limit, is_saving);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Stages told so far.
    pub(crate) fn so_far(&self) -> Saved {
        Saved { states: lock(&self.known.0).states.clone() }
    }

    /// Stages told before the daemon ended, which it has.
    pub(crate) fn finish(mut self, durations: &mut Durations) -> Saved {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("listening does not panic");
        }
        let known = std::mem::take(&mut *lock(&self.known.0));
        known.durations.into_iter().for_each(|(phase, took)| durations.note(phase, took));
        Saved { states: known.states }
    }
}

impl Saved {
    /// Phases of snapshots under way.
    pub(crate) fn phases(&self) -> impl Iterator<Item = Phase> {
        self.states.values().filter_map(|(state, _)| match state {
            SnapshotState::Captured => Some(Phase::Sealing),
            SnapshotState::Sealed => Some(Phase::Publishing),
            SnapshotState::Published
            | SnapshotState::Remote
            | SnapshotState::Discarded
            | SnapshotState::Lost
            | SnapshotState::Undecided => None,
        })
    }

    /// True if a snapshot is safe from the loss of the keeper.
    pub(crate) fn is_sealed(&self, snapshot: Uuid) -> bool {
        let state = self.states.get(&snapshot).map(|(state, _)| *state);
        matches!(state, Some(SnapshotState::Sealed | SnapshotState::Published))
    }
}

/// Takes in events until there are no more.
fn listen(events: Events, known: &(Mutex<Known>, Condvar)) {
    for event in events {
        let Ok(event) = event else { return };
        lock(&known.0).take_in(&event);
        known.1.notify_all();
    }
}

impl Known {
    fn take_in(&mut self, event: &Event) {
        let Some(snapshot) = event.snapshot else { return };
        let state = match event.kind.as_str() {
            "snapshot.captured" => SnapshotState::Captured,
            "snapshot.sealed" => SnapshotState::Sealed,
            "snapshot.published" => SnapshotState::Published,
            "snapshot.deleted" => SnapshotState::Discarded,
            "snapshot.lost" => SnapshotState::Lost,
            _ => return,
        };
        let before = self.states.insert(snapshot, (state, event.unix_ms));
        let since =
            before.filter(|(_, since)| *since > 0).map(|(_, since)| event.unix_ms.saturating_sub(since));
        let took = since.map(Duration::from_millis);
        match (state, took) {
            (SnapshotState::Sealed, took) => {
                self.sealed_count += 1;
                self.durations.extend(took.map(|took| (Phase::Sealing, took)));
            }
            (SnapshotState::Published, Some(took)) => self.durations.push((Phase::Publishing, took)),
            (
                SnapshotState::Captured
                | SnapshotState::Published
                | SnapshotState::Remote
                | SnapshotState::Discarded
                | SnapshotState::Lost
                | SnapshotState::Undecided,
                _,
            ) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
