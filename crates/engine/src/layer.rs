//! A layer's handle: its raw pages in a local sparse file, filled frame by frame, each frame verified before its use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_kernel::{Mapping, PAGE_BYTES};

use crate::frame::{FRAME_PAGES, FrameNumber, frame_bytes, frame_of, frames_of};
use crate::geometry::{LayerPage, u64_of, usize_of};
use crate::handles::HandleRight;
use crate::identity::{Domain, FrameDigest, LayerId};
use crate::layer_index::LayerIndex;
use crate::manifest::{LayerName, ObjectName, StoredLayer};
use crate::object::StoredObject;
use crate::ranked_set::RankedSet;
use crate::read_ahead::ReadAhead;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, OnceLock, lock};

/// One layer in live handles.
#[derive(Debug)]
pub struct Layer {
    id: LayerId,
    domain: Domain,
    pages: u32,
    path: PathBuf,
    file: File,
    mapping: Mapping,
    /// Frames whose bytes in the file match their digest, as seen since the file was opened.
    verified: FrameFlags,
    /// Frames that the file may hold.
    local: FrameFlags,
    index: OnceLock<LayerIndex>,
    /// Its objects in the store, as far as they are known; the first one is read.
    objects: Mutex<Vec<Arc<StoredObject>>>,
    read_ahead: Mutex<ReadAhead>,
    /// Held while the layer is uploaded, so that it is uploaded once.
    upload: tokio::sync::Mutex<()>,
    /// Set when the node ends: then files outlive their handles.
    keeps_files: Arc<AtomicBool>,
    /// Dropped after the file is removed.
    _right: HandleRight<Self>,
}

/// The local file under a layer.
#[derive(Debug)]
pub struct LayerFile {
    /// Its path.
    pub path: PathBuf,
    /// The file itself, open for reading and writing.
    pub file: File,
    /// The right to it.
    pub right: HandleRight<Layer>,
    /// True if it outlives the layer's last handle.
    pub keeps_files: Arc<AtomicBool>,
}

/// Frames in a local file when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalFrames {
    /// It is new.
    None,
    /// Frames that were fetched before; each is verified before its use.
    Perhaps,
}

/// Reason that a frame's bytes cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The bytes are not those the layer's name commits to.
    #[error("frame {frame} of layer {layer} does not match its digest")]
    Digest {
        /// The layer.
        layer: LayerId,
        /// The frame.
        frame: FrameNumber,
    },
    /// The local file failed.
    #[error("local file of layer {layer}: {source}")]
    Io {
        /// The layer.
        layer: LayerId,
        /// The system's error.
        source: io::Error,
    },
}

impl Layer {
    /// A layer just packed into `file`, every frame of which was digested from the bytes that were written.
    pub fn packed(place: LayerFile, domain: Domain, index: LayerIndex) -> io::Result<Self> {
        let layer = Self::over_file(index.id(&domain), domain, index.page_count(), place)?;
        layer.verified.set_all();
        layer.local.set_all();
        layer.index.set(index).expect("a new layer has no index yet");
        Ok(layer)
    }

    /// A layer over a local file; `local` says whether that is new or may hold some of the frames already. Its index
    /// and where it is stored can be told later.
    pub fn over(name: &LayerName, place: LayerFile, local: LocalFrames) -> io::Result<Self> {
        let layer = Self::over_file(name.id, name.domain.clone(), name.pages, place)?;
        match local {
            LocalFrames::None => {}
            LocalFrames::Perhaps => layer.local.set_all(),
        }
        Ok(layer)
    }

    fn over_file(id: LayerId, domain: Domain, pages: u32, place: LayerFile) -> io::Result<Self> {
        let LayerFile { path, file, right, keeps_files } = place;
        let mapping = Mapping::of_file(&file, usize_of(pages) * PAGE_BYTES)?;
        let frames = frames_of(pages);
        Ok(Self {
            id,
            domain,
            pages,
            path,
            file,
            mapping,
            verified: FrameFlags::new(frames),
            local: FrameFlags::new(frames),
            index: OnceLock::new(),
            objects: Mutex::default(),
            read_ahead: Mutex::default(),
            upload: tokio::sync::Mutex::new(()),
            keeps_files,
            _right: right,
        })
    }

    /// The layer as a manifest names it.
    pub fn name(&self) -> LayerName {
        LayerName { id: self.id, domain: self.domain.clone(), pages: self.pages }
    }

    /// The layer's id.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// The domain the layer belongs to.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Packed pages.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The raw pages, layer page `p` at byte `p * 4096`; only verified frames may be used.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Number of pages from `first` on, at most `limit`, that can be read without blocking: verified and in memory.
    pub fn readable_now(&self, first: LayerPage, limit: u32) -> u32 {
        let verified = self.verified_run(first, limit);
        if verified == 0 {
            return 0;
        }
        let bytes = self.mapping.resident_prefix_bytes(first.offset(), usize_of(verified) * PAGE_BYTES);
        u32::try_from(bytes / PAGE_BYTES).expect("at most `verified` pages")
    }

