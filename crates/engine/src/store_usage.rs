//! What the objects of a store are for, in bytes: each object counts once, so that the parts add up to the list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::AddAssign;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::collectable::{Collectable, LayerCopy};
use crate::identity::SnapshotId;
use crate::key_ring::KeyRing;
use crate::limits;
use crate::manifest::Edition;
use crate::store::{Store, StoreError};
use crate::store_manifests::StoredManifest;
use crate::sync::{Mutex, lock};
use crate::tombstones::snapshot_of_tombstone;

/// A number of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// How many there are.
    pub count: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// The objects of one snapshot in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Its manifest, in all editions, and its working sets.
    pub own: Objects,
    /// Layers that no other snapshot names.
    pub unique: Objects,
    /// Layers that others name too.
    pub shared: Objects,
}

impl SnapshotUsage {
    /// Bytes that its deletion gives back, once they are collected.
    #[must_use]
    pub const fn freed_bytes(&self) -> u64 {
        self.own.bytes + self.unique.bytes
    }
}

/// All objects of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// Those of each snapshot that was not deleted.
    pub snapshots: BTreeMap<SnapshotId, SnapshotUsage>,
    /// Layers that several snapshots name, each once.
    pub shared: Objects,
    /// Layers that no manifest names, and what is left of deleted snapshots.
    pub unnamed: Objects,
    /// Everything else: the store's identity, nodes, roots, tombstones.
    pub bookkeeping: Objects,
    /// Snapshots whose manifest this node cannot read: their layers count as unnamed, or as other snapshots'.
    pub unread: BTreeSet<SnapshotId>,
}

/// The layers that each edition of a manifest names.
type LayersByEdition = HashMap<(SnapshotId, Option<Edition>), Arc<[LayerCopy]>>;

/// The layers that manifests name, which never change: each is read once.
#[derive(Debug, Default)]
pub struct ManifestsRead(Mutex<LayersByEdition>);

impl AddAssign<u64> for Objects {
    fn add_assign(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

impl AddAssign for Objects {
    fn add_assign(&mut self, others: Self) {
        self.count += others.count;
        self.bytes += others.bytes;
    }
}

impl StoreUsage {
    /// All objects together.
    #[must_use]
    pub fn total(&self) -> Objects {
        let mut total = self.shared;
        total += self.unnamed;
        total += self.bookkeeping;
        for snapshot in self.snapshots.values() {
            total += snapshot.own;
            total += snapshot.unique;
        }
        total
    }

    /// The objects of a list, by what they are for. `named` has the layers of each snapshot whose manifest was read.
    fn of(listed: &[(String, u64)], named: &BTreeMap<SnapshotId, Arc<[LayerCopy]>>) -> Self {
        let mut users: HashMap<LayerCopy, Vec<SnapshotId>> = HashMap::new();
        for (snapshot, copies) in named {
            copies.iter().for_each(|copy| users.entry(*copy).or_default().push(*snapshot));
        }
        let deleted = deleted_in(listed);
        let mut usage = Self::default();
        for (name, bytes) in listed {
            match name.parse() {
                Ok(Collectable::Manifest(id, _) | Collectable::WorkingSet(id, _))
                    if !deleted.contains(&id) =>
                {
                    usage.snapshots.entry(id).or_default().own += *bytes;
                }
                Ok(Collectable::Manifest(..) | Collectable::WorkingSet(..)) => usage.unnamed += *bytes,
                Ok(Collectable::Layer(copy)) => match users.get(&copy).map(Vec::as_slice) {
                    None | Some([]) => usage.unnamed += *bytes,
                    Some([only]) => usage.snapshots.entry(*only).or_default().unique += *bytes,
                    Some(several) => {
                        usage.shared += *bytes;
                        for id in several {
                            usage.snapshots.entry(*id).or_default().shared += *bytes;
                        }
                    }
                },
                Err(_) => usage.bookkeeping += *bytes,
            }
        }
        usage.unread = usage.snapshots.keys().filter(|id| !named.contains_key(id)).copied().collect();
        usage
    }
}

/// The snapshots whose tombstones are listed.
fn deleted_in(listed: &[(String, u64)]) -> BTreeSet<SnapshotId> {
    listed.iter().filter_map(|(name, _)| snapshot_of_tombstone(name)).collect()
}

/// The newest edition of each snapshot that was not deleted.
fn newest_in(listed: &[(String, u64)]) -> BTreeMap<SnapshotId, Option<Edition>> {
    let deleted = deleted_in(listed);
    let mut newest = BTreeMap::new();
    for (name, _) in listed {
        let Ok(Collectable::Manifest(id, edition)) = name.parse() else { continue };
        if !deleted.contains(&id) {
            let known = newest.entry(id).or_insert(edition);
            *known = edition.max(*known);
        }
    }
    newest
}

impl Store {
    /// Accounts for every object of the store. A page of the list that fails is a list that failed.
    pub(crate) async fn usage(&self, keys: &KeyRing, read: &ManifestsRead) -> Result<StoreUsage, StoreError> {
        let objects = self.checked().await?;
        let named = objects.list(None).map_ok(|object| (object.location.to_string(), object.size));
        let failed = |source| StoreError::from_store(&object_store::path::Path::default(), source);
        let listed: Vec<_> = named.try_collect().await.map_err(failed)?;
        let newest = newest_in(&listed);
        let reading = newest.iter().map(|(id, edition)| async move {
            Ok::<_, StoreError>((*id, self.layers_named_by(*id, *edition, keys, read).await?))
        });
        let reading = stream::iter(reading).buffer_unordered(limits::MANIFESTS_READ_AT_ONCE);
        let found: Vec<_> = reading.try_collect().await?;
        read.keep_only(&newest);
        let named = found.into_iter().filter_map(|(id, copies)| Some((id, copies?))).collect();
        Ok(StoreUsage::of(&listed, &named))
    }

    /// The copies of layers that a manifest names; none if it is gone or cannot be read here.
    async fn layers_named_by(
        &self,
        snapshot: SnapshotId,
        edition: Option<Edition>,
        keys: &KeyRing,
        read: &ManifestsRead,
    ) -> Result<Option<Arc<[LayerCopy]>>, StoreError> {
        let known = lock(&read.0).get(&(snapshot, edition)).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let stored = match self.get_edition(snapshot, edition).await {
            Ok(stored) => stored,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let publication = match stored.publication(snapshot, None, keys) {
            Ok((publication, _)) => publication,
            Err(error) => {
                tracing::debug!(%snapshot, %error, "a manifest in the store cannot be accounted for");
                return Ok(None);
            }
        };
        let layers = publication.manifest().layers().iter().zip(publication.stored());
        let copies: Arc<[LayerCopy]> =
            layers.map(|(layer, stored)| LayerCopy { layer: layer.id, object: stored.object }).collect();
        lock(&read.0).insert((snapshot, edition), Arc::clone(&copies));
        Ok(Some(copies))
    }

    async fn get_edition(
        &self,
        snapshot: SnapshotId,
        edition: Option<Edition>,
    ) -> Result<StoredManifest, StoreError> {
        let path = Collectable::Manifest(snapshot, edition).to_string().into();
        let bytes = self.get_whole(path, limits::MANIFEST_BYTES_MAX).await?;
        Ok(StoredManifest::named(bytes, edition))
    }
}

impl ManifestsRead {
    /// Forgets those that are not in the store any more, or were replaced.
    fn keep_only(&self, newest: &BTreeMap<SnapshotId, Option<Edition>>) {
        lock(&self.0).retain(|(id, edition), _| newest.get(id) == Some(edition));
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
