//! What happens without anyone asking: snapshots that come further, guests that end or stall, a keeper that dies.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_engine::catalog::WriteError;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::watch::Watcher;
use uuid::Uuid;

use super::Daemon;
use super::clock::unix_ms;
use super::entry::Entry;
use super::events::{About, EventLog};
use super::lifecycle::put;
use super::record::RecordedLife;
use super::references::Named as _;
use crate::metrics::Metrics;

/// How often guests and the keeper are looked at: they are the world outside, and tell nobody when they end.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Tells of snapshots that come further.
#[derive(Debug)]
pub(super) struct SnapshotNews {
    events: Arc<EventLog>,
    metrics: Arc<Metrics>,
    /// The failure that was told last of each snapshot, so that each is told once.
    told: Mutex<HashMap<SnapshotId, String>>,
}

impl SnapshotNews {
    pub(super) fn new(events: Arc<EventLog>, metrics: Arc<Metrics>) -> Self {
        Self { events, metrics, told: Mutex::default() }
    }
}

impl Watcher for SnapshotNews {
    fn changed(&self, snapshot: &Arc<Snapshot>) {
        let about = About::snapshot(snapshot.id().uuid());
        let status = snapshot.status();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // What was deleted while it failed is nobody's worry any more.
        let failure = status.failure.filter(|_| status.state != SnapshotState::Discarded);
        if let Some(failure) = failure {
            match status.state {
                SnapshotState::Captured | SnapshotState::CapturedForChildren => self.metrics.seal_failed(),
                SnapshotState::Sealed => self.metrics.publish_failed(),
                SnapshotState::Published | SnapshotState::Discarded | SnapshotState::Lost => {}
            }
            if told.insert(snapshot.id(), failure.clone()).as_ref() != Some(&failure) {
                self.events.say("snapshot.failing", about, Some(failure));
            }
            return;
        }
        told.remove(&snapshot.id());
        match status.state {
            SnapshotState::Captured => self.events.say("snapshot.captured", about, None),
            SnapshotState::Sealed => {
                self.metrics.snapshot_sealed(&snapshot.status());
                self.events.say("snapshot.sealed", about, None);
            }
            SnapshotState::Published => {
                let age = Duration::from_millis(unix_ms().saturating_sub(snapshot.created_unix_ms()));
                self.metrics.snapshot_published(age);
                self.events.say("snapshot.published", about, None);
            }
            SnapshotState::CapturedForChildren | SnapshotState::Discarded | SnapshotState::Lost => {}
        }
    }
}

/// The thread that looks at guests and the keeper.
#[derive(Debug)]
pub(super) struct Lookout {
    over: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Lookout {
    pub(super) fn start(daemon: &Arc<Daemon>) -> std::io::Result<Self> {
        let over = Arc::new((Mutex::new(false), Condvar::new()));
        let (daemon, heard) = (Arc::downgrade(daemon), Arc::clone(&over));
        let work = move || look(&daemon, &heard);
        let thread = std::thread::Builder::new().name("lookout".into()).spawn(work)?;
        Ok(Self { over, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn finish(&self) {
        *self.over.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.over.1.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }
}

fn look(daemon: &Weak<Daemon>, (over, changed): &(Mutex<bool>, Condvar)) {
    let mut stalled = HashMap::new();
    let mut is_over = over.lock().unwrap_or_else(PoisonError::into_inner);
    while !*is_over {
        drop(is_over);
        let Some(daemon) = daemon.upgrade() else { return };
        daemon.look_at_guests(&mut stalled);
        daemon.look_at_keeper();
        drop(daemon);
        is_over = over.lock().unwrap_or_else(PoisonError::into_inner);
        is_over = changed
            .wait_timeout_while(is_over, LOOK_EVERY, |over| !*over)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

impl Daemon {
    fn look_at_guests(&self, stalled: &mut HashMap<Uuid, String>) {
        for entry in self.sandboxes.all() {
            if entry.guest_has_ended() {
                self.guest_ended(&entry);
            }
            let now = entry.stalled();
            let before = stalled.get(&entry.id());
            match (before, now) {
                (None, Some(reason)) => {
                    self.events.say("sandbox.stalled", About::sandbox(entry.id()), Some(reason.clone()));
                    stalled.insert(entry.id(), reason);
                }
                (Some(_), None) => {
                    self.events.say("sandbox.running", About::sandbox(entry.id()), None);
                    stalled.remove(&entry.id());
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
    }

    /// A guest ended that nobody ended.
    fn guest_ended(&self, entry: &Arc<Entry>) {
        // Whoever has the guest now finds out by itself; otherwise the next look does.
        let Ok(mut turn) = entry.turn("has ended", Duration::ZERO) else { return };
        let mut record = turn.record();
        let Some(live) = turn.live.take_if(|live| !live.process().is_alive()) else { return };
        let reason = "its guest ended by itself, or was killed by others".to_owned();
        record.life = RecordedLife::Stopped { reason: Some(reason.clone()) };
        if let Err(error) = self.catalog.write(&[put(&record)]).map_err(WriteError::either_way) {
            tracing::warn!(sandbox = %record.id, %error, "the end of a guest is written down later");
            turn.live = Some(live);
            return;
        }
        self.endings.end(live.end());
        turn.show(record);
        self.events.say("sandbox.stopped", About::sandbox(entry.id()), Some(reason));
    }

    /// A keeper that died is replaced, and given again what this daemon has.
    fn look_at_keeper(&self) {
        match self.keeping.find_again() {
            Ok(true) => {}
            Ok(false) => {
                tracing::error!("the keeper died; another one was started and is given everything again");
                self.keep_everything_again();
            }
            Err(error) => {
                tracing::error!(%error, "the keeper cannot be reached; guests would not outlive this daemon")
            }
        }
    }

    fn keep_everything_again(&self) {
        self.engine.keep_again();
        for entry in self.sandboxes.all() {
            let kept = entry
                .turn("is being kept", self.settings().pause_wait)
                .map_err(anyhow::Error::from)
                .and_then(|turn| turn.live.as_ref().map_or(Ok(()), |live| live.keep_again(&self.keeping)));
            if let Err(error) = kept {
                let error = format!("{error:#}");
                tracing::error!(sandbox = %entry.id(), error, "it would not outlive this daemon: the keeper could not be given its guest");
            }
        }
        self.fault_sockets.keep_again(&self.keeping);
    }
}
