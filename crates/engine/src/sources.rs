//! The one door to bytes that are not on this node: each read of the store waits here for its share of a byte budget, is
//! ended after its time limit, and fails with an error that says whose fault it is.

mod from_peers;
mod reading;

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, FutureExt as _, select};
use object_store::Error::{PermissionDenied, Unauthenticated};
use object_store::path::Path as ObjectPath;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::byte_budget::{ByteBudget, ByteLease};
use crate::extents::RequestCost;
use crate::geometry::u64_of;
use crate::hedges::{HedgeCounts, Hedges};
use crate::identity::SnapshotId;
use crate::key_ring::KeyRing;
use crate::layer_facts::LayerFacts;
use crate::limits;
use crate::manifest::ObjectName;
use crate::origin::Origin;
use crate::peer_sources::PeerSources;
use crate::source_speed::SourceSpeed;
use crate::store::{Store, StoreError, layer_path};
use crate::store_list::{StoredSnapshot, WithdrawnSnapshot};
use crate::store_manifests::StoredManifest;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::tombstones::Deletion;
use crate::urgency::Urgency;
use crate::withdrawal::Withdrawal;
use crate::working_set::WorkingSetObject;

pub(crate) use reading::Reading;
use reading::{Limited, Wanted, read_limit};

pub use crate::urgency::Class;

/// Reads from outside this node. Clones share the budget.
#[derive(Debug, Clone)]
pub struct Sources {
    store: Store,
    keys: KeyRing,
    peers: Arc<PeerSources>,
    speed: Arc<SourceSpeed>,
    classes: Arc<[ReadsOfClass; 3]>,
    budget: ByteBudget<Class>,
    /// Large reads ahead of guests that are under way at once.
    streams: Arc<Semaphore>,
}

/// The reads of one class.
#[derive(Debug, Default)]
struct ReadsOfClass {
    hedges: Hedges,
    /// Those that their time limit ended.
    ended: Arc<AtomicU64>,
}

/// Counts of the reads of one class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadCounts {
    /// Reads that were asked a second time.
    pub hedges: HedgeCounts,
    /// Reads that their time limit ended.
    pub ended: u64,
}

/// Bytes that were read, and their share of the budget.
#[derive(Debug)]
pub(crate) struct SourceBytes {
    /// The bytes.
    pub(crate) body: Bytes,
    /// Held as long as they are.
    _lease: ByteLease<Class>,
}

/// Reason that a read from outside brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source is not there, or cannot be reached.
    #[error(transparent)]
    Away(StoreError),
    /// The source gave no answer in its time.
    #[error("{wanted}: the store has not answered for {} s", waited.as_secs())]
    Silent {
        /// The name of the object.
        wanted: String,
        /// The time limit of the read.
        waited: Duration,
    },
    /// The source does not let this node read it.
    #[error("{0}: the store refuses it: check the credentials that the daemon has")]
    Refused(StoreError),
    /// The source has other bytes than it must.
    #[error(transparent)]
    WrongBytes(StoreError),
    /// The source does not have it.
    #[error(transparent)]
    Gone(StoreError),
}

impl From<StoreError> for SourceError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound(_) => Self::Gone(error),
            StoreError::Away(_) => Self::Away(error),
            StoreError::Length { .. } | StoreError::TooLarge { .. } | StoreError::NotUnderstood { .. } => {
                Self::WrongBytes(error)
            }
            StoreError::Other { source: PermissionDenied { .. } | Unauthenticated { .. }, .. } => {
                Self::Refused(error)
            }
            StoreError::Other { .. } => Self::Away(error),
        }
    }
}

impl Class {
    /// Bytes that all reads together may hold once one of this class begins.
    fn share(self) -> u64 {
        match self {
            Self::Fault => limits::READ_BYTES_MAX,
            Self::Ahead => limits::READ_BYTES_MAX / 4 * 3,
            Self::Background => limits::READ_BYTES_MAX / 2,
        }
    }
}

impl Sources {
    /// Sources of which the only one is `store`, until others are added; manifests there are checked with `keys`.
    pub fn new(store: Store, keys: KeyRing) -> Self {
        let streams = Arc::new(Semaphore::new(limits::AHEAD_STREAMS));
        let budget = ByteBudget::new(limits::READ_BYTES_MAX);
        let (peers, speed, classes) = (Arc::default(), Arc::default(), Arc::default());
        Self { store, keys, peers, speed, classes, budget, streams }
    }

    /// Counts of the reads of a class so far.
    pub(crate) fn counts(&self, class: Class) -> ReadCounts {
        let ReadsOfClass { hedges, ended } = self.of(class);
        ReadCounts { hedges: hedges.counts(), ended: ended.load(Ordering::Relaxed) }
    }

    fn of(&self, class: Class) -> &ReadsOfClass {
        let [fault, ahead, background] = &*self.classes;
        match class {
            Class::Fault => fault,
            Class::Ahead => ahead,
            Class::Background => background,
        }
    }

