//! The snapshots of the catalog, made again at the start of an engine: each as far as it had come.
//!
//! Nothing is asked of the store. Sealed and published ones come from their manifests, captured ones from the keeper,
//! parents before children. What cannot be had again is lost, by name and with the reason, and stays listed so.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use crate::budget::Budget;
use crate::cache::{Cache, OnlyCopyError};
use crate::capture::Capture;
use crate::catalog::{CatalogError, Kind};
use crate::identity::{Domain, LayerId, SnapshotId};
use crate::keep::KeptVolume;
use crate::layer::Layer;
use crate::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use crate::manifest::{LayerName, LocalManifest, Manifest, StoredLayer, VolumeShape};
use crate::open::parts_of;
use crate::page_map::{LayerSlot, PageMap};
use crate::page_set::PageSet;
use crate::reaper::ReaperHandle;
use crate::records::Records;
use crate::snapshot::{Snapshot, SnapshotParts, Volume};
use crate::snapshot_record::{CapturedFacts, SealFacts, SnapshotRecord};
use crate::view::{LiveView, View};

/// What the start of an engine found in its catalog.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replay {
    /// Snapshots whose memory the keeper had.
    pub captured: usize,
    /// Snapshots that are sealed and not published yet.
    pub sealed: usize,
    /// Published snapshots.
    pub published: usize,
    /// Deleted snapshots that are not gone yet.
    pub deleted: usize,
    /// Snapshots that were lost.
    pub lost: Vec<LostSnapshot>,
    /// Files of layers that nobody named, which were removed.
    pub files_removed: usize,
}

/// A snapshot that was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostSnapshot {
    /// Its name.
    pub id: SnapshotId,
    /// Why.
    pub reason: String,
}

/// Why the snapshots of a catalog could not be made again; nothing was changed.
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

/// What an engine starts with.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) known: Vec<Arc<Snapshot>>,
    /// Deleted ones: sandboxes may run from them.
    pub(crate) deleted: Vec<Arc<Snapshot>>,
    pub(crate) seals: Vec<(Arc<Snapshot>, Vec<Arc<Capture>>)>,
    pub(crate) work: Vec<(Arc<Snapshot>, SnapshotWork)>,
    pub(crate) replay: Replay,
}

/// What snapshots are made again with. The cache keeps its files until it is known which of them are needed.
pub(crate) struct Replaying<'a> {
    pub(crate) records: &'a Records,
    pub(crate) cache: &'a Cache,
    pub(crate) budget: &'a Budget,
    pub(crate) reaper: ReaperHandle,
}

/// Why one snapshot could not be made again.
enum Obstacle {
    /// It is lost.
    Lost(String),
    /// That cannot be said now.
    Unknown(ReplayError),
}

impl<E: Into<ReplayError>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Unknown(error.into())
    }
}

/// What the catalog says.
struct Found {
    captured: Vec<(SnapshotId, CapturedFacts)>,
    named: Vec<(LocalManifest, SealFacts, SnapshotState)>,
    deletions: HashSet<SnapshotId>,
    /// Where layers are stored, whichever snapshot knows it.
    stored: HashMap<LayerId, StoredLayer>,
}

/// What was made so far.
struct Made {
    all: HashMap<SnapshotId, Arc<Snapshot>>,
    lost: HashSet<SnapshotId>,
    deletions: HashSet<SnapshotId>,
    replayed: Replayed,
}

