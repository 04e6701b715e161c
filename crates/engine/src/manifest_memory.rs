//! The copies that manifests name, remembered from one look of a collector to the next: a manifest never changes.

use std::collections::{BTreeMap, HashMap};

use crate::collectable::LayerCopy;
use crate::identity::SnapshotId;
use crate::manifest::Edition;

/// The copies that the newest manifest of each snapshot names.
#[derive(Debug, Default)]
pub(crate) struct ManifestMemory {
    read: HashMap<SnapshotId, ReadManifest>,
    copies: Vec<LayerCopy>,
    numbers: HashMap<LayerCopy, u32>,
}

#[derive(Debug)]
struct ReadManifest {
    written: WrittenManifest,
    /// Numbers of the copies.
    named: Box<[u32]>,
}

/// One put of a manifest. If the store was brought back to an earlier state, an edition may have another content than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrittenManifest {
    pub(crate) edition: Edition,
    pub(crate) bytes: u64,
    /// Time of the store, in milliseconds since 1970.
    pub(crate) unix_ms: i64,
}

impl ManifestMemory {
    /// The copies that a manifest names, if it was read.
    pub(crate) fn named(
        &self,
        snapshot: SnapshotId,
        written: WrittenManifest,
    ) -> Option<impl Iterator<Item = LayerCopy>> {
        let read = self.read.get(&snapshot).filter(|read| read.written == written)?;
        let copy = |number: &u32| usize::try_from(*number).ok().and_then(|number| self.copies.get(number));
        Some(read.named.iter().filter_map(copy).copied())
    }

    /// A manifest was read, and names these.
    pub(crate) fn remember(&mut self, snapshot: SnapshotId, written: WrittenManifest, named: &[LayerCopy]) {
        let named = named.iter().map(|copy| self.number(*copy)).collect();
        self.read.insert(snapshot, ReadManifest { written, named });
    }

    /// The copies that each manifest names.
    pub(crate) fn all_named(&self) -> BTreeMap<SnapshotId, Vec<LayerCopy>> {
        let named = |(id, read): (&SnapshotId, &ReadManifest)| {
            (*id, self.named(*id, read.written).into_iter().flatten().collect())
        };
        self.read.iter().map(named).collect()
    }

    /// The snapshots whose manifests were read.
    pub(crate) fn snapshots(&self) -> Vec<SnapshotId> {
        self.read.keys().copied().collect()
    }

    /// Forgets all manifests of other snapshots than those that `is_there`, and the copies that only they name.
    pub(crate) fn retain(&mut self, is_there: impl Fn(SnapshotId) -> bool) {
        let before = std::mem::take(self);
        for (snapshot, read) in before.read.iter().filter(|(snapshot, _)| is_there(**snapshot)) {
            let copies: Vec<_> = before.named(*snapshot, read.written).into_iter().flatten().collect();
            self.remember(*snapshot, read.written, &copies);
        }
    }

    fn number(&mut self, copy: LayerCopy) -> u32 {
        *self.numbers.entry(copy).or_insert_with(|| {
            self.copies.push(copy);
            u32::try_from(self.copies.len() - 1).expect("fewer copies than that fit into RAM")
        })
    }
}
