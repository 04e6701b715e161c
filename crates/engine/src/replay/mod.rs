//! Restores the snapshots of the catalog at the start of an engine, each in the state that it had reached.
//!
//! The store is not read. Sealed and published snapshots are restored from their manifests, captured ones from the
//! keeper, parents before children. A snapshot that cannot be restored is listed as lost, with the reason.

mod made;
mod obstacle;
mod unread;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use crate::budget::Budget;
use crate::cache::{Cache, OnlyCopyError};
use crate::capture::Capture;
use crate::catalog::CatalogError;
use crate::geometry::bytes_of_pages;
use crate::identity::{DomainName, LayerId, SnapshotId};
use crate::keep::KeptVolume;
use crate::layer::Layer;
use crate::life::Work;
use crate::lifecycle::SnapshotState;
use crate::manifest::{LayerName, Manifest, StoredLayer, VolumeShape};
use crate::named::Named;
use crate::open::parts_of;
use crate::peer::Peers;
use crate::reaper::ReaperHandle;
use crate::recorded::{Recorded, RecordedCaptured, RecordedNamed, RecordedRemote};
use crate::records::Records;
use crate::remote::remote_snapshot;
use crate::snapshot::{Snapshot, SnapshotParts, Volume};
use crate::view::{LiveView, View};

use made::Made;
use obstacle::{Obstacle, of_capture, of_kept};
use unread::{unknown_parts_of, unnamed_parts_of, unread, unread_parts_of};

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
    /// Snapshots that another node has.
    pub remote: usize,
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
    pub(crate) peers: &'a dyn Peers,
}

