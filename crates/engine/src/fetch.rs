//! How a frame that is not in memory gets there: from the local file, else from the store. The only place that knows
//! the order. Every frame is fetched once however many wait for it, and again until it is there or nobody waits.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use crate::frame::{FrameNumber, frame_bytes};
use crate::identity::LayerId;
use crate::layer::{Layer, LayerError};
use crate::limits;
use crate::manifest::StoredLayer;
use crate::object::{FrameError, ObjectTable, decode_frame};
use crate::store::{Store, StoreError};
use crate::sync::{Condvar, Mutex, lock};

/// Whoever waits for a frame. Called from a foreign thread, or from the asking one if the frame is there already;
/// it must not block.
pub trait FrameWaiter: Send + Sync {
    /// The frame is verified; it was in memory a moment ago.
    fn frame_ready(&self, layer: LayerId, frame: FrameNumber);

    /// A try failed, and there will be another while the waiter lives.
    fn frame_failing(&self, layer: LayerId, frame: FrameNumber, reason: &str);
}

/// Fetches frames. Clones share the work under way.
#[derive(Debug, Clone)]
pub struct Fetcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    runtime: Handle,
    store: Store,
    awaited: Mutex<Awaited>,
}

type Key = (LayerId, FrameNumber);

/// The frames being fetched, each with those who wait for it.
#[derive(Default)]
struct Awaited(HashMap<Key, Vec<Weak<dyn FrameWaiter>>>);

/// Why a frame could not be had in one try.
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
        /// What is wrong with it.
        reason: String,
    },
    /// The stored frame cannot be decoded.
    #[error("frame {frame} of layer {layer} in the store: {source}")]
    Frame {
        /// The layer.
        layer: LayerId,
        /// The frame.
        frame: FrameNumber,
        /// What is wrong with it.
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
        /// What was said.
        reason: String,
    },
}

impl Fetcher {
    /// A fetcher that works on `runtime` and reads from `store`.
    pub fn new(runtime: Handle, store: Store) -> Self {
        Self(Arc::new(Shared { runtime, store, awaited: Mutex::default() }))
    }

    /// Asks for a frame and returns at once; the waiter is called when it is there.
    pub fn request(&self, layer: &Arc<Layer>, frame: FrameNumber, waiter: Weak<dyn FrameWaiter>) {
        let key = (layer.id(), frame);
        let first = {
            let mut awaited = lock(&self.0.awaited);
            let first = !awaited.0.contains_key(&key);
            awaited.0.entry(key).or_default().push(waiter);
            first
        };
        if first {
            let work = fetch_until_done(Arc::clone(&self.0), Arc::clone(layer), frame);
            drop(self.0.runtime.spawn(work));
        }
    }

    /// Waits until a frame is verified, or until the first failed try. Not for fault threads or async tasks.
    pub fn load(&self, layer: &Arc<Layer>, frame: FrameNumber) -> Result<(), FetchError> {
        if layer.is_verified(frame) {
            return Ok(());
        }
        let outcome = Arc::new(Outcome::default());
        let waiter: Weak<Outcome> = Arc::downgrade(&outcome);
        self.request(layer, frame, waiter);
        let failed = outcome.wait();
        failed.map_or(Ok(()), |reason| Err(FetchError::Failed { layer: layer.id(), frame, reason }))
    }

    /// Frames being fetched now.
    pub fn under_way(&self) -> usize {
        lock(&self.0.awaited).0.len()
    }
}

/// One blocking caller's answer: `None` inside means success.
#[derive(Default)]
struct Outcome {
    answer: Mutex<Option<Option<String>>>,
    answered: Condvar,
}

impl Outcome {
    fn wait(&self) -> Option<String> {
        let mut answer = lock(&self.answer);
        loop {
            if let Some(outcome) = answer.take() {
                return outcome;
            }
            answer = self.answered.wait(answer).expect("no thread panics while it holds a lock");
        }
    }

    fn set(&self, outcome: Option<String>) {
        *lock(&self.answer) = Some(outcome);
        self.answered.notify_all();
    }
}

impl FrameWaiter for Outcome {
    fn frame_ready(&self, _: LayerId, _: FrameNumber) {
        self.set(None);
    }

    fn frame_failing(&self, _: LayerId, _: FrameNumber, reason: &str) {
        self.set(Some(reason.to_owned()));
    }
}

impl Awaited {
    /// Those who still wait for `key`; without any, the key is forgotten.
    fn living(&mut self, key: Key) -> Vec<Arc<dyn FrameWaiter>> {
        let living: Vec<_> = self.0.get(&key).into_iter().flatten().filter_map(Weak::upgrade).collect();
        if living.is_empty() {
            self.0.remove(&key);
        }
        living
    }

