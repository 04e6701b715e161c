//! The content of a disk for reads and writes: the overlay over the disk as it was at the last pause.
//!
//! Nothing here waits: an operation that needs a page that is not in memory returns the frames it lacks, and has
//! changed nothing.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, u64_of, usize_of};
use rekindle_engine::view::{LiveView, LostPages, MissingFrame, Piece, PieceBytes, PieceSource};
use rekindle_kernel::PAGE_BYTES;

use super::marks::PageState;
use super::overlay::{Overlay, PageBytes};
use super::{SECTOR_BYTES, limits};

/// A disk's bytes.
#[derive(Debug)]
pub(super) struct Content {
    base: RwLock<Option<Arc<LiveView>>>,
    overlay: Overlay,
    bytes: u64,
}

/// Decides if a read may wait for this node's own disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadReach {
    /// Only what is in memory is read.
    Memory,
    /// Verified pages are read, though the system may have to load them from a file.
    LocalDisk,
}

/// Reason that something could not be done now.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// These have to be there first.
    Cold(Vec<ColdSource>),
    /// The system refused it.
    Failed(io::Error),
}

/// Bytes that a request needs and that are not in memory.
#[derive(Clone, Debug)]
pub(super) enum ColdSource {
    /// A frame, to be fetched.
    Frame(MissingFrame),
    /// Pages that cannot be had, unless they are found.
    Lost(Arc<LostPages>),
}

/// Content at the last pause of the pages that a request covers in part.
#[derive(Debug, Default)]
pub(super) struct Edges {
    first: Option<Box<PageBytes>>,
    last: Option<Box<PageBytes>>,
}

/// A stretch of a disk by how it is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) bytes: u64,
    pub(super) is_zero: bool,
}

/// A byte range cut at pages: a part of one page, whole pages, a part of another.
#[derive(Debug)]
struct Cut {
    /// The first page, if it is not covered from its first byte on.
    first: Option<(GuestPage, Range<usize>)>,
    whole: GuestPages,
    /// The last page, if it is covered from its first byte on and not to its end.
    last: Option<(GuestPage, Range<usize>)>,
}