    /// Counts a read of a class if its time limit ended it.
    fn judged<T>(&self, class: Class, read: Result<T, SourceError>) -> Result<T, SourceError> {
        if matches!(read, Err(SourceError::Silent { .. })) {
            self.of(class).ended.fetch_add(1, Ordering::Relaxed);
        }
        read
    }

    /// Cost of a request, as the last ones were.
    pub(crate) fn request_cost(&self) -> RequestCost {
        let streams = u64_of(limits::AHEAD_STREAMS);
        RequestCost { bytes: self.speed.bytes_worth_a_request(), streams }
    }

    /// The right to one of the large reads ahead of guests; none as soon as one is urgent, which needs none.
    pub(crate) async fn stream(&self, urgency: &Urgency) -> Option<OwnedSemaphorePermit> {
        let stream = Arc::clone(&self.streams).acquire_owned();
        match select(pin!(stream), pin!(urgency.above(Class::Ahead))).await {
            Either::Left((stream, _)) => Some(stream.expect("it is never closed")),
            Either::Right(_) => None,
        }
    }

    /// The store, for questions that are answered without an object's bytes.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The keys with which manifests are checked.
    pub(crate) fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Bytes of one object of a layer. One that is gone leaves the layer's placement, if that has another.
    pub(crate) async fn layer(
        &self,
        layer: &LayerFacts,
        object: ObjectName,
        range: Range<u64>,
        urgency: &Arc<Urgency>,
    ) -> Result<SourceBytes, SourceError> {
        let held = range.end - range.start;
        let mut reading = self.begin(layer, object, range, urgency, held).await?;
        let first = reading.next().await?.unwrap_or_default();
        if u64_of(first.len()) == held {
            return Ok(SourceBytes { body: first, _lease: reading.end().await? });
        }
        let mut body = BytesMut::with_capacity(usize::try_from(held).expect("a read fits in memory"));
        body.extend_from_slice(&first);
        while let Some(chunk) = reading.next().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(SourceBytes { body: body.freeze(), _lease: reading.end().await? })
    }

    /// Begins a read of one object of a layer, whose bytes are used as they come: at most `held` of them are in RAM at
    /// once.
    pub(crate) async fn begin(
        &self,
        layer: &LayerFacts,
        object: ObjectName,
        range: Range<u64>,
        urgency: &Arc<Urgency>,
        held: u64,
    ) -> Result<Reading, SourceError> {
        let path = layer_path(layer.id(), &object);
        let begun = self.begin_range((path, Wanted::OfLayer(layer.id())), range, urgency, held).await;
        if let Err(SourceError::Gone(_)) = &begun {
            layer.note_gone(object);
        }
        begun
    }

    async fn begin_range(
        &self,
        (path, wanted): (ObjectPath, Wanted),
        range: Range<u64>,
        urgency: &Arc<Urgency>,
        held: u64,
    ) -> Result<Reading, SourceError> {
        let bytes = range.end - range.start;
        let (lease, asked) = (self.lease(urgency, held).await, Instant::now());
        let get = || {
            let (store, path, range) = (self.store.clone(), path.clone(), range.clone());
            async move { store.get_range(path, range).await }
        };
        let (mut class, mut until) = (urgency.now(), asked + read_limit(urgency.now(), bytes));
        let mut first = self.of(class).hedges.ask(get).boxed();
        let arriving = loop {
            let answered = {
                let (answer, raised) = (timeout_at(until, first.as_mut()), urgency.above(class));
                match select(pin!(answer), pin!(raised)).await {
                    Either::Left((answer, _)) => Some(answer),
                    Either::Right(_) => None,
                }
            };
            match answered {
                Some(Ok(answer)) => break answer.map_err(SourceError::from),
                Some(Err(_)) => {
                    let waited = read_limit(class, bytes);
                    break Err(SourceError::Silent { wanted: wanted.to_string(), waited });
                }
                // From here on it is a read of that class: its usual time and its limit count.
                None => {
                    class = urgency.now();
                    until = until.min(Instant::now() + read_limit(class, bytes));
                    first = self.of(class).hedges.go_on(first, asked, get).boxed();
                }
            }
        };
        let (arriving, began) = (self.judged(class, arriving)?, Instant::now());
        self.speed.note_first_byte(began - asked);
        let (speed, ended) = (Arc::clone(&self.speed), Arc::clone(&self.of(class).ended));
        let (urgency, limited) = (Arc::clone(urgency), Limited { class, until });
        Ok(Reading { arriving, wanted, bytes, began, urgency, limited, speed, ended, lease })
    }

    /// A share of the budget for a read, which asks again as soon as it is more urgent.
    async fn lease(&self, urgency: &Urgency, held: u64) -> ByteLease<Class> {
        loop {
            let class = urgency.now();
            let lease = self.budget.lease_within(class, held, class.share());
            match select(pin!(lease), pin!(urgency.above(class))).await {
                Either::Left((lease, _)) => return lease,
                Either::Right(_) => {}
            }
        }
    }

