//! This node's disk: a directory of layer files, with one handle per layer however many ask for it.
//!
//! A file has a layer's raw pages and, where it was packed here, directly after them the layer's encoded index.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use crate::aside::AsideDirectory;
use crate::geometry::bytes_of_pages;
use crate::handles::{Found, HandleRight, Handles};
use crate::identity::LayerId;
use crate::key_ring::{DomainKey, KeyRing, MissingKey};
use crate::layer::{Layer, LayerPlace};
use crate::layer_facts::LayerFacts;
use crate::layer_files::{CloseFiles, LayerFiles, UNFINISHED};
use crate::layer_index::LayerIndex;
use crate::limits;
use crate::local_file::{LocalFile, PackedFile};
use crate::manifest::{LayerName, StoredLayer};
use crate::open_file::read_index;
use crate::private;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The directory and the handles that are alive.
#[derive(Debug)]
pub struct Cache {
    files: Arc<LayerFiles>,
    keys: KeyRing,
    handles: Arc<Handles<Layer>>,
    keeps_files: Arc<AtomicBool>,
}

/// A file that a layer is being packed into; dropped unfinished, it is removed.
#[derive(Debug)]
pub struct PackFile {
    file: File,
    path: PathBuf,
    key: DomainKey,
    finished: bool,
}

/// Reason that no handle can be made for a layer that is in the store.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoredError {
    /// No byte of it could be verified.
    #[error("layer {layer}: {source}")]
    Key {
        /// The layer.
        layer: LayerId,
        /// The key.
        source: MissingKey,
    },
    /// The disk failed, or another manifest names the layer otherwise.
    #[error("the file of layer {layer}: {source}")]
    Io {
        /// The layer.
        layer: LayerId,
        /// The system's error.
        source: io::Error,
    },
}

/// Reason that the only copy of a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OnlyCopyError {
    /// There is no file.
    #[error("the file of layer {layer} is not there, and it was never stored")]
    Absent {
        /// The layer.
        layer: LayerId,
    },
    /// The file is shorter than the layer.
    #[error("the file of layer {layer} has {found} of {expected} bytes, and it was never stored")]
    Short {
        /// The layer.
        layer: LayerId,
        /// Bytes of the file.
        found: u64,
        /// Bytes of the layer's pages.
        expected: u64,
    },
    /// The file does not end in the layer's index, without which no byte of it can be verified.
    #[error("the file of layer {layer} does not have its index, and it was never stored")]
    NoIndex {
        /// The layer.
        layer: LayerId,
    },
    /// No byte of it could be verified.
    #[error("layer {layer}: {source}")]
    Key {
        /// The layer.
        layer: LayerId,
        /// The key.
        source: MissingKey,
    },
    /// The disk failed.
    #[error("the file of layer {layer}: {source}")]
    Io {
        /// The layer.
        layer: LayerId,
        /// The system's error.
        source: io::Error,
    },
}

impl Cache {
    /// Opens the directory, creating it if need be, and removes what an interrupted packing left.
    pub fn open(directory: &Path, keys: KeyRing) -> io::Result<Self> {
        Self::open_with(directory, keys, limits::LAYER_FILES_OPEN_DEFAULT)
    }

