//! The pages of a volume that another node has: they come when they are asked for, into memory of ours.
//!
//! Pages without a name cannot be checked when they come. Once they have one, those that came are compared, and all later
//! ones are read by name. The keeper has the memory too, with a byte for each frame, so the next process compares what this
//! one has handed out.

use std::fmt;
use std::io;
use std::sync::Arc;

use rekindle_kernel::{Mapping, Memfd, PAGE_BYTES, PageKind};

use crate::budget::Lease;
use crate::frame::{FRAME_PAGES, FrameNumber, frames_of, pages_in_frame};
use crate::frame_flags::FrameFlags;
use crate::geometry::{GuestPage, GuestPages, bytes_of_pages, u64_of, usize_of};
use crate::identity::{LayerId, SnapshotId, VolumeName};
use crate::keep::{KeptError, KeptVolume};
use crate::peer::{Peer, PeerError, WantedPages};
use crate::reaper::ReaperHandle;
use crate::sync::{Mutex, lock};
use crate::urgency::Class;

/// A volume of a snapshot that another node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RemoteVolume {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The volume's position; memory is the first.
    pub volume: u8,
}

/// The layer or volume that a frame is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FramesOf {
    /// A layer: the frame is of its packed pages, and its name commits to it.
    Layer(LayerId),
    /// A volume that another node has: the frame is of guest pages, and has no name.
    Remote(RemoteVolume),
}

/// The pages, of which those that have come are here.
#[derive(Debug)]
pub struct RemotePages {
    of: RemoteVolume,
    pages: u32,
    peer: Arc<dyn Peer>,
    here: FrameFlags,
    arrivals: Mutex<Arrivals>,
    memory: Option<Memory>,
    reaper: ReaperHandle,
}

/// Memory for the pages of a volume, and its lease, freed by the reaper in this order: the lease last.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Mapping,
    memfd: Memfd,
    /// A byte for each frame, 1 once it came without a name.
    came: Memfd,
    _lease: Lease,
}

#[derive(Default)]
struct Arrivals {
    /// Frames that came without a name.
    frames: Vec<FrameNumber>,
    named: Option<Arc<dyn NamedPages>>,
}

/// The same pages by name.
pub trait NamedPages: Send + Sync {
    /// Reads them; may wait.
    fn read(&self, pages: GuestPages, into: &mut [u8]) -> Result<(), String>;
}

/// Reason that pages of another node are not here.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The other node gave none.
    #[error("{source}; this node has {here} of the {all} bytes of volume {} of snapshot {}", .of.volume, .of.snapshot)]
    Peer {
        /// The volume.
        of: RemoteVolume,
        /// Bytes that are here.
        here: u64,
        /// Bytes of the volume.
        all: u64,
        /// The node's error.
        source: PeerError,
    },
    /// Their layers gave none.
    #[error("volume {} of snapshot {}: {reason}", .of.volume, .of.snapshot)]
    Named {
        /// The volume.
        of: RemoteVolume,
        /// The reason.
        reason: String,
    },
    /// There is no memory for them.
    #[error("memory for pages of snapshot {}: {source}", .of.snapshot)]
    Memory {
        /// The volume.
        of: RemoteVolume,
        /// The system's error.
        source: io::Error,
    },
}

impl Memory {
    /// Memory for so many pages, of which none has come; the lease is of their bytes.
    pub(crate) fn new(pages: u32, lease: Lease) -> io::Result<Self> {
        let memfd = Memfd::create("rekindle-remote", bytes_of_pages(pages), PageKind::Small)?;
        let frames = u64_of(frames_of(pages).next_multiple_of(PAGE_BYTES));
        let came = Memfd::create("rekindle-remote-frames", frames, PageKind::Small)?;
        Ok(Self { mapping: Mapping::of_memfd(&memfd)?, memfd, came, _lease: lease })
    }

