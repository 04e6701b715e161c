//! The owner of the snapshots: their names and their list, and the operations on them that no sandbox is part of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_api::control::{Answer, Asked};
use rekindle_api::limits;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{
    CreateSandbox, ListQuery, Name, PlacedLayer, Placement, Reference, Snapshot, SnapshotList, SnapshotState,
    StoreVerification, StoreVerificationState, StoredSnapshotList, Verification, WithdrawnSnapshotList,
};
use rekindle_engine::engine::ForgetError;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle;
use rekindle_engine::store_check::StoreFindings;
use uuid::Uuid;

use super::events::{About as EventAbout, EventLog};
use super::host::Host;
use super::known::{Known, shown};
use super::listed_snapshots::ListedSnapshots;
use super::names::{Names, Reserved};
use super::origins::node_name;
use super::references::Named as _;
use super::stored;

/// Longest time that a resume waits for the seal when asked to.
pub(super) const SEAL_WAIT: Duration = Duration::from_secs(600);

/// The snapshots of this node.
#[derive(Debug)]
pub(super) struct Snapshots {
    listed: Arc<ListedSnapshots>,
    names: Names,
    host: Arc<Host>,
    events: Arc<EventLog>,
}

impl Snapshots {
    /// The owner of the snapshots in `listed`, which those of the host's engine come into.
    pub(super) fn new(listed: Arc<ListedSnapshots>, host: Arc<Host>, events: Arc<EventLog>) -> Self {
        Self { listed, names: Names::default(), host, events }
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Known> {
        self.listed.all()
    }

    /// The snapshots and their names, by themselves.
    pub(super) fn listed(&self) -> &ListedSnapshots {
        &self.listed
    }

    /// Takes a name for a new snapshot.
    pub(super) fn reserve(&self, name: Option<&Name>) -> Answer<Reserved<'_>> {
        self.names.reserve("snapshot", name, |name| self.listed.holder(name)).map_err(|(problem, holder)| {
            match holder {
                Some(id) => problem.snapshot(SnapshotId::from(id)),
                None => problem,
            }
        })
    }

    /// The snapshot that `reference` means, also one that only the store knows.
    pub(super) fn find(&self, reference: &Reference) -> Answer<Known> {
        match self.listed.find(reference) {
            Err(problem) if problem.code == Code::NotFound => {
                stored::open(&self.host, &self.listed, reference)
            }
            found => found,
        }
    }

    /// The same, of which another node has the pages if it is not saved yet: the named one, or that of its origin record.
    pub(super) fn find_at(&self, reference: &Reference, node: Option<&str>) -> Answer<Known> {
        let id = match (self.listed.find(reference), Uuid::try_parse(reference), node) {
            (Err(problem), Ok(id), _) if problem.code == Code::NotFound => SnapshotId::from(id),
            (Err(problem), Err(_), Some(_)) if problem.code == Code::NotFound => {
                let why =
                    format!("{reference:?} is no snapshot of this node: with `from`, give its whole id");
                return Err(Problem::new(Code::NotFound, why));
            }
            (Err(problem), Err(_), None) if problem.code == Code::NotFound => return self.find(reference),
            (found, _, _) => return found,
        };
        let snapshot = match node {
            Some(node) => self.host.engine.open_from(id, node)?,
            None => self.host.engine.open_anywhere(id)?,
        };
        self.listed.changed(&snapshot);
        Ok(Known::of(snapshot))
    }

    /// The snapshot, which can still be read.
    pub(super) fn readable(&self, reference: &Reference) -> Answer<Known> {
        Self::still_readable(self.find(reference)?)
    }

    /// The same, also one that is not saved yet, at the node that is named, or that has its origin record.
    pub(super) fn readable_at(&self, reference: &Reference, node: Option<&str>) -> Answer<Known> {
        Self::still_readable(self.find_at(reference, node)?)
    }

    fn still_readable(known: Known) -> Answer<Known> {
        let status = known.snapshot.status();
        if status.is_undecided {
            let reason = status.failure.unwrap_or_default();
            let why = format!("{} cannot be read now, and is tried again: {reason}", known.called());
            return Err(Problem::new(Code::NotYet, why).snapshot(known.snapshot.id()));
        }
        if known.snapshot.state() == lifecycle::SnapshotState::Lost {
            let reason = known.snapshot.status().failure.unwrap_or_default();
            let why = format!("{} was lost: {reason}", known.called());
            return Err(Problem::new(Code::Lost, why).snapshot(known.snapshot.id()));
        }
        Ok(known)
    }

