//! A seal: compares a capture with its parent, packs the pages that differ into a layer, and makes a manifest on top of
//! the parent's.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_kernel::{Holder, Holding};

use crate::cache::Cache;
use crate::capture::{Capture, Proven};
use crate::catalog::CatalogError;
use crate::compare::{PageClasses, compare};
use crate::fetch::{FetchError, Fetcher};
use crate::frame::FrameNumber;
use crate::hooks::Hooks;
use crate::identity::{LayerId, SnapshotId, VolumeName};
use crate::key_ring::{DomainKey, NoKeyOfDomain};
use crate::layer::{Layer, NeededHere};
use crate::lifecycle::SnapshotWork;
use crate::limits;
use crate::local_file::LocalFile;
use crate::manifest::{LayerName, Manifest, ManifestError, SnapshotFacts, VolumeChange, VolumeShape};
use crate::merge::{frames_to_bring, merge, slots_to_merge};
use crate::named::Named;
use crate::pack::{PackError, pack};
use crate::page_map::LayerSlot;
use crate::page_set::PageSet;
use crate::precedence::{GiveWayLimit, Precedence};
use crate::records::Records;
use crate::snapshot::{SealParts, Snapshot, Volume};
use crate::snapshot_record::SealFacts;
use crate::view::{PackedPages, View};

/// Tools and rules of all seals.
#[derive(Debug)]
pub(crate) struct Sealer {
    cache: Arc<Cache>,
    fetcher: Fetcher,
    sealing: Sealing,
    precedence: Precedence,
    hooks: Arc<dyn Hooks>,
}

/// Rules of all seals.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealing {
    /// Threads that compare one snapshot.
    pub(crate) workers: usize,
    /// Layers of a parent's manifest from which on some are merged.
    pub(crate) merge_at_layers: usize,
}

