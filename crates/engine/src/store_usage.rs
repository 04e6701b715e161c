//! The bytes of a store by the use of its objects: each object counts once, so that the parts add up to the list.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::AddAssign;

use object_store::ObjectMeta;

use crate::collectable::{Collectable, LayerCopy};
use crate::identity::SnapshotId;
use crate::manifest_memory::{ListedManifest, ManifestMemory};
use crate::tombstones::snapshot_of_tombstone;

/// A number of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Their number.
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
    /// Everything else: the store's identity, nodes, roots, tombstones, signs of deletions.
    pub bookkeeping: Objects,
    /// Snapshots whose manifest was not read: their layers count as unnamed, or as other snapshots'.
    pub unread: BTreeSet<SnapshotId>,
}

/// The bytes of a store's snapshots by the use of their objects, as a collector saw them last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredBytes {
    /// Manifests and working sets of snapshots.
    pub own: u64,
    /// Layers that one snapshot names.
    pub unique: u64,
    /// Layers that several snapshots name, each once.
    pub shared: u64,
    /// Objects that no snapshot names: they are being published, or are collected.
    pub unnamed: u64,
}

impl StoredBytes {
    /// The bytes of all objects that could be collected. `memory` has the layers of each snapshot that is there.
    pub(crate) fn of<'a>(
        objects: impl IntoIterator<Item = (&'a Collectable, &'a u64)>,
        memory: &ManifestMemory,
    ) -> Self {
        let users = memory.users();
        let mut bytes = Self::default();
        for (object, size) in objects {
            let part = match object {
                Collectable::Layer(copy) => match memory.number_of(copy).map(|number| users[number]) {
                    None | Some(0) => &mut bytes.unnamed,
                    Some(1) => &mut bytes.unique,
                    Some(_) => &mut bytes.shared,
                },
                Collectable::Manifest(id, _)
                | Collectable::WorkingSet(id, _)
                | Collectable::Withdrawal(id, _)
                | Collectable::Undone(id, _)
                    if memory.has(*id) =>
                {
                    &mut bytes.own
                }
                Collectable::Manifest(..)
                | Collectable::WorkingSet(..)
                | Collectable::Withdrawal(..)
                | Collectable::Undone(..) => &mut bytes.unnamed,
            };
            *part += size;
        }
        bytes
    }
}

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
}

/// A list of all objects, by what their names say.
#[derive(Debug, Default)]
pub(crate) struct ListedObjects {
    /// The manifests of snapshots that were not deleted.
    pub(crate) manifests: Vec<ListedManifest>,
    /// Snapshots with a tombstone.
    pub(crate) deleted: HashSet<SnapshotId>,
    layers: Vec<(LayerCopy, u64)>,
    /// All objects but layers.
    usage: StoreUsage,
}

impl ListedObjects {
    pub(crate) fn of(listed: &[ObjectMeta]) -> Self {
        let tombstones = listed.iter().filter_map(|object| snapshot_of_tombstone(object.location.as_ref()));
        let (mut found, deleted) = (Self::default(), tombstones.collect::<HashSet<_>>());
        let usage = &mut found.usage;
        for object in listed {
            let (name, bytes) = (object.location.as_ref(), object.size);
            match name.parse() {
                Ok(Collectable::Manifest(id, _) | Collectable::WorkingSet(id, _))
                    if deleted.contains(&id) =>
                {
                    usage.unnamed += bytes;
                }
                Ok(Collectable::Manifest(id, edition)) => {
                    usage.snapshots.entry(id).or_default().own += bytes;
                    found.manifests.push(ListedManifest::of(id, edition, object));
                }
                Ok(Collectable::WorkingSet(id, _)) => usage.snapshots.entry(id).or_default().own += bytes,
                Ok(Collectable::Layer(copy)) => found.layers.push((copy, bytes)),
                Ok(Collectable::Withdrawal(..) | Collectable::Undone(..)) | Err(_) => {
                    usage.bookkeeping += bytes;
                }
            }
        }
        Self { deleted, ..found }
    }

    /// The objects by what they are for. `memory` has the layers of each snapshot whose manifest was read.
    pub(crate) fn usage(self, memory: &ManifestMemory) -> StoreUsage {
        let Self { mut usage, layers, .. } = self;
        let users = memory.users();
        let mut copies = vec![Objects::default(); users.len()];
        for (copy, bytes) in layers {
            match memory.number_of(&copy).filter(|number| users[*number] > 0) {
                Some(number) => copies[number] += bytes,
                None => usage.unnamed += bytes,
            }
        }
        for (id, numbers) in memory.all() {
            for number in numbers.filter(|number| copies[*number].count > 0) {
                let of = usage.snapshots.entry(id).or_default();
                *(if users[number] == 1 { &mut of.unique } else { &mut of.shared }) += copies[number];
            }
        }
        let shared = copies.into_iter().zip(users).filter(|(_, users)| *users > 1);
        shared.for_each(|(copy, _)| usage.shared += copy);
        usage.unread = usage.snapshots.keys().filter(|id| !memory.has(**id)).copied().collect();
        usage
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