    /// The memory that a keeper had.
    pub(crate) fn of_kept(kept: KeptVolume, pages: u32, lease: Lease) -> Result<Self, KeptError> {
        let (memfd, came) = (Memfd::adopt(kept.memory)?, Memfd::adopt(kept.sets)?);
        if memfd.bytes() != bytes_of_pages(pages) || came.bytes() < u64_of(frames_of(pages)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another size").into());
        }
        Ok(Self { mapping: Mapping::of_memfd(&memfd)?, memfd, came, _lease: lease })
    }

    /// The frames that came without a name.
    fn came(&self, pages: u32) -> io::Result<Vec<FrameNumber>> {
        let mut came = vec![0; frames_of(pages)];
        self.came.read_at(&mut came, 0)?;
        let came = came.iter().enumerate().filter(|(_, came)| **came != 0);
        Ok(came.map(|(frame, _)| FrameNumber::new(frame)).collect())
    }
}

impl RemotePages {
    /// The pages that have come into this memory.
    pub(crate) fn new(
        of: RemoteVolume,
        pages: u32,
        peer: Arc<dyn Peer>,
        memory: Memory,
        reaper: ReaperHandle,
    ) -> io::Result<Self> {
        let (here, frames) = (FrameFlags::new(frames_of(pages)), memory.came(pages)?);
        frames.iter().for_each(|frame| here.set(*frame));
        let arrivals = Mutex::new(Arrivals { frames, named: None });
        Ok(Self { of, pages, peer, here, arrivals, memory: Some(memory), reaper })
    }

    /// The memory as a keeper holds it.
    pub(crate) fn kept(&self, name: VolumeName) -> io::Result<KeptVolume> {
        let Memory { memfd, came, .. } = self.memory();
        Ok(KeptVolume { name, memory: memfd.try_clone()?.into(), sets: came.try_clone()?.into() })
    }

    /// The volume.
    pub fn of(&self) -> RemoteVolume {
        self.of
    }

    /// Pages of the volume.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The node that has them.
    pub fn peer(&self) -> &Arc<dyn Peer> {
        &self.peer
    }

    /// The bytes, guest page `p` at byte `p * 4096`; only those of frames that are here may be read.
    pub fn mapping(&self) -> &Mapping {
        &self.memory().mapping
    }

    /// True if a frame is here.
    pub fn is_here(&self, frame: FrameNumber) -> bool {
        self.here.get(frame)
    }

    /// Pages from `page` on, at most `count`, that are here.
    pub fn run_here(&self, page: GuestPage, count: u32) -> u32 {
        let mut run = 0;
        while run < count && self.here.get(frame_at(page.plus(run))) {
            run += FRAME_PAGES - page.plus(run).number() % FRAME_PAGES;
        }
        run.min(count)
    }

    /// Frames of the volume.
    pub fn frames(&self) -> impl Iterator<Item = FrameNumber> + use<> {
        (0..frames_of(self.pages)).map(FrameNumber::new)
    }

    /// The guest pages of a frame.
    pub fn pages_of(&self, frame: FrameNumber) -> GuestPages {
        GuestPages::new(GuestPage::new(frame.first_page().number()), pages_in_frame(frame, self.pages))
    }

    /// Bytes that are not here.
    pub fn missing_bytes(&self) -> u64 {
        let missing = self.frames().filter(|frame| !self.is_here(*frame));
        missing.map(|frame| bytes_of_pages(pages_in_frame(frame, self.pages))).sum()
    }

    /// Brings a frame: from the other node, or by name once it has one. One caller at a time for each frame.
    pub(crate) async fn bring(self: &Arc<Self>, frame: FrameNumber, class: Class) -> Result<(), RemoteError> {
        if self.is_here(frame) {
            return Ok(());
        }
        let named = lock(&self.arrivals).named.clone();
        if let Some(named) = named {
            return self.bring_named(frame, named).await;
        }
        let RemoteVolume { snapshot, volume } = self.of;
        let wanted = WantedPages { snapshot, volume, runs: vec![self.pages_of(frame)] };
        let bytes = self.peer.pages(wanted, class).await.map_err(|source| self.not_from_peer(source))?;
        let this = Arc::clone(self);
        let named = blocking(move || this.take_in(frame, &bytes)).await.transpose()?.flatten();
        match named {
            Some(named) => self.bring_named(frame, named).await,
            None => Ok(()),
        }
    }

