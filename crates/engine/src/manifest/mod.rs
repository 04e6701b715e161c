//! A snapshot in names: the layer of each page of each volume, with its device state and metadata.
//!
//! A manifest grows only by putting layers that exist over another one, so nothing unsealed can be named in it.

mod codec;
mod layer_list;
mod line;
mod local;
mod publication;
mod tables;
#[cfg(test)]
mod tests;
mod version_1;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rekindle_kernel::page::PageKind;

use crate::identity::{Domain, LayerId, NameError, SnapshotId, VolumeName, check_name};
use crate::limits::{
    BLOB_BYTES_MAX, MANIFEST_BLOBS_MAX, MANIFEST_LAYERS_MAX, MANIFEST_PAGES_MAX, MANIFEST_RUNS_MAX,
    MANIFEST_VOLUMES_MAX,
};
use crate::page_map::{LayerSlot, PageMap};
use crate::page_set::PageSet;

pub(crate) use line::{read_blobs, read_parent, read_shape, write_blobs, write_parent, write_shape};
pub use local::LocalManifest;
pub use publication::{Edition, ObjectName, Publication, StoredLayer};
pub(crate) use tables::carried;

/// A snapshot in names; every layer it lists holds at least one page of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    facts: SnapshotFacts,
    parent: Option<SnapshotId>,
    generation: u64,
    layers: Vec<LayerName>,
    volumes: Vec<VolumeManifest>,
}

/// Facts of a manifest's snapshot besides the places of its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The snapshot's name.
    pub snapshot: SnapshotId,
    /// When it was paused, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Device state and metadata by name; names are like those of volumes.
    pub blobs: BTreeMap<String, Bytes>,
}

/// A layer as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerName {
    /// The layer's name.
    pub id: LayerId,
    /// The domain it belongs to, under whose key its name was made.
    pub domain: Domain,
    /// Number of pages it packs.
    pub pages: u32,
}

/// A volume as a manifest describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeManifest {
    /// The volume's name.
    pub name: VolumeName,
    /// The pages its guest maps it with.
    pub page_kind: PageKind,
    /// Its pages' places in the manifest's layers.
    pub map: PageMap,
}

/// A volume that a first manifest starts from: all zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeShape {
    /// The volume's name.
    pub name: VolumeName,
    /// The pages its guest maps it with.
    pub page_kind: PageKind,
    /// Number of its pages of 4096 bytes.
    pub pages: u32,
}

/// A snapshot's changes to one volume.
#[derive(Clone, Debug)]
pub struct VolumeChange<'a> {
    /// The volume's name.
    pub volume: VolumeName,
    /// The layer that was packed and the pages it packs; none where no page was kept.
    pub layer: Option<(LayerName, &'a PageSet)>,
    /// The pages that are zero now.
    pub zero: &'a PageSet,
}

/// Reason that a manifest cannot be made; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// More layers than a reader opens; merging some makes room.
    #[error("the snapshot's pages are in {layers} layers, more than {MANIFEST_LAYERS_MAX}")]
    TooManyLayers {
        /// Number there would be.
        layers: usize,
    },
    /// More runs than a reader takes; merging layers joins runs.
    #[error("the snapshot's pages are in {runs} runs, more than {MANIFEST_RUNS_MAX}")]
    TooManyRuns {
        /// Number there would be.
        runs: u64,
    },
    /// More volumes than a reader takes.
    #[error("the snapshot has {volumes} volumes, more than {MANIFEST_VOLUMES_MAX}")]
    TooManyVolumes {
        /// Number there would be.
        volumes: usize,
    },
    /// More pages than a reader takes.
    #[error("the snapshot's volumes have {pages} pages, more than {MANIFEST_PAGES_MAX}")]
    TooManyPages {
        /// Number there would be.
        pages: u64,
    },
    /// Two volumes have one name.
    #[error("two volumes are named {volume}")]
    SameVolumeTwice {
        /// The name.
        volume: VolumeName,
    },
    /// More blobs than a reader takes.
    #[error("the snapshot has {blobs} blobs, more than {MANIFEST_BLOBS_MAX}")]
    TooManyBlobs {
        /// Number there would be.
        blobs: usize,
    },
    /// A blob is longer than a reader takes.
    #[error("blob {name} has {bytes} bytes, more than {BLOB_BYTES_MAX}")]
    BlobTooLong {
        /// Its name.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// A blob's name names nothing.
    #[error("blob {name:?}: {source}")]
    BlobName {
        /// The text.
        name: String,
        /// The fault in it.
        source: NameError,
    },
}

