//! Brings frames into memory: from the local file, else from the store. No other module knows that order. Every frame
//! is fetched once for all its waiters, and tried again until it is there or its last waiter gives up.

use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinError;

use crate::frame::{FrameNumber, frame_bytes};
use crate::identity::LayerId;
use crate::layer_facts::LayerFacts;
use crate::layer_index::LayerIndex;
use crate::limits;
use crate::local_file::{LayerError, LocalFile};
use crate::manifest::StoredLayer;
use crate::object::{FrameCodec, FrameError, ObjectTable, StoredObject};
use crate::single_flight::{Answer, FrameKey, SingleFlight};
use crate::stop::{Stop, Stopped};
use crate::store::{Store, StoreError};
use crate::sync::{Mutex, block_on, lock};

pub use crate::single_flight::FrameWaiter;

/// Fetches frames. Clones share the work under way.
#[derive(Debug, Clone)]
pub struct Fetcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    runtime: Handle,
    store: Store,
    awaited: SingleFlight,
    stop: Stop,
}

/// Reason that one try to get a frame failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The local file failed, or the bytes are not those the layer's name commits to.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stored object's table is not the one the manifest names.
    #[error("the table of layer {layer} in the store is not the one its manifest names: {reason}")]
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
    #[error("frame {frame} of layer {layer}: {reason}")]
    Failed {
        /// The layer.
        layer: LayerId,
        /// The frame.
        frame: FrameNumber,
        /// The error's words.
        reason: String,
    },
}

impl Fetcher {
    /// A fetcher that works on `runtime` and reads from `store`. Once `stop` is signalled, no call of [`Self::bring`]
    /// is kept waiting; requests that do not wait are fetched on.
    pub fn new(runtime: Handle, store: Store, stop: Stop) -> Self {
        Self(Arc::new(Shared { runtime, store, awaited: SingleFlight::default(), stop }))
    }

    /// Asks for a frame of a local file and returns at once; the waiter is called when it is there. Two files of one
    /// layer share a fetch: a waiter looks whether it is there, and asks again if the fetch was for the other file.
    pub fn request(&self, file: &Arc<LocalFile>, frame: FrameNumber, waiter: Weak<dyn FrameWaiter>) {
        let Self(shared) = self;
        let layer = file.layer().id();
        if !shared.awaited.join((layer, frame), waiter) {
            return;
        }
        let claimed = |number: &usize| shared.awaited.claim((layer, FrameNumber::new(*number)));
        let ahead = frame.index() + 1..frame.index() + file.frames_ahead(frame);
        let ahead = ahead.take_while(claimed).map(FrameNumber::new).collect();
        drop(shared.runtime.spawn(fetch_run(Arc::clone(shared), Arc::clone(file), frame, ahead)));
    }

    /// Waits until a frame is verified, until the first failed try, or until the engine ends.
    pub async fn bring(&self, file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
        while !file.is_verified(frame) {
            let answer = Arc::new(Answer::default());
            let waiter: Weak<Answer> = Arc::downgrade(&answer);
            self.request(file, frame, waiter);
            let said = self.0.stop.unless_said(answer.said()).await;
            said.unwrap_or_else(|stopped| Err(stopped.to_string())).map_err(|reason| FetchError::Failed {
                layer: file.layer().id(),
                frame,
                reason,
            })?;
        }
        Ok(())
    }

    /// The same for a thread that may wait: not for fault threads or async tasks.
    pub fn load(&self, file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
        block_on(self.bring(file, frame))
    }

    /// Asks the store, for a thread that may wait, until the engine ends.
    pub(crate) fn ask_store<T>(&self, ask: impl AsyncFnOnce(&Store) -> T) -> Result<T, Stopped> {
        let Self(shared) = self;
        shared.runtime.block_on(shared.stop.unless_said(ask(&shared.store)))
    }

    /// Frames being fetched now.
    pub fn under_way(&self) -> usize {
        self.0.awaited.under_way()
    }
}

/// Frames of a layer that one piece of work fetches. Those it has not done when its last part is dropped, by a panic or
/// with the runtime, are given up: only their own waiters are told.
struct Claimed {
    shared: Arc<Shared>,
    layer: LayerId,
    frames: Mutex<Vec<FrameNumber>>,
}

impl Claimed {
    fn new(shared: Arc<Shared>, layer: LayerId, frames: Vec<FrameNumber>) -> Arc<Self> {
        Arc::new(Self { shared, layer, frames: Mutex::new(frames) })
    }

    /// A frame leaves this work: it is there, has no waiter left, or others fetch it.
    fn let_go(&self, frame: FrameNumber) {
        lock(&self.frames).retain(|claimed| *claimed != frame);
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        for frame in std::mem::take(&mut *lock(&self.frames)) {
            self.shared.awaited.give_up((self.layer, frame), "its fetch was cut short");
        }
    }
}

