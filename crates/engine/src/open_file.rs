//! An open layer file: its descriptor, its mapping, and which of its frames are there and verified.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rekindle_kernel::{Mapping, PAGE_BYTES};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::frame::{FRAME_PAGES, FrameNumber, frames_of};
use crate::frame_flags::{FrameFlags, PageFlags};
use crate::geometry::{bytes_of_pages, u64_of, usize_of};
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_files::{CountedOpen, LayerFiles};
use crate::layer_index::LayerIndex;
use crate::limits::LAYER_INDEX_BYTES_MAX;
use crate::sync::OnceLock;

/// One open file of a layer.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) file: File,
    pub(crate) mapping: Mapping,
    /// Frames whose bytes in the file match their digest, as seen since the file was opened.
    pub(crate) verified: FrameFlags,
    /// Single pages of other frames that were proven to be theirs since then; none as long as no page came alone.
    pub(crate) proven: OnceLock<PageFlags>,
    /// Frames that the file may hold.
    pub(crate) local: FrameFlags,
    _counted: CountedOpen,
}

impl OpenFile {
    /// A file that is as long as the layer's pages; `has_frames` says if it may hold some of them.
    pub(crate) fn over(
        layer: &LayerFacts,
        file: File,
        files: &Arc<LayerFiles>,
        has_frames: bool,
    ) -> io::Result<Self> {
        let mapping = Mapping::of_file(&file, usize_of(layer.pages()) * PAGE_BYTES)?;
        let frames = frames_of(layer.pages());
        let opened = Self {
            mapping,
            verified: FrameFlags::new(frames),
            proven: OnceLock::new(),
            local: FrameFlags::new(frames),
            _counted: files.count_open(),
            file,
        };
        if has_frames {
            opened.find_frames(layer)?;
        }
        Ok(opened)
    }

    /// Opens the file at a layer's path. If it cannot be opened and the layer is elsewhere too, frames go into a file without
    /// a name.
    pub(crate) fn open(layer: &LayerFacts, files: &Arc<LayerFiles>) -> io::Result<Self> {
        match Self::open_named(layer, files) {
            Err(error) if !layer.is_only_copy() => {
                tracing::warn!(layer = %layer.id(), %error, "a layer file cannot be opened; its frames are fetched anew and not kept");
                Self::nameless(layer, files)
            }
            opened => opened,
        }
    }

    /// A new file that no start finds.
    pub(crate) fn nameless(layer: &LayerFacts, files: &Arc<LayerFiles>) -> io::Result<Self> {
        let (file, path) = files.unfinished()?;
        std::fs::remove_file(&path)?;
        file.set_len(bytes_of_pages(layer.pages()))?;
        Self::over(layer, file, files, false)
    }

    /// Opens the file at a layer's path. One that is absent or too short is replaced by an empty one, unless the layer is
    /// nowhere else. Learns the layer's index from the file, and writes it into a new one.
    fn open_named(layer: &LayerFacts, files: &Arc<LayerFiles>) -> io::Result<Self> {
        let bytes = bytes_of_pages(layer.pages());
        loop {
            match files.open_there(layer.id()) {
                Ok(file) => {
                    if file.metadata()?.len() >= bytes || layer.is_only_copy() {
                        if layer.index().is_none()
                            && let Some(index) = read_index(&file, layer)?
                        {
                            layer.set_index(index);
                        }
                        return Self::over(layer, file, files, true);
                    }
                    // Readers of the short one must not see it grow, as its lost bytes would read as zeroes.
                    remove(files, layer.id())?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && !layer.is_only_copy() => {
                    if let Some(file) = create(layer, files, bytes)? {
                        return Self::over(layer, file, files, false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Marks the frames of which the file has bytes. A page that is packed is never zero, so a hole holds none; the only
    /// copy is read whatever the file system says of holes.
    fn find_frames(&self, layer: &LayerFacts) -> io::Result<()> {
        if layer.is_only_copy() {
            self.local.set_all();
            return Ok(());
        }
        let bytes = bytes_of_pages(layer.pages());
        let frame_bytes = u64::from(FRAME_PAGES) * u64_of(PAGE_BYTES);
        let mut offset = 0;
        while offset < bytes {
            let begin = match seek(&self.file, SeekFrom::Data(offset)) {
                Ok(begin) => begin,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => {
                    self.local.set_all();
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let end = seek(&self.file, SeekFrom::Hole(begin))?.min(bytes);
            for frame in begin / frame_bytes..end.div_ceil(frame_bytes) {
                self.local.set(FrameNumber::new(usize::try_from(frame).expect("a frame of a layer")));
            }
            offset = end;
        }
        Ok(())
    }

    /// The file's metadata.
    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// True if the file is still the one at the layer's path.
    pub(crate) fn is_at_path(&self, layer: LayerId, files: &LayerFiles) -> bool {
        let place = |found: Metadata| (found.dev(), found.ino());
        let own = self.metadata().map(place);
        let named = files.path_of(layer).symlink_metadata().map(place);
        matches!((own, named), (Ok(own), Ok(named)) if own == named)
    }
}

/// Makes the file of a layer; none if another one was made meanwhile. It has its name once it is complete.
fn create(layer: &LayerFacts, files: &LayerFiles, bytes: u64) -> io::Result<Option<File>> {
    let (file, path) = files.unfinished()?;
    let filled = file.set_len(bytes).and_then(|()| match layer.index() {
        Some(index) => file.write_all_at(&index.encode(), bytes),
        None => Ok(()),
    });
    let named = filled.and_then(|()| std::fs::hard_link(&path, files.path_of(layer.id())));
    let removed = std::fs::remove_file(&path);
    match named {
        Ok(()) => removed.map(|()| Some(file)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove(files: &LayerFiles, layer: LayerId) -> io::Result<()> {
    match std::fs::remove_file(files.path_of(layer)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The index after the raw pages; none if those bytes are not the index that the layer's name commits to.
pub(crate) fn read_index(file: &File, facts: &LayerFacts) -> io::Result<Option<LayerIndex>> {
    let (name, raw) = (facts.name(), bytes_of_pages(facts.pages()));
    let length = file.metadata()?.len().saturating_sub(raw);
    let Some(length) =
        usize::try_from(length).ok().filter(|length| (1..=LAYER_INDEX_BYTES_MAX).contains(length))
    else {
        return Ok(None);
    };
    let mut encoded = vec![0; length];
    file.read_exact_at(&mut encoded, raw)?;
    if facts.key().layer_id(&encoded) != name.id {
        return Ok(None);
    }
    Ok(LayerIndex::decode(&encoded).ok().filter(|index| index.page_count() == name.pages))
}