impl Replaying<'_> {
    pub(crate) fn replay(&self) -> Result<Replayed, ReplayError> {
        let Found { mut captured, named, deletions, stored } = self.find()?;
        let layers =
            named.iter().flat_map(|(local, ..)| local.manifest().layers().iter().map(|name| name.id));
        let layers: HashSet<LayerId> = layers.collect();
        let mut held: HashSet<SnapshotId> = captured.iter().map(|(id, _)| *id).collect();
        let mut made =
            Made { all: HashMap::new(), lost: HashSet::new(), deletions, replayed: Replayed::default() };
        for (local, facts, state) in named {
            match self.reopen(local.manifest(), &stored) {
                Ok(parts) => made.add_named(parts, state, local.manifest(), facts),
                Err(Obstacle::Lost(reason)) => {
                    made.add_lost(self.lost(lost_parts_of(local.manifest(), self.records), reason)?);
                }
                Err(Obstacle::Unknown(error)) => return Err(error),
            }
        }
        captured.sort_by_key(|(id, facts)| (facts.generation, *id));
        for (id, facts) in captured {
            let kept = self.records.keeper().kept(id).map_err(ReplayError::Keeper)?;
            if kept.as_deref().is_some_and(Records::is_taken_back) {
                self.take_back(id, &mut held);
                continue;
            }
            match self.adopt(id, &facts, kept, &made) {
                Ok((snapshot, captures)) => made.add_captured(snapshot, captures),
                Err(Obstacle::Lost(reason)) => {
                    made.add_lost(self.lost(unread_parts_of(id, facts, self.records), reason)?);
                }
                Err(Obstacle::Unknown(error)) => return Err(error),
            }
        }
        made.replayed.replay.files_removed = self.cache.remove_unnamed(&layers)?;
        self.forget_all_but(&held)?;
        Ok(made.replayed)
    }

    fn find(&self) -> Result<Found, ReplayError> {
        let catalog = self.records.catalog();
        let damaged = |reason: String| CatalogError::Damaged { path: catalog.path().to_owned(), reason };
        let id_of = |key: &[u8]| {
            let bytes = key.try_into().map_err(|_| damaged(format!("{key:02x?} names no snapshot")))?;
            Ok::<_, CatalogError>(SnapshotId::from_bytes(bytes))
        };
        let mut found =
            Found { captured: vec![], named: vec![], deletions: HashSet::new(), stored: HashMap::new() };
        for (key, _) in catalog.all(Kind::Deletion)? {
            found.deletions.insert(id_of(&key)?);
        }
        for (key, value) in catalog.all(Kind::Snapshot)? {
            let id = id_of(&key)?;
            let unreadable = |error| damaged(format!("the record of snapshot {id}: {error}"));
            let (facts, state) = match SnapshotRecord::decode(&value).map_err(unreadable)? {
                SnapshotRecord::Captured(facts) => {
                    found.captured.push((id, facts));
                    continue;
                }
                SnapshotRecord::Sealed(facts) => (facts, SnapshotState::Sealed),
                SnapshotRecord::Published(facts) => (facts, SnapshotState::Published),
            };
            let bytes = catalog.get(Kind::Manifest, &key)?;
            let bytes = bytes.ok_or_else(|| damaged(format!("snapshot {id} has no manifest")))?;
            let local = LocalManifest::decode(&bytes).map_err(unreadable)?;
            let known = local.manifest().layers().iter().zip(local.stored());
            found.stored.extend(known.filter_map(|(name, stored)| Some((name.id, stored.clone()?))));
            found.named.push((local, facts, state));
        }
        Ok(found)
    }

    /// Opens every layer of a manifest.
    fn reopen(
        &self,
        manifest: &Manifest,
        stored: &HashMap<LayerId, StoredLayer>,
    ) -> Result<SnapshotParts, Obstacle> {
        let open = |name: &LayerName| match stored.get(&name.id) {
            Some(stored) => Ok(self.cache.open_stored(name, stored)?),
            None => match self.cache.open_only_copy(name) {
                Err(OnlyCopyError::Io { source, .. }) => Err(source.into()),
                opened => opened.map_err(|error| Obstacle::Lost(error.to_string())),
            },
        };
        let layers = manifest.layers().iter().map(open).collect::<Result<Arc<[_]>, Obstacle>>()?;
        Ok(parts_of(manifest, &layers, Some(self.records)))
    }

    /// Removes the record of a pause that was taken back; where that fails, the keeper's word stays for the next start.
    fn take_back(&self, id: SnapshotId, held: &mut HashSet<SnapshotId>) {
        match self.records.remove(id) {
            Ok(()) => drop(held.remove(&id)),
            Err(error) => {
                tracing::warn!(snapshot = %id, %error, "the record of a pause that was taken back stays until the next start");
            }
        }
    }

    /// Takes a captured snapshot's memory back from the keeper.
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
        let unusable = |reason: &dyn std::fmt::Display| Obstacle::Lost(format!("volume {name}: {reason}"));
        let (memfd, sets) = volume.open().map_err(|error| unusable(&error))?;
        if sets.kept.pages() != pages {
            return Err(unusable(&format_args!("{} pages instead of {pages}", sets.kept.pages())));
        }
        let lease = self.budget.take(memfd.allocated_bytes()?);
        let capture = Capture::adopt(memfd, sets, lease, self.reaper.clone());
        Ok(Arc::new(capture.map_err(|error| unusable(&error))?))
    }

    /// A lost snapshot: its volumes are listed, and every read of them fails.
    fn lost(&self, parts: SnapshotParts, reason: String) -> Result<Snapshot, ReplayError> {
        let mut parts = parts;
        for (position, volume) in parts.volumes.iter_mut().enumerate() {
            let pages = volume.view.pages();
            let nowhere = [parts.id.as_bytes().as_slice(), &position.to_le_bytes()].concat();
            let id = LayerId::from_bytes(blake3::hash(&nowhere).into());
            let name = LayerName { id, domain: Domain::shared(), pages };
            let layers: Arc<[Arc<Layer>]> = [self.cache.open_nowhere(&name)?].into();
            let all = PageSet::full(pages);
            let map = PageMap::zero(pages).overlay(&all, LayerSlot::new(0), &PageSet::new(pages));
            volume.view = Arc::new(LiveView::new(View::flat(map, layers)));
        }
        tracing::error!(snapshot = %parts.id, %reason, "a snapshot is lost");
        Ok(Snapshot::lost(parts, reason))
    }

    /// A pause that was not acknowledged, or a seal that was recorded, may have left memory with the keeper.
    fn forget_all_but(&self, needed: &HashSet<SnapshotId>) -> Result<(), ReplayError> {
        let held = self.records.keeper().held().map_err(ReplayError::Keeper)?;
        held.into_iter().filter(|id| !needed.contains(id)).for_each(|id| self.records.forget(id));
        Ok(())
    }
}