/// Fetches a frame that has waiters, and in the same request those after it that may be wanted next. They are claimed
/// when this is called, not when it is first polled: a runtime that has ended drops it unpolled.
fn fetch_run(
    shared: Arc<Shared>,
    file: Arc<LocalFile>,
    frame: FrameNumber,
    ahead: Vec<FrameNumber>,
) -> impl Future<Output = ()> {
    let frames = std::iter::once(frame).chain(ahead.iter().copied()).collect();
    let claimed = Claimed::new(Arc::clone(&shared), file.layer().id(), frames);
    async move {
        let left = fetch_together(&claimed, &file, frame, &ahead).await;
        for after in left {
            claimed.let_go(after);
            if shared.awaited.give_back((file.layer().id(), after)) {
                drop(tokio::spawn(fetch_until_done(Arc::clone(&shared), Arc::clone(&file), after)));
            }
        }
    }
}

/// One request for `first` and the frames `ahead` that follow it, where there are any. Those it did not bring are
/// returned, to be fetched one by one.
async fn fetch_together(
    claimed: &Arc<Claimed>,
    file: &Arc<LocalFile>,
    first: FrameNumber,
    ahead: &[FrameNumber],
) -> Vec<FrameNumber> {
    let all = || std::iter::once(first).chain(ahead.iter().copied());
    let layer = file.layer();
    let stored = layer.stored();
    let (Some(last), Some(stored)) = (ahead.last(), &stored) else { return all().collect() };
    let Some(table) = stored.table() else { return all().collect() };
    let range = table.frame_range(first).start..table.frame_range(*last).end;
    let answer = get(&claimed.shared.store, layer, stored, range.clone());
    let Ok(body) = telling_of_silence(&claimed.shared, (layer.id(), first), answer).await else {
        return all().collect();
    };
    let mut accepting = tokio::task::JoinSet::new();
    for frame in all() {
        let (place, codec) = (table.frame_range(frame), table.codec(frame));
        let encoded = body.slice(size_of(place.start - range.start)..size_of(place.end - range.start));
        let (claimed, file) = (Arc::clone(claimed), Arc::clone(file));
        accepting.spawn_blocking(move || {
            let accepted = accept(&file, frame, codec, &encoded).is_ok();
            if accepted {
                claimed.let_go(frame);
                claimed.shared.awaited.succeeded((file.layer().id(), frame));
            }
            accepted.then_some(frame)
        });
    }
    let mut brought = Vec::with_capacity(1 + ahead.len());
    while let Some(ended) = accepting.join_next().await {
        // One that the end of the engine kept from beginning has brought nothing.
        brought.extend(unless_kept_from(ended).flatten());
    }
    all().filter(|frame| !brought.contains(frame)).collect()
}

/// A length within an answer that is in memory.
fn size_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what is in memory has a size")
}

/// Fetches one frame that has waiters. It is claimed when this is called.
fn fetch_until_done(
    shared: Arc<Shared>,
    file: Arc<LocalFile>,
    frame: FrameNumber,
) -> impl Future<Output = ()> {
    let key = (file.layer().id(), frame);
    let claimed = Claimed::new(Arc::clone(&shared), key.0, vec![frame]);
    async move {
        let attempt = || telling_of_silence(&shared, key, fetch(&shared.store, &file, frame));
        shared.awaited.fetch(key, attempt, tokio::time::sleep).await;
        claimed.let_go(frame);
    }
}

/// Goes on with a try that has no answer yet, and tells those who wait for the frame.
async fn telling_of_silence<T>(shared: &Shared, key: FrameKey, attempt: impl Future<Output = T>) -> T {
    let mut attempt = std::pin::pin!(attempt);
    let limit = limits::SOURCE_SILENT;
    if let Ok(done) = tokio::time::timeout(limit, &mut attempt).await {
        return done;
    }
    let seconds = limit.as_secs();
    let reason = format!("neither this disk nor the store has answered for {seconds} s; it is waited for");
    shared.awaited.silent(key, &reason);
    attempt.await
}

/// One try: the local file first, then the store.
async fn fetch(store: &Store, file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
    let layer = file.layer();
    let Some(stored) = layer.stored() else {
        return load_local_only(file, frame).await;
    };
    // A local file that fails is no reason to give up while the store has the frame.
    if layer.index().is_some() && matches!(blocking_load(file, frame).await, Ok(true)) {
        return Ok(());
    }
    if stored.table().is_none() {
        if let Some(outcome) = fetch_table(store, file, &stored, frame).await? {
            return outcome;
        }
        if matches!(blocking_load(file, frame).await, Ok(true)) {
            return Ok(());
        }
    }
    let table = stored.table().expect("fetched above");
    let codec = table.codec(frame);
    let encoded = get(store, layer, &stored, table.frame_range(frame)).await?;
    let into = Arc::clone(file);
    blocking((layer.id(), frame), move || accept(&into, frame, codec, &encoded)).await
}