    /// A snapshot on whose disks a new sandbox may boot: of a machine with as much memory, in the sandbox's domain.
    pub(super) fn with_disks(&self, reference: &Reference, wanted: &CreateSandbox) -> Answer<Known> {
        let known = self.readable(reference)?;
        let refused = |why: String| Err(Problem::new(Code::WrongState, why).snapshot(known.snapshot.id()));
        let memory_bytes = u64::from(known.snapshot.memory().pages()) * 4096;
        let domain = known.snapshot.domain();
        if wanted.machine.as_ref().is_some_and(|machine| !machine.disks.is_empty()) {
            refused("`disks_of` stands in place of `disks`: leave one of them out".to_owned())
        } else if known.about.spec.as_ref().is_none_or(|spec| spec.disks().is_empty()) {
            refused(format!("{} has no disks", known.called()))
        } else if memory_bytes != wanted.memory_bytes {
            refused(format!(
                "a machine on the disks of {} has as much memory as it: {memory_bytes} bytes, not {}",
                known.called(),
                wanted.memory_bytes
            ))
        } else if wanted.domain.as_ref().is_some_and(|wanted| wanted != domain) {
            refused(format!("{} is of the domain {domain}, and so is a machine on its disks", known.called()))
        } else {
            Ok(known)
        }
    }

    /// All snapshots in the store, oldest first.
    pub(super) fn list_stored(&self) -> Answer<StoredSnapshotList> {
        stored::list(&self.host)
    }

    /// A snapshot as the API shows it.
    pub(super) fn show(&self, known: &Known) -> Snapshot {
        known.show(self.host.origin.as_ref())
    }

    pub(super) fn list(&self, query: &ListQuery) -> SnapshotList {
        let (snapshots, next) = self.listed.page(query);
        SnapshotList { snapshots: snapshots.iter().map(|known| self.show(known)).collect(), next }
    }

    pub(super) fn wait_for(
        &self,
        reference: &Reference,
        wanted: SnapshotState,
        limit: Duration,
    ) -> Answer<Snapshot> {
        let known = self.readable(reference)?;
        let reached = match wanted {
            SnapshotState::Captured => true,
            SnapshotState::Sealed => known.snapshot.wait_manifest(limit).is_ok(),
            SnapshotState::Published => known.snapshot.wait_state(lifecycle::SnapshotState::Published, limit),
            SnapshotState::Remote
            | SnapshotState::Discarded
            | SnapshotState::Lost
            | SnapshotState::Undecided => {
                let why = format!("state={wanted}: captured, sealed and published can be waited for");
                return Err(Problem::new(Code::InvalidRequest, why));
            }
        };
        if reached {
            return Ok(self.show(&known));
        }
        let failure =
            known.snapshot.status().failure.map_or_else(String::new, |failure| format!("; last: {failure}"));
        let why = format!("{} is {} and not yet {wanted}{failure}", known.called(), known.state());
        Err(Problem::new(Code::NotYet, why).snapshot(known.snapshot.id()))
    }