    async fn bring_named(
        self: &Arc<Self>,
        frame: FrameNumber,
        named: Arc<dyn NamedPages>,
    ) -> Result<(), RemoteError> {
        let this = Arc::clone(self);
        blocking(move || this.read_named(frame, &*named)).await.unwrap_or(Ok(()))
    }

    /// Takes in a frame by name.
    pub(crate) fn read_named(&self, frame: FrameNumber, named: &dyn NamedPages) -> Result<(), RemoteError> {
        let pages = self.pages_of(frame);
        let mut bytes = vec![0; usize_of(pages.count()) * PAGE_BYTES];
        named.read(pages, &mut bytes).map_err(|reason| RemoteError::Named { of: self.of, reason })?;
        self.write(frame, &bytes)?;
        self.here.set(frame);
        Ok(())
    }

    /// Takes in a frame that came without a name; gives the names instead if the pages have them by now.
    pub(crate) fn take_in(
        &self,
        frame: FrameNumber,
        bytes: &[u8],
    ) -> Result<Option<Arc<dyn NamedPages>>, RemoteError> {
        self.write(frame, bytes)?;
        // Before anybody can read it.
        let noted = self.memory().came.write_at(&[1], u64_of(frame.index()));
        noted.map_err(|source| RemoteError::Memory { of: self.of, source })?;
        let mut arrivals = lock(&self.arrivals);
        if arrivals.named.is_none() {
            arrivals.frames.push(frame);
            self.here.set(frame);
        }
        Ok(arrivals.named.clone())
    }

    fn write(&self, frame: FrameNumber, bytes: &[u8]) -> Result<(), RemoteError> {
        let pages = self.pages_of(frame);
        assert_eq!(u64_of(bytes.len()), pages.bytes(), "a peer's answer has the length that was asked for");
        let written = self.memory().memfd.write_at(bytes, pages.start().offset_bytes());
        written.map_err(|source| RemoteError::Memory { of: self.of, source })
    }

    fn not_from_peer(&self, source: PeerError) -> RemoteError {
        let all = bytes_of_pages(self.pages);
        RemoteError::Peer { of: self.of, here: all - self.missing_bytes(), all, source }
    }

    /// The frames that came without a name, after the first `known` of them.
    pub(crate) fn arrived_after(&self, known: usize) -> Vec<FrameNumber> {
        lock(&self.arrivals).frames.get(known..).unwrap_or_default().to_vec()
    }

    /// From here on every page is read by name. False if more frames than `checked` have come without one.
    pub(crate) fn settle(&self, checked: usize, named: Arc<dyn NamedPages>) -> bool {
        let mut arrivals = lock(&self.arrivals);
        let is_all = arrivals.frames.len() == checked;
        if is_all {
            arrivals.named = Some(named);
        }
        is_all
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("only drop takes the memory")
    }
}

/// The frame that a guest page is in.
pub fn frame_at(page: GuestPage) -> FrameNumber {
    FrameNumber::new(usize_of(page.number() / FRAME_PAGES))
}

/// Does work on a thread that may wait; none if the runtime ends before.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => Some(done),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => None,
    }
}

impl Drop for RemotePages {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.reaper.discard(memory);
        }
    }
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Arrivals({}, named: {})", self.frames.len(), self.named.is_some())
    }
}

impl From<LayerId> for FramesOf {
    fn from(layer: LayerId) -> Self {
        Self::Layer(layer)
    }
}

impl fmt::Display for FramesOf {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(layer) => write!(out, "layer {layer}"),
            Self::Remote(volume) => volume.fmt(out),
        }
    }
}

impl fmt::Display for RemoteVolume {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "volume {} of snapshot {}", self.volume, self.snapshot)
    }
}