    /// Number of pages from `first` on, at most `limit`, that are verified; reading them may wait for the disk.
    pub fn verified_run(&self, first: LayerPage, limit: u32) -> u32 {
        let end = first.number() + limit;
        let mut page = first.number();
        while page < end && self.verified.get(frame_of(LayerPage::new(page))) {
            page = (page / FRAME_PAGES + 1) * FRAME_PAGES;
        }
        page.min(end).saturating_sub(first.number())
    }

    /// True if the local file may hold `frame`.
    pub fn is_local(&self, frame: FrameNumber) -> bool {
        self.local.get(frame)
    }

    /// True if `frame` has been verified since the file was opened.
    pub fn is_verified(&self, frame: FrameNumber) -> bool {
        self.verified.get(frame)
    }

    /// Bytes of the pages that the local file may hold.
    pub fn local_bytes(&self) -> u64 {
        let local = (0..frames_of(self.pages)).map(FrameNumber::new).filter(|frame| self.is_local(*frame));
        local.map(|frame| u64_of(frame_bytes(frame, self.pages))).sum()
    }

    /// Brings a local frame into memory and verifies it if that was not done yet; blocks on the disk. False when the
    /// file does not hold it, which is remembered where the store has it. A disk that failed, or the only copy, is read
    /// again at the next try.
    pub fn load_local(&self, frame: FrameNumber) -> Result<bool, LayerError> {
        if !self.is_local(frame) {
            return Ok(false);
        }
        let (offset, bytes) = self.frame_extent(frame);
        if self.verified.get(frame) {
            let populated = self.mapping.populate(offset, bytes);
            return match populated {
                Ok(()) => Ok(true),
                Err(source) => {
                    self.verified.clear(frame);
                    Err(self.io(source))
                }
            };
        }
        let Some(digest) = self.digest(frame) else { return Ok(false) };
        let mut raw = vec![0; bytes];
        self.file.read_exact_at(&mut raw, u64_of(offset)).map_err(|source| self.io(source))?;
        let matches = FrameDigest::of(&raw) == digest;
        if matches {
            self.verified.set(frame);
        } else if self.stored().is_some() {
            self.local.clear(frame);
        }
        Ok(matches)
    }

