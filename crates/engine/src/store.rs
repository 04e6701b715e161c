//! Object storage in rekindle's terms: manifests and layer objects under names that are never written twice.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use uuid::Uuid;

use crate::catalog::CatalogError;
use crate::geometry::u64_of;
use crate::identity::LayerId;
use crate::key_ring::DomainKey;
use crate::limits;
use crate::manifest::ObjectName;
use crate::pace::Pace;
use crate::private;
use crate::store_gate::{Away, NewSign, StoreGate};
use crate::store_opener::{FailedRequests, OpenedStore};

/// A store, with counts of its traffic. Clones share both.
#[derive(Debug, Clone)]
pub struct Store {
    access: Access,
    /// The name of this node in a store that does not know it by its signs.
    nameless: Uuid,
    traffic: Arc<Counters>,
    pace: Arc<Pace>,
}

/// Access to the objects of a store.
#[derive(Debug, Clone)]
enum Access {
    /// The objects can be used at once.
    Open(OpenedStore),
    /// A gate checks that the store is there, and is the right one.
    Gated(Arc<StoreGate>),
}

#[derive(Debug, Default)]
struct Counters {
    fetches: AtomicU64,
    fetched_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

/// Counts of the bytes moved through a store since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that read an object or a range of one.
    pub fetches: u64,
    /// Bytes that they returned.
    pub fetched_bytes: u64,
    /// Bytes given to uploads, including those under way and failed ones.
    pub sent_bytes: u64,
    /// Bytes of objects written completely.
    pub stored_bytes: u64,
    /// Requests that failed.
    pub failed: FailedRequests,
}

