//! A layer's raw pages on this disk: a sparse file that is filled frame by frame, each frame verified before its use.
//!
//! The file is opened at the first use of its bytes. A layer's local file is replaced as a whole and never punched: a read
//! keeps the file that it was planned on, and a frame that is verified in it stays so. A file that something cut short is
//! never made long again, for its lost bytes would read as zeroes; frames that are fetched go into its successor.

mod proven;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rekindle_kernel::{Mapping, PAGE_BYTES};

use crate::disk_use::FileBytes;
use crate::frame::{FRAME_PAGES, FrameNumber, frame_bytes, frame_of, frames_of};
use crate::geometry::{LayerPage, bytes_of_pages, u64_of, usize_of};
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_files::LayerFiles;
use crate::layer_index::LayerIndex;
use crate::open_file::OpenFile;
use crate::read_ahead::ReadAhead;
use crate::sync::{Mutex, OnceLock, lock};

/// One local file of a layer.
#[derive(Debug)]
pub struct LocalFile {
    layer: Arc<LayerFacts>,
    files: Arc<LayerFiles>,
    bytes: Arc<FileBytes>,
    opened: OnceLock<OpenFile>,
    read_ahead: Mutex<ReadAhead>,
    /// The file without a name into which frames go since this one was found cut short.
    successor: OnceLock<Arc<Self>>,
}

/// A local file into which every frame was just packed, durable with its index behind the pages.
#[derive(Debug)]
pub struct PackedFile(LocalFile);

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

impl PackedFile {
    /// A file of `layer`, every frame of which was digested from the bytes that were written.
    pub fn new(layer: Arc<LayerFacts>, file: File, files: &Arc<LayerFiles>) -> io::Result<Self> {
        let packed = LocalFile::with(OpenFile::over(&layer, file, files, true)?, layer, files)?;
        packed.opened().verified.set_all();
        Ok(Self(packed))
    }
}

impl From<PackedFile> for LocalFile {
    fn from(PackedFile(file): PackedFile) -> Self {
        file
    }
}

impl LocalFile {
    /// The file at the path of `layer` in the directory of `files`, which is opened when it is needed.
    pub fn closed(layer: Arc<LayerFacts>, files: &Arc<LayerFiles>) -> Self {
        Self::counted_in(layer, files, files.bytes().file())
    }

    fn counted_in(layer: Arc<LayerFacts>, files: &Arc<LayerFiles>, bytes: Arc<FileBytes>) -> Self {
        Self {
            layer,
            files: Arc::clone(files),
            bytes,
            opened: OnceLock::new(),
            read_ahead: Mutex::default(),
            successor: OnceLock::new(),
        }
    }

    /// An open file.
    fn with(opened: OpenFile, layer: Arc<LayerFacts>, files: &Arc<LayerFiles>) -> io::Result<Self> {
        let local = Self::closed(layer, files);
        local.bytes.note(&opened.metadata()?);
        local.opened.get_or_init(|| opened);
        Ok(local)
    }

    /// The same file without its descriptor and mapping. None if it is closed, or if only the descriptor leads to its
    /// bytes and they are nowhere else.
    pub fn closed_again(&self) -> Option<Self> {
        let opened = self.opened.get()?;
        if self.layer.is_only_copy() && !opened.is_at_path(self.layer.id(), &self.files) {
            return None;
        }
        Some(Self::counted_in(Arc::clone(&self.layer), &self.files, Arc::clone(&self.bytes)))
    }

