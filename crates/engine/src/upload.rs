//! Uploads one layer: compresses its frames, and writes the object in one request, or in parts if it is larger than one.
//!
//! The id of an upload in parts is recorded before its first part is sent, and each part once the store has it. A later
//! try, of this process or the next, sends the parts that are missing. It makes the last part before the first missing
//! one again too, and goes on only if its bytes are those that were sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_util::task::AbortOnDropHandle;

use crate::frame::FRAME_PAGES;
use crate::geometry::{PAGE_BYTES, bytes_of_pages, u64_of, usize_of};
use crate::identity::{LayerId, SnapshotId};
use crate::layer::Layer;
use crate::layer_object::{ObjectEnd, encoded_frames, frames_in};
use crate::limits;
use crate::manifest::{ObjectName, StoredLayer};
use crate::object::{EncodedFrame, FramePlaces, StoredFrame};
use crate::part_cutter::{Part, PartCutter};
use crate::pool::PoolHandle;
use crate::publish_error::PublishError;
use crate::store::{Store, StoreError};
use crate::store_upload::{PartTag, PartsUpload};
use crate::upload_record::{BegunUpload, SentPart, UnfinishedUpload, UploadRecords};

/// Uploads layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uploader<'a> {
    pub(crate) store: &'a Store,
    /// Writes records.
    pub(crate) pool: &'a PoolHandle,
    /// Compresses frames.
    pub(crate) encoding: &'a PoolHandle,
    /// Unfinished uploads, if this node has a catalog.
    pub(crate) records: Option<&'a UploadRecords>,
    /// Bytes of a part, if the layer needs no longer ones.
    pub(crate) part_bytes: usize,
}

/// One upload of one layer.
struct LayerUpload<'a> {
    by: Uploader<'a>,
    layer: &'a Arc<Layer>,
    publisher: SnapshotId,
    object: ObjectName,
    part_bytes: usize,
    /// None before the first part is full.
    upload: Option<PartsUpload>,
    /// Parts that an earlier try has sent, by number.
    sent_before: BTreeMap<u32, SentPart>,
    sending: FuturesUnordered<BoxFuture<'a, Result<(u32, PartTag), PublishError>>>,
    tags: BTreeMap<u32, PartTag>,
}

/// The place in an object from which its parts are made.
struct Start {
    number: u32,
    /// Bytes of its first frame that belong to the part before.
    skipped: usize,
    /// The frames that end before it.
    frames: Vec<StoredFrame>,
}

/// Reason that an upload ended without an object.
enum Ended {
    /// It cannot be gone on with: it is begun anew.
    Useless(String),
    Failed(PublishError),
}

impl<E: Into<PublishError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Fate of an unfinished upload that is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// A later try goes on with it.
    Wanted,
    /// It is finished.
    Done,
    /// Its parts are deleted.
    GivenUp,
}

/// Bytes that uploading a layer holds at most at one moment.
pub(crate) fn bytes_held_by_upload(layer: &Layer) -> u64 {
    let bytes = bytes_of_pages(layer.pages());
    let held_max = limits::UPLOAD_HELD_BYTES_MAX.max(2 * part_bytes_of(layer, limits::UPLOAD_PART_BYTES));
    bytes.clamp(limits::UPLOAD_LEASE_BYTES_MIN, held_max)
}

/// Bytes of a part of a layer's object: `usual`, or more for an object that would have too many of them.
fn part_bytes_of(layer: &Layer, usual: usize) -> u64 {
    let object_max = bytes_of_pages(layer.pages()) + limits::LAYER_TABLE_BYTES_MAX;
    object_max.div_ceil(u64_of(limits::UPLOAD_PARTS_MAX)).max(u64_of(usual))
}

/// Parts that may be under way while another is filled.
fn parts_beside(part_bytes: usize) -> usize {
    let frames = limits::UPLOAD_ENCODES_AT_ONCE * limits::UPLOAD_FRAMES_TOGETHER;
    let compressed = u64_of(frames * usize_of(FRAME_PAGES) * PAGE_BYTES);
    let parts = (limits::UPLOAD_HELD_BYTES_MAX - compressed) / u64_of(part_bytes);
    let parts = usize::try_from(parts).unwrap_or(usize::MAX);
    parts.saturating_sub(1).min(limits::UPLOAD_PARTS_AT_ONCE)
}

