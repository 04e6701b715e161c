//! A layer's raw pages on this disk: a sparse file that is filled frame by frame, each frame verified before its use.
//!
//! A layer's local file is replaced as a whole and never punched: a read keeps the file that it was planned on, and a
//! frame that is verified in it stays so. A file that something cut short is never made long again, for its lost bytes
//! would read as zeroes; frames that are fetched go into its successor.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rekindle_kernel::{Mapping, PAGE_BYTES};

use crate::frame::{FRAME_PAGES, FrameNumber, frame_bytes, frame_of, frames_of};
use crate::frame_flags::FrameFlags;
use crate::geometry::{LayerPage, u64_of, usize_of};
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_index::LayerIndex;
use crate::private;
use crate::read_ahead::ReadAhead;
use crate::sync::{Mutex, lock};

/// One local file of a layer.
#[derive(Debug)]
pub struct LocalFile {
    layer: Arc<LayerFacts>,
    file: File,
    mapping: Mapping,
    /// Frames whose bytes in the file match their digest, as seen since the file was opened.
    verified: FrameFlags,
    /// Frames that the file may hold.
    local: FrameFlags,
    read_ahead: Mutex<ReadAhead>,
    /// Directory of the file's successor.
    directory: PathBuf,
    /// The file without a name into which frames go since this one was found cut short.
    successor: OnceLock<Arc<Self>>,
}

/// A local file into which every frame was just packed, durable with its index behind the pages.
#[derive(Debug)]
pub struct PackedFile(LocalFile);

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

/// A new file in `directory`, under a name that the next start removes.
pub(crate) fn unfinished(directory: &Path) -> io::Result<(File, PathBuf)> {
    let path = directory.join(format!("{}.packing", uuid::Uuid::now_v7()));
    Ok((private::options().create_new(true).open(&path)?, path))
}

impl PackedFile {
    /// A file of `layer`, every frame of which was digested from the bytes that were written.
    pub fn new(layer: Arc<LayerFacts>, file: File, directory: &Path) -> io::Result<Self> {
        let packed = LocalFile::over(layer, file, directory, LocalFrames::Perhaps)?;
        packed.verified.set_all();
        Ok(Self(packed))
    }
}

impl From<PackedFile> for LocalFile {
    fn from(PackedFile(file): PackedFile) -> Self {
        file
    }
}

impl LocalFile {
    /// A file of `layer`, in `directory`, that is as long as its pages; `local` says whether it may hold some of the frames
    /// already.
    pub fn over(
        layer: Arc<LayerFacts>,
        file: File,
        directory: &Path,
        local: LocalFrames,
    ) -> io::Result<Self> {
        let mapping = Mapping::of_file(&file, usize_of(layer.pages()) * PAGE_BYTES)?;
        let frames = frames_of(layer.pages());
        let opened = Self {
            layer,
            file,
            mapping,
            verified: FrameFlags::new(frames),
            local: FrameFlags::new(frames),
            read_ahead: Mutex::default(),
            directory: directory.to_owned(),
            successor: OnceLock::new(),
        };
        match local {
            LocalFrames::None => {}
            LocalFrames::Perhaps => opened.local.set_all(),
        }
        Ok(opened)
    }

    /// The file that is filled now: this one, unless it was found cut short.
    pub fn newest(self: Arc<Self>) -> Arc<Self> {
        let mut newest = self;
        while let Some(next) = newest.successor.get() {
            newest = Arc::clone(next);
        }
        newest
    }

    /// The layer whose pages these are.
    pub fn layer(&self) -> &Arc<LayerFacts> {
        &self.layer
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

    /// True if the file may hold `frame`.
    pub fn is_local(&self, frame: FrameNumber) -> bool {
        self.local.get(frame)
    }

    /// True if `frame` has been verified since the file was opened.
    pub fn is_verified(&self, frame: FrameNumber) -> bool {
        self.verified.get(frame)
    }

    /// True if every frame has been verified since the file was opened.
    pub fn is_all_verified(&self) -> bool {
        self.frames().all(|frame| self.is_verified(frame))
    }

    /// Bytes of the pages that the file may hold.
    pub fn local_bytes(&self) -> u64 {
        let local = self.frames().filter(|frame| self.is_local(*frame));
        local.map(|frame| u64_of(frame_bytes(frame, self.layer.pages()))).sum()
    }

    /// True if the file may hold every frame of the layer, and they can be verified.
    pub fn may_be_whole(&self) -> bool {
        self.layer.index().is_some() && self.frames().all(|frame| self.is_local(frame))
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
        if self.layer.index().is_none() {
            return Ok(false);
        }
        let mut raw = vec![0; bytes];
        self.file.read_exact_at(&mut raw, u64_of(offset)).map_err(|source| self.io(source))?;
        let matches = self.layer.is_frame(frame, &raw);
        if matches {
            self.verified.set(frame);
        } else if !self.layer.is_only_copy() {
            self.local.clear(frame);
        }
        Ok(matches)
    }

    /// Takes in `raw` as the pages of `frame` if it is what the layer's name commits to: here, or in the successor.
    pub fn accept_frame(&self, frame: FrameNumber, raw: &[u8]) -> Result<(), LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        if raw.len() != bytes || !self.layer.is_frame(frame, raw) {
            return Err(LayerError::Digest { layer: self.layer.id(), frame });
        }
        self.write(frame, raw, offset).map_err(|source| self.io(source))
    }