impl From<io::Error> for Obstacle {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl Content {
    /// A disk of `bytes` bytes, whole sectors; overlay and base have exactly the pages it takes.
    pub(super) fn new(base: Option<Arc<LiveView>>, overlay: Overlay, bytes: u64) -> io::Result<Self> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(invalid("the disk is not whole sectors of 512 bytes"));
        }
        let pages = bytes.div_ceil(u64_of(PAGE_BYTES));
        if pages != u64::from(overlay.pages()) {
            return Err(invalid("the overlay has not as many pages as the disk"));
        }
        if base.as_ref().is_some_and(|base| u64::from(base.pages()) != pages) {
            return Err(invalid("the volume under the disk has not as many pages as the disk"));
        }
        Ok(Self { base: RwLock::new(base), overlay, bytes })
    }

    /// Goes on from a base that has every write so far. Right only while no thread reads or writes.
    pub(super) fn rebase(&self, base: Arc<LiveView>) -> io::Result<()> {
        assert_eq!(base.pages(), self.overlay.pages(), "a disk's next base is as long as the disk");
        *self.base.write().unwrap_or_else(PoisonError::into_inner) = Some(base);
        self.overlay.forget()
    }

    fn base(&self) -> Option<Arc<LiveView>> {
        self.base.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Reads the bytes from `offset` that fill `into`; they lie in the disk.
    pub(super) fn read(&self, offset: u64, into: &mut [u8], reach: ReadReach) -> Result<(), Obstacle> {
        let mut cold = Vec::new();
        let end = offset + u64_of(into.len());
        let mut position = offset;
        while position < end {
            let (state, run) = self.run_at(position, end);
            let here = &mut into[size(position - offset)..size(run - offset)];
            match state {
                PageState::Written => self.overlay.read(position, here)?,
                PageState::Zero => here.fill(0),
                PageState::Base => self.read_base(position, here, reach, &mut cold),
            }
            position = run;
        }
        if cold.is_empty() { Ok(()) } else { Err(Obstacle::Cold(cold)) }
    }

    /// Reads what the pages that `range` covers in part were at the last pause, where they may still be that.
    pub(super) fn edges(&self, range: &Range<u64>, reach: ReadReach) -> Result<Edges, Obstacle> {
        let cut = Cut::new(range);
        let mut cold = Vec::new();
        let mut page = |part: &Option<(GuestPage, Range<usize>)>| {
            let (page, _) = part.as_ref()?;
            (self.overlay.run_at(*page, 1).0 == PageState::Base).then(|| {
                let mut bytes = Box::new([0; PAGE_BYTES]);
                self.read_base(page.offset_bytes(), &mut bytes[..], reach, &mut cold);
                bytes
            })
        };
        let edges = Edges { first: page(&cut.first), last: page(&cut.last) };
        if cold.is_empty() { Ok(edges) } else { Err(Obstacle::Cold(cold)) }
    }

    /// Writes `bytes` at `offset`; they lie in the disk, and `edges` are those of that range.
    pub(super) fn write(&self, offset: u64, bytes: &[u8], edges: &Edges) -> io::Result<()> {
        let cut = Cut::new(&(offset..offset + u64_of(bytes.len())));
        let mut left = bytes;
        let mut next = |count: usize| {
            let (here, after) = left.split_at(count);
            left = after;
            here
        };
        if let Some((page, part)) = cut.first {
            self.overlay.write_part(page, part.start, next(part.len()), edges.first.as_deref())?;
        }
        self.overlay.write_pages(cut.whole.start(), next(usize_of(cut.whole.count()) * PAGE_BYTES))?;
        if let Some((page, part)) = cut.last {
            self.overlay.write_part(page, part.start, next(part.len()), edges.last.as_deref())?;
        }
        Ok(())
    }

    /// Makes a range of the disk zero and gives its memory back; `edges` are those of the range.
    pub(super) fn zero(&self, range: &Range<u64>, edges: &Edges) -> io::Result<()> {
        let cut = Cut::new(range);
        for (part, base) in [(cut.first, &edges.first), (cut.last, &edges.last)] {
            if let Some((page, part)) = part
                && self.overlay.run_at(page, 1).0 != PageState::Zero
            {
                let zeroes = [0; PAGE_BYTES];
                self.overlay.write_part(page, part.start, &zeroes[..part.len()], base.as_deref())?;
            }
        }
        self.overlay.zero_pages(cut.whole)
    }

    /// A range that ends with the disk, to the end of its last page: no client can read the bytes after it.
    pub(super) fn through_last_page(&self, range: Range<u64>) -> Range<u64> {
        let end = if range.end == self.bytes { bytes_of_pages(self.overlay.pages()) } else { range.end };
        range.start..end
    }

    /// Makes the whole pages of a range zero, and leaves the others as they are.
    pub(super) fn discard(&self, range: &Range<u64>) -> io::Result<()> {
        self.overlay.zero_pages(Cut::new(range).whole)
    }

    /// Allocation of the disk from `range.start` on, at most as far as `range.end` and at most `count_max` stretches.
    pub(super) fn extents(&self, range: &Range<u64>, count_max: usize) -> Vec<Extent> {
        let base = self.base();
        let mut extents: Vec<Extent> = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let (state, mut run) = self.run_at(position, range.end);
            let is_zero = match (state, &base) {
                (PageState::Written, _) => false,
                (PageState::Zero, _) | (PageState::Base, None) => true,
                (PageState::Base, Some(base)) => {
                    let piece = base.piece_at(page_at(position), u32::MAX);
                    run = run.min(bytes_of_pages(piece.pages.end().number()));
                    matches!(piece.source, PieceSource::Zero)
                }
            };
            let is_full = extents.len() == count_max;
            match extents.last_mut() {
                Some(last) if last.is_zero == is_zero => last.bytes += run - position,
                Some(_) if is_full => break,
                Some(_) | None => extents.push(Extent { bytes: run - position, is_zero }),
            }
            position = run;
        }
        extents
    }

    /// The state of the page at byte `position`, and where the bytes of the same state end, at most at `end`.
    fn run_at(&self, position: u64, end: u64) -> (PageState, u64) {
        let page = page_at(position);
        let pages = u32::try_from(end.div_ceil(u64_of(PAGE_BYTES))).expect("within the disk") - page.number();
        let (state, count) = self.overlay.run_at(page, pages);
        (state, page.plus(count).offset_bytes().min(end))
    }

    /// Reads bytes of the base. Missing frames are added to `cold`, and `into` is then of no use.
    fn read_base(&self, offset: u64, into: &mut [u8], reach: ReadReach, cold: &mut Vec<ColdSource>) {
        let Some(base) = self.base() else { return into.fill(0) };
        let mut left = into;
        let mut position = offset;
        while !left.is_empty() {
            let page = page_at(position);
            let skipped = size(position - page.offset_bytes());
            let pages =
                u32::try_from((skipped + left.len()).div_ceil(PAGE_BYTES)).expect("a request is small");
            let piece = base.piece_at(page, pages);
            let bytes = (usize_of(piece.pages.count()) * PAGE_BYTES - skipped).min(left.len());
            let (here, after) = left.split_at_mut(bytes);
            if !copy_piece(&piece, skipped, here, reach) {
                add_missing(&piece, reach, cold);
            }
            left = after;
            position += u64_of(bytes);
        }
    }
}