    fn finish(&mut self, key: Key) -> Vec<Arc<dyn FrameWaiter>> {
        self.0.remove(&key).into_iter().flatten().filter_map(|waiter| waiter.upgrade()).collect()
    }
}

impl std::fmt::Debug for Awaited {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_set().entries(self.0.keys()).finish()
    }
}

async fn fetch_until_done(shared: Arc<Shared>, layer: Arc<Layer>, frame: FrameNumber) {
    let key = (layer.id(), frame);
    let mut pause = limits::FETCH_RETRY_FIRST;
    loop {
        match fetch(&shared.store, &layer, frame).await {
            Ok(()) => {
                let waiters = lock(&shared.awaited).finish(key);
                for waiter in waiters {
                    waiter.frame_ready(layer.id(), frame);
                }
                return;
            }
            Err(error) => {
                tracing::warn!(layer = %layer.id(), %frame, %error, "a frame could not be fetched");
                let waiters = lock(&shared.awaited).living(key);
                if waiters.is_empty() {
                    return;
                }
                let reason = error.to_string();
                for waiter in waiters {
                    waiter.frame_failing(layer.id(), frame, &reason);
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(limits::FETCH_RETRY_LAST);
        if lock(&shared.awaited).living(key).is_empty() {
            return;
        }
    }
}

/// One try: the local file first, then the store.
async fn fetch(store: &Store, layer: &Arc<Layer>, frame: FrameNumber) -> Result<(), FetchError> {
    let Some(stored) = layer.stored_at().cloned() else {
        return load_local_only(layer, frame).await;
    };
    // A local file that fails is no reason to give up while the store has the frame.
    if layer.index().is_some() && matches!(blocking_load(layer, frame).await, Ok(true)) {
        return Ok(());
    }
    if layer.table().is_none() {
        fetch_table(store, layer, &stored).await?;
        if matches!(blocking_load(layer, frame).await, Ok(true)) {
            return Ok(());
        }
    }
    let range = layer.table().expect("fetched above").frame_range(frame);
    let encoded = store.get_layer(layer.id(), &stored.object, range).await?;
    let layer = Arc::clone(layer);
    blocking(move || accept(&layer, frame, &encoded)).await
}

async fn load_local_only(layer: &Arc<Layer>, frame: FrameNumber) -> Result<(), FetchError> {
    if blocking_load(layer, frame).await? {
        return Ok(());
    }
    Err(FetchError::OnlyCopy { layer: layer.id(), frame })
}

async fn blocking_load(layer: &Arc<Layer>, frame: FrameNumber) -> Result<bool, FetchError> {
    let layer = Arc::clone(layer);
    blocking(move || Ok(layer.load_local(frame)?)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.expect("the runtime outlives its tasks, which do not panic")
}

/// Fetches the table, and with a small object every frame of it in the same request.
async fn fetch_table(store: &Store, layer: &Arc<Layer>, stored: &StoredLayer) -> Result<(), FetchError> {
    let frames_end = stored.object_bytes - stored.table_bytes;
    let whole = stored.object_bytes <= limits::OBJECT_FETCHED_WHOLE_BYTES_MAX;
    let start = if whole { 0 } else { frames_end };
    let body = store.get_layer(layer.id(), &stored.object, start..stored.object_bytes).await?;
    let table_at = usize::try_from(frames_end - start).expect("within the answer");
    let table = checked_table(layer, stored, &body[table_at..])?;
    let table = layer.set_table(table);
    if !whole {
        return Ok(());
    }
    let ranges: Vec<Range<u64>> =
        (0..table.index().frames()).map(|frame| table.frame_range(FrameNumber::new(frame))).collect();
    let layer = Arc::clone(layer);
    blocking(move || {
        for (number, range) in ranges.into_iter().enumerate() {
            let frame = FrameNumber::new(number);
            let bytes = usize::try_from(range.start).expect("checked with the table")
                ..usize::try_from(range.end).expect("checked with the table");
            if !layer.is_verified(frame) {
                accept(&layer, frame, &body[bytes])?;
            }
        }
        Ok(())
    })
    .await
}

fn checked_table(layer: &Layer, stored: &StoredLayer, bytes: &[u8]) -> Result<ObjectTable, FetchError> {
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

fn accept(layer: &Layer, frame: FrameNumber, encoded: &[u8]) -> Result<(), FetchError> {
    let raw = decode_frame(encoded, frame_bytes(frame, layer.pages()))
        .map_err(|source| FetchError::Frame { layer: layer.id(), frame, source })?;
    Ok(layer.accept_frame(frame, &raw)?)
}