/// Reason that a step of a seal failed; nothing is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("asking the kernel for the proof that the captured memory is not written any more: {0}")]
    Proof(io::Error),
    #[error(
        "the captured memory can still be written: process {} ({}) holds its file; end that process", .0.pid, .0.name
    )]
    Held(Holder),
    #[error(
        "nothing proves that the captured memory is not written: its file cannot be sealed, and process {} ({}) cannot be looked at; run the daemon as root (or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH), or hand over a file without F_SEAL_SEAL", .0.pid, .0.name
    )]
    Unseen(Holder),
    #[error("comparing: {0}")]
    Compare(#[from] rekindle_kernel::LostBytes),
    #[error("packing: {0}")]
    Pack(#[from] PackError),
    #[error("fetching pages to merge: {0}")]
    Merge(#[from] FetchError),
    #[error("naming: {0}")]
    Manifest(#[from] ManifestError),
    #[error("recording: {0}")]
    Catalog(#[from] CatalogError),
    #[error("its parent {parent} is refuted: {reason}")]
    Refuted { parent: SnapshotId, reason: String },
    #[error(transparent)]
    Key(#[from] NoKeyOfDomain),
}

/// The layers of a snapshot's volumes, on the disk and in their views.
#[derive(Debug)]
#[must_use = "packed volumes are to get a manifest"]
pub(crate) struct Packed {
    volumes: Vec<PackedPages>,
    frozen_at: Instant,
    parts: SealParts,
}

/// The named parent of a snapshot that is being named.
#[derive(Debug)]
pub(crate) struct NamedParent {
    snapshot: Arc<Snapshot>,
    named: Named,
    merges: Merges,
}

/// The layers of a parent to merge, if it has too many.
#[derive(Debug)]
pub(crate) struct Merges {
    /// The slots of each volume.
    slots: Vec<Vec<LayerSlot>>,
    /// The frames that the merge reads and that are not on this node.
    frames: Vec<(Arc<LocalFile>, FrameNumber)>,
}

/// A sealed snapshot's manifest; its views are already flat.
#[derive(Debug)]
#[must_use = "a sealed snapshot is to be recorded"]
pub(crate) struct Sealed {
    named: Named,
    /// Taken before the record is written.
    needed_here: Vec<Arc<NeededHere>>,
    seal_time: Duration,
    parts: SealParts,
}

impl Sealer {
    pub(crate) fn new(
        cache: Arc<Cache>,
        fetcher: Fetcher,
        sealing: Sealing,
        precedence: Precedence,
        hooks: Arc<dyn Hooks>,
    ) -> Self {
        Self { cache, fetcher, sealing, precedence, hooks }
    }

    /// Points at which tests can stop a seal.
    pub(crate) fn hooks(&self) -> &dyn Hooks {
        &*self.hooks
    }

    /// Compares and packs every volume and puts the layers into the views. The captures are frozen; `parts` has the
    /// times so far.
    pub(crate) fn pack(
        &self,
        snapshot: &Snapshot,
        captures: &[Arc<Capture>],
        frozen_at: Instant,
        mut parts: SealParts,
    ) -> Result<Packed, SealError> {
        let give_way_limit = GiveWayLimit::new(&self.precedence);
        let key = self.cache.keys().of_domain(snapshot.domain())?;
        let parent = snapshot.parent();
        let mut classes = PageClasses::default();
        let mut volumes = Vec::with_capacity(captures.len());
        for (position, (capture, volume)) in captures.iter().zip(snapshot.volumes()).enumerate() {
            let base = parent.as_ref().map(|parent| Arc::clone(&parent.volumes()[position].view));
            let compared = timed("compare", &mut parts.compare, || {
                compare(capture, base.as_deref(), self.sealing.workers, &give_way_limit, &*self.hooks)
            })?;
            classes.add(compared.classes);
            let packed =
                timed("pack", &mut parts.pack, || pack(compared, &self.cache, key, &give_way_limit))?;
            let captured = volume.view.load();
            // False only if an earlier try came this far; its view has the same content.
            volume.view.improve(&captured, View::packed(packed.clone(), base));
            volumes.push(packed);
        }
        snapshot.record_classes(classes);
        Ok(Packed { volumes, frozen_at, parts })
    }

    /// Chooses the layers of a parent to merge for its child.
    pub(crate) fn plan_merges(&self, parent: &Snapshot, named: &Named) -> Merges {
        let maps: Vec<_> = named.manifest().volumes().iter().map(|named| &named.map).collect();
        let slots = slots_to_merge(&maps, self.sealing.merge_at_layers);
        let volumes = parent.volumes().iter().zip(maps).zip(&slots);
        let frames =
            volumes.flat_map(|((volume, map), slots)| frames_to_bring(map, &volume.view, slots)).collect();
        Merges { slots, frames }
    }

    /// Fetches the frames to merge, so that the merge itself waits for nothing outside. If they are unavailable,
    /// merging is left to another pause, as long as there is room for more layers.
    pub(crate) async fn bring(
        &self,
        snapshot: Arc<Snapshot>,
        named: Named,
        mut merges: Merges,
    ) -> Result<NamedParent, SealError> {
        for (file, frame) in std::mem::take(&mut merges.frames) {
            if let Err(error) = self.fetcher.bring(&file, frame).await {
                if is_full(&named) {
                    return Err(error.into());
                }
                tracing::warn!(snapshot = %snapshot.id(), %error, "layers are not merged now");
                merges.slots.iter_mut().for_each(Vec::clear);
                break;
            }
        }
        Ok(NamedParent { snapshot, named, merges })
    }

    /// Makes the manifest, this snapshot's layers on top of the parent's, and flattens the views. Naming began at
    /// `begun`, with the wait for the parent.
    pub(crate) fn name(
        &self,
        snapshot: &Snapshot,
        packed: &Packed,
        parent: Option<&NamedParent>,
        begun: Instant,
    ) -> Result<Sealed, SealError> {
        let named = match parent {
            Some(parent) => self.overlay(snapshot, packed, parent)?,
            None => {
                let changes = own_changes(snapshot, packed);
                let manifest = Manifest::first(facts(snapshot), shapes(snapshot), &borrowed(&changes))?;
                with_handles(manifest, packed.layers())
            }
        };
        flatten(snapshot, &named);
        let parts = SealParts { name: begun.elapsed(), ..packed.parts };
        let needed_here = named.need_here();
        Ok(Sealed { named, needed_here, seal_time: packed.frozen_at.elapsed(), parts })
    }

    fn overlay(
        &self,
        snapshot: &Snapshot,
        packed: &Packed,
        NamedParent { snapshot: parent, named, merges }: &NamedParent,
    ) -> Result<Named, SealError> {
        let key = self.cache.keys().of_domain(snapshot.domain())?;
        let merged = self.merge(parent, named, key, &merges.slots)?;
        let mut changes = merged_changes(snapshot, &merged);
        changes.extend(own_changes(snapshot, packed));
        let manifest = named.manifest().overlay(facts(snapshot), &borrowed(&changes))?;
        Ok(with_handles(
            manifest,
            named.layers().iter().chain(packed.layers()).chain(merged.iter().flatten()),
        ))
    }

    /// The merged layer of each volume, if there is one.
    fn merge(
        &self,
        parent: &Snapshot,
        named: &Named,
        key: &DomainKey,
        slots: &[Vec<LayerSlot>],
    ) -> Result<Vec<Option<Arc<Layer>>>, PackError> {
        let tools = (&*self.cache, key, &self.fetcher);
        let volumes = parent.volumes().iter().zip(named.manifest().volumes()).zip(slots);
        volumes
            .map(|((volume, of_volume), slots)| match merge(&of_volume.map, &volume.view, slots, tools) {
                // There is room left: a later pause can merge, once the pages can be read and written.
                Err(error @ (PackError::Merge(_) | PackError::Disk(_))) if !is_full(named) => {
                    tracing::warn!(snapshot = %parent.id(), %error, "layers are not merged now");
                    Ok(None)
                }
                merged => merged,
            })
            .collect()
    }
}

impl Packed {
    fn layers(&self) -> impl Iterator<Item = &Arc<Layer>> {
        self.volumes.iter().filter_map(|pages| pages.layer.as_ref())
    }
}

impl NamedParent {
    /// True if some of its layers are merged, which takes long.
    pub(crate) fn is_merged(&self) -> bool {
        self.merges.slots.iter().any(|slots| !slots.is_empty())
    }
}

impl Sealed {
    /// Writes the manifest into the catalog.
    pub(crate) fn write(&self, snapshot: &Snapshot, records: &Records) -> Result<(), SealError> {
        let facts = SealFacts { seal_time: Some(self.seal_time), ..snapshot.seal_facts() };
        Ok(records.sealed(snapshot.domain(), facts, &self.named.local(None))?)
    }

    /// Makes the snapshot a named one. Returns the work that is left, and the captures that the keeper should forget.
    pub(crate) fn record(&self, snapshot: &Snapshot) -> (SnapshotWork, Vec<Arc<Capture>>) {
        let named = (self.named.clone(), self.needed_here.clone());
        snapshot.record_sealed(named, self.seal_time, self.parts)
    }
}

/// Does a part of a seal in a span of that name, and adds the time to `time`.
fn timed<T>(name: &'static str, time: &mut Duration, part: impl FnOnce() -> T) -> T {
    let (_span, begun) = (tracing::info_span!("seal part", part = name).entered(), Instant::now());
    let done = part();
    *time += begun.elapsed();
    done
}

/// True if no process can write a capture any more. After a long wait it is an error that names the process that can.
pub(crate) fn is_frozen(capture: &Capture, keeper: Option<u32>, waited: Duration) -> Result<bool, SealError> {
    let is_late = waited > limits::FROZEN_WAIT;
    match capture.prove_frozen(keeper).map_err(SealError::Proof)? {
        Proven::Frozen => Ok(true),
        Proven::Held(holder) if is_late => Err(SealError::Held(holder)),
        Proven::Unseen(holder) if is_late => Err(SealError::Unseen(holder)),
        Proven::Mapped if is_late => match capture.holding(keeper).map_err(SealError::Proof)? {
            Holding::Held(holder) => Err(SealError::Held(holder)),
            Holding::Nobody | Holding::Unseen(_) => Ok(false),
        },
        Proven::Mapped | Proven::Held(_) | Proven::Unseen(_) => Ok(false),
    }
}

/// The new pages of one volume, with owned sets.
struct Change {
    volume: VolumeName,
    layer: Option<(LayerName, PageSet)>,
    zero: PageSet,
}

fn own_changes(snapshot: &Snapshot, packed: &Packed) -> Vec<Change> {
    let change = |(volume, pages): (&Volume, &PackedPages)| Change {
        volume: volume.name.clone(),
        layer: pages
            .layer
            .as_ref()
            .map(|layer| (layer.name().clone(), layer.facts().packed_pages().to_set())),
        zero: pages.zero.clone(),
    };
    snapshot.volumes().iter().zip(&packed.volumes).map(change).collect()
}

fn merged_changes(snapshot: &Snapshot, merged: &[Option<Arc<Layer>>]) -> Vec<Change> {
    let change = |(volume, merged): (&Volume, &Option<Arc<Layer>>)| {
        merged.as_ref().map(|layer| Change {
            volume: volume.name.clone(),
            layer: Some((layer.name().clone(), layer.facts().packed_pages().to_set())),
            zero: PageSet::new(volume.view.pages()),
        })
    };
    snapshot.volumes().iter().zip(merged).filter_map(change).collect()
}

fn borrowed(changes: &[Change]) -> Vec<VolumeChange<'_>> {
    changes.iter().map(Change::borrowed).collect()
}

impl Change {
    fn borrowed(&self) -> VolumeChange<'_> {
        VolumeChange {
            volume: self.volume.clone(),
            layer: self.layer.as_ref().map(|(name, pages)| (name.clone(), pages)),
            zero: &self.zero,
        }
    }
}

fn facts(snapshot: &Snapshot) -> SnapshotFacts {
    SnapshotFacts {
        snapshot: snapshot.id(),
        created_unix_ms: snapshot.created_unix_ms(),
        blobs: snapshot.blobs().clone(),
    }
}

fn shapes(snapshot: &Snapshot) -> Vec<VolumeShape> {
    let shape = |volume: &Volume| VolumeShape {
        name: volume.name.clone(),
        page_kind: volume.page_kind,
        pages: volume.view.pages(),
    };
    snapshot.volumes().iter().map(shape).collect()
}

/// A manifest with the handles of its layers, which are all among `handles`.
fn with_handles<'a>(manifest: Manifest, handles: impl Iterator<Item = &'a Arc<Layer>>) -> Named {
    let handles: HashMap<LayerId, &Arc<Layer>> = handles.map(|layer| (layer.id(), layer)).collect();
    let layers: Vec<_> = manifest.layers().iter().map(|name| Arc::clone(handles[&name.id])).collect();
    Named::new(manifest, layers)
}

/// True if a manifest has no room for one more layer of each volume, so that some must be merged.
fn is_full(named: &Named) -> bool {
    let manifest = named.manifest();
    manifest.layers().len() + manifest.volumes().len() > limits::MANIFEST_LAYERS_MAX
}

/// Gives every volume a view of the manifest's map over its layers.
fn flatten(snapshot: &Snapshot, named: &Named) {
    for (volume, of_volume) in snapshot.volumes().iter().zip(named.manifest().volumes()) {
        // False only if an earlier try came this far; its view has the same content.
        volume.view.improve(&volume.view.load(), named.view(of_volume));
    }
}
