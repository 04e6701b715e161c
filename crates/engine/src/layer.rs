//! A layer's handle: its facts, and the local file that its pages are read from now.

use std::io;
use std::sync::atomic::AtomicU64 as Clock;
use std::sync::{Arc, Weak};

use crate::geometry::bytes_of_pages;
use crate::handles::{HandleRight, Handles};
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_files::{CloseFiles, LayerFiles};
use crate::layer_index::LayerIndex;
use crate::local_file::{LocalFile, PackedFile};
use crate::manifest::{LayerName, StoredLayer};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Current, Mutex, lock};
use crate::turns::{Turn, Turns};

/// One layer in live handles.
///
/// Its local file may be the only copy, or may be being uploaded, so a layer cannot be evicted: [`Layer::evictable`] says
/// if the file may go, and only its answer can.
///
/// ```compile_fail
/// fn gone(layer: &std::sync::Arc<rekindle_engine::layer::Layer>) { layer.evict().expect("there is no such call") }
/// ```
#[derive(Debug)]
pub struct Layer {
    facts: Arc<LayerFacts>,
    local: Current<LocalFile>,
    /// The value that the clock of the files had when a read was last planned on the layer.
    used: Clock,
    /// Held while the layer is uploaded, so that it is uploaded once.
    upload: Arc<tokio::sync::Mutex<()>>,
    /// Turns at changing which file lies at the layer's path: none removes what another one has just put there.
    path_turns: Turns,
    confirmed: Mutex<Weak<Confirmed>>,
    needed_here: Mutex<Weak<NeededHere>>,
    place: LayerPlace,
}

/// The place of a layer's file on this disk, which its handle owns.
#[derive(Debug)]
pub struct LayerPlace {
    /// The directory in which the layer's file is, whichever that is now.
    pub files: Arc<LayerFiles>,
    /// True if the file outlives the layer's last handle: the node ends.
    pub keeps_files: Arc<AtomicBool>,
    /// The right to the path, given back after the file is removed.
    pub right: HandleRight,
}

/// The word of a published snapshot that a manifest in the store names a layer, for as long as this is held.
#[derive(Debug)]
pub struct Confirmed(());

/// The need of a snapshot that is not published, whose record names the layer without a place outside this disk. The layer
/// may be stored by another snapshot meanwhile: if that one is deleted, only this file is left after a restart.
#[derive(Debug)]
pub struct NeededHere(());

/// A layer whose local file may be evicted: a published snapshot of this node names the layer, an object of it is known,
/// and it is not being uploaded. All of that stays so while this lives.
#[derive(Debug)]
pub struct Evictable {
    layer: Arc<Layer>,
    _confirmed: Arc<Confirmed>,
    _upload: tokio::sync::OwnedMutexGuard<()>,
}

impl Layer {
    /// The handle of a layer whose pages are in `local`, which lies at `place`.
    pub fn new(local: LocalFile, place: LayerPlace) -> Self {
        Self {
            facts: Arc::clone(local.layer()),
            used: Clock::new(place.files.now()),
            local: Current::new(Arc::new(local)),
            upload: Arc::default(),
            path_turns: Turns::new(),
            confirmed: Mutex::default(),
            needed_here: Mutex::default(),
            place,
        }
    }

    /// The layer's facts.
    pub fn facts(&self) -> &Arc<LayerFacts> {
        &self.facts
    }

    /// The layer as a manifest names it.
    pub fn name(&self) -> &LayerName {
        self.facts.name()
    }

    /// The layer's id.
    pub fn id(&self) -> LayerId {
        self.facts.id()
    }

    /// Packed pages.
    pub fn pages(&self) -> u32 {
        self.facts.pages()
    }

    /// The index, once it is known.
    pub fn index(&self) -> Option<&LayerIndex> {
        self.facts.index()
    }

    /// Place of the object that is read, once the layer is stored.
    pub fn stored_at(&self) -> Option<StoredLayer> {
        self.facts.stored_at()
    }

    /// The file that reads are planned on now. It stays readable for those who have it, also once it is replaced.
    pub fn local(&self) -> Arc<LocalFile> {
        let now = self.place.files.now();
        // Most reads find the time there already: then no other processor has to be told of a write.
        if self.last_used() != now {
            self.used.store(now, std::sync::atomic::Ordering::Relaxed);
        }
        self.local.load().newest()
    }