impl Replaying<'_> {
    pub(crate) fn replay(&self) -> Result<Replayed, ReplayError> {
        let found = Recorded::read(self.records.catalog(), self.own_domain())?;
        let layers =
            found.named.iter().flat_map(|named| named.local.manifest().layers().iter().map(|name| name.id));
        let layers: HashSet<LayerId> = layers.collect();
        let captured = found.captured.iter().map(|recorded| recorded.id);
        let mut held: HashSet<SnapshotId> =
            captured.chain(found.unreadable.iter().map(|(id, _)| *id)).collect();
        held.extend(found.remote.iter().map(|remote| remote.of.id));
        let made = Made::new(found.deletions.clone());
        let mut made = self.make(found, made);
        held.retain(|id| !made.replayed.taken_back.contains(id));
        // If this fails, the next start does it: nothing waits for it.
        made.replayed.replay.files_set_aside = self.cache.look_through(&layers).unwrap_or_else(|error| {
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
        let mut made = Made::new(HashMap::new());
        made.before = undecided.into_iter().map(|snapshot| (snapshot.id(), snapshot)).collect();
        made.undecided = made.before.keys().copied().collect();
        for snapshot in decided {
            if snapshot.is_lost() {
                made.lost.insert(snapshot.id());
            }
            made.all.insert(snapshot.id(), snapshot);
        }
        let mut found = Recorded::read(self.records.catalog(), self.own_domain())?;
        found.captured.retain(|recorded| made.before.contains_key(&recorded.id));
        found.remote.retain(|remote| made.before.contains_key(&remote.of.id));
        found.refuted.retain(|(of, _)| made.before.contains_key(&of.id));
        found.named.retain(|named| made.before.contains_key(&named.local.manifest().snapshot()));
        // Their records do not change while this process runs; a later program may be able to read them.
        found.unreadable.clear();
        Ok(self.make(found, made).replayed)
    }

    fn own_domain(&self) -> &DomainName {
        self.cache.keys().own().domain().name()
    }

    fn make(&self, found: Recorded, mut made: Made) -> Made {
        let Recorded { mut captured, named, remote, refuted, unreadable, deletions: _, stored } = found;
        for (id, reason) in unreadable {
            let parts = unknown_parts_of(id, self.own_domain().clone(), self.records);
            made.add_unread(unread(parts, Obstacle::Unknown(reason), Vec::new()));
        }
        for RecordedNamed { local, domain, facts, state } in named {
            match self.reopen(local.manifest(), &stored) {
                Ok(named) => {
                    let parts = parts_of(&named, domain, Some(self.records));
                    let is_published = state == SnapshotState::Published;
                    let snapshot = Snapshot::named(parts, named, is_published, facts);
                    if let Some(edition) = local.edition() {
                        snapshot.editions().note(edition, local.stored().iter().flatten());
                    }
                    made.add_named(snapshot);
                }
                Err((obstacle, opened)) => {
                    let parts = unnamed_parts_of(local.manifest(), domain, self.records);
                    made.add_unread(unread(parts, obstacle, opened));
                }
            }
        }
        for RecordedRemote { of, node } in remote {
            match self.remote(&of, &node) {
                Ok(snapshot) => made.add_remote(snapshot),
                Err(obstacle) => {
                    made.add_unread(unread(unread_parts_of(of, self.records), obstacle, Vec::new()));
                }
            }
        }
        for (of, reason) in refuted {
            let parts = unread_parts_of(of, self.records);
            made.add_unread(unread(parts, Obstacle::Refuted(reason), Vec::new()));
        }
        captured.sort_by_key(|recorded| (recorded.facts.generation, recorded.id));
        for recorded in captured {
            let id = recorded.id;
            let kept = self.records.keeper().kept(id).map_err(|error| ReplayError::Keeper(error).into());
            if let Ok(Some(kept)) = &kept
                && Records::is_taken_back(kept)
            {
                self.take_back(id, &mut made.replayed.taken_back);
                continue;
            }
            match kept.and_then(|kept| self.adopt(&recorded, kept, &made)) {
                Ok((snapshot, captures)) => made.add_captured(snapshot, captures),
                Err(obstacle) => {
                    made.add_unread(unread(unread_parts_of(recorded, self.records), obstacle, Vec::new()));
                }
            }
        }
        made
    }

    /// A snapshot that another node has, with those of its pages that have come.
    fn remote(&self, of: &RecordedCaptured, node: &str) -> Result<Snapshot, Obstacle> {
        let peer = self.peers.at(node).map_err(|error| Obstacle::Unknown(error.to_string()))?;
        let gone = || {
            Obstacle::Refuted(format!(
                "the keeper does not have the pages that had come from node {node}, so they cannot be checked any more: \
                 forget the snapshot here and resume it anew"
            ))
        };
        let kept = self.records.keeper().kept(of.id).map_err(ReplayError::Keeper)?.ok_or_else(gone)?;
        let parts = unread_parts_of(of.clone(), self.records);
        let bytes = of.facts.volumes.iter().map(|volume| bytes_of_pages(volume.pages)).sum();
        let lease = self.budget.take(bytes);
        let made = remote_snapshot(parts, peer, Some(kept), lease, &self.reaper);
        made.map_err(|error| Obstacle::Unknown(format!("the pages that had come from node {node}: {error}")))
    }

    /// Opens every layer of a manifest. If one cannot be opened, the error contains the others: the last handle of a
    /// layer must not be dropped while the catalog names it.
    fn reopen(
        &self,
        manifest: &Manifest,
        stored: &HashMap<LayerId, Vec<StoredLayer>>,
    ) -> Result<Named, (Obstacle, Vec<Arc<Layer>>)> {
        let mut opened = Vec::with_capacity(manifest.layers().len());
        let mut obstacle = None;
        for name in manifest.layers() {
            match self.open_layer(name, stored.get(&name.id).map_or(&[], Vec::as_slice)) {
                Ok(layer) => opened.push(layer),
                Err(other) => obstacle = obstacle.or(Some(other)),
            }
        }
        match obstacle {
            Some(obstacle) => Err((obstacle, opened)),
            None => Ok(Named::new(manifest.clone(), opened)),
        }
    }

    /// Opens a layer that is `stored` at these places. A snapshot that names one of them may be deleted and that object go,
    /// so all of them are remembered.
    fn open_layer(&self, name: &LayerName, stored: &[StoredLayer]) -> Result<Arc<Layer>, Obstacle> {
        match stored {
            [first, others @ ..] => {
                let opened = self.cache.open_stored(name, first);
                let layer = opened.map_err(|error| Obstacle::Unknown(error.to_string()))?;
                others.iter().for_each(|other| layer.facts().add_stored(other));
                Ok(layer)
            }
            [] => self.cache.open_only_copy(name).map_err(|error| match &error {
                OnlyCopyError::Io { .. } | OnlyCopyError::Key { .. } => Obstacle::Unknown(error.to_string()),
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
        recorded: &RecordedCaptured,
        kept: Option<Vec<KeptVolume>>,
        made: &Made,
    ) -> Result<(Snapshot, Vec<Arc<Capture>>), Obstacle> {
        let facts = &recorded.facts;
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
        let parts = SnapshotParts { volumes, ..unread_parts_of(recorded.clone(), self.records) };
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

/// The base of a captured volume.
fn base_of(parent: &Snapshot, position: usize, shape: &VolumeShape) -> Result<Arc<LiveView>, Obstacle> {
    let base = parent.volumes().get(position);
    let base = base.filter(|base| base.name == shape.name && base.view.pages() == shape.pages);
    let base = base.ok_or_else(|| Obstacle::Lost(format!("volume {} is not its parent's", shape.name)))?;
    Ok(Arc::clone(&base.view))
}