impl<'a> Uploader<'a> {
    /// Uploads a layer for `publisher`; an unfinished upload of it is gone on with. Its place, and those of its frames.
    pub(crate) async fn upload(
        self,
        layer: &'a Arc<Layer>,
        publisher: SnapshotId,
    ) -> Result<(StoredLayer, FramePlaces), PublishError> {
        if let Some(unfinished) = self.unfinished(layer, publisher).await? {
            let mut upload = self.begun_before(layer, publisher, unfinished).await?;
            match upload.run().await {
                Ok(stored) => return Ok(stored),
                Err(Ended::Failed(error)) => return Err(error),
                Err(Ended::Useless(reason)) => upload.give_up(&reason).await?,
            }
        }
        match self.of(layer, publisher, ObjectName::new(publisher)).run().await {
            Ok(stored) => Ok(stored),
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::Useless(reason)) => unreachable!("an upload that has just begun is of use: {reason}"),
        }
    }

    /// Settles each unfinished upload by the fate that `decide` gives it. The work is that of the snapshot `of`.
    pub(crate) async fn settle(
        self,
        of: SnapshotId,
        decide: impl Fn(LayerId, &ObjectName) -> Unfinished,
    ) -> Result<(), PublishError> {
        let Some(records) = self.records.cloned() else { return Ok(()) };
        let begun = self.pool.run(of, move || records.begun_uploads()).await?;
        for (layer, upload) in begun {
            let BegunUpload { object, id, part_bytes: _ } = upload;
            match decide(layer, &object) {
                Unfinished::Wanted => continue,
                Unfinished::Done => {}
                Unfinished::GivenUp => {
                    if let Some(mut parts) = self.store.go_on_with_parts(layer, &object, &id).await? {
                        parts.abort().await?;
                    }
                }
            }
            self.forget(of, layer).await?;
        }
        Ok(())
    }

    async fn forget(self, of: SnapshotId, layer: LayerId) -> Result<(), PublishError> {
        let Some(records) = self.records.cloned() else { return Ok(()) };
        Ok(self.pool.run(of, move || records.forget(layer)).await?)
    }

    fn of(self, layer: &'a Arc<Layer>, publisher: SnapshotId, object: ObjectName) -> LayerUpload<'a> {
        let part_bytes = part_bytes_of(layer, self.part_bytes);
        LayerUpload {
            by: self,
            layer,
            publisher,
            object,
            part_bytes: usize::try_from(part_bytes).expect("a part fits in memory"),
            upload: None,
            sent_before: BTreeMap::new(),
            sending: FuturesUnordered::new(),
            tags: BTreeMap::new(),
        }
    }

    async fn unfinished(
        self,
        layer: &Layer,
        publisher: SnapshotId,
    ) -> Result<Option<UnfinishedUpload>, PublishError> {
        let (Some(records), id) = (self.records.cloned(), layer.id()) else { return Ok(None) };
        Ok(self.pool.run(publisher, move || records.unfinished(id)).await?)
    }

    async fn begun_before(
        self,
        layer: &'a Arc<Layer>,
        publisher: SnapshotId,
        unfinished: UnfinishedUpload,
    ) -> Result<LayerUpload<'a>, PublishError> {
        let UnfinishedUpload { upload: BegunUpload { object, id, part_bytes }, parts } = unfinished;
        let upload = self.store.go_on_with_parts(layer.id(), &object, &id).await?;
        Ok(LayerUpload { part_bytes, upload, sent_before: parts, ..self.of(layer, publisher, object) })
    }
}