    /// The value that the clock of the files had when a read was last planned on the layer.
    pub fn last_used(&self) -> u64 {
        self.used.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Bytes that its present file takes on the disk.
    pub fn local_bytes(&self) -> u64 {
        self.local.load().newest().counted().bytes()
    }

    /// Those of them that are pages of the layer: not the index behind them. Counted in whole pages.
    pub fn local_page_bytes(&self) -> u64 {
        let page = bytes_of_pages(1);
        let index = self.facts.index_bytes().next_multiple_of(page);
        let pages = self.local_bytes().saturating_sub(index).next_multiple_of(page);
        pages.min(bytes_of_pages(self.pages()))
    }

    /// Counts the bytes of a file that was found at the layer's path.
    pub fn note_found(&self, found: &std::fs::Metadata) {
        self.local.load().counted().note(found);
    }

    /// Reads are planned on `packed` from now on. It lies at the layer's path already, where the present file was.
    pub fn replace_local(&self, packed: PackedFile) {
        let next = LocalFile::from(packed);
        assert!(Arc::ptr_eq(next.layer(), &self.facts), "a layer's file is of that layer");
        self.put(next);
    }

    fn put(&self, next: LocalFile) {
        let next = Arc::new(next);
        while !self.local.replace(&self.local.load(), Arc::clone(&next)) {}
    }

    /// The turn at changing the file at the layer's path.
    pub(crate) fn path_turn(&self) -> Turn<'_> {
        self.path_turns.take()
    }

    /// The right to upload the layer; its holder looks first if the layer is stored by now.
    pub async fn upload_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.upload.lock().await
    }

    /// Confirms that a manifest in the store names the layer.
    pub fn confirm(&self) -> Arc<Confirmed> {
        let mut confirmed = lock(&self.confirmed);
        confirmed.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Confirmed(()));
            *confirmed = Arc::downgrade(&new);
            self.place.files.bytes().wake_above_mark();
            new
        })
    }

    /// Keeps the local file from being evicted as long as the result is held.
    pub fn need_here(&self) -> Arc<NeededHere> {
        let mut needed = lock(&self.needed_here);
        needed.upgrade().unwrap_or_else(|| {
            let new = Arc::new(NeededHere(()));
            *needed = Arc::downgrade(&new);
            new
        })
    }

    /// The layer as one whose local file may go; none if nobody could bring the file's bytes back for sure, or if they are
    /// being uploaded.
    pub fn evictable(self: &Arc<Self>) -> Option<Evictable> {
        let confirmed = lock(&self.confirmed).upgrade()?;
        let upload = Arc::clone(&self.upload).try_lock_owned().ok()?;
        let may_go = self.facts.has_object() && lock(&self.needed_here).strong_count() == 0;
        may_go.then(|| Evictable { layer: Arc::clone(self), _confirmed: confirmed, _upload: upload })
    }

    /// True if its file has a descriptor and a mapping.
    pub fn is_open(&self) -> bool {
        self.local.load().is_open()
    }

    /// Gives up descriptor and mapping; the next read opens the file again.
    fn close(&self) {
        let now = self.local.load();
        if let Some(closed) = now.closed_again() {
            // If it was replaced meanwhile, the new one was opened just now.
            self.local.replace(&now, Arc::new(closed));
        }
    }
}

impl Evictable {
    /// Bytes that its file takes on the disk now.
    pub fn bytes(&self) -> u64 {
        self.layer.local_bytes()
    }

    /// Removes the file; returns the bytes it took. Reads that were planned on it keep it until they are done, the next
    /// one fetches again.
    pub fn evict(self) -> io::Result<u64> {
        let layer = &self.layer;
        let turn = layer.path_turn();
        let bytes = self.bytes();
        match std::fs::remove_file(layer.place.files.path_of(layer.id())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        layer.put(LocalFile::closed(Arc::clone(&layer.facts), &layer.place.files));
        drop(turn);
        Ok(bytes)
    }
}

impl CloseFiles for Handles<Layer> {
    fn close(&self, count: usize) {
        let mut open: Vec<_> = self.all().into_iter().filter(|layer| layer.is_open()).collect();
        open.sort_by_key(|layer| layer.last_used());
        open.iter().take(count).for_each(|layer| layer.close());
    }
}

/// Handles of a layer's file without a reader, while the layer is dropped: its own, and the one in use.
const OWN_HANDLES: usize = 2;

impl Drop for Layer {
    fn drop(&mut self) {
        // The last owner is gone: no snapshot of this node names the layer.
        let LayerPlace { files, keeps_files, right: _ } = &self.place;
        if keeps_files.load(Ordering::Acquire) {
            return;
        }
        let local = self.local.load().newest();
        // A read that was planned on it before may open it later, when nothing leads to it any more.
        if Arc::strong_count(&local) > OWN_HANDLES
            && let Err(error) = local.stay_readable()
        {
            tracing::warn!(layer = %self.id(), %error, "a read of a layer that nobody names may fail");
        }
        if let Err(error) = std::fs::remove_file(files.path_of(self.id()))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(layer = %self.id(), %error, "a layer nobody names stays on the disk");
        }
    }
}