impl Made {
    fn parent(&self, parent: SnapshotId) -> Result<&Arc<Snapshot>, Obstacle> {
        if self.lost.contains(&parent) {
            return Err(Obstacle::Lost(format!("its parent {parent} is lost")));
        }
        let made = self.all.get(&parent);
        made.ok_or_else(|| Obstacle::Lost(format!("its parent {parent} is not in the catalog")))
    }

    fn add_named(
        &mut self,
        parts: SnapshotParts,
        state: SnapshotState,
        manifest: &Manifest,
        facts: SealFacts,
    ) {
        let deleted = self.deletions.contains(&parts.id);
        let (state, work) = match state {
            _ if deleted => (SnapshotState::Discarded, SnapshotWork::RemoveFromStore),
            SnapshotState::Sealed => (state, SnapshotWork::Publish),
            SnapshotState::Captured
            | SnapshotState::CapturedForChildren
            | SnapshotState::Published
            | SnapshotState::Discarded
            | SnapshotState::Lost => (state, SnapshotWork::None),
        };
        let snapshot = Arc::new(Snapshot::named(parts, state, Arc::new(manifest.clone()), facts));
        let replay = &mut self.replayed.replay;
        if !deleted {
            let count =
                if work == SnapshotWork::Publish { &mut replay.sealed } else { &mut replay.published };
            *count += 1;
        }
        self.add(snapshot, deleted, work);
    }

    fn add_captured(&mut self, snapshot: Snapshot, captures: Vec<Arc<Capture>>) {
        let deleted = self.deletions.contains(&snapshot.id());
        if deleted {
            snapshot.record(SnapshotEvent::Deleted);
        } else {
            self.replayed.replay.captured += 1;
        }
        let snapshot = Arc::new(snapshot);
        self.replayed.seals.push((Arc::clone(&snapshot), captures));
        self.add(snapshot, deleted, SnapshotWork::None);
    }

    fn add_lost(&mut self, snapshot: Snapshot) {
        let id = snapshot.id();
        self.lost.insert(id);
        let deleted = self.deletions.contains(&id);
        let mut work = SnapshotWork::None;
        if deleted {
            work = snapshot.record(SnapshotEvent::Deleted);
        } else {
            let reason = snapshot.status().failure.unwrap_or_default();
            self.replayed.replay.lost.push(LostSnapshot { id, reason });
        }
        self.add(Arc::new(snapshot), deleted, work);
    }

    fn add(&mut self, snapshot: Arc<Snapshot>, deleted: bool, work: SnapshotWork) {
        self.all.insert(snapshot.id(), Arc::clone(&snapshot));
        if work != SnapshotWork::None {
            self.replayed.work.push((Arc::clone(&snapshot), work));
        }
        let Replayed { known, deleted: gone, replay, .. } = &mut self.replayed;
        if deleted {
            replay.deleted += 1;
            gone.push(snapshot);
        } else {
            known.push(snapshot);
        }
    }
}

/// What a captured volume stands on.
fn base_of(parent: &Snapshot, position: usize, shape: &VolumeShape) -> Result<Arc<LiveView>, Obstacle> {
    let base = parent.volumes().get(position);
    let base = base.filter(|base| base.name == shape.name && base.view.pages() == shape.pages);
    let base = base.ok_or_else(|| Obstacle::Lost(format!("volume {} is not its parent's", shape.name)))?;
    Ok(Arc::clone(&base.view))
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
fn lost_parts_of(manifest: &Manifest, records: &Records) -> SnapshotParts {
    let shapes = manifest.volumes().iter().map(|volume| VolumeShape {
        name: volume.name.clone(),
        page_kind: volume.page_kind,
        pages: volume.map.pages(),
    });
    let none: Arc<[Arc<Layer>]> = Arc::new([]);
    SnapshotParts { volumes: shapes.map(unread_volume).collect(), ..parts_of(manifest, &none, Some(records)) }
}

/// A volume until its view is known.
fn unread_volume(shape: VolumeShape) -> Volume {
    let VolumeShape { name, page_kind, pages } = shape;
    let view = View::flat(PageMap::zero(pages), Arc::new([]));
    Volume { name, page_kind, view: Arc::new(LiveView::new(view)) }
}
