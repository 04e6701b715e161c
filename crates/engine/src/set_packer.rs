//! Packs the pages of a working set together, first touched first.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use object_store::PutPayload;

use crate::fetch::{Fetcher, WantedFrames};
use crate::frame::{FRAME_PAGES, FrameNumber, frame_of, frames_of, pages_in_frame};
use crate::geometry::{PAGE_BYTES, usize_of};
use crate::identity::{LayerId, SnapshotId};
use crate::key_ring::DomainKey;
use crate::limits;
use crate::local_file::LocalFile;
use crate::object::EncodedFrame;
use crate::packed_set::{Chunk, PackedHead, PackedPart};
use crate::page_tree::PageBits;
use crate::pool::PoolHandle;
use crate::view::{LiveView, PieceSource};
use crate::working_set::WorkingSet;

/// The places of a working set's pages.
pub(crate) struct SetPages {
    set: WorkingSet,
    /// Layers that have them.
    files: Vec<Arc<LocalFile>>,
    /// The frames that have them, in the order of their first touches.
    parts: Vec<PackedPart>,
}

impl SetPages {
    /// The places of a set's pages in a view over layers. Pages that are elsewhere, and zero ones, are left out.
    pub(crate) fn find(view: &LiveView, set: &WorkingSet) -> Self {
        let mut found = Self { set: set.clone(), files: Vec::new(), parts: Vec::new() };
        let mut layers: HashMap<LayerId, usize> = HashMap::new();
        let mut known: HashMap<(usize, FrameNumber), usize> = HashMap::new();
        for run in set.runs_within(view.pages()) {
            view.pieces_of(run, |piece| {
                let PieceSource::Layer(file, first) = &piece.source else { return };
                let layer = *layers.entry(file.layer().id()).or_insert_with(|| {
                    found.files.push(Arc::clone(file));
                    found.files.len() - 1
                });
                for page in (0..piece.pages.count()).map(|page| first.plus(page)) {
                    let (frame, bits) = (frame_of(page), PageBits::of_page(page.number() % FRAME_PAGES));
                    let part = *known.entry((layer, frame)).or_insert_with(|| {
                        let frame_pages = pages_in_frame(frame, file.layer().pages());
                        found.parts.push(PackedPart { layer, frame, frame_pages, bits });
                        found.parts.len() - 1
                    });
                    let part = &mut found.parts[part];
                    part.bits = part.bits.with(bits);
                }
            });
        }
        found
    }

    /// Bytes of the pages, uncompressed.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.parts.iter().map(|part| u64::try_from(part.raw_bytes()).expect("a part is short")).sum()
    }

    /// Frames of them that are not here; twice as many as would have all pages, the first ones: more are not worth it.
    pub(crate) fn missing(&self) -> Vec<WantedFrames> {
        let pages = self.parts.iter().map(|part| part.bits.count()).sum::<u32>();
        let absent = self.parts.iter().filter(|part| !self.files[part.layer].is_verified(part.frame));
        let mut wanted: Vec<_> = self
            .files
            .iter()
            .map(|file| WantedFrames { file: Arc::clone(file), frames: Vec::new() })
            .collect();
        absent.take(2 * frames_of(pages)).for_each(|part| wanted[part.layer].frames.push(part.frame));
        wanted.iter_mut().for_each(|wanted| wanted.frames.sort_unstable_by_key(|frame| frame.index()));
        wanted
    }

    /// Brings the frames that are not here, and packs the pages, within so many bytes. None if no page can be had, or the
    /// pool ended.
    pub(crate) async fn pack(
        self,
        (of, key): (SnapshotId, &DomainKey),
        (fetcher, pool): (&Fetcher, &PoolHandle),
        bytes_max: u64,
    ) -> Option<PutPayload> {
        fetcher.bring_all(self.missing()).await;
        let Self { set, files, parts } = self;
        let layers = files.iter().map(|file| file.layer().id()).collect();
        let files: Arc<[Arc<LocalFile>]> = files.into();
        let encode = |parts: Vec<PackedPart>| {
            let files = Arc::clone(&files);
            pool.run_if_lives(of, move || encode(&files, &parts))
        };
        let mut encoding =
            stream::iter(chunks_of(parts)).map(encode).buffered(limits::UPLOAD_ENCODES_AT_ONCE);
        let (mut chunks, mut packed, mut bytes_left) = (Vec::new(), Vec::new(), bytes_max);
        while let Some(encoded) = encoding.next().await {
            let Some((chunk, bytes)) = encoded? else { continue };
            let Some(left) = bytes_left.checked_sub(u64::from(chunk.bytes)) else { break };
            bytes_left = left;
            chunks.push(chunk);
            packed.push(bytes);
        }
        let head = PackedHead::new(set, layers, chunks).encode(key);
        (!packed.is_empty()).then(|| std::iter::once(Bytes::from(head)).chain(packed).collect())
    }
}

/// The parts, some together: as many pages as a frame has at least.
fn chunks_of(parts: Vec<PackedPart>) -> Vec<Vec<PackedPart>> {
    let (mut chunks, mut chunk, mut pages) = (Vec::new(), Vec::new(), 0);
    for part in parts {
        pages += part.bits.count();
        chunk.push(part);
        if pages >= limits::PACKED_CHUNK_PAGES_MAX / 2 {
            chunks.push(std::mem::take(&mut chunk));
            pages = 0;
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// A chunk with the parts whose frames are here, and its bytes; none without any.
fn encode(files: &[Arc<LocalFile>], parts: &[PackedPart]) -> Option<(Chunk, Bytes)> {
    let (mut kept, mut proofs, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        let file = &files[part.layer];
        // One that is not here, or is damaged, is left to its layer.
        let (Ok(frame), Some(index)) = (file.read_frame(part.frame), file.layer().index()) else { continue };
        proofs.extend(index.tree(file.layer().key()).proof(&frame, part.bits));
        part.bits.pages().for_each(|page| {
            pages.extend_from_slice(&frame[usize_of(page) * PAGE_BYTES..][..PAGE_BYTES]);
        });
        kept.push(*part);
    }
    if kept.is_empty() {
        return None;
    }
    proofs.append(&mut pages);
    let EncodedFrame { codec, bytes } = EncodedFrame::of(&proofs).ok()?;
    let length = u32::try_from(bytes.len()).expect("a chunk is short");
    Some((Chunk { codec, bytes: length, parts: kept }, Bytes::from(bytes)))
}
