//! Restores the snapshots of the catalog at the start of an engine, each in the state that it had reached.
//!
//! The store is not read. Sealed and published snapshots are restored from their manifests, captured ones from the
//! keeper, parents before children. A snapshot that cannot be restored is listed as lost, with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use rekindle_kernel::PageKind;
use rekindle_kernel::memfd::AdoptError;

use crate::budget::Budget;
use crate::cache::{Cache, OnlyCopyError};
use crate::capture::{Capture, CaptureError};
use crate::catalog::CatalogError;
use crate::identity::{LayerId, SnapshotId, VolumeName};
use crate::keep::{KeptError, KeptVolume};
use crate::layer::Layer;
use crate::life::Work;
use crate::lifecycle::{SnapshotEvent, SnapshotState};
use crate::manifest::{LayerName, Manifest, StoredLayer, VolumeShape};
use crate::named::Named;
use crate::open::parts_of;
use crate::reaper::ReaperHandle;
use crate::recorded::Recorded;
use crate::records::Records;
use crate::snapshot::{Lost, Snapshot, SnapshotParts, Volume};
use crate::snapshot_record::CapturedFacts;
use crate::view::{LiveView, View};

/// Counts of the snapshots that an engine's start found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Snapshots whose memory the keeper had.
    pub captured: usize,
    /// Snapshots that are sealed but not published.
    pub sealed: usize,
    /// Published snapshots.
    pub published: usize,
    /// Deleted snapshots that are still held.
    pub deleted: usize,
    /// Snapshots that were lost.
    pub lost: Vec<LostSnapshot>,
    /// Snapshots whose state cannot be determined now.
    pub undecided: usize,
    /// Layer files that were set aside, since the catalog does not name them.
    pub files_set_aside: usize,
}

/// A lost snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The reason.
    pub reason: String,
}

/// Reason that the snapshots of a catalog could not be restored; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The keeper did not answer.
    #[error("asking the keeper for captured memory: {0}")]
    Keeper(#[source] io::Error),
    /// The local disk failed.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

/// The restored snapshots of an engine's start.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) known: Vec<Arc<Snapshot>>,
    /// Deleted snapshots, from which sandboxes may run.
    pub(crate) deleted: Vec<Arc<Snapshot>>,
    pub(crate) work: Vec<(Arc<Snapshot>, Work)>,
    /// Pauses that were undone before they were acknowledged; they have no records any more.
    pub(crate) taken_back: HashSet<SnapshotId>,
    pub(crate) replay: Replay,
}

/// Sources from which snapshots are restored. The cache keeps its files until it is known which are needed.
pub(crate) struct Replaying<'a> {
    pub(crate) records: &'a Records,
    pub(crate) cache: &'a Cache,
    pub(crate) budget: &'a Budget,
    pub(crate) reaper: ReaperHandle,
}

/// Reason that one snapshot could not be restored.
enum Obstacle {
    /// Its bytes are gone.
    Lost(String),
    /// It cannot be decided now: the disk, the keeper or a record could not be read.
    Unknown(String),
}

impl<E: Into<ReplayError>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Unknown(error.into().to_string())
    }
}

/// Snapshots restored so far.
struct Made {
    all: HashMap<SnapshotId, Arc<Snapshot>>,
    lost: HashSet<SnapshotId>,
    undecided: HashSet<SnapshotId>,
    deletions: HashSet<SnapshotId>,
    /// The snapshots that were undecided until now.
    before: HashMap<SnapshotId, Arc<Snapshot>>,
    replayed: Replayed,
}