    /// The same; about `files_open_max` files stay open.
    pub fn open_with(directory: &Path, keys: KeyRing, files_open_max: usize) -> io::Result<Self> {
        private::make_directory(directory)?;
        private::close(directory)?;
        let unreadable = |error: io::Error| private::at(directory, "reading", &error);
        for entry in std::fs::read_dir(directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == UNFINISHED)
                && let Err(error) = std::fs::remove_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "the rest of an interrupted packing stays");
            }
        }
        let (files, handles) = (Arc::new(LayerFiles::new(directory, files_open_max)), Arc::default());
        let closer: Weak<Handles<Layer>> = Arc::downgrade(&handles);
        let closer: Weak<dyn CloseFiles> = closer;
        files.set_closer(closer);
        Ok(Self { files, keys, handles, keeps_files: Arc::default() })
    }

    /// The directory of the files, with what is counted of them.
    pub fn files(&self) -> &Arc<LayerFiles> {
        &self.files
    }

    /// The handles of all layers that are named by a snapshot of this node.
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        self.handles.all()
    }

    /// The keys of the domains whose layers can be opened.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// A new file to pack a layer into, of the domain that has this key.
    pub fn pack_file(&self, key: DomainKey) -> io::Result<PackFile> {
        let (file, path) = self.files.unfinished()?;
        Ok(PackFile { file, path, key, finished: false })
    }

    /// Makes a completely written pack file durable under its layer's name. A layer of the same bytes that is open
    /// already is used instead; unless its own file is whole, the packed one takes that one's place.
    pub fn finish(&self, mut pack: PackFile, index: LayerIndex) -> io::Result<Arc<Layer>> {
        let (encoded, key) = (index.encode(), pack.key.clone());
        let (id, pages) = (key.layer_id(&encoded), index.page_count());
        if let Some(layer) = self.handle(id)
            && is_whole_here(&layer, &index, &encoded)?
        {
            return Ok(layer);
        }
        pack.file.write_all_at(&encoded, bytes_of_pages(pages))?;
        pack.file.sync_all()?;
        match self.handles.find(id) {
            Found::Alive(layer) => {
                let turn = layer.path_turn();
                if !is_whole_here(&layer, &index, &encoded)? {
                    let file = self.take_name(&mut pack, id)?;
                    layer.facts().set_index(index);
                    layer.replace_local(PackedFile::new(Arc::clone(layer.facts()), file, &self.files)?);
                }
                drop(turn);
                Ok(layer)
            }
            Found::Free(right) => {
                let file = self.take_name(&mut pack, id)?;
                let name = LayerName { id, domain: key.domain().clone(), pages };
                let facts = LayerFacts::new(name, key);
                facts.set_index(index);
                let only_here = self.files.only_here();
                facts.count_only_here(only_here.add(id, bytes_of_pages(pages), SystemTime::now()));
                let packed = PackedFile::new(Arc::new(facts), file, &self.files)?;
                Ok(self.handles.made(id, Layer::new(packed.into(), self.place(right))))
            }
        }
    }

    /// Gives a packed file the name of its layer, durably.
    fn take_name(&self, pack: &mut PackFile, id: LayerId) -> io::Result<File> {
        let file = pack.file.try_clone()?;
        std::fs::rename(&pack.path, self.files.path_of(id))?;
        pack.finished = true;
        File::open(self.files.directory())?.sync_all()?;
        Ok(file)
    }

    /// A handle for a layer that is in the store, over a local file that fills as frames are fetched. Nothing is opened or
    /// made on the disk before a frame is needed.
    pub fn open_stored(&self, name: &LayerName, stored: &StoredLayer) -> Result<Arc<Layer>, OpenStoredError> {
        let layer = name.id;
        let key = self.keys.key(&name.domain).map_err(|source| OpenStoredError::Key { layer, source })?;
        let right = match self.handles.find(layer) {
            Found::Alive(handle) if handle.name() == name => {
                handle.facts().add_stored(stored);
                return Ok(handle);
            }
            Found::Alive(handle) => {
                let why = format!("one manifest has it as {name:?}, another one as {:?}", handle.name());
                let source = io::Error::new(io::ErrorKind::InvalidData, why);
                return Err(OpenStoredError::Io { layer, source });
            }
            Found::Free(right) => right,
        };
        let facts = LayerFacts::new(name.clone(), key);
        facts.add_stored(stored);
        let local = LocalFile::closed(Arc::new(facts), &self.files);
        Ok(self.handles.made(layer, Layer::new(local, self.place(right))))
    }

    /// A handle for a layer that was packed here and is in no store yet; every frame is verified before its first use. The
    /// file is looked at now, and closed until a frame is needed.
    pub fn open_only_copy(&self, name: &LayerName) -> Result<Arc<Layer>, OnlyCopyError> {
        let right = match self.handles.find(name.id) {
            Found::Alive(layer) => return Ok(layer),
            Found::Free(right) => right,
        };
        let layer = name.id;
        let key = self.keys.key(&name.domain).map_err(|source| OnlyCopyError::Key { layer, source })?;
        let io = |source| OnlyCopyError::Io { layer, source };
        let file = match self.files.open_there(layer) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OnlyCopyError::Absent { layer });
            }
            opened => opened.map_err(io)?,
        };
        let metadata = file.metadata().map_err(io)?;
        let (found, expected) = (metadata.len(), bytes_of_pages(name.pages));
        if found < expected {
            return Err(OnlyCopyError::Short { layer, found, expected });
        }
        let facts = LayerFacts::new(name.clone(), key);
        facts.set_index(read_index(&file, &facts).map_err(io)?.ok_or(OnlyCopyError::NoIndex { layer })?);
        let since = metadata.modified().map_err(io)?;
        facts.count_only_here(self.files.only_here().add(layer, expected, since));
        let local = LocalFile::closed(Arc::new(facts), &self.files);
        local.counted().note(&metadata);
        Ok(self.handles.made(layer, Layer::new(local, self.place(right))))
    }

    /// Looks at every layer file of a start: counts those of open layers, and sets those aside that are neither among
    /// `named` nor open; says how many. One that cannot be moved stays where it is.
    pub fn look_through(&self, named: &HashSet<LayerId>) -> io::Result<usize> {
        let mut moved = 0;
        let directory = self.files.directory();
        let unreadable = |error: io::Error| private::at(directory, "reading", &error);
        for entry in std::fs::read_dir(directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = entry.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            let Some(layer) = stem.filter(|_| path.extension().is_some_and(|end| end == "raw")) else {
                continue;
            };
            if let Some(handle) = self.handles.alive(layer) {
                // One that cannot be looked at is counted once it is opened.
                entry.metadata().ok().inspect(|found| handle.note_found(found));
                continue;
            }
            if named.contains(&layer) {
                continue;
            }
            match self.set_aside(&path) {
                Ok(is_moved) => moved += usize::from(is_moved),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a layer file that nothing names stays where it is");
                }
            }
        }
        Ok(moved)
    }

    /// Returns false for an empty file, which is removed instead. Anything but a file stays: it would come back as a
    /// layer's file.
    fn set_aside(&self, path: &Path) -> io::Result<bool> {
        let found = path.symlink_metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        if found.len() == 0 {
            return std::fs::remove_file(path).map(|()| false);
        }
        self.files.aside().take(path).map(|()| true)
    }

    /// The files that were set aside.
    pub fn aside(&self) -> &AsideDirectory {
        self.files.aside()
    }

    /// The handle of a layer if one is alive.
    pub fn handle(&self, id: LayerId) -> Option<Arc<Layer>> {
        self.handles.alive(id)
    }

    /// From now on files outlive their handles: the node ends, its snapshots do not.
    pub fn keep_files(&self) {
        self.keeps_files.store(true, Ordering::Release);
    }

    /// From now on a file goes with its last handle; this is how a cache begins.
    pub fn let_files_go(&self) {
        self.keeps_files.store(false, Ordering::Release);
    }

    /// True if files outlive their handles.
    pub fn keeps_files(&self) -> bool {
        self.keeps_files.load(Ordering::Acquire)
    }

    fn place(&self, right: HandleRight) -> LayerPlace {
        LayerPlace { files: Arc::clone(&self.files), keeps_files: Arc::clone(&self.keeps_files), right }
    }
}

/// True if a layer that was packed again is whole in its present file, which is then durable.
fn is_whole_here(layer: &Layer, index: &LayerIndex, encoded: &[u8]) -> io::Result<bool> {
    if index.page_count() != layer.pages() {
        let why = format!("layer {} was opened with {} pages, which is wrong", layer.id(), layer.pages());
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    layer.local().sync_whole(encoded)
}

impl PackFile {
    /// The file to write the raw pages into, from byte 0 on.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for PackFile {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished pack file stays");
        }
    }
}