/// Bytes of an object. If it is gone from the store, the next try reads another one that is known.
async fn get(
    store: &Store,
    layer: &LayerFacts,
    stored: &StoredObject,
    range: Range<u64>,
) -> Result<Bytes, StoreError> {
    let object = stored.place().object;
    let got = store.get_layer(layer.id(), &object, range).await;
    if let Err(StoreError::NotFound(_)) = &got {
        layer.note_gone(object);
    }
    got
}

async fn load_local_only(file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
    if blocking_load(file, frame).await? {
        return Ok(());
    }
    Err(FetchError::OnlyCopy { layer: file.layer().id(), frame })
}

async fn blocking_load(file: &Arc<LocalFile>, frame: FrameNumber) -> Result<bool, FetchError> {
    let file = Arc::clone(file);
    blocking((file.layer().id(), frame), move || Ok(file.load_local(frame)?)).await
}

async fn blocking<T: Send + 'static>(
    (layer, frame): (LayerId, FrameNumber),
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    let done = unless_kept_from(tokio::task::spawn_blocking(work).await);
    done.unwrap_or_else(|| Err(FetchError::Failed { layer, frame, reason: Stopped.to_string() }))
}

/// Result of blocking work; none if the runtime ended before the work began. A panic goes on.
fn unless_kept_from<T>(ended: Result<T, JoinError>) -> Option<T> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(done) => Some(done),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => None,
    }
}

/// Fetches the table, and with a small object every frame of it in the same request: then what came of `wanted` is
/// answered. Each frame is judged by itself: the waiters of a bad one ask for it again.
async fn fetch_table(
    store: &Store,
    file: &Arc<LocalFile>,
    stored: &StoredObject,
    wanted: FrameNumber,
) -> Result<Option<Result<(), FetchError>>, FetchError> {
    let (layer, place) = (file.layer(), stored.place());
    let frames_end = place.object_bytes - place.table_bytes;
    let whole = place.object_bytes <= limits::OBJECT_FETCHED_WHOLE_BYTES_MAX;
    let start = if whole { 0 } else { frames_end };
    let body = get(store, layer, stored, start..place.object_bytes).await?;
    let table = checked_table(layer, place, &body[size_of(frames_end - start)..])?;
    if layer.index().is_none() {
        keep_index(file, table.index().clone(), wanted).await?;
    }
    let table = stored.set_table(table);
    if !whole {
        return Ok(None);
    }
    let frames = (0..table.index().frames()).map(FrameNumber::new);
    let frames: Vec<_> = frames.map(|frame| (frame, table.frame_range(frame), table.codec(frame))).collect();
    let into = Arc::clone(file);
    blocking((layer.id(), wanted), move || {
        let mut answer = None;
        for (frame, range, codec) in frames {
            let outcome = match into.is_verified(frame) {
                true => Ok(()),
                false => accept(&into, frame, codec, &body[size_of(range.start)..size_of(range.end)]),
            };
            if frame == wanted {
                answer = Some(outcome);
            }
        }
        Ok(answer)
    })
    .await
}

/// Remembers a layer's index, also on the disk. If that fails, the next start asks the store again.
async fn keep_index(file: &Arc<LocalFile>, index: LayerIndex, wanted: FrameNumber) -> Result<(), FetchError> {
    let file = Arc::clone(file);
    blocking((file.layer().id(), wanted), move || {
        if let Err(error) = file.keep_index(index) {
            tracing::warn!(layer = %file.layer().id(), %error, "the index of a layer is not kept on this disk");
        }
        Ok(())
    })
    .await
}

fn checked_table(layer: &LayerFacts, stored: &StoredLayer, bytes: &[u8]) -> Result<ObjectTable, FetchError> {
    let refused = |reason: String| FetchError::Table { layer: layer.id(), reason };
    if *blake3::hash(bytes).as_bytes() != stored.table_digest {
        return Err(refused("its digest differs".into()));
    }
    let table = ObjectTable::decode(bytes, stored.object_bytes - stored.table_bytes)
        .map_err(|error| refused(error.to_string()))?;
    if table.index().page_count() != layer.pages() || table.index().id(layer.domain()) != layer.id() {
        return Err(refused("it is another layer's".into()));
    }
    Ok(table)
}

fn accept(file: &LocalFile, frame: FrameNumber, codec: FrameCodec, encoded: &[u8]) -> Result<(), FetchError> {
    let layer = file.layer();
    let raw = codec
        .decode(encoded, frame_bytes(frame, layer.pages()))
        .map_err(|source| FetchError::Frame { layer: layer.id(), frame, source })?;
    Ok(file.accept_frame(frame, &raw)?)
}

#[cfg(all(test, not(shuttle)))]
mod tests;