impl Replaying<'_> {
    pub(crate) fn replay(&self) -> Result<Replayed, ReplayError> {
        let found = Recorded::read(self.records.catalog())?;
        let layers =
            found.named.iter().flat_map(|(local, ..)| local.manifest().layers().iter().map(|name| name.id));
        let layers: HashSet<LayerId> = layers.collect();
        let captured = found.captured.iter().map(|(id, _)| *id);
        let mut held: HashSet<SnapshotId> =
            captured.chain(found.unreadable.iter().map(|(id, _)| *id)).collect();
        let made = Made::new(found.deletions.clone());
        let mut made = self.make(found, made);
        held.retain(|id| !made.replayed.taken_back.contains(id));
        // If this fails, the next start does it: nothing waits for it.
        made.replayed.replay.files_set_aside =
            self.cache.set_unnamed_aside(&layers).unwrap_or_else(|error| {
                tracing::warn!(%error, "layer files that the catalog does not name stay where they are");
                0
            });
        if let Err(error) = self.forget_all_but(&held) {
            tracing::warn!(%error, "the keeper may hold memory that nobody needs until the next start");
        }
        Ok(made.replayed)
    }

    /// Restores those undecided snapshots that can be restored by now. `there` has all snapshots of the catalog,
    /// deleted ones too: an undecided one knows by itself if it was deleted.
    pub(crate) fn decide(&self, there: &[Arc<Snapshot>]) -> Result<Replayed, ReplayError> {
        let (undecided, decided): (Vec<_>, Vec<_>) =
            there.iter().cloned().partition(|snapshot| snapshot.is_undecided());
        let mut made = Made::new(HashSet::new());
        made.before = undecided.into_iter().map(|snapshot| (snapshot.id(), snapshot)).collect();
        made.undecided = made.before.keys().copied().collect();
        for snapshot in decided {
            if snapshot.is_lost() {
                made.lost.insert(snapshot.id());
            }
            made.all.insert(snapshot.id(), snapshot);
        }
        let mut found = Recorded::read(self.records.catalog())?;
        found.captured.retain(|(id, _)| made.before.contains_key(id));
        found.named.retain(|(local, ..)| made.before.contains_key(&local.manifest().snapshot()));
        // Their records do not change while this process runs; a later program may be able to read them.
        found.unreadable.clear();
        Ok(self.make(found, made).replayed)
    }

    fn make(&self, found: Recorded, mut made: Made) -> Made {
        let Recorded { mut captured, named, unreadable, deletions: _, stored } = found;
        for (id, reason) in unreadable {
            let parts = unknown_parts_of(id, self.records);
            made.add_unread(unread(parts, Obstacle::Unknown(reason), Vec::new()));
        }
        for (local, facts, state) in named {
            match self.reopen(local.manifest(), &stored) {
                Ok(named) => {
                    let parts = parts_of(&named, Some(self.records));
                    let is_published = state == SnapshotState::Published;
                    made.add_named(Snapshot::named(parts, named, is_published, facts));
                }
                Err((obstacle, opened)) => {
                    let parts = unnamed_parts_of(local.manifest(), self.records);
                    made.add_unread(unread(parts, obstacle, opened));
                }
            }
        }
        captured.sort_by_key(|(id, facts)| (facts.generation, *id));
        for (id, facts) in captured {
            let kept = self.records.keeper().kept(id).map_err(|error| ReplayError::Keeper(error).into());
            if let Ok(Some(kept)) = &kept
                && Records::is_taken_back(kept)
            {
                self.take_back(id, &mut made.replayed.taken_back);
                continue;
            }
            match kept.and_then(|kept| self.adopt(id, &facts, kept, &made)) {
                Ok((snapshot, captures)) => made.add_captured(snapshot, captures),
                Err(obstacle) => {
                    made.add_unread(unread(unread_parts_of(id, facts, self.records), obstacle, Vec::new()));
                }
            }
        }
        made
    }

    /// Opens every layer of a manifest. If one cannot be opened, the error contains the others: the last handle of a
    /// layer must not be dropped while the catalog names it.
    fn reopen(
        &self,
        manifest: &Manifest,
        stored: &HashMap<LayerId, StoredLayer>,
    ) -> Result<Named, (Obstacle, Vec<Arc<Layer>>)> {
        let mut opened = Vec::with_capacity(manifest.layers().len());
        let mut obstacle = None;
        for name in manifest.layers() {
            match self.open_layer(name, stored.get(&name.id)) {
                Ok(layer) => opened.push(layer),
                Err(other) => obstacle = obstacle.or(Some(other)),
            }
        }
        match obstacle {
            Some(obstacle) => Err((obstacle, opened)),
            None => Ok(Named::new(manifest.clone(), opened)),
        }
    }

    fn open_layer(&self, name: &LayerName, stored: Option<&StoredLayer>) -> Result<Arc<Layer>, Obstacle> {
        let unknown =
            |error: &io::Error| Obstacle::Unknown(format!("the file of layer {}: {error}", name.id));
        match stored {
            Some(stored) => self.cache.open_stored(name, stored).map_err(|error| unknown(&error)),
            None => self.cache.open_only_copy(name).map_err(|error| match &error {
                OnlyCopyError::Io { source, .. } => unknown(source),
                OnlyCopyError::Absent { .. }
                | OnlyCopyError::Short { .. }
                | OnlyCopyError::NoIndex { .. } => Obstacle::Lost(error.to_string()),
            }),
        }
    }

    /// Removes the record of a pause that was undone; if that fails, the keeper's note stays for the next start.
    fn take_back(&self, id: SnapshotId, taken_back: &mut HashSet<SnapshotId>) {
        match self.records.remove(id) {
            Ok(()) => drop(taken_back.insert(id)),
            Err(error) => {
                tracing::warn!(snapshot = %id, %error, "the record of a pause that was taken back stays until the next start");
            }
        }
    }

    /// Fetches a captured snapshot's memory from the keeper.
    fn adopt(
        &self,
        id: SnapshotId,
        facts: &CapturedFacts,
        kept: Option<Vec<KeptVolume>>,
        made: &Made,
    ) -> Result<(Snapshot, Vec<Arc<Capture>>), Obstacle> {
        let parent = facts.parent.map(|parent| made.parent(parent)).transpose()?;
        let mut kept = kept.ok_or_else(|| Obstacle::Lost("the keeper does not have its memory".into()))?;
        let mut volumes = Vec::with_capacity(facts.volumes.len());
        let mut captures = Vec::with_capacity(facts.volumes.len());
        for (position, shape) in facts.volumes.iter().enumerate() {
            let VolumeShape { name, page_kind, pages } = shape.clone();
            let base = parent.map(|parent| base_of(parent, position, shape)).transpose()?;
            let at = kept.iter().position(|volume| volume.name == name);
            let at =
                at.ok_or_else(|| Obstacle::Lost(format!("the keeper does not have its volume {name}")))?;
            let capture = self.capture(kept.swap_remove(at), pages)?;
            let view = Arc::new(LiveView::new(View::captured(Arc::clone(&capture), base)));
            captures.push(capture);
            volumes.push(Volume { name, page_kind, view });
        }
        let parts = SnapshotParts { volumes, ..unread_parts_of(id, facts.clone(), self.records) };
        Ok((Snapshot::captured(parts, parent.cloned(), &captures), captures))
    }

    fn capture(&self, volume: KeptVolume, pages: u32) -> Result<Arc<Capture>, Obstacle> {
        let name = volume.name.clone();
        let (memfd, sets) = volume.open().map_err(|error| of_kept(&name, &error))?;
        if sets.kept.pages() != pages {
            let found = sets.kept.pages();
            return Err(Obstacle::Lost(format!("volume {name}: {found} pages instead of {pages}")));
        }
        let lease = self.budget.take(memfd.allocated_bytes()?);
        let capture = Capture::adopt(memfd, sets, lease, self.reaper.clone());
        Ok(Arc::new(capture.map_err(|error| of_capture(&name, &error))?))
    }

    /// Makes the keeper forget all other memory: a pause that was not acknowledged, or a recorded seal, may have left
    /// some.
    fn forget_all_but(&self, needed: &HashSet<SnapshotId>) -> io::Result<()> {
        let held = self.records.keeper().held()?;
        held.into_iter().filter(|id| !needed.contains(id)).for_each(|id| self.records.forget(id));
        Ok(())
    }
}