    fn write(&self, frame: FrameNumber, raw: &[u8], offset: usize) -> io::Result<()> {
        let mut filled = self;
        loop {
            filled = match filled.successor.get() {
                Some(next) => next,
                None if filled.is_cut_short()? => filled.make_successor()?,
                None => {
                    filled.file.write_all_at(raw, u64_of(offset))?;
                    // The write made it longer if it was cut at this very moment.
                    if filled.is_cut_short()? {
                        continue;
                    }
                    filled.local.set(frame);
                    filled.verified.set(frame);
                    return Ok(());
                }
            };
        }
    }

    /// Forgets that any frame was verified: reading one of them failed, and a disk seldom loses one alone.
    pub fn forget_all_verified(&self) {
        self.verified.clear_all();
    }

    /// Forgets that `frame` was verified: its next use reads and verifies it again.
    pub fn forget_verified(&self, frame: FrameNumber) {
        self.verified.clear(frame);
    }

    /// Reads the raw bytes of `frame`, verified against its digest.
    pub fn read_frame(&self, frame: FrameNumber) -> Result<Vec<u8>, LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        let mut raw = vec![0; bytes];
        self.file.read_exact_at(&mut raw, u64_of(offset)).map_err(|source| self.io(source))?;
        if self.layer.is_frame(frame, &raw) {
            Ok(raw)
        } else {
            Err(LayerError::Digest { layer: self.layer.id(), frame })
        }
    }

    /// Syncs the file to the disk, with the `encoded` index behind the pages, if every frame in it is verified; false, and
    /// nothing is promised, if one is not.
    pub fn sync_whole(&self, encoded: &[u8]) -> io::Result<bool> {
        if !self.has_name() || self.is_cut_short()? || !self.is_all_verified() {
            return Ok(false);
        }
        self.write_behind_pages(encoded)?;
        self.file.sync_all()?;
        Ok(true)
    }

    /// Remembers the layer's index, also in this file: the frames in here can be verified after a restart without the
    /// store. The write is not made durable: a start reads what a crash leaves of it as an index or as none.
    pub fn keep_index(&self, index: LayerIndex) -> io::Result<()> {
        let index = self.layer.set_index(index);
        if self.is_cut_short()? {
            return Ok(());
        }
        self.write_behind_pages(&index.encode())
    }

    /// Number of frames from `frame` on that are worth fetching at once; those after the first are not here.
    pub fn frames_ahead(&self, frame: FrameNumber) -> usize {
        let wanted = lock(&self.read_ahead).window(frame);
        let last = frames_of(self.layer.pages()).min(frame.index() + wanted);
        let absent = |number: &usize| {
            let frame = FrameNumber::new(*number);
            !self.is_local(frame) && !self.is_verified(frame)
        };
        1 + (frame.index() + 1..last).take_while(absent).count()
    }

    fn frames(&self) -> impl Iterator<Item = FrameNumber> {
        (0..frames_of(self.layer.pages())).map(FrameNumber::new)
    }

    fn write_behind_pages(&self, encoded: &[u8]) -> io::Result<()> {
        self.file.write_all_at(encoded, u64_of(self.mapping.bytes()))
    }

    /// True if the file has lost some of its end: then nothing is written into it, which would make it long again.
    fn is_cut_short(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() < u64_of(self.mapping.bytes()))
    }

    /// A file that no start finds, so that the layer's file keeps its path and its owner.
    fn make_successor(&self) -> io::Result<&Self> {
        self.forget_all_verified();
        let (file, path) = unfinished(&self.directory)?;
        std::fs::remove_file(&path)?;
        file.set_len(u64_of(self.mapping.bytes()))?;
        let next = Self::over(Arc::clone(&self.layer), file, &self.directory, LocalFrames::None)?;
        Ok(self.successor.get_or_init(|| Arc::new(next)))
    }

    /// False for a successor, which the next start does not find.
    fn has_name(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.nlink() > 0)
    }

    fn frame_extent(&self, frame: FrameNumber) -> (usize, usize) {
        let offset = frame.index() * usize_of(FRAME_PAGES) * PAGE_BYTES;
        (offset, frame_bytes(frame, self.layer.pages()))
    }

    fn io(&self, source: io::Error) -> LayerError {
        LayerError::Io { layer: self.layer.id(), source }
    }
}
