//! The facts of a layer that do not depend on this disk: its name, its index once known, and its placement.

use std::sync::Arc;

use crate::frame::{FrameNumber, frames_of};
use crate::geometry::u64_of;
use crate::identity::{FrameDigest, LayerId};
use crate::key_ring::DomainKey;
use crate::layer_index::LayerIndex;
use crate::manifest::{LayerName, ObjectName, StoredLayer};
use crate::object::StoredObject;
use crate::only_here::OnlyHereLayer;
use crate::page_tree::ProvenPages;
use crate::placement::{Holder, Placement};
use crate::ranked_set::RankedSet;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Current, Mutex, OnceLock, lock};

/// Facts of one layer, shared by its handle and all its local files.
#[derive(Debug)]
pub struct LayerFacts {
    name: LayerName,
    key: DomainKey,
    index: OnceLock<LayerIndex>,
    /// Bytes of the encoded index, once they were asked for.
    index_bytes: OnceLock<u64>,
    placement: Current<Option<Placement>>,
    /// True if the last known object was not in the store when it was asked for.
    last_is_gone: AtomicBool,
    /// Counts the layer while no place of it outside this disk is known.
    only_here: Mutex<Option<OnlyHereLayer>>,
    /// Other nodes that may have frames of it on their disks.
    holders: Mutex<Vec<Holder>>,
}

impl LayerFacts {
    /// Facts of the layer called `name`, of whose domain this is the key; no place outside this disk is known.
    pub fn new(name: LayerName, key: DomainKey) -> Self {
        assert_eq!(name.domain, *key.domain(), "a layer's name is made with its domain's key");
        Self {
            name,
            key,
            index: OnceLock::new(),
            index_bytes: OnceLock::new(),
            placement: Current::new(Arc::new(None)),
            last_is_gone: AtomicBool::new(false),
            only_here: Mutex::default(),
            holders: Mutex::default(),
        }
    }

    /// The layer as a manifest names it.
    pub fn name(&self) -> &LayerName {
        &self.name
    }

    /// The layer's id.
    pub fn id(&self) -> LayerId {
        self.name.id
    }

    /// The key of the domain the layer belongs to.
    pub fn key(&self) -> &DomainKey {
        &self.key
    }

    /// Packed pages.
    pub fn pages(&self) -> u32 {
        self.name.pages
    }

    /// The index, once it is known: from packing, from this disk, or from the store's table.
    pub fn index(&self) -> Option<&LayerIndex> {
        self.index.get()
    }

    /// Bytes of the encoded index; before it is known, those of its digests.
    pub fn index_bytes(&self) -> u64 {
        let digests = u64_of(frames_of(self.pages()) * size_of::<FrameDigest>());
        let encoded = |index: &LayerIndex| *self.index_bytes.get_or_init(|| u64_of(index.encode().len()));
        self.index().map_or(digests, encoded)
    }

    /// Remembers the index, which is this layer's: the layer's name is the hash of it.
    pub fn set_index(&self, index: LayerIndex) -> &LayerIndex {
        self.index.get_or_init(|| index)
    }

    /// The guest pages the layer holds, in its order; it was packed on this node.
    pub fn packed_pages(&self) -> &RankedSet {
        self.index().expect("a layer packed on this node has its index").pages()
    }

    /// True if the index is known, and these are the uncompressed bytes of a frame.
    pub fn is_frame(&self, frame: FrameNumber, bytes: &[u8]) -> bool {
        self.index().is_some_and(|index| index.is_frame(frame, bytes, &self.key))
    }

    /// True if the index is known, and these are some of the pages of a frame, by their proof.
    pub(crate) fn has_pages(&self, frame: FrameNumber, of: ProvenPages<'_>) -> bool {
        self.index().is_some_and(|index| index.has_pages(frame, of, &self.key))
    }

    /// The object in the store that is read, once one is known.
    pub fn stored(&self) -> Option<Arc<StoredObject>> {
        self.placement.with(|placement| placement.as_ref().map(|known| Arc::clone(known.object())))
    }

    /// Place of that object.
    pub fn stored_at(&self) -> Option<StoredLayer> {
        self.stored().map(|object| object.place().clone())
    }

    /// True if no place of the layer outside this disk is known.
    pub fn is_only_copy(&self) -> bool {
        self.placement.with(Option::is_none)
    }

    /// True if an object of the layer is known that was not found to be gone.
    pub fn has_object(&self) -> bool {
        !self.is_only_copy() && !self.last_is_gone.load(Ordering::Acquire)
    }

    /// Counts the layer as one that is only here, until an object of it is known.
    pub(crate) fn count_only_here(&self, counted: OnlyHereLayer) {
        *lock(&self.only_here) = Some(counted);
    }

    /// Remembers one more object of the layer; the one that is read stays.
    pub fn add_stored(&self, place: &StoredLayer) {
        self.remember(place, |placement| placement.with(place.clone()));
    }

    /// Remembers one more object of the layer, which is read from now on.
    pub fn prefer_stored(&self, place: &StoredLayer) {
        self.remember(place, |placement| Some(placement.preferring(place.clone())));
    }

    fn remember(&self, place: &StoredLayer, beside: impl Fn(&Placement) -> Option<Placement>) {
        let is_new = self.change_placement(|placement| match placement {
            Some(placement) => beside(placement),
            None => Some(Placement::at(place.clone())),
        });
        if is_new {
            self.last_is_gone.store(false, Ordering::Release);
        }
        let counted = lock(&self.only_here).take();
        drop(counted);
    }

    /// Remembers that an object is not in the store: another one is read from now on, if one is known.
    pub fn note_gone(&self, gone: ObjectName) {
        self.change_placement(|placement| placement.and_then(|known| known.without(gone)));
        if self.stored().is_some_and(|last| last.place().object == gone) {
            self.last_is_gone.store(true, Ordering::Release);
        }
    }

    /// The other nodes that may have frames of the layer.
    pub(crate) fn holders(&self) -> Vec<Holder> {
        lock(&self.holders).clone()
    }

    /// Remembers that another node has frames of the layer.
    pub(crate) fn note_holder(&self, holder: Holder) {
        let mut holders = lock(&self.holders);
        if !holders.contains(&holder) {
            holders.push(holder);
        }
    }

    /// Forgets that, as the node does not have what was asked for.
    pub(crate) fn forget_holder(&self, holder: Holder) {
        lock(&self.holders).retain(|known| *known != holder);
    }

    /// Replaces the placement by what `change` makes of it; false if that is nothing.
    fn change_placement(&self, change: impl Fn(Option<&Placement>) -> Option<Placement>) -> bool {
        loop {
            let now = self.placement.load();
            let Some(next) = change(now.as_ref().as_ref()) else { return false };
            if self.placement.replace(&now, Arc::new(Some(next))) {
                return true;
            }
        }
    }
}
