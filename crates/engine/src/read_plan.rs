//! A read: first a plan that owns its sources, then the bytes. Nothing planned can be taken away before it is read.

use rekindle_kernel::{LostBytes, PAGE_BYTES};

use crate::fetch::{FetchError, Fetcher};
use crate::frame::{FRAME_PAGES, frame_of};
use crate::geometry::{GuestPage, GuestPages, u64_of, usize_of};
use crate::remote_pages::frame_at;
use crate::view::{LiveView, Piece, PieceSource};

/// The pieces of a run of guest pages, in order. Reading consumes it.
#[derive(Debug)]
#[must_use = "a plan holds its sources until it is read or dropped"]
pub struct ReadPlan {
    pages: GuestPages,
    first: Piece,
    rest: Vec<Piece>,
}

/// Reason that planned pages could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A frame could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The snapshot has no bytes.
    #[error("guest pages from {page} on: their snapshot is lost, or cannot be read now")]
    Nowhere {
        /// The first of the pages.
        page: GuestPage,
    },
    /// A source failed under the read.
    #[error("guest pages from {page} on: {source}")]
    Lost {
        /// The first page of the piece that failed.
        page: GuestPage,
        /// The bytes that were lost.
        source: LostBytes,
    },
}

impl ReadPlan {
    /// Plans a read of `pages`. Allocates nothing when they have one source.
    pub fn new(view: &LiveView, pages: GuestPages) -> Self {
        let (mut first, mut rest) = (None, Vec::new());
        view.pieces_of(pages, |piece| match first {
            None => first = Some(piece),
            Some(_) => rest.push(piece),
        });
        Self { pages, first: first.expect("a plan is of at least one page"), rest }
    }

    /// The guest pages planned.
    pub fn pages(&self) -> GuestPages {
        self.pages
    }

    /// Reads everything, fetching what is not in memory. `into` is as long as the planned pages.
    pub fn read(self, fetcher: &Fetcher, into: &mut [u8]) -> Result<(), ReadError> {
        let bytes = u64::from(self.pages.count()) * u64_of(PAGE_BYTES);
        assert_eq!(u64_of(into.len()), bytes, "as long as the plan");
        let mut left = into;
        for piece in std::iter::once(self.first).chain(self.rest) {
            let (here, after) = left.split_at_mut(usize_of(piece.pages.count()) * PAGE_BYTES);
            left = after;
            read_piece(piece, fetcher, here)?;
        }
        Ok(())
    }
}

fn read_piece(mut piece: Piece, fetcher: &Fetcher, into: &mut [u8]) -> Result<(), ReadError> {
    if let PieceSource::Lost(_) = piece.source {
        return Err(ReadError::Nowhere { page: piece.pages.start() });
    }
    let mut has_failed = false;
    loop {
        load_frames(&piece, fetcher)?;
        // Frames that were loaded for a file that is cut short are in its successor.
        if piece.follow() {
            continue;
        }
        match piece.copy_to(into) {
            Ok(()) => return Ok(()),
            Err(source) if has_failed => return Err(ReadError::Lost { page: piece.pages.start(), source }),
            Err(_) => {
                // The local disk failed under the mapping; the store may have what it lost.
                piece.source_failed();
                has_failed = true;
            }
        }
    }
}

fn load_frames(piece: &Piece, fetcher: &Fetcher) -> Result<(), FetchError> {
    let count = piece.pages.count();
    let (file, first) = match &piece.source {
        PieceSource::Layer(file, first) => (file, first),
        PieceSource::Remote(pages) => {
            let mut done = 0;
            while done < count {
                fetcher.load_remote(pages, frame_at(piece.pages.start().plus(done)))?;
                done += piece.rest_of_frame(done);
            }
            return Ok(());
        }
        PieceSource::Zero | PieceSource::Capture(_) | PieceSource::Lost(_) => return Ok(()),
    };
    let mut done = file.verified_run(*first, count);
    while done < count {
        let page = first.plus(done);
        fetcher.load(file, frame_of(page))?;
        done = (done + FRAME_PAGES - page.number() % FRAME_PAGES).min(count);
    }
    Ok(())
}