    /// True if it has a descriptor and a mapping.
    pub fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }

    /// Opens the file if it is closed; blocks on the disk.
    fn open(&self) -> io::Result<&OpenFile> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let opened = OpenFile::open(&self.layer, &self.files)?;
        self.bytes.note(&opened.metadata()?);
        Ok(self.opened.get_or_init(|| opened))
    }

    /// Opens the file if it is closed, so that it can be read once its path is gone; blocks on the disk.
    pub(crate) fn stay_readable(&self) -> io::Result<()> {
        self.open().map(drop)
    }

    fn opened(&self) -> &OpenFile {
        self.opened.get().expect("the file of a verified frame is open")
    }

    /// The count of the bytes that it takes on the disk.
    pub fn counted(&self) -> &FileBytes {
        &self.bytes
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
    ///
    /// # Panics
    /// If no frame was verified since the file was made known: then it may be closed.
    pub fn mapping(&self) -> &Mapping {
        &self.opened().mapping
    }

    /// Number of pages from `first` on, at most `limit`, that can be read without blocking: verified and in memory.
    pub fn readable_now(&self, first: LayerPage, limit: u32) -> u32 {
        let verified = self.verified_run(first, limit);
        if verified == 0 {
            return 0;
        }
        let bytes = self.mapping().resident_prefix_bytes(first.offset(), usize_of(verified) * PAGE_BYTES);
        u32::try_from(bytes / PAGE_BYTES).expect("at most `verified` pages")
    }

    /// Number of pages from `first` on, at most `limit`, that are verified; reading them may wait for the disk.
    pub fn verified_run(&self, first: LayerPage, limit: u32) -> u32 {
        let end = first.number() + limit;
        let mut page = first.number();
        while page < end {
            let frame_end = (page / FRAME_PAGES + 1) * FRAME_PAGES;
            if self.is_verified(frame_of(LayerPage::new(page))) {
                page = frame_end;
                continue;
            }
            page += self.proven_run(LayerPage::new(page));
            if page < frame_end {
                break;
            }
        }
        page.min(end).saturating_sub(first.number())
    }

    /// True if the open file may hold `frame`.
    pub fn is_local(&self, frame: FrameNumber) -> bool {
        self.opened.get().is_some_and(|opened| opened.local.get(frame))
    }

    /// True if `frame` has been verified since the file was opened.
    pub fn is_verified(&self, frame: FrameNumber) -> bool {
        self.opened.get().is_some_and(|opened| opened.verified.get(frame))
    }

    /// True if every frame has been verified since the file was opened.
    pub fn is_all_verified(&self) -> bool {
        self.frames().all(|frame| self.is_verified(frame))
    }

    /// True if the file may hold every frame of the layer, and they can be verified; blocks on the disk.
    pub fn may_be_whole(&self) -> bool {
        self.open().is_ok() && self.layer.index().is_some() && self.frames().all(|frame| self.is_local(frame))
    }

    /// Brings a local frame into memory and verifies it if that was not done yet; blocks on the disk. False when the
    /// file does not hold it, which is remembered where the store has it. A disk that failed, or the only copy, is read
    /// again at the next try.
    pub fn load_local(&self, frame: FrameNumber) -> Result<bool, LayerError> {
        let opened = self.open().map_err(|source| self.io(source))?;
        if !opened.local.get(frame) {
            return Ok(false);
        }
        let (offset, bytes) = self.frame_extent(frame);
        if opened.verified.get(frame) {
            let populated = opened.mapping.populate(offset, bytes);
            return match populated {
                Ok(()) => Ok(true),
                Err(source) => {
                    opened.verified.clear(frame);
                    Err(self.io(source))
                }
            };
        }
        if self.layer.index().is_none() {
            return Ok(false);
        }
        let mut raw = vec![0; bytes];
        opened.file.read_exact_at(&mut raw, u64_of(offset)).map_err(|source| self.io(source))?;
        let matches = self.layer.is_frame(frame, &raw);
        if matches {
            opened.verified.set(frame);
        } else if !self.layer.is_only_copy() {
            opened.local.clear(frame);
        }
        Ok(matches)
    }

    /// Takes in `raw` as the pages of `frame` if it is what the layer's name commits to: here, or in the successor.
    pub fn accept_frame(&self, frame: FrameNumber, raw: &[u8]) -> Result<(), LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        if raw.len() != bytes || !self.layer.is_frame(frame, raw) {
            return Err(LayerError::Digest { layer: self.layer.id(), frame });
        }
        let whole = |opened: &OpenFile| {
            opened.local.set(frame);
            opened.verified.set(frame);
        };
        self.write(&[(offset, raw)], whole).map_err(|source| self.io(source))
    }

    /// Writes bytes at their places, and has them marked.
    fn write(&self, pieces: &[(usize, &[u8])], mark: impl Fn(&OpenFile)) -> io::Result<()> {
        let mut filled = self;
        loop {
            let opened = filled.open()?;
            filled = match filled.successor.get() {
                Some(next) => next,
                None if filled.is_cut_short()? => filled.make_successor()?,
                None => {
                    for (offset, bytes) in pieces {
                        opened.file.write_all_at(bytes, u64_of(*offset))?;
                    }
                    // The write made it longer if it was cut at this very moment.
                    if filled.is_cut_short()? {
                        continue;
                    }
                    mark(opened);
                    return Ok(());
                }
            };
        }
    }

    /// Forgets that any frame was verified: reading one of them failed, and a disk seldom loses one alone.
    pub fn forget_all_verified(&self) {
        self.opened.get().inspect(|opened| {
            opened.verified.clear_all();
            opened.proven.get().inspect(|proven| proven.clear_all());
        });
    }

    /// Forgets that `frame` was verified: its next use reads and verifies it again.
    pub fn forget_verified(&self, frame: FrameNumber) {
        self.opened.get().inspect(|opened| {
            opened.verified.clear(frame);
            opened.proven.get().inspect(|proven| proven.clear(frame));
        });
    }

    /// Reads the raw bytes of `frame`, verified against its digest.
    pub fn read_frame(&self, frame: FrameNumber) -> Result<Vec<u8>, LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        let mut raw = vec![0; bytes];
        let read = self.open().and_then(|opened| opened.file.read_exact_at(&mut raw, u64_of(offset)));
        read.map_err(|source| self.io(source))?;
        if self.layer.is_frame(frame, &raw) {
            Ok(raw)
        } else {
            Err(LayerError::Digest { layer: self.layer.id(), frame })
        }
    }

    /// Appends the bytes of a frame as they are on the disk: nothing proves that they are still right.
    pub(crate) fn append_frame(&self, frame: FrameNumber, into: &mut Vec<u8>) -> Result<(), LayerError> {
        let (offset, bytes) = self.frame_extent(frame);
        let start = into.len();
        into.resize(start + bytes, 0);
        let read =
            self.open().and_then(|opened| opened.file.read_exact_at(&mut into[start..], u64_of(offset)));
        read.map_err(|source| self.io(source))
    }

    /// Syncs the file to the disk, with the `encoded` index behind the pages, if every frame in it is verified; false, and
    /// nothing is promised, if one is not.
    pub fn sync_whole(&self, encoded: &[u8]) -> io::Result<bool> {
        if !self.is_all_verified() || !self.has_name() || self.is_cut_short()? {
            return Ok(false);
        }
        self.write_behind_pages(encoded)?;
        self.opened().file.sync_all()?;
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

    /// Number of frames from `frame` on that are worth fetching at once; those after the first are not here. Only the
    /// first, while it is not known which are.
    pub fn frames_ahead(&self, frame: FrameNumber) -> usize {
        let wanted = lock(&self.read_ahead).window(frame);
        if !self.is_open() {
            return 1;
        }
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
        self.open()?.file.write_all_at(encoded, bytes_of_pages(self.layer.pages()))
    }

    /// True if the file has lost some of its end: then nothing is written into it, which would make it long again. Counts
    /// what the file takes on the disk.
    fn is_cut_short(&self) -> io::Result<bool> {
        let found = self.open()?.metadata()?;
        self.bytes.note(&found);
        Ok(found.len() < bytes_of_pages(self.layer.pages()))
    }

    /// A file that no start finds, so that the layer's file keeps its path and its owner.
    fn make_successor(&self) -> io::Result<&Self> {
        self.forget_all_verified();
        let opened = OpenFile::nameless(&self.layer, &self.files)?;
        let next = Self::with(opened, Arc::clone(&self.layer), &self.files)?;
        Ok(self.successor.get_or_init(|| Arc::new(next)))
    }

    /// False for a successor, which the next start does not find.
    fn has_name(&self) -> bool {
        self.opened.get().is_some_and(|opened| opened.metadata().is_ok_and(|file| file.nlink() > 0))
    }

    fn frame_extent(&self, frame: FrameNumber) -> (usize, usize) {
        let offset = frame.index() * usize_of(FRAME_PAGES) * PAGE_BYTES;
        (offset, frame_bytes(frame, self.layer.pages()))
    }

    fn io(&self, source: io::Error) -> LayerError {
        LayerError::Io { layer: self.layer.id(), source }
    }
}
