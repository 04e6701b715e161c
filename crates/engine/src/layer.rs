//! A layer's handle: its facts, and the local file that its pages are read from now.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::handles::HandleRight;
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_index::LayerIndex;
use crate::local_file::{LocalFile, PackedFile};
use crate::manifest::{LayerName, StoredLayer};
use crate::sync::Current;
use crate::sync::atomic::{AtomicBool, Ordering};

/// One layer in live handles.
#[derive(Debug)]
pub struct Layer {
    facts: Arc<LayerFacts>,
    local: Current<LocalFile>,
    /// Held while the layer is uploaded, so that it is uploaded once.
    upload: tokio::sync::Mutex<()>,
    place: LayerPlace,
}

/// The place of a layer's file on this disk, which its handle owns.
#[derive(Debug)]
pub struct LayerPlace {
    /// The path at which the layer's file is, whichever that is now.
    pub path: PathBuf,
    /// True if the file outlives the layer's last handle: the node ends.
    pub keeps_files: Arc<AtomicBool>,
    /// The right to the path, given back after the file is removed.
    pub right: HandleRight,
}

impl Layer {
    /// The handle of a layer whose pages are in `local`, which lies at `place`.
    pub fn new(local: LocalFile, place: LayerPlace) -> Self {
        let facts = Arc::clone(local.layer());
        Self { facts, local: Current::new(Arc::new(local)), upload: tokio::sync::Mutex::new(()), place }
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
        self.local.load().newest()
    }

    /// Reads are planned on `packed` from now on. It lies at the layer's path already, where the present file was.
    pub fn replace_local(&self, packed: PackedFile) {
        let next = Arc::new(LocalFile::from(packed));
        assert!(Arc::ptr_eq(next.layer(), &self.facts), "a layer's file is of that layer");
        while !self.local.replace(&self.local.load(), Arc::clone(&next)) {}
    }

    /// The right to upload the layer; its holder looks first if the layer is stored by now.
    pub async fn upload_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.upload.lock().await
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // The last owner is gone: no snapshot of this node names the layer.
        let LayerPlace { path, keeps_files, right: _ } = &self.place;
        if !keeps_files.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(layer = %self.id(), %error, "a layer nobody names stays on the disk");
        }
    }
}
