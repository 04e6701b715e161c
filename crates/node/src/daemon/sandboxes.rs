//! The owner of the sandboxes: their names and records, and the operations on them. Each group of operations has a file
//! of its own; all of them share what is here.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{DrainedSandbox, ListQuery, Reference, Sandbox, SandboxList};
use rekindle_engine::catalog::Catalog;
use rekindle_engine::snapshot::RemoteStatus;
use uuid::Uuid;

use super::boot_directory::boot_directory;
use super::boot_files::BootFiles;
use super::entry::Turn;
use super::events::EventLog;
use super::freeing::Freeing;
use super::host::Host;
use super::idempotency::Requests;
use super::known::Known;
use super::record::RecordedLife;
use super::references::Named as _;
use super::registry::Registry;
use super::room::Room;
use super::snapshots::Snapshots;

/// The sandboxes of this node.
#[derive(Debug)]
pub(super) struct Sandboxes {
    pub(super) registry: Arc<Registry>,
    pub(super) catalog: Catalog,
    pub(super) requests: Requests,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) room: Arc<Room>,
    pub(super) boot_files: BootFiles,
    pub(super) events: Arc<EventLog>,
    pub(super) host: Arc<Host>,
    /// This daemon, as records of sandboxes name it: another one after each start.
    pub(super) daemon: Uuid,
    /// Those that drains have moved to other nodes, until that is undone.
    pub(super) moved_by_drains: Mutex<Vec<DrainedSandbox>>,
    freeing: Mutex<Option<Freeing>>,
}

impl Sandboxes {
    /// The owner of the sandboxes in `registry`, whose records are in `catalog`; none is there yet.
    pub(super) fn new(
        registry: Arc<Registry>,
        catalog: Catalog,
        snapshots: Arc<Snapshots>,
        room: Arc<Room>,
        events: Arc<EventLog>,
        host: Arc<Host>,
    ) -> anyhow::Result<Self> {
        let boot_files = BootFiles::new(boot_directory(&host), Arc::clone(&registry), Arc::clone(&snapshots));
        let (requests, freeing) = (Requests::new(catalog.clone())?, Mutex::default());
        let (daemon, moved_by_drains) = (Uuid::now_v7(), Mutex::default());
        Ok(Self {
            registry,
            catalog,
            requests,
            snapshots,
            room,
            boot_files,
            events,
            host,
            daemon,
            moved_by_drains,
            freeing,
        })
    }

    /// From now on the memory of guests that end is given back at once.
    pub(super) fn begin_freeing(&self) -> std::io::Result<()> {
        let freeing = Freeing::start(&self.registry)?;
        *self.freeing.lock().unwrap_or_else(PoisonError::into_inner) = Some(freeing);
        Ok(())
    }

    /// Has the ends of guests that have just begun noticed at once.
    pub(super) fn watch_new_guests(&self) {
        if let Some(freeing) = &*self.freeing.lock().unwrap_or_else(PoisonError::into_inner) {
            freeing.look();
        }
    }

    /// Waits for the end of the thread that gives memory back.
    pub(super) fn end_freeing(&self) {
        let freeing = self.freeing.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(freeing);
    }

    /// A page of the sandboxes, oldest first.
    pub(super) fn list(&self, query: &ListQuery) -> SandboxList {
        let (entries, next) = self.registry.page(query);
        SandboxList { sandboxes: entries.iter().map(|entry| entry.show()).collect(), next }
    }

    /// One of them.
    pub(super) fn show(&self, reference: &Reference) -> Answer<Sandbox> {
        self.registry.find(reference).map(|entry| entry.show())
    }

    /// Deletes a snapshot; guests that are served from it go on. The time for which it can be brought back, if it can.
    #[tracing::instrument(name = "delete", skip(self))]
    pub(super) fn delete_snapshot(&self, reference: &Reference) -> Answer<(Uuid, Option<Duration>)> {
        let known = self.snapshots.find(reference)?;
        let window = self.delete_known(&known)?;
        Ok((known.id(), window))
    }

    /// The same with a snapshot that was found.
    pub(super) fn delete_known(&self, known: &Known) -> Answer<Option<Duration>> {
        self.check_not_paused_in(known)?;
        check_is_ours(known)?;
        self.snapshots.delete(known)
    }

    /// Forgets a snapshot of the store on this node.
    #[tracing::instrument(name = "forget", skip(self))]
    pub(super) fn forget_snapshot(&self, reference: &Reference) -> Answer<Uuid> {
        let known = self.snapshots.find(reference)?;
        self.check_not_paused_in(&known)?;
        let id = known.id();
        if let Some(entry) = self.registry.all().into_iter().find(|entry| entry.record().origin() == Some(id))
        {
            let why = format!("{} runs from {}, which stays while it does", entry.called(), known.called());
            return Err(Problem::new(Code::WrongState, why)
                .sandbox(entry.id())
                .snapshot(known.snapshot.id()));
        }
        self.snapshots.forget(known)?;
        Ok(id)
    }

    fn check_not_paused_in(&self, known: &Known) -> Answer<()> {
        let id = known.id();
        let Some(entry) = self.registry.all().into_iter().find(|entry| entry.is_paused_in(id)) else {
            return Ok(());
        };
        let why = format!("{} is paused in {}; remove it or resume it first", entry.called(), known.called());
        Err(Problem::new(Code::WrongState, why).sandbox(entry.id()).snapshot(known.snapshot.id()))
    }
}

/// A snapshot that only another node has is deleted there: what is made of it here could never be saved afterwards.
fn check_is_ours(known: &Known) -> Answer<()> {
    let (called, status) = (known.called(), known.snapshot.status());
    let why = match (status.remote, known.snapshot.refuted()) {
        (Some(RemoteStatus { node, .. }), _) => {
            format!(
                "node {node} has {called}, and it is not in the store yet: delete it there, or forget it here"
            )
        }
        (None, Some(_)) => {
            format!(
                "what came of {called} from another node is wrong, and the store has the right one: forget it here"
            )
        }
        (None, None) => return Ok(()),
    };
    Err(Problem::new(Code::WrongState, why).snapshot(known.snapshot.id()))
}

/// The problem of an operation that needs a running guest.
pub(super) fn not_running(turn: &Turn, wanted: &str) -> Problem {
    let (entry, record) = (turn.entry(), turn.record());
    let (called, state) = (entry.called(), entry.show().state);
    let last = match (&record.life, record.snapshot) {
        (RecordedLife::Stopped { .. } | RecordedLife::Lost { .. }, Some(last)) => {
            let switch = if record.checkpoints.is_some() { "" } else { " --from-last-snapshot" };
            format!("; `rekindle resume {}{switch}` goes on from its last snapshot {last}", entry.reference())
        }
        _ => String::new(),
    };
    let why = format!("{called} is {state}: only a running one can be {wanted}{last}");
    Problem::new(Code::WrongState, why).sandbox(entry.id())
}