impl Made {
    fn new(deletions: HashSet<SnapshotId>) -> Self {
        Self {
            all: HashMap::new(),
            lost: HashSet::new(),
            undecided: HashSet::new(),
            deletions,
            before: HashMap::new(),
            replayed: Replayed::default(),
        }
    }

    fn parent(&self, parent: SnapshotId) -> Result<&Arc<Snapshot>, Obstacle> {
        if self.undecided.contains(&parent) {
            return Err(Obstacle::Unknown(format!("its parent {parent} cannot be read now")));
        }
        if self.lost.contains(&parent) {
            return Err(Obstacle::Lost(format!("its parent {parent} is lost")));
        }
        let made = self.all.get(&parent);
        made.ok_or_else(|| Obstacle::Lost(format!("its parent {parent} is not in the catalog")))
    }

    fn add_named(&mut self, snapshot: Snapshot) {
        if !self.delete_again(&snapshot) {
            let Replay { sealed, published, .. } = &mut self.replayed.replay;
            *if snapshot.is_published() { published } else { sealed } += 1;
        }
        self.add(snapshot, Vec::new());
    }

    fn add_captured(&mut self, snapshot: Snapshot, captures: Vec<Arc<Capture>>) {
        if !self.delete_again(&snapshot) {
            self.replayed.replay.captured += 1;
        }
        self.add(snapshot, captures);
    }