    /// Waits for the seal if a guest must not be served before it.
    pub(super) fn wait_to_serve(
        &self,
        known: &Known,
        asked: &Asked,
        serve_before_seal: Option<bool>,
    ) -> Answer<()> {
        if serve_before_seal.unwrap_or_else(|| self.host.settings().serve_before_seal) {
            return Ok(());
        }
        let until = Instant::now() + SEAL_WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let turn = left.min(limits::WAIT_TURN);
            if known.snapshot.wait_manifest(turn).is_ok() {
                return Ok(());
            }
            asked.check()?;
            if left == turn {
                let why = format!(
                    "{} was not sealed within {} s, and must not be served before",
                    known.called(),
                    SEAL_WAIT.as_secs()
                );
                return Err(Problem::new(Code::NotYet, why).snapshot(known.snapshot.id()));
            }
        }
    }

    /// Tells of the snapshots that this start found lost; the number of the others.
    pub(super) fn found_again(&self) -> u64 {
        let replay = self.host.engine.replayed();
        for lost in &replay.lost {
            self.host.metrics.snapshot_lost();
            let id = lost.id.uuid();
            let sandbox =
                self.host.engine.snapshot(lost.id).and_then(|lost| self.listed.changed(&lost).sandbox);
            self.events.say(
                "snapshot.lost",
                EventAbout { sandbox, snapshot: Some(id) },
                Some(lost.reason.clone()),
            );
        }
        u64::try_from(replay.captured + replay.sealed + replay.published + replay.remote)
            .expect("they are in memory")
    }

    /// Deletes a snapshot that no sandbox needs any more. Returns the time for which it can be brought back, if it can.
    pub(super) fn delete(&self, known: &Known) -> Answer<Option<Duration>> {
        let window = self.host.settings().undelete_window;
        let can_be_undone = self.host.engine.delete_undoably(&known.snapshot, window)?;
        let about = EventAbout { sandbox: known.about.sandbox, snapshot: Some(known.id()) };
        self.events.say("snapshot.deleted", about, None);
        Ok(can_be_undone.then_some(window))
    }

    /// Brings a deleted snapshot back.
    pub(super) fn undelete(&self, reference: &Reference) -> Answer<Snapshot> {
        let known = stored::undelete(&self.host, &self.listed, reference)?;
        let about = EventAbout { sandbox: known.about.sandbox, snapshot: Some(known.id()) };
        self.events.say("snapshot.undeleted", about, None);
        Ok(self.show(&known))
    }

    /// The deleted snapshots of the store that can be brought back.
    pub(super) fn list_withdrawn(&self) -> Answer<WithdrawnSnapshotList> {
        stored::list_withdrawn(&self.host)
    }

    /// Forgets a snapshot of the store that nothing here uses.
    pub(super) fn forget(&self, known: Known) -> Answer<()> {
        let (called, id, about) = (known.called(), known.id(), Arc::clone(&known.about));
        // A request that finds it in the engine meanwhile lists it again, and uses it.
        self.listed.remove(id);
        let forgotten = self.host.engine.forget(known.snapshot);
        if let Some(there) = self.host.engine.snapshot(SnapshotId::from(id)) {
            self.listed.changed(&there);
        }
        forgotten.map_err(|error| not_forgotten(&called, &error).snapshot(SnapshotId::from(id)))?;
        let about = EventAbout { sandbox: about.sandbox, snapshot: Some(id) };
        self.events.say("snapshot.forgotten", about, None);
        Ok(())
    }

    pub(super) fn verify(&self, reference: &Reference, asked: &Asked) -> Answer<Verification> {
        let known = self.readable(reference)?;
        let found = self.host.engine.verify(&known.snapshot, &asked.asker.still_waits());
        let abandoned = || Problem::new(Code::Abandoned, "the client went away before every page was read");
        let found = found.ok_or_else(abandoned)?;
        Ok(Verification {
            snapshot: known.id(),
            pages: found.pages,
            wrong_pages: found.wrong_pages,
            first: found.first,
            store: shown_findings(found.store),
        })
    }

    pub(super) fn place(&self, reference: &Reference) -> Answer<Placement> {
        // Not looked for in the store, which may not answer.
        let known = Self::still_readable(self.listed.find(reference)?)?;
        let layers = known.snapshot.layers_now().into_iter().map(|layer| PlacedLayer {
            id: layer.id.to_string(),
            bytes: layer.bytes,
            local_bytes: layer.local_bytes,
            stored_bytes: layer.stored_bytes,
        });
        let state = shown(known.snapshot.state());
        let here = matches!(state, SnapshotState::Captured | SnapshotState::Sealed).then(node_name);
        let origin = known.snapshot.status().remote.map(|remote| remote.node).or(here);
        Ok(Placement { snapshot: known.id(), state, origin, layers: layers.collect() })
    }
}

fn shown_findings(found: StoreFindings) -> StoreVerification {
    use StoreVerificationState as State;
    let (state, objects, wrong_objects, reason) = match found {
        StoreFindings::NotPublished => (State::NotPublished, 0, 0, None),
        StoreFindings::NotAsked { reason } => (State::NotAsked, 0, 0, Some(reason)),
        StoreFindings::Asked { objects, wrong_objects, first } => {
            (State::Asked, objects, wrong_objects, first)
        }
    };
    StoreVerification { state, objects, wrong_objects, reason }
}

fn not_forgotten(called: &str, error: &ForgetError) -> Problem {
    let (code, what_to_do) = match error {
        ForgetError::OnlyHere => (Code::WrongState, ": wait until it is published, or delete it"),
        ForgetError::InUse => (Code::WrongState, ": close the fault sockets that serve it, or try again"),
        ForgetError::Unknown => (Code::NotFound, ""),
        ForgetError::Catalog(_) => (Code::DiskFailed, ""),
    };
    Problem::new(code, format!("{called} is not forgotten: {error}{what_to_do}"))
}
