//! Watches for changes that no request makes: snapshots that come further, guests that end or stall, a keeper that
//! dies.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_engine::catalog::WriteError;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::watch::Watcher;
use rekindle_kernel::ProcessHandle;
use rekindle_kernel::wakeup::{Wakeup, wait_any};
use uuid::Uuid;

use super::Daemon;
use super::clock::unix_ms;
use super::entry::{Entry, GOING_ON};
use super::events::{About, EventLog};
use super::guests::log_name;
use super::lifecycle::put;
use super::record::RecordedLife;
use super::references::Named as _;
use super::snapshots::Snapshots;
use crate::metrics::Metrics;
use crate::vmm::how_ended::reason_of_end;
use crate::vmm::last_words::last_words;

/// Time between two looks at guests' waits, whose changes are not announced.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Words for a thing that the keeper does not hold.
const UNKEPT: &str = "it would not outlive this daemon: it could not be given to the keeper";

/// Tells of snapshots that come further.
#[derive(Debug)]
pub(super) struct SnapshotNews {
    events: Arc<EventLog>,
    metrics: Arc<Metrics>,
    snapshots: Arc<Snapshots>,
    /// The failure that was told last of each snapshot, so that each is told once.
    told: Mutex<HashMap<SnapshotId, String>>,
}

impl SnapshotNews {
    pub(super) fn new(events: Arc<EventLog>, metrics: Arc<Metrics>, snapshots: Arc<Snapshots>) -> Self {
        Self { events, metrics, snapshots, told: Mutex::default() }
    }

    fn told(&self) -> MutexGuard<'_, HashMap<SnapshotId, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watcher for SnapshotNews {
    fn changed(&self, snapshot: &Arc<Snapshot>) {
        let sandbox = self.snapshots.changed(snapshot).sandbox;
        let about = About { sandbox, snapshot: Some(snapshot.id().uuid()) };
        let status = snapshot.status();
        // A snapshot that was deleted while it failed needs no attention any more.
        let failure = status.failure.filter(|_| status.state != SnapshotState::Discarded);
        if let Some(failure) = failure {
            match status.state {
                SnapshotState::Captured | SnapshotState::CapturedForChildren => self.metrics.seal_failed(),
                SnapshotState::Sealed => self.metrics.publish_failed(),
                SnapshotState::Published | SnapshotState::Discarded | SnapshotState::Lost => {}
            }
            let told = self.told().insert(snapshot.id(), failure.clone());
            if told.as_ref() != Some(&failure) {
                self.events.say("snapshot.failing", about, Some(failure));
            }
            return;
        }
        self.told().remove(&snapshot.id());
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
    over: Arc<Over>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Says to a thread that it is over, and wakes it.
#[derive(Debug)]
pub(super) struct Over {
    is_over: AtomicBool,
    wakeup: Wakeup,
}

impl Over {
    /// It is not over yet.
    pub(super) fn not_yet() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self { is_over: AtomicBool::new(false), wakeup: Wakeup::new()? }))
    }

    /// Says so.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.wakeup.wake();
    }

    /// True once the end was signalled.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Wakes the thread beside its work.
    pub(super) fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }
}

/// Findings of the looks before this one.
#[derive(Debug, Default)]
struct Seen {
    /// The sandboxes that were told to be stalled.
    stalled: HashSet<Uuid>,
    /// Faults that the last look and this one found: each is told once as long as it stays.
    wrong_before: HashMap<Wrong, String>,
    wrong: HashMap<Wrong, String>,
    /// Guests that have ended and are still had by an operation: only the next look finds out about them.
    ended: HashSet<Uuid>,
    /// Sandboxes whose guest has ended, which the catalog could not be told.
    unwritten: HashSet<Uuid>,
}