/// Reason that a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist.
    #[error("{0} is not in the store")]
    NotFound(ObjectPath),
    /// The store is away: it is not there, or another one is in its place.
    #[error(transparent)]
    Away(#[from] Away),
    /// The store answered with fewer or more bytes than the range asked for.
    #[error("{path}: asked for {expected} bytes, got {found}")]
    Length {
        /// The object.
        path: ObjectPath,
        /// Bytes asked for.
        expected: u64,
        /// Bytes received.
        found: u64,
    },
    /// The object is larger than the limit for its kind.
    #[error("{path} has {bytes} bytes, more than the {bytes_max} an object of its kind may have")]
    TooLarge {
        /// The object.
        path: ObjectPath,
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// The object is damaged, or of a version that this program does not know.
    #[error("{path}: {reason}")]
    NotUnderstood {
        /// The object.
        path: ObjectPath,
        /// The fault in it.
        reason: String,
    },
    /// Any other error of the store or the way to it.
    #[error("{path}: {source}")]
    Other {
        /// The object.
        path: ObjectPath,
        /// The error's source.
        source: object_store::Error,
    },
}

impl Store {
    /// A store over any implementation.
    pub fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self::of(Access::Open(objects.into()))
    }

    /// A store that is opened at its first use, and used only while its gate finds it there.
    pub fn gated(gate: StoreGate) -> Self {
        Self::of(Access::Gated(Arc::new(gate)))
    }

    fn of(access: Access) -> Self {
        Self { access, nameless: Uuid::now_v7(), traffic: Arc::default(), pace: Arc::default() }
    }

    /// The same store, into which all writes together send at most so many bytes in a second, over time.
    #[must_use]
    pub fn paced(self, bytes_a_second: Option<NonZeroU64>) -> Self {
        Self { pace: Arc::new(Pace::of(bytes_a_second)), ..self }
    }

    /// The name of this node in the store, once the store is open.
    pub(crate) fn node(&self) -> Uuid {
        let known = match &self.access {
            Access::Open(_) => None,
            Access::Gated(gate) => gate.node(),
        };
        known.unwrap_or(self.nameless)
    }

    /// The reason that the store is away, if it is.
    pub fn away(&self) -> Option<Away> {
        match &self.access {
            Access::Open(_) => None,
            Access::Gated(gate) => gate.away(),
        }
    }

    /// Checks from time to time that the store is there and is the right one; ends at once for a store without a gate.
    pub(crate) async fn keep_looking(self) {
        let Access::Gated(gate) = &self.access else { return };
        loop {
            // The gate notes what it finds.
            let pause = match gate.checked().await {
                Ok(_) => limits::STORE_LOOK_EVERY,
                Err(_) => limits::STORE_RETRY_FIRST,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// The objects of the store.
    pub(crate) async fn objects(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        match &self.access {
            Access::Open(store) => Ok(Arc::clone(&store.objects)),
            Access::Gated(gate) => Ok(gate.opened().await?.objects),
        }
    }

    /// The objects of the store, checked just now, so that writes go to the right one.
    pub(crate) async fn checked(&self) -> Result<Arc<dyn ObjectStore>, StoreError> {
        Ok(self.checked_store().await?.objects)
    }

    /// The same with its uploads.
    pub(crate) async fn checked_store(&self) -> Result<OpenedStore, StoreError> {
        match &self.access {
            Access::Open(store) => Ok(store.clone()),
            Access::Gated(gate) => Ok(gate.checked().await?),
        }
    }

    /// The error of a request; that an object is missing is believed only of the right store.
    pub(crate) async fn failure(&self, path: &ObjectPath, source: object_store::Error) -> StoreError {
        let error = StoreError::from_store(path, source);
        if matches!(error, StoreError::NotFound(_))
            && let Err(away) = self.checked().await
        {
            return away;
        }
        error
    }

    /// A store in a local directory, which is made if need be; every write is fsynced, and no empty
    /// directory is left in it.
    pub fn directory(path: &Path) -> std::io::Result<Self> {
        private::make_directory(path)?;
        let files = LocalFileSystem::new_with_prefix(path)?;
        Ok(Self::new(Arc::new(files.with_fsync(true).with_automatic_cleanup(true))))
    }

    /// Counts so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            fetches: self.traffic.fetches.load(Ordering::Relaxed),
            fetched_bytes: self.traffic.fetched_bytes.load(Ordering::Relaxed),
            sent_bytes: self.traffic.sent_bytes.load(Ordering::Relaxed),
            stored_bytes: self.traffic.stored_bytes.load(Ordering::Relaxed),
            failed: match &self.access {
                Access::Open(_) => FailedRequests::default(),
                Access::Gated(gate) => gate.failed_requests(),
            },
        }
    }

    /// Leaves a sign in a gated store after a manifest was put there, and checks that both are in the same store.
    pub(crate) async fn leave_sign(&self, manifest: &ObjectPath) -> Result<Option<NewSign>, StoreError> {
        let Access::Gated(gate) = &self.access else { return Ok(None) };
        let objects = gate.opened().await?.objects;
        let sign = gate.leave_sign(Arc::clone(&objects)).await;
        let sign = sign.map_err(|source| StoreError::from_store(&ObjectPath::from("nodes"), source))?;
        if let Err(source) = objects.head(manifest).await {
            sign.take_back().await;
            return Err(StoreError::from_store(manifest, source));
        }
        Ok(Some(sign))
    }

    /// Checks that a gated store has this key of its domain.
    pub(crate) async fn agree_on(&self, key: &DomainKey) -> Result<(), StoreError> {
        match &self.access {
            Access::Open(_) => Ok(()),
            Access::Gated(gate) => Ok(gate.agree_on(key).await?),
        }
    }

    /// Deletes outdated signs, as far as that is possible now.
    pub(crate) async fn delete_old_signs(&self) {
        if let Access::Gated(gate) = &self.access {
            gate.delete_old_signs().await;
        }
    }

    /// True if published snapshots must be looked for, since the store was accepted in place of another; none while it
    /// is not open.
    pub(crate) fn is_accepted(&self) -> Option<bool> {
        match &self.access {
            Access::Open(_) => Some(false),
            Access::Gated(gate) => gate.is_accepted(),
        }
    }

    /// Notes that this was done. Writes to the disk.
    pub(crate) fn note_looked_for(&self) -> Result<(), CatalogError> {
        match &self.access {
            Access::Open(_) => Ok(()),
            Access::Gated(gate) => gate.note_looked_for(),
        }
    }

    /// Writes an object in one request, and counts it.
    pub(crate) async fn put(&self, path: &ObjectPath, payload: PutPayload) -> Result<(), StoreError> {
        let objects = self.checked().await?;
        let bytes = u64_of(payload.content_length());
        self.turn_to_send(bytes).await;
        objects.put(path, payload).await.map_err(|source| StoreError::from_store(path, source))?;
        self.count_stored(bytes);
        Ok(())
    }

    /// Waits for the turn of a request that sends `bytes`, and counts them.
    pub(crate) async fn turn_to_send(&self, bytes: u64) {
        self.pace.turn(bytes).await;
        self.traffic.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn count_stored(&self, bytes: u64) {
        self.traffic.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads a whole object.
    pub(crate) async fn get_whole(&self, path: ObjectPath, bytes_max: usize) -> Result<Bytes, StoreError> {
        let answer = match self.objects().await?.get(&path).await {
            Ok(answer) => answer,
            Err(source) => return Err(self.failure(&path, source).await),
        };
        let (bytes, bytes_max) = (answer.meta.size, u64_of(bytes_max));
        if bytes > bytes_max {
            return Err(StoreError::TooLarge { path, bytes, bytes_max });
        }
        self.count_fetch();
        let body = answer.bytes().await.map_err(|source| StoreError::from_store(&path, source))?;
        self.count_fetched(&body);
        Ok(body)
    }

    /// Deletes an object. A missing one is a success.
    pub(crate) async fn delete(&self, path: ObjectPath) -> Result<(), StoreError> {
        match self.checked().await?.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::from_store(&path, source)),
        }
    }

    /// The size of a layer's object.
    pub(crate) async fn layer_bytes(&self, layer: LayerId, at: &ObjectName) -> Result<u64, StoreError> {
        self.size_of(&layer_path(layer, at)).await
    }

    /// The size of an object.
    pub(crate) async fn size_of(&self, path: &ObjectPath) -> Result<u64, StoreError> {
        match self.objects().await?.head(path).await {
            Ok(found) => Ok(found.size),
            Err(source) => Err(self.failure(path, source).await),
        }
    }

    /// Counts a read.
    pub(crate) fn count_fetch(&self) {
        self.traffic.fetches.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes that a read brought.
    pub(crate) fn count_fetched(&self, bytes: &Bytes) {
        self.traffic.fetched_bytes.fetch_add(u64_of(bytes.len()), Ordering::Relaxed);
    }
}

impl StoreError {
    pub(crate) fn from_store(path: &ObjectPath, source: object_store::Error) -> Self {
        if let object_store::Error::NotFound { .. } = source {
            return Self::NotFound(path.clone());
        }
        Self::Other { path: path.clone(), source }
    }
}

/// The key of a layer's object.
pub(crate) fn layer_path(layer: LayerId, at: &ObjectName) -> ObjectPath {
    ObjectPath::from(format!("layers/{layer}/{}-{}", at.publisher, at.upload))
}