    /// Adds a snapshot without its bytes.
    fn add_unread(&mut self, snapshot: Snapshot) {
        let (id, status) = (snapshot.id(), snapshot.status());
        let (is_deleted, replay) = (self.delete_again(&snapshot), &mut self.replayed.replay);
        match status.failure.filter(|_| !is_deleted) {
            Some(_) if status.is_undecided => replay.undecided += 1,
            Some(reason) => replay.lost.push(LostSnapshot { id, reason }),
            None => {}
        }
        self.add(snapshot, Vec::new());
        let unread = if status.is_undecided { &mut self.undecided } else { &mut self.lost };
        unread.insert(id);
    }

    /// Marks a snapshot as deleted if it is recorded so; true if it is.
    fn delete_again(&self, snapshot: &Snapshot) -> bool {
        let is_deleted = self.deletions.contains(&snapshot.id());
        if is_deleted {
            snapshot.record(SnapshotEvent::Deleted);
        }
        is_deleted
    }

    /// Adds a snapshot, with the captures of its seal. If it was undecided before, the existing handle takes over the
    /// new state.
    fn add(&mut self, snapshot: Snapshot, captures: Vec<Arc<Capture>>) {
        let id = snapshot.id();
        let (snapshot, is_new) = match self.before.get(&id) {
            Some(before) => (Arc::clone(before), before.decide(&snapshot)),
            None => (Arc::new(snapshot), true),
        };
        self.undecided.remove(&id);
        self.all.insert(id, Arc::clone(&snapshot));
        let Replayed { known, deleted, work, replay, .. } = &mut self.replayed;
        let left = Work::left(&snapshot, captures);
        if is_new && !matches!(left, Work::Nothing) {
            work.push((Arc::clone(&snapshot), left));
        }
        if snapshot.is_deleted() {
            replay.deleted += 1;
            deleted.push(snapshot);
        } else {
            known.push(snapshot);
        }
    }
}

