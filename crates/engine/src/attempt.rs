//! One try to bring a frame into a local file: from the file itself, else from the faster of a node that has it and the store,
//! there from the objects of its layer's placement, one after the other.

mod from_peers;

use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::BytesMut;
use tokio::task::JoinError;

use crate::frame::{FrameNumber, frame_bytes};
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_index::LayerIndex;
use crate::limits;
use crate::local_file::{LayerError, LocalFile};
use crate::manifest::{ObjectName, StoredLayer};
use crate::object::{FrameCodec, FrameError, ObjectTable, StoredObject};
use crate::remote_pages::{FramesOf, RemoteError};
use crate::single_flight::{Answer, Claimed, SingleFlight};
use crate::sources::{SourceError, Sources};
use crate::stop::Stopped;
use crate::urgency::Urgency;

/// Reason that one try to get a frame failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The local file failed, or the bytes are not those the layer's name commits to.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store did not give the bytes.
    #[error(transparent)]
    Source(Box<SourceError>),
    /// A table, of the store or in a manifest, is not that of the layer's object.
    #[error("the table of layer {layer} is not the one of its object: {reason}")]
    Table {
        /// The layer.
        layer: LayerId,
        /// The fault found.
        reason: String,
    },
    /// The stored frame cannot be decoded.
    #[error("frame {frame} of layer {layer} in the store: {source}")]
    Frame {
        /// The layer.
        layer: LayerId,
        /// The frame.
        frame: FrameNumber,
        /// The fault found.
        source: FrameError,
    },
    /// The only copy was local, and it is not good any more.
    #[error("frame {frame} of layer {layer} is not good on this disk and was never stored")]
    OnlyCopy {
        /// The layer.
        layer: LayerId,
        /// The frame.
        frame: FrameNumber,
    },
    /// The fetching side ended before it could answer.
    #[error("a fetch from {of} was cut short")]
    CutShort {
        /// The layer or volume.
        of: FramesOf,
    },
    /// Another node did not give pages that have no name yet.
    #[error(transparent)]
    Remote(Box<RemoteError>),
    /// The engine ends.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The try was made for others too, who have the same error.
    #[error(transparent)]
    Shared(Arc<Self>),
}

impl From<SourceError> for FetchError {
    fn from(error: SourceError) -> Self {
        Self::Source(Box::new(error))
    }
}

impl From<RemoteError> for FetchError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(Box::new(error))
    }
}

impl FetchError {
    /// True if a source outside this node is to blame: it did not answer, or its bytes are wrong.
    pub fn is_of_source(&self) -> bool {
        match self {
            Self::Source(_) | Self::Table { .. } | Self::Frame { .. } | Self::Remote(_) => true,
            Self::Shared(error) => error.is_of_source(),
            Self::Layer(_) | Self::OnlyCopy { .. } | Self::CutShort { .. } | Self::Stopped(_) => false,
        }
    }

    /// The error of the source outside this node, if it gave no bytes.
    fn source_error(&self) -> Option<&SourceError> {
        match self {
            Self::Source(error) => Some(&**error),
            Self::Shared(error) => error.source_error(),
            Self::Layer(_)
            | Self::Table { .. }
            | Self::Frame { .. }
            | Self::OnlyCopy { .. }
            | Self::CutShort { .. }
            | Self::Remote(_)
            | Self::Stopped(_) => None,
        }
    }
}

/// A table of a layer, by the object that it is of.
pub(crate) type TableKey = (LayerId, ObjectName);

/// Means of a try: the sources, and the tables that are under way from them.
#[derive(Debug)]
pub(crate) struct Attempts {
    pub(crate) sources: Sources,
    pub(crate) tables: Arc<SingleFlight<TableKey, FetchError>>,
}

impl Attempts {
    /// Brings one frame.
    pub(crate) async fn frame(
        &self,
        file: &Arc<LocalFile>,
        frame: FrameNumber,
        urgency: &Arc<Urgency>,
    ) -> Result<(), FetchError> {
        let layer = file.layer();
        loop {
            let Some(stored) = layer.stored() else {
                return load_local_only(file, frame).await;
            };
            let brought = self.frame_from(file, &stored, frame, urgency).await;
            let is_gone = |error: &FetchError| matches!(error.source_error(), Some(SourceError::Gone(_)));
            // One that is gone has left the placement, unless it was the last: the next one is tried at once.
            if brought.as_ref().is_err_and(is_gone)
                && layer.stored().is_some_and(|next| next.place().object != stored.place().object)
            {
                continue;
            }
            return brought;
        }
    }

