//! A daemon without an engine, for tests of the control API and of the commands: it keeps sandboxes and snapshots in a
//! list, and does what the tests tell it to.

mod answers;
mod checkpoints;
mod control;
mod drains;
mod kept;
mod moves;
mod placing;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rekindle_api::control::Answer;
use rekindle_api::problem::Problem;
use rekindle_api::types::{Event, SandboxState, SnapshotState};
use tokio::sync::broadcast;
use uuid::Uuid;

use kept::Kept;

/// Longest time a test waits for an event that must come.
const HAPPENS_WITHIN: Duration = Duration::from_secs(60);

/// Events that a slow client may be behind.
const EVENTS_BEHIND_MAX: usize = 8;

/// The daemon.
#[derive(Debug)]
pub struct FakeDaemon {
    kept: Mutex<Kept>,
    changed: Condvar,
    events: broadcast::Sender<Event>,
}

impl Default for FakeDaemon {
    fn default() -> Self {
        Self::with_events_from(1)
    }
}

impl FakeDaemon {
    /// A daemon whose first event has this id.
    pub fn with_events_from(first: u64) -> Self {
        let kept = Kept { first_event: first, ..Kept::default() };
        Self {
            kept: Mutex::new(kept),
            changed: Condvar::new(),
            events: broadcast::channel(EVENTS_BEHIND_MAX).0,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings each snapshot to the state that it is waited for, instead of letting the one who waits wait.
    pub fn save_when_waited_for(&self) {
        self.kept().saves_when_waited_for = true;
    }

    /// Makes pauses wait from now on.
    pub fn hold_pauses(&self) {
        self.kept().pauses_held = true;
    }

    /// Lets pauses go on.
    pub fn release_pauses(&self) {
        self.kept().pauses_held = false;
        self.changed.notify_all();
    }

    /// Makes verifications wait until their askers are gone.
    pub fn hold_verifications(&self) {
        self.kept().verifications_held = true;
    }

    /// Returns when this many verifications have begun since the start.
    pub fn until_verifications_begun(&self, count: usize) {
        self.until(|kept| kept.verifications_begun >= count);
    }

    /// Returns when this many verifications are over.
    pub fn until_verifications_over(&self, count: usize) {
        self.until(|kept| kept.verifications_over >= count);
    }

    /// Returns when this many pauses have begun since the start.
    pub fn until_pauses_begun(&self, count: usize) {
        self.until(|kept| kept.pauses_begun >= count);
    }

    /// Returns when a sandbox is in a state.
    pub fn until_sandbox(&self, id: Uuid, state: SandboxState) {
        self.until(|kept| kept.sandboxes[&id].state == state);
    }

    fn until(&self, happened: impl Fn(&Kept) -> bool) {
        let waited = self.changed.wait_timeout_while(self.kept(), HAPPENS_WITHIN, |kept| !happened(kept));
        let (_kept, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "it did not happen");
    }

    /// Makes every request meet a problem.
    pub fn meet(&self, problem: Option<Problem>) {
        self.kept().problem = problem;
    }

    /// Makes asking for a version a bug.
    pub fn panic_on_version(&self) {
        self.kept().panics = true;
    }

    /// Makes this many events come at the instant of each subscription.
    pub fn burst(&self, events: u64) {
        self.kept().burst = events;
    }

    /// Makes the daemon not ready, for these reasons.
    pub fn not_ready(&self, reasons: &[&str]) {
        self.kept().not_ready = reasons.iter().map(|&reason| reason.to_owned()).collect();
    }

    /// Brings a snapshot on.
    pub fn advance(&self, id: Uuid, state: SnapshotState) {
        let mut kept = self.kept();
        kept.snapshots.get_mut(&id).expect("it was made").state = state;
        self.tell(&mut kept, "snapshot.sealed", (None, Some(id)));
        drop(kept);
        self.changed.notify_all();
    }

    /// Tells of an event.
    pub fn say(&self, kind: &str) {
        self.tell(&mut self.kept(), kind, (None, None));
    }

    fn tell(&self, kept: &mut Kept, kind: &str, about: (Option<Uuid>, Option<Uuid>)) {
        let event = kept.add_event(kind, about);
        // A listener is not needed.
        drop(self.events.send(event));
    }

    /// The kept state, for a request that meets no problem.
    fn asked(&self) -> Answer<MutexGuard<'_, Kept>> {
        let kept = self.kept();
        match &kept.problem {
            Some(problem) => Err(problem.clone()),
            None => Ok(kept),
        }
    }
}
