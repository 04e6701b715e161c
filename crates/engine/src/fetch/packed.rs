//! Brings the pages of a working set from where they lie packed, and those that do not come so from their layers.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{StreamExt as _, iter};
use tokio::task::JoinSet;

use super::bulk::{Bulk, WantedFrames};
use super::{Fetcher, FrameKey, telling_of_silence};
use crate::attempt::{size_of, unless_kept_from};
use crate::frame::frames_of;
use crate::geometry::u64_of;
use crate::identity::LayerId;
use crate::limits;
use crate::local_file::LocalFile;
use crate::packed_reads::{PackedReads, RangeRead};
use crate::packed_set::PackedHead;
use crate::sources::SourceError;
use crate::sync::{Mutex, lock};

impl Fetcher {
    /// Brings the wanted pages that lie packed, and then all frames that did not get any, as [`Fetcher::bring_all`] does. They
    /// count as being fetched from this call on: whoever asks for one waits for it, and asks again if its page was not
    /// packed.
    pub fn bring_packed(
        &self,
        packed: PackedReads,
        wanted: Vec<WantedFrames>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (bulk, mut mine) = self.claim_all(wanted);
        async move {
            let keys: Vec<FrameKey> = mine.iter().flat_map(WantedFrames::keys).collect();
            bulk.shared.frames.work_on(keys.iter().copied(), &packed.urgency);
            telling_of_silence(&bulk.shared, &keys, unpack(&bulk, packed, &mine)).await;
            let rest: HashSet<FrameKey> = bulk.claimed.rest().into_iter().collect();
            for WantedFrames { file, frames } in &mut mine {
                frames.retain(|frame| rest.contains(&(file.layer().id().into(), *frame)));
            }
            mine.retain(|wanted| !wanted.frames.is_empty());
            bulk.bring_and_end(mine).await;
        }
    }
}

/// Packed pages on their way into local files.
struct Unpacking {
    bulk: Bulk,
    head: PackedHead,
    places: Vec<Range<u64>>,
    files: HashMap<LayerId, Arc<LocalFile>>,
    /// Chunks that lie in several ranges, with the bytes that came of each.
    split: Mutex<HashMap<usize, Vec<(u64, Bytes)>>>,
}

async fn unpack(bulk: &Bulk, packed: PackedReads, wanted: &[WantedFrames]) {
    let PackedReads { head, places, reads, urgency: _ } = packed;
    let files = wanted.iter().map(|wanted| (wanted.file.layer().id(), Arc::clone(&wanted.file))).collect();
    let unpacking = Unpacking { bulk: bulk.clone(), head, places, files, split: Mutex::default() };
    let unpacking = Arc::new(unpacking);
    let read = |read: RangeRead| {
        let unpacking = Arc::clone(&unpacking);
        async move {
            if let Err(error) = unpacking.read(read).await {
                tracing::debug!(%error, "pages of a working set are fetched from their layers");
            }
        }
    };
    iter(reads).for_each_concurrent(None, read).await;
}

impl Unpacking {
    /// Takes in the chunks of one range as they come.
    async fn read(self: Arc<Self>, mut read: RangeRead) -> Result<(), SourceError> {
        let mut accepting = JoinSet::new();
        let first = self.places.partition_point(|place| place.end <= read.range.start);
        for (chunk, place) in self.places.iter().enumerate().skip(first) {
            let part = place.start.max(read.range.start)..place.end.min(read.range.end);
            if part.is_empty() {
                break;
            }
            // A long head goes on into this range.
            let skipped = read.take(size_of(part.start - read.range.start)).await?;
            let Some(bytes) = read.take(size_of(part.end - part.start)).await?.filter(|_| skipped.is_some())
            else {
                break;
            };
            let Some(encoded) = self.joined(chunk, part.start, bytes) else { continue };
            if accepting.len() >= limits::EXTENT_FRAMES_AT_ONCE {
                accepting.join_next().await.map(unless_kept_from);
            }
            let unpacking = Arc::clone(&self);
            accepting.spawn_blocking(move || unpacking.accept(chunk, &encoded));
        }
        while let Some(ended) = accepting.join_next().await {
            // One that the end of the engine kept from beginning has brought nothing.
            unless_kept_from(ended);
        }
        read.end().await;
        Ok(())
    }

    /// All bytes of a chunk, once its last part has come.
    fn joined(&self, chunk: usize, start: u64, bytes: Bytes) -> Option<Bytes> {
        let place = &self.places[chunk];
        if u64_of(bytes.len()) == place.end - place.start {
            return Some(bytes);
        }
        let mut split = lock(&self.split);
        let parts = split.entry(chunk).or_default();
        parts.push((start, bytes));
        if parts.iter().map(|(_, bytes)| u64_of(bytes.len())).sum::<u64>() < place.end - place.start {
            return None;
        }
        let mut parts = split.remove(&chunk)?;
        parts.sort_by_key(|(start, _)| *start);
        Some(parts.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>().concat().into())
    }

    /// Takes in the pages of a chunk that are those of their frames, and tells those who wait for the frames.
    fn accept(&self, chunk: usize, encoded: &[u8]) {
        let chunk = &self.head.chunks()[chunk];
        let file_of = |layer: usize| self.files.get(&self.head.layers()[layer]);
        if chunk.parts.iter().all(|part| file_of(part.layer).is_none()) {
            return;
        }
        let Ok(raw) = chunk.codec.decode(encoded, chunk.raw_bytes()) else { return };
        for (part, pages) in chunk.proven(&raw) {
            let Some(file) = file_of(part.layer) else { continue };
            let (layer, frame) = (file.layer(), part.frame);
            if frame.index() >= frames_of(layer.pages()) {
                continue;
            }
            if file.has_verified(frame, part.bits) || file.accept_pages(frame, pages).is_ok() {
                let key = (layer.id().into(), frame);
                // Others may fetch it, and tell of it themselves.
                if self.bulk.claimed.let_go(key) {
                    self.bulk.shared.frames.succeeded(key);
                }
            }
        }
    }
}
