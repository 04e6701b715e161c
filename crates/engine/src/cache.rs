//! This node's disk: a directory of layer files, with one handle per layer however many ask for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rekindle_kernel::PAGE_BYTES;

use crate::geometry::u64_of;
use crate::handles::{Found, HandleRight, Handles};
use crate::identity::{Domain, LayerId};
use crate::layer::{Layer, LayerFile, LocalFrames};
use crate::layer_index::LayerIndex;
use crate::manifest::{LayerName, StoredLayer};
use crate::sync::atomic::{AtomicBool, Ordering};

/// The directory and the handles that are alive.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    handles: Arc<Handles<Layer>>,
    keeps_files: Arc<AtomicBool>,
}

/// A file that a layer is being packed into; dropped unfinished, it is removed.
#[derive(Debug)]
pub struct PackFile {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Cache {
    /// Opens the directory, creating it if need be, and removes what an interrupted packing left.
    pub fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "packing") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self { directory: directory.to_owned(), handles: Arc::default(), keeps_files: Arc::default() })
    }

    /// A new file to pack a layer into.
    pub fn pack_file(&self) -> io::Result<PackFile> {
        let path = self.directory.join(format!("{}.packing", uuid::Uuid::now_v7()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(PackFile { file, path, finished: false })
    }

    /// Makes a completely written pack file durable under its layer's name. A layer of the same bytes that is open
    /// already is used instead, and takes in what it has not here.
    pub fn finish(&self, mut pack: PackFile, domain: &Domain, index: LayerIndex) -> io::Result<Arc<Layer>> {
        let id = index.id(domain);
        if let Some(layer) = self.handle(id) {
            layer.take_in(index, &pack.file)?;
            return Ok(layer);
        }
        pack.file.sync_all()?;
        let right = match self.handles.find(id) {
            Found::Alive(layer) => {
                layer.take_in(index, &pack.file)?;
                return Ok(layer);
            }
            Found::Free(right) => right,
        };
        let path = self.path_of(id);
        std::fs::rename(&pack.path, &path)?;
        pack.finished = true;
        File::open(&self.directory)?.sync_all()?;
        let file = pack.file.try_clone()?;
        let layer = Layer::packed(self.place(path, file, right), domain.clone(), index)?;
        Ok(self.handles.made(id, layer))
    }

    /// A handle for a layer that is in the store, over a local file that fills as frames are fetched.
    pub fn open_stored(&self, name: &LayerName, stored: &StoredLayer) -> io::Result<Arc<Layer>> {
        let right = match self.handles.find(name.id) {
            Found::Alive(layer) if layer.name() == *name => {
                layer.set_stored_at(stored.clone());
                return Ok(layer);
            }
            Found::Alive(layer) => {
                let why = format!("one manifest has it as {name:?}, another one as {:?}", layer.name());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            Found::Free(right) => right,
        };
        let path = self.path_of(name.id);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let bytes = u64::from(name.pages) * u64_of(PAGE_BYTES);
        let local = if file.metadata()?.len() == bytes { LocalFrames::Perhaps } else { LocalFrames::None };
        file.set_len(bytes)?;
        let layer = Layer::stored(name, self.place(path, file, right), local, stored.clone())?;
        Ok(self.handles.made(name.id, layer))
    }

    /// The handle of a layer if one is alive.
    pub fn handle(&self, id: LayerId) -> Option<Arc<Layer>> {
        self.handles.alive(id)
    }

    /// From now on files outlive their handles: the node ends, its snapshots do not.
    pub fn keep_files(&self) {
        self.keeps_files.store(true, Ordering::Release);
    }

    fn place(&self, path: PathBuf, file: File, right: HandleRight<Layer>) -> LayerFile {
        LayerFile { path, file, right, keeps_files: Arc::clone(&self.keeps_files) }
    }

    fn path_of(&self, id: LayerId) -> PathBuf {
        self.directory.join(format!("{id}.raw"))
    }
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
