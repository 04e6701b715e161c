//! The bytes of a store by the use of its objects: each object counts once, so that the parts add up to the list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::AddAssign;

use crate::collectable::{Collectable, LayerCopy};
use crate::identity::SnapshotId;
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
    /// The bytes of all objects that could be collected. `named` has the layers of each snapshot that is there.
    pub(crate) fn of<'a>(
        objects: impl IntoIterator<Item = (&'a Collectable, &'a u64)>,
        named: &BTreeMap<SnapshotId, Vec<LayerCopy>>,
    ) -> Self {
        let mut users: HashMap<LayerCopy, u32> = HashMap::new();
        named.values().flatten().for_each(|copy| *users.entry(*copy).or_default() += 1);
        let mut bytes = Self::default();
        for (object, size) in objects {
            let part = match object {
                Collectable::Layer(copy) => match users.get(copy) {
                    None => &mut bytes.unnamed,
                    Some(1) => &mut bytes.unique,
                    Some(_) => &mut bytes.shared,
                },
                Collectable::Manifest(id, _)
                | Collectable::WorkingSet(id, _)
                | Collectable::Withdrawal(id, _)
                | Collectable::Undone(id, _)
                    if named.contains_key(id) =>
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

    /// The objects of a list, by what they are for. `named` has the layers of each snapshot whose manifest was read.
    #[must_use]
    pub fn of(listed: &[(String, u64)], named: &BTreeMap<SnapshotId, Vec<LayerCopy>>) -> Self {
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
                Ok(Collectable::Withdrawal(..) | Collectable::Undone(..)) => usage.bookkeeping += *bytes,
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

#[cfg(all(test, not(shuttle)))]
mod tests;