    /// Takes in `raw` as the pages of `frame` if it is what the layer's name commits to.
    pub fn accept_frame(&self, frame: FrameNumber, raw: &[u8]) -> Result<(), LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        let expected = self.digest(frame);
        if raw.len() != bytes || expected != Some(FrameDigest::of(raw)) {
            return Err(LayerError::Digest { layer: self.id, frame });
        }
        self.make_whole().map_err(|source| self.io(source))?;
        self.file.write_all_at(raw, u64_of(offset)).map_err(|source| self.io(source))?;
        self.local.set(frame);
        self.verified.set(frame);
        Ok(())
    }

    /// Forgets that any frame was verified: reading one of them failed, and a disk seldom loses one alone.
    pub fn distrust_all(&self) {
        self.verified.clear_all();
    }

    /// Forgets that `frame` was verified: its next use reads and verifies it again.
    pub fn forget_verified(&self, frame: FrameNumber) {
        self.verified.clear(frame);
    }

    /// Reads the raw bytes of `frame` from the local file, verified against its digest.
    pub fn read_frame(&self, frame: FrameNumber) -> Result<Vec<u8>, LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        let mut raw = vec![0; bytes];
        self.file.read_exact_at(&mut raw, u64_of(offset)).map_err(|source| self.io(source))?;
        if self.digest(frame) == Some(FrameDigest::of(&raw)) {
            Ok(raw)
        } else {
            Err(LayerError::Digest { layer: self.id, frame })
        }
    }

    /// The index, once it is known: from packing, or from the store's table.
    pub fn index(&self) -> Option<&LayerIndex> {
        self.index.get()
    }

    /// The guest pages the layer holds, in its order; it was packed on this node.
    pub fn packed_pages(&self) -> &RankedSet {
        self.index().expect("a layer packed on this node has its index").pages()
    }

    /// Remembers the index, which is this layer's: the layer's name is the hash of it.
    pub fn set_index(&self, index: LayerIndex) {
        self.index.get_or_init(|| index);
    }

    /// Takes in equal bytes that were packed again into `packed`, and their index as it is stored: a layer that was only
    /// in the store is here then, and durable.
    pub fn take_in(&self, index: LayerIndex, encoded: &[u8], packed: &File) -> io::Result<()> {
        if index.page_count() != self.pages {
            let why = format!("layer {} was opened with {} pages, which is wrong", self.id, self.pages);
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.set_index(index);
        // Before anything is written behind the pages: it would make a file long again that was cut short.
        self.make_whole()?;
        for frame in (0..frames_of(self.pages)).map(FrameNumber::new) {
            if !self.is_verified(frame) {
                let (offset, bytes) = self.frame_extent(frame);
                let mut raw = vec![0; bytes];
                packed.read_exact_at(&mut raw, u64_of(offset))?;
                self.accept_frame(frame, &raw).map_err(io::Error::other)?;
            }
        }
        self.write_behind_pages(encoded)?;
        self.file.sync_all()
    }

    /// Remembers the index, also in the local file: the frames in there can be verified after a restart without the
    /// store. The write is not made durable: a start reads what a crash leaves of it as an index or as none.
    pub fn keep_index(&self, index: LayerIndex) -> io::Result<()> {
        let index = self.index.get_or_init(|| index);
        self.make_whole()?;
        self.write_behind_pages(&index.encode())
    }

    fn write_behind_pages(&self, encoded: &[u8]) -> io::Result<()> {
        self.file.write_all_at(encoded, u64_of(self.mapping.bytes()))
    }

    /// The object in the store that is read, once one is known.
    pub fn stored(&self) -> Option<Arc<StoredObject>> {
        lock(&self.objects).first().cloned()
    }

    /// Place of that object.
    pub fn stored_at(&self) -> Option<StoredLayer> {
        self.stored().map(|object| object.place().clone())
    }

    /// Remembers one more object of the layer; the one that is read stays.
    pub fn add_stored(&self, place: StoredLayer) {
        let mut objects = lock(&self.objects);
        if objects.iter().all(|known| known.place().object != place.object) {
            objects.push(Arc::new(StoredObject::at(place)));
        }
    }

    /// Remembers that an object is not in the store: another one is read from now on, if one is known.
    pub fn note_gone(&self, gone: ObjectName) {
        let mut objects = lock(&self.objects);
        if objects.len() > 1 {
            objects.retain(|known| known.place().object != gone);
        }
    }

    /// True if the local file may hold every frame of the layer, and they can be verified.
    pub fn may_be_whole(&self) -> bool {
        let mut frames = (0..frames_of(self.pages)).map(FrameNumber::new);
        self.index().is_some() && frames.all(|frame| self.is_local(frame))
    }

    /// Number of frames from `frame` on that are worth fetching at once; those after the first are not here.
    pub fn frames_ahead(&self, frame: FrameNumber) -> usize {
        let wanted = lock(&self.read_ahead).window(frame);
        let last = frames_of(self.pages).min(frame.index() + wanted);
        let absent = |number: &usize| {
            let frame = FrameNumber::new(*number);
            !self.is_local(frame) && !self.is_verified(frame)
        };
        1 + (frame.index() + 1..last).take_while(absent).count()
    }

    /// The right to upload the layer; its holder looks first if the layer is stored by now.
    pub async fn upload_turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.upload.lock().await
    }

    fn digest(&self, frame: FrameNumber) -> Option<FrameDigest> {
        self.index().map(|index| index.digest(frame))
    }

    /// Before a frame is written into a file that was cut short: the write would make it long again, and what was lost
    /// would read as zeroes without any error.
    fn make_whole(&self) -> io::Result<()> {
        let bytes = u64_of(self.mapping.bytes());
        if self.file.metadata()?.len() < bytes {
            self.distrust_all();
            self.file.set_len(bytes)?;
        }
        Ok(())
    }

    fn frame_extent(&self, frame: FrameNumber) -> (usize, usize) {
        let offset = frame.index() * usize_of(FRAME_PAGES) * PAGE_BYTES;
        (offset, frame_bytes(frame, self.pages))
    }

    fn io(&self, source: io::Error) -> LayerError {
        LayerError::Io { layer: self.id, source }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // The last owner is gone: no snapshot of this node names the layer.
        if !self.keeps_files.load(Ordering::Acquire)
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(layer = %self.id, %error, "a layer nobody names stays on the disk");
        }
    }
}

/// One bit per frame, set and read by many threads. Setting releases what was written before it.
#[derive(Debug)]
struct FrameFlags(Box<[AtomicU64]>);

impl FrameFlags {
    fn new(frames: usize) -> Self {
        Self((0..frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, frame: FrameNumber) -> bool {
        self.0[frame.index() / 64].load(Ordering::Acquire) & Self::bit(frame) != 0
    }

    fn set(&self, frame: FrameNumber) {
        self.0[frame.index() / 64].fetch_or(Self::bit(frame), Ordering::Release);
    }

    fn clear(&self, frame: FrameNumber) {
        self.0[frame.index() / 64].fetch_and(!Self::bit(frame), Ordering::Release);
    }

    fn set_all(&self) {
        for word in &self.0 {
            word.store(u64::MAX, Ordering::Release);
        }
    }

    fn clear_all(&self) {
        for word in &self.0 {
            word.store(0, Ordering::Release);
        }
    }

    fn bit(frame: FrameNumber) -> u64 {
        1 << (frame.index() % 64)
    }
}
