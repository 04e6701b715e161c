//! Watches for changes that no request makes: guests that end or stall, a keeper that dies, sockets that are removed.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rekindle_engine::private::make_directory;
use rekindle_kernel::ProcessHandle;
use rekindle_kernel::wakeup::wait_any;
use uuid::Uuid;

use super::guest_owners::GuestOwners;
use super::over::Over;
use super::sandbox_watch::SeenSandboxes;

/// Time between two looks at guests' waits, whose changes are not announced.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Words for a thing that the keeper does not hold.
const UNKEPT: &str = "it would not outlive this daemon: it could not be given to the keeper";

/// The thread that looks at guests and the keeper.
#[derive(Debug)]
pub(super) struct Lookout {
    over: Arc<Over>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Findings of the looks before this one.
#[derive(Debug, Default)]
struct Seen {
    sandboxes: SeenSandboxes,
    /// Faults that the last look and this one found: each is told once as long as it stays.
    wrong_before: HashMap<Wrong, String>,
    wrong: HashMap<Wrong, String>,
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
    pub(super) fn start(owners: &Arc<GuestOwners>) -> std::io::Result<Self> {
        let over = Over::not_yet()?;
        let (owners, heard) = (Arc::downgrade(owners), Arc::clone(&over));
        let work = move || look(&owners, &heard);
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

fn look(owners: &Weak<GuestOwners>, over: &Over) {
    let mut seen = Seen::default();
    while !over.is_over() {
        let Some(owners) = owners.upgrade() else { return };
        seen.begin();
        owners.look_at_keeper(&mut seen);
        owners.sandboxes.look(&mut seen.sandboxes);
        owners.keep_again(&mut seen);
        owners.stay(&mut seen);
        let watched = owners.watched(&seen.sandboxes);
        drop(owners);
        let fds = watched.iter().map(|process| process.as_fd()).chain([over.wakeup().as_fd()]);
        if let Err(error) = wait_any(&fds.collect::<Vec<_>>(), Some(LOOK_EVERY)) {
            tracing::debug!(%error, "ends of guests are noticed late");
            std::thread::park_timeout(LOOK_EVERY);
        }
    }
}

impl GuestOwners {
    /// The processes whose ends must be noticed at once.
    fn watched(&self, seen: &SeenSandboxes) -> Vec<Arc<ProcessHandle>> {
        let keeper = self.host().keeping.process().filter(|keeper| keeper.is_alive());
        self.sandboxes.processes(seen).into_iter().chain(keeper).collect()
    }

    /// A keeper that died is replaced, and knows of the catalog what the one before it knew.
    fn look_at_keeper(&self, seen: &mut Seen) {
        if !self.host().keeping.is_there()
            && let Err(error) = self.host().keeping.find_again()
        {
            let what = "the keeper cannot be reached; guests would not outlive this daemon";
            seen.tell(what, None, error.to_string());
            return;
        }
        if let Err(error) = self.host().keeping.tell_again() {
            seen.tell("the keeper cannot be told how far the catalog has come", None, error.to_string());
        }
    }

    /// Makes the run directory and the sockets in it again if they were removed.
    fn stay(&self, seen: &mut Seen) {
        if let Err(error) = make_directory(&self.host().run_directory) {
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
        let keeper = self.host().keeping.client();
        let mut unkept: Vec<(Uuid, String)> = Vec::new();
        let snapshots = self.host().keeping.snapshots_elsewhere();
        if !snapshots.is_empty() {
            let origins = self.sandboxes.registry.all().into_iter().filter_map(|entry| entry.base());
            let served =
                self.fault_sockets.all().into_iter().map(|socket| Arc::clone(socket.runs_from.snapshot()));
            let failed = self.host().engine.keep_again(&snapshots, origins.chain(served).collect());
            unkept.extend(failed.into_iter().map(|(id, error)| (id.uuid(), error.to_string())));
        }
        unkept.extend(self.sandboxes.keep_again(keeper.identity()));
        let sockets = self.fault_sockets.keep_again(&keeper).into_iter();
        unkept.extend(sockets.map(|(id, error)| (id, format!("{error:#}"))));
        for (id, error) in unkept {
            seen.tell(UNKEPT, Some(id), error);
        }
    }
}
