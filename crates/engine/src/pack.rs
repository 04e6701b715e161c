//! Writes the kept pages of a capture as a layer file: about 1 MiB a write, a digest per frame, fsynced.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rekindle_kernel::{LostBytes, PAGE_BYTES};

use crate::cache::Cache;
use crate::compare::Compared;
use crate::frame::FRAME_PAGES;
use crate::geometry::{GuestPages, u64_of, usize_of};
use crate::identity::FrameDigest;
use crate::key_ring::DomainKey;
use crate::layer::Layer;
use crate::layer_index::LayerIndex;
use crate::limits;
use crate::page_set::PageSet;
use crate::precedence::GiveWayLimit;
use crate::ranked_set::RankedSet;
use crate::read_plan::ReadError;
use crate::view::PackedPages;

/// Reason that no layer was written; the capture is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The disk failed or is full.
    #[error("writing the layer file: {0}")]
    Disk(#[from] io::Error),
    /// Captured memory could not be read.
    #[error("reading the captured memory: {0}")]
    Capture(#[from] LostBytes),
    /// Pages of older layers could not be read for merging.
    #[error("reading pages to merge: {0}")]
    Merge(#[from] ReadError),
}

/// Packs the kept pages with the key of their domain, and gives way within its limit; a snapshot without kept pages has no
/// layer.
pub fn pack(
    compared: Compared,
    cache: &Cache,
    key: &DomainKey,
    give_way_limit: &GiveWayLimit,
) -> Result<PackedPages, PackError> {
    let Compared { capture, kept, zero, classes: _ } = compared;
    let layer = pack_pages(&kept, cache, key, |pages, into| {
        give_way_limit.give_way();
        Ok(capture.mapping().copy_to(pages.start().offset(), into)?)
    })?;
    Ok(PackedPages { layer, zero })
}

/// Writes `pages` as a layer of the domain that has `key`; `read` fills a slice with the bytes of a run.
pub fn pack_pages(
    pages: &PageSet,
    cache: &Cache,
    key: &DomainKey,
    read: impl FnMut(GuestPages, &mut [u8]) -> Result<(), PackError>,
) -> Result<Option<Arc<Layer>>, PackError> {
    if pages.is_empty() {
        return Ok(None);
    }
    let file = cache.pack_file(key.clone())?;
    let digests = write_frames(pages, file.file(), key, read)?;
    let index = LayerIndex::new(RankedSet::new(pages), digests);
    Ok(Some(cache.finish(file, index)?))
}

fn write_frames(
    pages: &PageSet,
    file: &std::fs::File,
    key: &DomainKey,
    mut read: impl FnMut(GuestPages, &mut [u8]) -> Result<(), PackError>,
) -> Result<Vec<FrameDigest>, PackError> {
    let mut batch =
        Batch { buffer: vec![0; limits::PACK_WRITE_BYTES], filled: 0, written: 0, digests: Vec::new() };
    for run in pages.runs() {
        let mut left = run;
        while left.count() > 0 {
            let room = u32::try_from(batch.free() / PAGE_BYTES).expect("a batch is small");
            let here = left.first_pages(room.min(left.count()));
            read(here, batch.next(usize_of(here.count()) * PAGE_BYTES))?;
            left = GuestPages::between(here.end(), left.end());
            if batch.free() == 0 {
                batch.write(file, key)?;
            }
        }
    }
    batch.write(file, key)?;
    Ok(batch.digests)
}

/// Whole frames to be written to the file.
struct Batch {
    buffer: Vec<u8>,
    filled: usize,
    written: u64,
    digests: Vec<FrameDigest>,
}

impl Batch {
    fn free(&self) -> usize {
        self.buffer.len() - self.filled
    }

    fn next(&mut self, bytes: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += bytes;
        &mut self.buffer[start..self.filled]
    }

    fn write(&mut self, file: &std::fs::File, key: &DomainKey) -> io::Result<()> {
        let filled = &self.buffer[..self.filled];
        let frames = filled.chunks(usize_of(FRAME_PAGES) * PAGE_BYTES);
        self.digests.extend(frames.map(|frame| key.frame_digest(frame)));
        file.write_all_at(filled, self.written)?;
        self.written += u64_of(self.filled);
        self.filled = 0;
        Ok(())
    }
}