impl Manifest {
    /// The manifest of a snapshot without parent: the changes over volumes that are all zero.
    pub fn first(
        facts: SnapshotFacts,
        volumes: Vec<VolumeShape>,
        changes: &[VolumeChange<'_>],
    ) -> Result<Self, ManifestError> {
        check_shapes(&volumes)?;
        let zero = |VolumeShape { name, page_kind, pages }| VolumeManifest {
            name,
            page_kind,
            map: PageMap::zero(pages),
        };
        let volumes = volumes.into_iter().map(zero).collect();
        let manifest = Self { facts, parent: None, generation: 0, layers: Vec::new(), volumes };
        manifest.changed(changes)
    }

    /// The manifest of a snapshot that changed this one's volumes so. Costs what the changes cost.
    pub fn overlay(&self, facts: SnapshotFacts, changes: &[VolumeChange<'_>]) -> Result<Self, ManifestError> {
        let generation = self.generation.checked_add(1).expect("nobody pauses 2^64 times");
        assert_ne!(facts.snapshot, self.facts.snapshot, "a snapshot is not its own parent");
        let parent = Some(self.facts.snapshot);
        Self { facts, parent, generation, layers: self.layers.clone(), volumes: self.volumes.clone() }
            .changed(changes)
    }

    /// The snapshot's name.
    #[must_use]
    pub const fn snapshot(&self) -> SnapshotId {
        self.facts.snapshot
    }

    /// The snapshot this one changed; its manifest need not exist any more.
    #[must_use]
    pub const fn parent(&self) -> Option<SnapshotId> {
        self.parent
    }

    /// Number of snapshots before this one in its line.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// When the snapshot was paused, in milliseconds since 1970.
    #[must_use]
    pub const fn created_unix_ms(&self) -> u64 {
        self.facts.created_unix_ms
    }

    /// The layers, each at its slot.
    #[must_use]
    pub fn layers(&self) -> &[LayerName] {
        &self.layers
    }

    /// The volumes.
    #[must_use]
    pub fn volumes(&self) -> &[VolumeManifest] {
        &self.volumes
    }

    /// The volume of this name, if there is one.
    #[must_use]
    pub fn volume(&self, name: &VolumeName) -> Option<&VolumeManifest> {
        self.volumes.iter().find(|volume| volume.name == *name)
    }

    /// Device state and metadata by name.
    #[must_use]
    pub const fn blobs(&self) -> &BTreeMap<String, Bytes> {
        &self.facts.blobs
    }

    fn changed(mut self, changes: &[VolumeChange<'_>]) -> Result<Self, ManifestError> {
        check_blobs(&self.facts.blobs)?;
        for change in changes {
            self.change(change);
        }
        self.drop_dead_layers();
        if self.layers.len() > MANIFEST_LAYERS_MAX {
            return Err(ManifestError::TooManyLayers { layers: self.layers.len() });
        }
        let runs = self.runs_count();
        if runs > MANIFEST_RUNS_MAX.into() {
            return Err(ManifestError::TooManyRuns { runs });
        }
        Ok(self)
    }

    fn change(&mut self, change: &VolumeChange<'_>) {
        let volume = self.volumes.iter_mut().find(|volume| volume.name == change.volume);
        let map = &mut volume.expect("a changed volume is one of the snapshot's").map;
        match &change.layer {
            Some((layer, kept)) => {
                assert_eq!(layer.pages, kept.len(), "a layer packs the pages that were kept");
                let slot = slot_of(&mut self.layers, layer);
                *map = map.overlay(kept, slot, change.zero);
            }
            None => *map = map.overlay(&PageSet::new(map.pages()), slot_at(self.layers.len()), change.zero),
        }
    }

    /// Drops the layers no page lies in. Later layers, the newest first, move into the slots that become free.
    fn drop_dead_layers(&mut self) {
        let is_live =
            |slot: usize| self.volumes.iter().any(|volume| volume.map.live_pages(slot_at(slot)) > 0);
        let mut slots: Vec<usize> = (0..self.layers.len()).collect();
        let mut position = 0;
        while let Some(slot) = slots.get(position) {
            if is_live(*slot) {
                position += 1;
            } else {
                slots.swap_remove(position);
            }
        }
        if slots.len() == self.layers.len() {
            return;
        }
        let mut moved = vec![None; self.layers.len()];
        for (position, slot) in slots.iter().enumerate() {
            moved[*slot] = Some(slot_at(position));
        }
        for volume in &mut self.volumes {
            volume.map = volume.map.renumber(&moved);
        }
        self.layers = slots.iter().map(|slot| self.layers[*slot].clone()).collect();
    }

    /// The runs of all volumes together.
    pub(crate) fn runs_count(&self) -> u64 {
        self.volumes.iter().map(|volume| u64::from(volume.map.runs_count())).sum()
    }
}

/// The slot of a layer: the one it has, for equal bytes may be kept again, or a new one.
fn slot_of(layers: &mut Vec<LayerName>, layer: &LayerName) -> LayerSlot {
    let known = layers.iter().position(|known| known.id == layer.id);
    slot_at(known.unwrap_or_else(|| {
        layers.push(layer.clone());
        layers.len() - 1
    }))
}

fn slot_at(position: usize) -> LayerSlot {
    LayerSlot::new(u16::try_from(position).expect("a manifest has far less layers than there are slots"))
}

/// Checks that a first manifest can start from these volumes.
pub(crate) fn check_shapes(volumes: &[VolumeShape]) -> Result<(), ManifestError> {
    if volumes.len() > MANIFEST_VOLUMES_MAX {
        return Err(ManifestError::TooManyVolumes { volumes: volumes.len() });
    }
    let pages = volumes.iter().map(|volume| u64::from(volume.pages)).sum();
    if pages > MANIFEST_PAGES_MAX.into() {
        return Err(ManifestError::TooManyPages { pages });
    }
    let mut names = BTreeSet::new();
    match volumes.iter().find(|volume| !names.insert(&volume.name)) {
        Some(VolumeShape { name, .. }) => Err(ManifestError::SameVolumeTwice { volume: name.clone() }),
        None => Ok(()),
    }
}

/// Checks that a manifest can have these blobs: asked before a pause is answered, so that its seal cannot fail by them.
pub(crate) fn check_blobs(blobs: &BTreeMap<String, Bytes>) -> Result<(), ManifestError> {
    if blobs.len() > MANIFEST_BLOBS_MAX {
        return Err(ManifestError::TooManyBlobs { blobs: blobs.len() });
    }
    for (name, bytes) in blobs {
        check_name(name).map_err(|source| ManifestError::BlobName { name: name.clone(), source })?;
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(ManifestError::BlobTooLong { name: name.clone(), bytes: bytes.len() });
        }
    }
    Ok(())
}
