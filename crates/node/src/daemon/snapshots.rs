//! Snapshots as the API shows them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_engine::catalog::{Change, Kind};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_kernel::{HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};
use uuid::Uuid;

use super::about::About;
use super::events::About as EventAbout;
use super::references::{Named, find};
use super::Daemon;
use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    ListQuery, PageClasses, PlacedLayer, Placement, Snapshot, SnapshotList, SnapshotState, Verification, Volume,
};

/// The catalog's key under which a deletion waits for the last sandbox that runs from the snapshot.
const DELETED: &str = "deleted/";

/// A snapshot with what it says of itself.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) snapshot: Arc<EngineSnapshot>,
    pub(super) about: About,
}

impl Known {
    pub(super) fn of(snapshot: Arc<EngineSnapshot>) -> Self {
        let about = About::of(&snapshot);
        Self { snapshot, about }
    }

    /// Its state as the API shows it; a deletion that waits for running sandboxes counts.
    fn state(&self, daemon: &Daemon) -> SnapshotState {
        if daemon.uses.is_deleted(self.id()) { SnapshotState::Discarded } else { shown(self.snapshot.state()) }
    }

    pub(super) fn show(&self, daemon: &Daemon) -> Snapshot {
        let status = self.snapshot.status();
        let classes = status.classes.map(|classes| PageClasses {
            dirty: classes.dirty,
            zero: classes.zero,
            equal: classes.equal,
            kept: classes.kept,
        });
        Snapshot {
            id: self.id(),
            name: self.about.name.clone(),
            labels: self.about.labels.clone(),
            state: self.state(daemon),
            reason: status.failure,
            parent: self.snapshot.parent_id().map(|id| id.uuid()),
            sandbox: self.about.sandbox,
            generation: self.snapshot.generation(),
            created_unix_ms: self.snapshot.created_unix_ms(),
            volumes: self.snapshot.volumes().iter().map(volume).collect(),
            classes,
            seal_seconds: status.seal_time.map(|time| time.as_secs_f64()),
        }
    }

    /// The snapshot with its name, for people.
    pub(super) fn called(&self) -> String {
        match &self.about.name {
            Some(name) => format!("snapshot {name} ({})", self.id()),
            None => format!("snapshot {}", self.id()),
        }
    }
}

impl Named for Known {
    fn id(&self) -> Uuid {
        self.snapshot.id().uuid()
    }

    fn name(&self) -> Option<&str> {
        self.about.name.as_deref()
    }
}

impl Daemon {
    /// The snapshots that are listed, oldest first.
    pub(super) fn known_snapshots(&self) -> Vec<Known> {
        let mut known: Vec<_> = self.engine.snapshots().into_iter().map(Known::of).collect();
        known.retain(|known| known.state(self) != SnapshotState::Discarded);
        known.sort_by_key(Named::id);
        known
    }

    /// The snapshot that `reference` means; one that only the store knows must be named by its whole id.
    pub(super) fn find_snapshot(&self, reference: &str) -> Answer<Known> {
        let known = self.known_snapshots();
        match find("snapshot", reference, known.iter()) {
            Ok(found) => Ok(found.clone()),
            Err(problem) => match Uuid::try_parse(reference) {
                Ok(id) if problem.code == Code::NotFound && !self.uses.is_deleted(id) => {
                    Ok(Known::of(self.engine.open(SnapshotId::from(id))?))
                }
                Ok(_) | Err(_) => Err(problem),
            },
        }
    }

    /// The snapshot, which can still be read.
    pub(super) fn readable_snapshot(&self, reference: &str) -> Answer<Known> {
        let known = self.find_snapshot(reference)?;
        if known.snapshot.state() == lifecycle::SnapshotState::Lost {
            let reason = known.snapshot.status().failure.unwrap_or_default();
            let why = format!("{} was lost: {reason}", known.called());
            return Err(Problem::new(Code::Lost, why).snapshot(known.snapshot.id()));
        }
        Ok(known)
    }