/// The obstacle if a kept volume cannot be opened: after an error of the system it may still exist.
fn of_kept(name: &VolumeName, error: &KeptError) -> Obstacle {
    let reason = format!("volume {name}: {error}");
    match error {
        KeptError::Adopt(AdoptError::Io(_)) | KeptError::Io(_) => Obstacle::Unknown(reason),
        KeptError::Adopt(
            AdoptError::NotMemory { .. } | AdoptError::PageSize { .. } | AdoptError::Resizable { .. },
        )
        | KeptError::Sets(_) => Obstacle::Lost(reason),
    }
}

/// The same for its bytes and its sets, which were opened.
fn of_capture(name: &VolumeName, error: &CaptureError) -> Obstacle {
    let reason = format!("volume {name}: {error}");
    match error {
        CaptureError::Map(_) => Obstacle::Unknown(reason),
        CaptureError::WrongSize { .. } | CaptureError::Overlap { .. } => Obstacle::Lost(reason),
    }
}

/// The base of a captured volume.
fn base_of(parent: &Snapshot, position: usize, shape: &VolumeShape) -> Result<Arc<LiveView>, Obstacle> {
    let base = parent.volumes().get(position);
    let base = base.filter(|base| base.name == shape.name && base.view.pages() == shape.pages);
    let base = base.ok_or_else(|| Obstacle::Lost(format!("volume {} is not its parent's", shape.name)))?;
    Ok(Arc::clone(&base.view))
}

/// A snapshot whose record cannot be read: its memory is one lost page.
fn unknown_parts_of(id: SnapshotId, records: &Records) -> SnapshotParts {
    let shape = VolumeShape { name: VolumeName::memory(), page_kind: PageKind::Small, pages: 1 };
    SnapshotParts {
        id,
        parent_id: None,
        generation: 0,
        created_unix_ms: 0,
        volumes: vec![unread_volume(shape)],
        blobs: BTreeMap::new(),
        records: Some(records.clone()),
    }
}

/// A captured snapshot without its bytes.
fn unread_parts_of(id: SnapshotId, facts: CapturedFacts, records: &Records) -> SnapshotParts {
    SnapshotParts {
        id,
        parent_id: facts.parent,
        generation: facts.generation,
        created_unix_ms: facts.created_unix_ms,
        volumes: facts.volumes.into_iter().map(unread_volume).collect(),
        blobs: facts.blobs,
        records: Some(records.clone()),
    }
}

/// A sealed snapshot without its layers.
fn unnamed_parts_of(manifest: &Manifest, records: &Records) -> SnapshotParts {
    let shapes = manifest.volumes().iter().map(|volume| VolumeShape {
        name: volume.name.clone(),
        page_kind: volume.page_kind,
        pages: volume.map.pages(),
    });
    SnapshotParts {
        id: manifest.snapshot(),
        parent_id: manifest.parent(),
        generation: manifest.generation(),
        created_unix_ms: manifest.created_unix_ms(),
        volumes: shapes.map(unread_volume).collect(),
        blobs: manifest.blobs().clone(),
        records: Some(records.clone()),
    }
}

fn unread_volume(VolumeShape { name, page_kind, pages }: VolumeShape) -> Volume {
    Volume { name, page_kind, view: Arc::new(LiveView::new(View::lost(pages))) }
}

/// A snapshot without its bytes: its volumes are listed, and every read of them fails. It holds the layers that could
/// be opened.
fn unread(parts: SnapshotParts, obstacle: Obstacle, layers: Vec<Arc<Layer>>) -> Snapshot {
    let snapshot = parts.id;
    let (reason, is_undecided) = match obstacle {
        Obstacle::Lost(reason) => {
            tracing::error!(%snapshot, %reason, "a snapshot is lost");
            (reason, false)
        }
        Obstacle::Unknown(reason) => {
            tracing::error!(%snapshot, %reason, "a snapshot cannot be read now; it is tried again");
            (reason, true)
        }
    };
    Snapshot::lost(parts, Lost { reason, is_undecided, _layers: layers })
}