/// Copies bytes of a piece if they are there.
fn copy_piece(piece: &Piece, skipped: usize, into: &mut [u8], reach: ReadReach) -> bool {
    let there = match (&piece.source, reach) {
        (PieceSource::Layer(file, first), ReadReach::LocalDisk) => {
            file.verified_run(*first, piece.pages.count())
        }
        (_, ReadReach::Memory | ReadReach::LocalDisk) => piece.readable_now(),
    };
    if there < piece.pages.count() {
        return false;
    }
    match piece.place() {
        PieceBytes::Zero => {
            into.fill(0);
            true
        }
        PieceBytes::At(mapping, offset) => {
            let copied = mapping.copy_to(offset + skipped, into).is_ok();
            if !copied {
                // The local disk failed under the mapping; the store may have what it lost.
                piece.source_failed();
            }
            copied
        }
        PieceBytes::Lost => false,
    }
}

/// Adds what has to be there before the piece can be read, as far as the limit for one request goes.
fn add_missing(piece: &Piece, reach: ReadReach, cold: &mut Vec<ColdSource>) {
    if let PieceSource::Lost(lost) = &piece.source {
        return cold.push(ColdSource::Lost(Arc::clone(lost)));
    }
    let mut skip = 0;
    while skip < piece.pages.count() && cold.len() < limits::COLD_FRAMES_MAX {
        let Some(missing) = piece.missing_frame_at(skip) else { return };
        let is_there = match &missing {
            MissingFrame::Layer(file, frame) => reach == ReadReach::LocalDisk && file.is_verified(*frame),
            MissingFrame::Remote(pages, frame) => pages.is_here(*frame),
        };
        let is_known =
            |cold: &ColdSource| matches!(cold, ColdSource::Frame(known) if known.is_same_as(&missing));
        if !is_there && !cold.iter().any(is_known) {
            cold.push(ColdSource::Frame(missing));
        }
        skip += piece.rest_of_frame(skip);
    }
    if cold.is_empty() {
        // It failed a moment ago and is whole by now: it is read again.
        cold.extend(piece.missing_frame().map(ColdSource::Frame));
    }
}

impl Cut {
    fn new(range: &Range<u64>) -> Self {
        let (first, last) = (page_at(range.start), page_at(range.end));
        let (start, end) = (size(range.start - first.offset_bytes()), size(range.end - last.offset_bytes()));
        let nothing = GuestPages::new(first, 0);
        match (start, end) {
            (0, 0) => Self { first: None, whole: GuestPages::between(first, last), last: None },
            (0, _) => {
                Self { first: None, whole: GuestPages::between(first, last), last: Some((last, 0..end)) }
            }
            _ if first == last => Self { first: Some((first, start..end)), whole: nothing, last: None },
            (_, _) => Self {
                first: Some((first, start..PAGE_BYTES)),
                whole: GuestPages::between(first.plus(1), last),
                last: (end > 0).then_some((last, 0..end)),
            },
        }
    }
}

fn page_at(byte: u64) -> GuestPage {
    GuestPage::new(u32::try_from(byte / u64_of(PAGE_BYTES)).expect("the byte lies in a volume"))
}

/// A length within a request.
fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits")
}