    pub(super) fn list_snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        let all = self.known_snapshots().into_iter();
        let (snapshots, next) = super::paging::page(all, query, |known| (known.id(), known.about.labels.clone()))?;
        Ok(SnapshotList { snapshots: snapshots.iter().map(|known| known.show(self)).collect(), next })
    }

    pub(super) fn wait_for_snapshot(
        &self,
        reference: &str,
        wanted: SnapshotState,
        limit: Duration,
    ) -> Answer<Snapshot> {
        let known = self.readable_snapshot(reference)?;
        let asked = Instant::now();
        let reached = match wanted {
            SnapshotState::Captured => true,
            SnapshotState::Sealed => known.snapshot.wait_manifest(limit).is_ok(),
            SnapshotState::Published => {
                known.snapshot.wait_state(lifecycle::SnapshotState::Published, limit)
            }
            SnapshotState::Discarded | SnapshotState::Lost => {
                let why = format!("state={wanted:?}: captured, sealed and published can be waited for");
                return Err(Problem::new(Code::InvalidRequest, why));
            }
        };
        if reached {
            return Ok(known.show(self));
        }
        let failure = known.snapshot.status().failure.map_or_else(String::new, |failure| format!("; last: {failure}"));
        let why = format!("{} was not {wanted:?} after {:?}{failure}", known.called(), asked.elapsed());
        Err(Problem::new(Code::NotYet, why).snapshot(known.snapshot.id()))
    }

    /// Deletes a snapshot, once no guest is served from it: until then it is listed no more.
    pub(super) fn delete(&self, reference: &str) -> Answer<()> {
        let known = self.find_snapshot(reference)?;
        let id = known.id();
        if let Some(entry) = self.sandboxes.all().into_iter().find(|entry| entry.is_paused_in(id)) {
            let why = format!("{} is paused in {}; remove it or resume it first", entry.called(), known.called());
            return Err(Problem::new(Code::WrongState, why).sandbox(entry.id()).snapshot(known.snapshot.id()));
        }
        let (key, value) = (format!("{DELETED}{id}").into_bytes(), Vec::new());
        self.catalog.write(&[Change::Put { kind: Kind::Meta, key, value }])?;
        self.uses.delete(id);
        self.events.say("snapshot.deleted", EventAbout::snapshot(id), None);
        self.finish_deletions();
        Ok(())
    }

    /// Lets the engine delete what nobody is served from any more.
    pub(super) fn finish_deletions(&self) {
        for id in self.uses.unused_deleted() {
            if let Some(snapshot) = self.engine.snapshot(SnapshotId::from(id)) {
                self.engine.delete(&snapshot);
            }
            let key = format!("{DELETED}{id}").into_bytes();
            match self.catalog.write(&[Change::Remove { kind: Kind::Meta, key }]) {
                Ok(()) => self.uses.forget(id),
                Err(error) => tracing::warn!(snapshot = %id, %error, "a deletion is finished later"),
            }
        }
    }

    /// The deletions that were waiting when the last daemon ended.
    pub(super) fn deletions_in(
        catalog: &rekindle_engine::catalog::Catalog,
    ) -> Result<Vec<Uuid>, rekindle_engine::catalog::CatalogError> {
        let waiting = |key: Vec<u8>| {
            let key = String::from_utf8(key).ok()?;
            Uuid::try_parse(key.strip_prefix(DELETED)?).ok()
        };
        Ok(catalog.all(Kind::Meta)?.into_iter().filter_map(|(key, _)| waiting(key)).collect())
    }

    pub(super) fn verify(&self, reference: &str) -> Answer<Verification> {
        let known = self.readable_snapshot(reference)?;
        let found = self.engine.verify(&known.snapshot);
        Ok(Verification {
            snapshot: known.id(),
            pages: found.pages,
            wrong_pages: found.wrong_pages,
            first: found.first,
        })
    }

    pub(super) fn place(&self, reference: &str) -> Answer<Placement> {
        let known = self.readable_snapshot(reference)?;
        let layers = known.snapshot.layers_now().into_iter().map(|layer| PlacedLayer {
            id: layer.id.to_string(),
            bytes: layer.bytes,
            local_bytes: layer.local_bytes,
            stored_bytes: layer.stored_bytes,
        });
        let state = known.state(self);
        let origin = matches!(state, SnapshotState::Captured | SnapshotState::Sealed)
            .then(|| self.node_name.clone());
        Ok(Placement { snapshot: known.id(), state, origin, layers: layers.collect() })
    }
}

fn volume(volume: &rekindle_engine::snapshot::Volume) -> Volume {
    let page_bytes = match volume.page_kind {
        PageKind::Small => PAGE_BYTES,
        PageKind::Huge => HUGE_PAGE_BYTES,
    };
    Volume {
        name: volume.name.as_str().to_owned(),
        bytes: u64::from(volume.view.pages()) * 4096,
        page_bytes: u64::try_from(page_bytes).expect("two megabytes at most"),
    }
}

fn shown(state: lifecycle::SnapshotState) -> SnapshotState {
    match state {
        lifecycle::SnapshotState::Captured => SnapshotState::Captured,
        lifecycle::SnapshotState::Sealed => SnapshotState::Sealed,
        lifecycle::SnapshotState::Published => SnapshotState::Published,
        lifecycle::SnapshotState::Lost => SnapshotState::Lost,
        lifecycle::SnapshotState::CapturedForChildren | lifecycle::SnapshotState::Discarded => {
            SnapshotState::Discarded
        }
    }
}
