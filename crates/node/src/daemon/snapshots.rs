//! Snapshots as the API shows them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rekindle_engine::identity::SnapshotId;
use rekindle_engine::lifecycle;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_engine::store_check::StoreFindings;
use rekindle_kernel::{HUGE_PAGE_BYTES, PAGE_BYTES, PageKind};
use uuid::Uuid;

use super::Daemon;
use super::about::About;
use super::events::About as EventAbout;
use super::images::images_of;
use super::index::Index;
use super::paging::{Listed, page};
use super::references::Named;
use crate::api::control::{Answer, Asked};
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    Labels, ListQuery, PageClasses, PlacedLayer, Placement, Snapshot, SnapshotList, SnapshotState,
    StoreVerification, StoreVerificationState, Verification, Volume,
};

/// A snapshot with what it says of itself.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) snapshot: Arc<EngineSnapshot>,
    pub(super) about: Arc<About>,
}

/// The snapshots that are listed, each with what it says of itself: that is read once.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Mutex<Listings>);

#[derive(Debug, Default)]
struct Listings {
    index: Index<Known>,
    /// The snapshots that are images, by their sandboxes.
    images: HashMap<Uuid, Uuid>,
}

impl Snapshots {
    /// Lists a snapshot, unless it was deleted; then it is listed no longer. Gives what it says of itself.
    pub(super) fn changed(&self, snapshot: &Arc<EngineSnapshot>) -> Arc<About> {
        let Listings { index, images } = &mut *self.lock();
        let known = match index.get(snapshot.id().uuid()) {
            Some(known) => known.clone(),
            None => Known::of(Arc::clone(snapshot)),
        };
        // Asked under the lock: a deletion is noted first, and takes it out after that.
        if shown(snapshot.state()) == SnapshotState::Discarded {
            index.remove(known.id());
            images.retain(|_, snapshot| *snapshot != known.id());
        } else if index.get(known.id()).is_none() {
            index.insert(known.clone());
            images.extend(images_of(&known.about).map(|sandbox| (sandbox, known.id())));
        }
        known.about
    }

    /// The one that `reference` means.
    fn find(&self, reference: &str) -> Answer<Known> {
        self.lock().index.find("snapshot", reference).cloned()
    }

    /// The id of the one with this name.
    pub(super) fn holder(&self, name: &str) -> Option<Uuid> {
        self.lock().index.named(name).map(Named::id)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Known> {
        self.lock().index.after(None).cloned().collect()
    }

    fn page(&self, query: &ListQuery) -> Answer<(Vec<Known>, Option<Uuid>)> {
        page(self.lock().index.after(query.after), query)
    }

    /// The snapshot that is the images of a sandbox, if there is one.
    pub(super) fn images_of(&self, sandbox: Uuid) -> Option<Known> {
        let listings = self.lock();
        listings.index.get(*listings.images.get(&sandbox)?).cloned()
    }

    /// The sandboxes whose images are snapshots.
    pub(super) fn all_images(&self) -> Vec<Uuid> {
        self.lock().images.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Listings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    pub(super) fn of(snapshot: Arc<EngineSnapshot>) -> Self {
        let about = Arc::new(About::of(&snapshot));
        Self { snapshot, about }
    }

    /// Its stage.
    pub(super) fn state(&self) -> SnapshotState {
        let status = self.snapshot.status();
        if status.is_undecided { SnapshotState::Undecided } else { shown(status.state) }
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
            state: self.state(),
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

impl Listed for Known {
    fn labels(&self) -> &Labels {
        &self.about.labels
    }
}

impl Daemon {
    /// The snapshot that `reference` means; one that only the store knows must be named by its whole id.
    pub(super) fn find_snapshot(&self, reference: &str) -> Answer<Known> {
        let problem = match self.snapshots.find(reference) {
            Ok(found) => return Ok(found),
            Err(problem) => problem,
        };
        match Uuid::try_parse(reference) {
            Ok(id) if problem.code == Code::NotFound => {
                let snapshot = self.host.engine.open(SnapshotId::from(id))?;
                self.snapshots.changed(&snapshot);
                Ok(Known::of(snapshot))
            }
            Ok(_) | Err(_) => Err(problem),
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
        let (snapshots, next) = self.snapshots.page(query)?;
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
    pub(super) fn delete(&self, reference: &str) -> Answer<Uuid> {
        let known = self.find_snapshot(reference)?;
        self.delete_known(&known)?;
        Ok(known.id())
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
        self.host.engine.delete(&known.snapshot)?;
        let about = EventAbout { sandbox: known.about.sandbox, snapshot: Some(id) };
        self.events.say("snapshot.deleted", about, None);
        Ok(())
    }

    pub(super) fn verify(&self, reference: &str, asked: &Asked) -> Answer<Verification> {
        let known = self.readable_snapshot(reference)?;
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