    async fn frame_from(
        &self,
        file: &Arc<LocalFile>,
        stored: &StoredObject,
        frame: FrameNumber,
        urgency: &Arc<Urgency>,
    ) -> Result<(), FetchError> {
        // A local file that fails is no reason to give up while the store has the frame.
        if matches!(blocking_load(file, frame).await, Ok(true)) {
            return Ok(());
        }
        self.frame_of_either(file, frame, urgency, self.frame_of_store(file, stored, frame, urgency)).await
    }

    async fn frame_of_store(
        &self,
        file: &Arc<LocalFile>,
        stored: &StoredObject,
        frame: FrameNumber,
        urgency: &Arc<Urgency>,
    ) -> Result<(), FetchError> {
        let layer = file.layer();
        if stored.frames().is_none() {
            self.table(file, stored, urgency).await?;
            if matches!(blocking_load(file, frame).await, Ok(true)) {
                return Ok(());
            }
        }
        let places = stored.frames().expect("fetched above");
        let (range, codec) = (places.frame_range(frame), places.codec(frame));
        let read = self.sources.layer(layer, stored.place().object, range, urgency).await?;
        let into = Arc::clone(file);
        blocking(layer.id(), move || accept(&into, frame, codec, &read.body)).await
    }

    /// Fetches frames that lie one after the other: from a node that has them, if that is faster, and the rest in one request to
    /// the store, where the table is known already. `came` is called for
    /// each as soon as it is there; one that it was not called for did not come.
    pub(crate) async fn run(
        &self,
        file: &Arc<LocalFile>,
        frames: Range<usize>,
        urgency: &Arc<Urgency>,
        came: &Arc<impl Fn(FrameNumber) + Send + Sync + 'static>,
    ) {
        let frames = self.run_of_peer(file, frames, urgency, came).await;
        let Some(stored) = file.layer().stored().filter(|_| !frames.is_empty()) else { return };
        let Some(table) = stored.frames() else { return };
        let (first, last) = (FrameNumber::new(frames.start), FrameNumber::new(frames.end - 1));
        let bytes = table.frame_range(first).start..table.frame_range(last).end;
        let held = (bytes.end - bytes.start).min(limits::EXTENT_HELD_BYTES);
        let begun = self.sources.begin(file.layer(), stored.place().object, bytes, urgency, held).await;
        let Ok(mut reading) = begun else { return };
        let (mut accepting, mut arrived) = (tokio::task::JoinSet::new(), BytesMut::new());
        for frame in frames.map(FrameNumber::new) {
            let place = table.frame_range(frame);
            let length = size_of(place.end - place.start);
            while arrived.len() < length
                && let Ok(Some(bytes)) = reading.next().await
            {
                arrived.extend_from_slice(&bytes);
            }
            if arrived.len() < length {
                break;
            }
            let (encoded, codec) = (arrived.split_to(length).freeze(), table.codec(frame));
            if accepting.len() >= limits::EXTENT_FRAMES_AT_ONCE {
                accepting.join_next().await.map(unless_kept_from);
            }
            let (file, came) = (Arc::clone(file), Arc::clone(came));
            accepting.spawn_blocking(move || {
                if file.is_verified(frame) || accept(&file, frame, codec, &encoded).is_ok() {
                    came(frame);
                }
            });
        }
        while let Some(ended) = accepting.join_next().await {
            // One that the end of the engine kept from beginning has brought nothing.
            unless_kept_from(ended);
        }
        // An error here was one of the last frame too.
        reading.end().await.ok();
    }

    /// Sees that an object's table is known. It is fetched once for all who need it at the same time.
    pub(crate) async fn table(
        &self,
        file: &Arc<LocalFile>,
        stored: &StoredObject,
        urgency: &Arc<Urgency>,
    ) -> Result<(), FetchError> {
        let key: TableKey = (file.layer().id(), stored.place().object);
        while stored.frames().is_none() {
            let answer = Arc::new(Answer::default());
            let waiter: Weak<Answer<FetchError>> = Arc::downgrade(&answer);
            if self.tables.join(key, waiter) {
                let claimed = Claimed::new(&self.tables, vec![key], |(layer, _)| FetchError::CutShort {
                    of: layer.into(),
                });
                self.tables.work_on([key], urgency);
                // Another fetch may have ended between the look and the claim.
                let fetched = match stored.frames() {
                    Some(_) => Ok(()),
                    None => self.fetch_table(file, stored, urgency).await,
                };
                claimed.let_go(key);
                match fetched {
                    Ok(()) => self.tables.succeeded(key),
                    Err(error) => self.tables.give_up(key, &Arc::new(error)),
                }
            } else {
                self.tables.hurry(key, urgency.now());
            }
            answer.said().await.map_err(FetchError::Shared)?;
        }
        Ok(())
    }