/// Kind of a fault, and the thing it is of.
type Wrong = (&'static str, Option<Uuid>);

impl Seen {
    fn begin(&mut self) {
        self.wrong_before = std::mem::take(&mut self.wrong);
    }

    fn tell(&mut self, what: &'static str, id: Option<Uuid>, error: String) {
        if self.wrong_before.get(&(what, id)) != Some(&error) {
            tracing::error!(id = id.map(tracing::field::display), error, "{what}");
        }
        self.wrong.insert((what, id), error);
    }
}

impl Lookout {
    pub(super) fn start(daemon: &Arc<Daemon>) -> std::io::Result<Self> {
        let over = Over::not_yet()?;
        let (daemon, heard) = (Arc::downgrade(daemon), Arc::clone(&over));
        let work = move || look(&daemon, &heard);
        let thread = std::thread::Builder::new().name("lookout".into()).spawn(work)?;
        Ok(Self { over, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn finish(&self) {
        self.over.end();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(thread.join());
        }
    }
}

fn look(daemon: &Weak<Daemon>, over: &Over) {
    let mut seen = Seen::default();
    while !over.is_over() {
        let Some(daemon) = daemon.upgrade() else { return };
        seen.begin();
        daemon.look_at_keeper(&mut seen);
        daemon.look_at_guests(&mut seen);
        daemon.keep_again(&mut seen);
        daemon.stay(&mut seen);
        let watched = daemon.watched(&seen);
        drop(daemon);
        let fds = watched.iter().map(|process| process.as_fd()).chain([over.wakeup().as_fd()]);
        if let Err(error) = wait_any(&fds.collect::<Vec<_>>(), Some(LOOK_EVERY)) {
            tracing::debug!(%error, "ends of guests are noticed late");
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

impl Daemon {
    /// The processes whose ends must be noticed at once.
    fn watched(&self, seen: &Seen) -> Vec<Arc<ProcessHandle>> {
        let guests = self.sandboxes.all().into_iter().filter(|entry| !seen.ended.contains(&entry.id()));
        let guests = guests.filter_map(|entry| entry.process());
        guests.chain(self.host.keeping.process().filter(|keeper| keeper.is_alive())).collect()
    }

    fn look_at_guests(&self, seen: &mut Seen) {
        let entries = self.sandboxes.all();
        let there: HashSet<Uuid> = entries.iter().map(|entry| entry.id()).collect();
        seen.stalled.retain(|id| there.contains(id));
        seen.ended.clear();
        self.write_ends(&mut seen.unwritten);
        for entry in entries {
            if entry.guest_has_ended() && !self.guest_ended(&entry, &mut seen.unwritten) {
                seen.ended.insert(entry.id());
            }
            if entry.is_stuck() {
                self.let_go_on(&entry);
            }
            for news in entry.take_news() {
                self.events.say("sandbox.reset", About::sandbox(entry.id()), Some(news));
            }
            match (seen.stalled.contains(&entry.id()), entry.stalled()) {
                (false, Some(reason)) => {
                    self.events.say("sandbox.stalled", About::sandbox(entry.id()), Some(reason));
                    seen.stalled.insert(entry.id());
                }
                (true, None) => {
                    self.events.say("sandbox.running", About::sandbox(entry.id()), None);
                    seen.stalled.remove(&entry.id());
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
    }

    /// Handles the unrequested end of a guest; true if that is settled.
    fn guest_ended(&self, entry: &Arc<Entry>, unwritten: &mut HashSet<Uuid>) -> bool {
        // The operation that has the guest finds out by itself; otherwise the next look does.
        let Ok(mut turn) = entry.turn_at_once("has ended") else { return false };
        let mut record = turn.record();
        let Some(mut live) = turn.live.take_if(|live| !live.process().is_alive()) else { return true };
        live.free_memory_if_ended();
        let (guest, told) = (live.id, live.told_end());
        let ending = live.ended();
        let reason = self.reason_of_end(guest, told.as_deref());
        record.life = RecordedLife::Stopped { reason: Some(reason.clone()) };
        let written = self.catalog.write_with_last_room(&[put(&record)]);
        if let Err(error) = written.map_err(WriteError::either_way) {
            tracing::warn!(sandbox = %record.id, %error, "the end of a guest is written down later");
            unwritten.insert(record.id);
        }
        turn.show(record);
        self.let_go_of_images(entry.id());
        self.events.say("sandbox.stopped", About::sandbox(entry.id()), Some(reason));
        drop(turn);
        self.host.endings.end(ending);
        true
    }

    /// Reason of a guest's end, for people: its VMM's account, its status or signal, its last words.
    pub(super) fn reason_of_end(&self, guest: Uuid, told: Option<&str>) -> String {
        let words = last_words(&self.host.run_directory.join(log_name(guest)));
        reason_of_end(self.host.keeping.how_ended(guest), told, &words)
    }

    /// Writes down again which guests have ended, where that failed; until then the next daemon finds it out anew.
    fn write_ends(&self, unwritten: &mut HashSet<Uuid>) {
        unwritten.retain(|id| {
            let Some(entry) = self.sandboxes.get(*id) else { return false };
            let Ok(turn) = entry.turn_at_once("has ended") else { return true };
            let record = turn.record();
            matches!(record.life, RecordedLife::Stopped { .. })
                && self.catalog.write(&[put(&record)]).is_err()
        });
    }

    /// Tries again to let a guest go on that stands although nothing is done with it.
    fn let_go_on(&self, entry: &Arc<Entry>) {
        let Ok(mut turn) = entry.turn_at_once(GOING_ON) else { return };
        if let Some(live) = &mut turn.live
            && live.go_on_if_stuck(&self.host).is_ok()
        {
            tracing::info!(sandbox = %entry.id(), "its guest goes on");
        }
    }

    /// A keeper that died is replaced, and knows of the catalog what the one before it knew.
    fn look_at_keeper(&self, seen: &mut Seen) {
        if !self.host.keeping.is_there()
            && let Err(error) = self.host.keeping.find_again()
        {
            let what = "the keeper cannot be reached; guests would not outlive this daemon";
            seen.tell(what, None, error.to_string());
            return;
        }
        if let Err(error) = self.host.keeping.tell_again() {
            seen.tell("the keeper cannot be told how far the catalog has come", None, error.to_string());
        }
    }

    /// Makes the run directory and the sockets in it again if they were removed.
    fn stay(&self, seen: &mut Seen) {
        if let Err(error) = rekindle_engine::private::make_directory(&self.host.run_directory) {
            seen.tell("the run directory is gone, and cannot be made again", None, error.to_string());
            return;
        }
        for (id, error) in self.fault_sockets.stay() {
            seen.tell("a fault socket was removed, and cannot be made again", Some(id), format!("{error:#}"));
        }
    }

    /// Hands to the keeper what another one was given that is gone. A thing that cannot be handed over now, because it
    /// is in use or was made while the keeper died, is handed over at the next look.
    fn keep_again(&self, seen: &mut Seen) {
        let keeper = self.host.keeping.client();
        let mut unkept: Vec<(Uuid, String)> = Vec::new();
        let snapshots = self.host.keeping.snapshots_elsewhere();
        if !snapshots.is_empty() {
            let origins = self.sandboxes.all().into_iter().filter_map(|entry| entry.base());
            let served = self.fault_sockets.all().into_iter().map(|socket| Arc::clone(&socket.snapshot));
            let failed = self.host.engine.keep_again(&snapshots, origins.chain(served).collect());
            unkept.extend(failed.into_iter().map(|(id, error)| (id.uuid(), error.to_string())));
        }
        for entry in self.sandboxes.all() {
            if entry.is_kept_elsewhere(keeper.identity())
                && let Ok(mut turn) = entry.turn_at_once("is being kept")
                && let Some(live) = &mut turn.live
                && let Err(error) = live.keep_again(&self.host.keeping)
            {
                unkept.push((entry.id(), format!("{error:#}")));
            }
        }
        let sockets = self.fault_sockets.keep_again(&keeper).into_iter();
        unkept.extend(sockets.map(|(id, error)| (id, format!("{error:#}"))));
        for (id, error) in unkept {
            seen.tell(UNKEPT, Some(id), error);
        }
    }
}
