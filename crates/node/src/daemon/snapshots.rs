//! Snapshots as the API shows them.

use std::sync::Arc;
use std::time::Duration;

use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_kernel::{HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};
use uuid::Uuid;

use super::Daemon;
use super::about::About;
use super::events::About as EventAbout;
use super::references::{Named, find};
use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    ListQuery, PageClasses, PlacedLayer, Placement, Snapshot, SnapshotList, SnapshotState, Verification,
    Volume,
};

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

    /// The snapshot as the API shows it.
    pub(super) fn show(&self) -> Snapshot {
        let status = self.snapshot.status();
        let classes = status.classes.map(|classes| PageClasses {
            dirty: classes.dirty.into(),
            zero: classes.zero.into(),
            equal: classes.equal.into(),
            kept: classes.kept.into(),
        });
        Snapshot {
            id: self.id(),
            name: self.about.name.clone(),
            labels: self.about.labels.clone(),
            state: if status.is_undecided { SnapshotState::Undecided } else { shown(status.state) },
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
        self.engine.snapshots().into_iter().map(Known::of).collect()
    }

    /// The snapshot that `reference` means; one that only the store knows must be named by its whole id.
    pub(super) fn find_snapshot(&self, reference: &str) -> Answer<Known> {
        let known = self.known_snapshots();
        match find("snapshot", reference, known.iter()) {
            Ok(found) => Ok(found.clone()),
            Err(problem) => match Uuid::try_parse(reference) {
                Ok(id) if problem.code == Code::NotFound => {
                    Ok(Known::of(self.engine.open(SnapshotId::from(id))?))
                }
                Ok(_) | Err(_) => Err(problem),
            },
        }
    }

    /// The snapshot, which can still be read.
    pub(super) fn readable_snapshot(&self, reference: &str) -> Answer<Known> {
        let known = self.find_snapshot(reference)?;
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

    pub(super) fn list_snapshots(&self, query: &ListQuery) -> Answer<SnapshotList> {
        let all = self.known_snapshots().into_iter();
        let (snapshots, next) =
            super::paging::page(all, query, |known| (known.id(), known.about.labels.clone()))?;
        Ok(SnapshotList { snapshots: snapshots.iter().map(|known| known.show()).collect(), next })
    }

    pub(super) fn wait_for_snapshot(
        &self,
        reference: &str,
        wanted: SnapshotState,
        limit: Duration,
    ) -> Answer<Snapshot> {
        let known = self.readable_snapshot(reference)?;
        let reached = match wanted {
            SnapshotState::Captured => true,
            SnapshotState::Sealed => known.snapshot.wait_manifest(limit).is_ok(),
            SnapshotState::Published => known.snapshot.wait_state(lifecycle::SnapshotState::Published, limit),
            SnapshotState::Discarded | SnapshotState::Lost | SnapshotState::Undecided => {
                let why = format!("state={wanted}: captured, sealed and published can be waited for");
                return Err(Problem::new(Code::InvalidRequest, why));
            }
        };
        if reached {
            return Ok(known.show());
        }
        let failure =
            known.snapshot.status().failure.map_or_else(String::new, |failure| format!("; last: {failure}"));
        let why = format!("{} is {} and not yet {wanted}{failure}", known.called(), known.show().state);
        Err(Problem::new(Code::NotYet, why).snapshot(known.snapshot.id()))
    }

    /// Deletes a snapshot; guests that are served from it go on.
    #[tracing::instrument(name = "delete", skip(self))]
    pub(super) fn delete(&self, reference: &str) -> Answer<()> {
        self.delete_known(&self.find_snapshot(reference)?)
    }

    /// The same with a snapshot that was found.
    pub(super) fn delete_known(&self, known: &Known) -> Answer<()> {
        let id = known.id();
        if let Some(entry) = self.sandboxes.all().into_iter().find(|entry| entry.is_paused_in(id)) {
            let why =
                format!("{} is paused in {}; remove it or resume it first", entry.called(), known.called());
            return Err(Problem::new(Code::WrongState, why)
                .sandbox(entry.id())
                .snapshot(known.snapshot.id()));
        }
        self.engine.delete(&known.snapshot)?;
        self.events.say("snapshot.deleted", EventAbout::snapshot(id), None);
        Ok(())
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
        let state = shown(known.snapshot.state());
        let origin =
            matches!(state, SnapshotState::Captured | SnapshotState::Sealed).then(|| self.node_name.clone());
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