    /// The newest edition of a published snapshot's manifest.
    pub(crate) async fn manifest(
        &self,
        snapshot: SnapshotId,
        class: Class,
    ) -> Result<StoredManifest, SourceError> {
        let lease = self.budget.lease_within(class, limits::READ_BYTES_UNKNOWN, class.share()).await;
        let wanted = || format!("the manifest of snapshot {snapshot}");
        let read = in_time(limits::MANIFEST_READ_WAIT, wanted, self.store.get_manifest(snapshot)).await;
        drop(lease);
        self.judged(class, read)
    }

    /// The deletion of a snapshot, if any node deleted it. It is the first question before a cold resume, and its answer is short:
    /// its time is that of a first byte.
    pub(crate) async fn deletion(&self, snapshot: SnapshotId) -> Result<Option<Deletion>, SourceError> {
        let (wanted, asked) = (|| format!("the tombstone of snapshot {snapshot}"), Instant::now());
        let answer = in_time(limits::READ_WAIT, wanted, self.store.deletion(snapshot)).await?;
        self.speed.note_first_byte(asked.elapsed());
        Ok(answer)
    }

    /// The node that deleted a snapshot in a way that can be undone.
    pub(crate) async fn withdrawn_by(
        &self,
        snapshot: SnapshotId,
        withdrawal: Withdrawal,
    ) -> Result<Deletion, SourceError> {
        let wanted = || format!("the sign that snapshot {snapshot} is deleted");
        in_time(limits::READ_WAIT, wanted, self.store.withdrawn_by(snapshot, withdrawal)).await
    }

    /// The node that has a snapshot, as its record in the store says.
    pub(crate) async fn origin(&self, snapshot: SnapshotId) -> Result<Option<Origin>, SourceError> {
        let wanted = || format!("the origin record of snapshot {snapshot}");
        in_time(limits::READ_WAIT, wanted, self.store.origin(snapshot)).await
    }

    /// The snapshots in the store that are deleted and can be brought back.
    pub(crate) async fn withdrawn(&self) -> Result<Vec<WithdrawnSnapshot>, SourceError> {
        let wanted = || "the list of deleted snapshots".to_owned();
        in_time(limits::STORE_LIST_WAIT, wanted, self.store.withdrawn()).await
    }

    /// All snapshots in the store.
    pub(crate) async fn snapshots(&self) -> Result<Vec<StoredSnapshot>, SourceError> {
        in_time(limits::STORE_LIST_WAIT, || "the list of snapshots".to_owned(), self.store.snapshots()).await
    }

    /// A snapshot's newest working set in the store, if there is one.
    pub(crate) async fn newest_working_set(
        &self,
        snapshot: SnapshotId,
    ) -> Result<Option<WorkingSetObject>, SourceError> {
        let wanted = || format!("the working set of snapshot {snapshot}");
        in_time(limits::WORKING_SET_STORE_WAIT, wanted, self.store.newest_working_set(snapshot)).await
    }

    /// Begins a read of a part of a working set.
    pub(crate) async fn working_set(
        &self,
        path: ObjectPath,
        range: Range<u64>,
        urgency: &Arc<Urgency>,
    ) -> Result<Reading, SourceError> {
        let held = (range.end - range.start).min(limits::EXTENT_HELD_BYTES);
        self.begin_range((path.clone(), Wanted::Named(path)), range, urgency, held).await
    }
}

async fn in_time<T>(
    limit: Duration,
    wanted: impl FnOnce() -> String,
    read: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, SourceError> {
    match tokio::time::timeout(limit, read).await {
        Ok(read) => Ok(read?),
        Err(_) => Err(SourceError::Silent { wanted: wanted(), waited: limit }),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::future::pending;

    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn a_read_without_an_answer_in_its_time_ends_and_is_told_as_silent() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let read = in_time(Duration::ZERO, || "an object".to_owned(), pending::<Result<(), StoreError>>());
        let ended = runtime.block_on(read);
        assert!(
            matches!(&ended, Err(SourceError::Silent { wanted, .. }) if wanted == "an object"),
            "{ended:?}"
        );
    }

    #[test]
    fn an_error_of_the_store_says_whether_it_is_away_refuses_or_lacks_the_object() {
        let path = object_store::path::Path::from("manifests/one");
        let of = |source| SourceError::from(StoreError::Other { path: path.clone(), source });
        let refused = object_store::Error::PermissionDenied { path: String::new(), source: "no".into() };
        assert!(matches!(of(refused), SourceError::Refused(_)));
        let failed = object_store::Error::Generic { store: "", source: "no way there".into() };
        assert!(matches!(of(failed), SourceError::Away(_)));
        let longer = StoreError::Length { path: path.clone(), expected: 1, found: 2 };
        assert!(matches!(SourceError::from(longer), SourceError::WrongBytes(_)));
        let sources = Sources::new(Store::new(Arc::new(InMemory::new())), KeyRing::of_name("default"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let absent = runtime.block_on(sources.manifest(SnapshotId::new(), Class::Fault));
        assert!(matches!(absent, Err(SourceError::Gone(_))), "{absent:?}");
    }
}