    /// Fetches the table, and every frame with it in the same request where that costs less than a second one. Each frame is judged by itself:
    /// those who wait for a bad one ask for it again.
    async fn fetch_table(
        &self,
        file: &Arc<LocalFile>,
        stored: &StoredObject,
        urgency: &Arc<Urgency>,
    ) -> Result<(), FetchError> {
        let (layer, place) = (file.layer(), stored.place());
        let frames_end = place.object_bytes - place.table_bytes;
        let whole = place.object_bytes <= self.sources.request_cost().bytes;
        let start = if whole { 0 } else { frames_end };
        let read = self.sources.layer(layer, place.object, start..place.object_bytes, urgency).await?;
        let table = checked_table(layer, place, &read.body[size_of(frames_end - start)..])?;
        let (index, places) = table.into_parts();
        let frames = (0..index.frames()).filter(|_| whole).map(FrameNumber::new);
        let frames: Vec<_> =
            frames.map(|frame| (frame, places.frame_range(frame), places.codec(frame))).collect();
        if layer.index().is_none() {
            let file = Arc::clone(file);
            blocking(layer.id(), move || {
                keep_index(&file, index);
                Ok(())
            })
            .await?;
        }
        let into = Arc::clone(file);
        let accepted = blocking(layer.id(), move || {
            for (frame, range, codec) in frames {
                if !into.is_verified(frame) {
                    // A bad one is asked for again, and its error told then.
                    accept(&into, frame, codec, &read.body[size_of(range.start)..size_of(range.end)]).ok();
                }
            }
            Ok(())
        });
        accepted.await?;
        stored.set_frames(places);
        Ok(())
    }
}

/// A length within what is in memory.
pub(crate) fn size_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory has a size")
}

async fn load_local_only(file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
    if blocking_load(file, frame).await? {
        return Ok(());
    }
    Err(FetchError::OnlyCopy { layer: file.layer().id(), frame })
}

async fn blocking_load(file: &Arc<LocalFile>, frame: FrameNumber) -> Result<bool, FetchError> {
    let file = Arc::clone(file);
    blocking(file.layer().id(), move || Ok(file.load_local(frame)?)).await
}

pub(crate) async fn blocking<T: Send + 'static>(
    layer: LayerId,
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let done = unless_kept_from(tokio::task::spawn_blocking(work).await);
    done.unwrap_or(Err(FetchError::CutShort { of: layer.into() }))
}

/// Result of blocking work; none if the runtime ended before the work began. A panic goes on.
pub(crate) fn unless_kept_from<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(done) => Some(done),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => None,
    }
}

/// Remembers a layer's index, also on the disk. If that fails, the next start asks the store again.
pub(crate) fn keep_index(file: &LocalFile, index: LayerIndex) {
    if let Err(error) = file.keep_index(index) {
        tracing::warn!(layer = %file.layer().id(), %error, "the index of a layer is not kept on this disk");
    }
}

/// The table in `bytes`, if it is the one that the manifest names, and the layer's.
pub(crate) fn checked_table(
    layer: &LayerFacts,
    stored: &StoredLayer,
    bytes: &[u8],
) -> Result<ObjectTable, FetchError> {
    let refused = |reason: String| FetchError::Table { layer: layer.id(), reason };
    if !stored.is_table(bytes) {
        return Err(refused("its digest differs".into()));
    }
    let table = ObjectTable::decode(bytes, stored.object_bytes - stored.table_bytes)
        .map_err(|error| refused(error.to_string()))?;
    if table.index().page_count() != layer.pages()
        || layer.key().layer_id(&table.index().encode()) != layer.id()
    {
        return Err(refused("it is another layer's".into()));
    }
    Ok(table)
}

/// Takes a frame that came from outside into a local file, if it is the right one.
pub(crate) fn accept(
    file: &LocalFile,
    frame: FrameNumber,
    codec: FrameCodec,
    encoded: &[u8],
) -> Result<(), FetchError> {
    let raw = decode(file.layer(), frame, codec, encoded)?;
    Ok(file.accept_frame(frame, &raw)?)
}

/// The uncompressed bytes of a frame, whose content is not verified here.
pub(crate) fn decode(
    layer: &LayerFacts,
    frame: FrameNumber,
    codec: FrameCodec,
    encoded: &[u8],
) -> Result<Vec<u8>, FetchError> {
    codec.decode(encoded, frame_bytes(frame, layer.pages())).map_err(|source| FetchError::Frame {
        layer: layer.id(),
        frame,
        source,
    })
}