impl LayerUpload<'_> {
    async fn run(&mut self) -> Result<(StoredLayer, FramePlaces), Ended> {
        let is_begun_before = self.upload.is_some() || !self.sent_before.is_empty();
        let ended = self.send().await;
        if ended.is_ok() {
            return ended;
        }
        self.sending.clear();
        if let Some(upload) = &mut self.upload {
            upload.give_up_unless_parts_stay().await;
        }
        match ended {
            Err(Ended::Failed(PublishError::Store(error @ StoreError::NotFound(_)))) if is_begun_before => {
                Err(Ended::Useless(error.to_string()))
            }
            ended => ended,
        }
    }

    async fn send(&mut self) -> Result<(StoredLayer, FramePlaces), Ended> {
        let Start { number, skipped, mut frames } = self.start()?;
        let mut cutter = PartCutter::new(self.part_bytes, number, skipped);
        let mut encoded =
            std::pin::pin!(encoded_frames(self.layer, self.by.encoding, self.publisher, frames.len()));
        loop {
            let together = tokio::select! {
                Some(sent) = self.sending.next() => {
                    self.note(sent?);
                    continue;
                }
                together = encoded.next() => together,
            };
            let Some(together) = together else { break };
            for EncodedFrame { codec, bytes } in together? {
                let frame = StoredFrame { codec, bytes: u64_of(bytes.len()) };
                frames.push(frame);
                for part in cutter.push(Bytes::from(bytes), Some(frame)) {
                    self.take(part).await?;
                }
            }
        }
        let layer = Arc::clone(self.layer);
        let (stored, table) = self.by.pool.run(self.publisher, move || ObjectEnd::of(&layer, &frames)).await;
        for part in cutter.push(table, None) {
            self.take(part).await?;
        }
        self.end(cutter.end(), stored.object_bytes).await?;
        let ObjectEnd { table_digest, table_bytes, object_bytes, frames } = stored;
        Ok((StoredLayer { object: self.object, table_digest, table_bytes, object_bytes }, frames))
    }

    /// The first part that is made: the last one that the store has in a row from the first on, or the very first.
    fn start(&mut self) -> Result<Start, Ended> {
        let in_a_row = self.sent_before.keys().zip(0_u32..).take_while(|(sent, number)| *sent == number);
        let number = u32::try_from(in_a_row.count()).expect("an upload has few parts").saturating_sub(1);
        let mut frames = Vec::new();
        for (before, part) in self.sent_before.range(..number) {
            frames.extend_from_slice(&part.frames);
            self.tags.insert(*before, part.tag.clone());
        }
        let ended: u64 = frames.iter().map(|frame| frame.bytes).sum();
        let skipped = (usize_of(number) * self.part_bytes)
            .checked_sub(usize::try_from(ended).unwrap_or(usize::MAX))
            .filter(|_| frames.len() <= frames_in(self.layer));
        let skipped =
            skipped.ok_or_else(|| Ended::Useless("its record does not fit the layer".to_owned()))?;
        Ok(Start { number, skipped, frames })
    }

    /// Sends a part, once there is room for it, unless the store has it.
    async fn take(&mut self, part: Part) -> Result<(), Ended> {
        if let Some(before) = self.sent_before.get(&part.number) {
            let (number, of) = (part.number, before.frames == part.frames);
            let digest = self.by.pool.run(self.publisher, move || part.digest()).await;
            if digest != before.digest || !of {
                return Err(Ended::Useless(format!("part {number} would have other bytes now")));
            }
            self.tags.insert(number, before.tag.clone());
            return Ok(());
        }
        while self.sending.len() > parts_beside(self.part_bytes) {
            self.sent_one().await?;
        }
        if self.upload.is_none() {
            self.begin().await?;
        }
        let upload = self.upload.as_mut().expect("it was begun");
        let records = upload.id().and(self.by.records).cloned();
        let sent = upload.send(usize_of(part.number), part.payload.clone());
        let sent = AbortOnDropHandle::new(tokio::spawn(sent));
        let (pool, publisher, layer) = (self.by.pool, self.publisher, self.layer.id());
        self.sending.push(Box::pin(async move {
            let tag = sent.await.expect("it is dropped with its handle only, and does not panic")?;
            let number = part.number;
            if let Some(records) = records {
                let tag = tag.clone();
                let record = move || {
                    let digest = part.digest();
                    records.sent(layer, number, &SentPart { tag, digest, frames: part.frames })
                };
                pool.run(publisher, record).await?;
            }
            Ok((number, tag))
        }));
        Ok(())
    }

    /// Begins the upload in parts, and records its id.
    async fn begin(&mut self) -> Result<(), PublishError> {
        let layer = self.layer.id();
        let upload = self.by.store.begin_parts(layer, &self.object).await?;
        let id = upload.id().map(str::to_owned);
        self.upload = Some(upload);
        if let (Some(records), Some(id)) = (self.by.records.cloned(), id) {
            let begun = BegunUpload { object: self.object, id, part_bytes: self.part_bytes };
            self.by.pool.run(self.publisher, move || records.begun(layer, &begun)).await?;
        }
        Ok(())
    }

    async fn sent_one(&mut self) -> Result<(), PublishError> {
        if let Some(sent) = self.sending.next().await {
            self.note(sent?);
        }
        Ok(())
    }

    fn note(&mut self, (number, tag): (u32, PartTag)) {
        self.tags.insert(number, tag);
    }

    /// Writes the object of `object_bytes`, of which `last` was not sent yet.
    async fn end(&mut self, last: Option<Part>, object_bytes: u64) -> Result<(), Ended> {
        let last = match (last, self.upload.is_some()) {
            (Some(whole), false) => {
                return Ok(self.by.store.put_layer(self.layer.id(), &self.object, whole.payload).await?);
            }
            (last, _) => last,
        };
        if let Some(last) = last {
            self.take(last).await?;
        }
        while !self.sending.is_empty() {
            self.sent_one().await?;
        }
        let tags: Vec<_> = std::mem::take(&mut self.tags).into_values().collect();
        let all_were_there = tags.len() == self.sent_before.len();
        let upload = self.upload.as_mut().expect("a part was full");
        match upload.join(tags, object_bytes).await {
            Err(error) if all_were_there && !matches!(error, StoreError::Away(_)) => {
                // For the second time at least: the store may have parts that are not those of the record.
                Err(Ended::Useless(error.to_string()))
            }
            joined => Ok(joined?),
        }
    }

    /// Deletes the parts of an upload that is of no use, as far as the store does that now, and forgets it.
    async fn give_up(&mut self, reason: &str) -> Result<(), PublishError> {
        let layer = self.layer.id();
        tracing::warn!(%layer, reason, "the unfinished upload of a layer is of no use, and is begun anew");
        if let Some(upload) = &mut self.upload
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(%layer, %error, "parts of a layer object that was given up may stay");
        }
        self.by.forget(self.publisher, layer).await
    }
}
