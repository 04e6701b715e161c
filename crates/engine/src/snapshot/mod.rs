//! A snapshot: volumes that can be read from the start, and a manifest once it is sealed.

mod followed;
mod here;
mod keeping;
mod progress;
mod remote;
mod status;
mod waits;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use rekindle_kernel::PageKind;
use tokio::sync::Notify;

use crate::capture::Capture;
use crate::compare::PageClasses;
use crate::editions::Editions;
use crate::identity::{DomainName, SnapshotId, VolumeName};
use crate::layer::NeededHere;
use crate::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use crate::manifest::Manifest;
use crate::named::{Named, PlacedLayer};
use crate::records::Records;
use crate::snapshot_record::SealFacts;
use crate::sync::{Condvar, Mutex, lock};
use crate::view::LiveView;
use crate::withdrawal::Withdrawal;
use crate::working_set::Known;

pub use here::BytesHere;
pub(crate) use progress::Lost;
pub use status::{NoManifestYet, RemoteStatus, SealParts, SnapshotStatus};

use progress::{Captured, Progress, Published, Standing};

/// A snapshot.
#[derive(Debug)]
pub struct Snapshot {
    id: SnapshotId,
    parent_id: Option<SnapshotId>,
    domain: DomainName,
    generation: u64,
    created_unix_ms: u64,
    volumes: Vec<Volume>,
    blobs: BTreeMap<String, Bytes>,
    /// Its records, if this node has a catalog.
    records: Option<Records>,
    /// Its parent, if this node has paused it since it was started and has not forgotten the parent.
    parent: Weak<Self>,
    working_set: Known,
    editions: Editions,
    /// Its deletion, if that can be undone; set before it is recorded.
    pub(crate) withdrawal: OnceLock<Withdrawal>,
    progress: Mutex<Progress>,
    /// Wakes the threads that wait for a change of the progress.
    changed: Condvar,
    /// Wakes the tasks that wait for one.
    news: Notify,
}

/// One address space of a snapshot.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name in the snapshot.
    pub name: VolumeName,
    /// The kind of pages that its guest maps it with.
    pub page_kind: PageKind,
    /// Its content.
    pub view: Arc<LiveView>,
}

/// Parts of a new snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotParts {
    pub(crate) id: SnapshotId,
    pub(crate) parent_id: Option<SnapshotId>,
    pub(crate) domain: DomainName,
    pub(crate) generation: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) blobs: BTreeMap<String, Bytes>,
    pub(crate) records: Option<Records>,
}

impl Snapshot {
    /// A snapshot whose pages are frozen in RAM. If it is recorded, it holds them as long as the keeper has them.
    pub(crate) fn captured(
        parts: SnapshotParts,
        parent: Option<Arc<Self>>,
        captures: &[Arc<Capture>],
    ) -> Self {
        let kept = if parts.records.is_some() { captures.to_vec() } else { Vec::new() };
        let weak = parent.as_ref().map(Arc::downgrade).unwrap_or_default();
        let standing = Standing::Captured(Captured { parent, kept });
        let mut captured = Self::new(parts, standing, SealFacts::default());
        captured.parent = weak;
        captured
    }

    /// A snapshot that is sealed, and published if `is_published`.
    pub(crate) fn named(parts: SnapshotParts, named: Named, is_published: bool, facts: SealFacts) -> Self {
        let published = is_published.then(|| Published::of(&named));
        // Its record may name layers without a place that others have told of since.
        let needed_here = match is_published {
            true => Vec::new(),
            false => named.layers().iter().map(|layer| layer.need_here()).collect(),
        };
        Self::new(parts, Standing::Named { named, published, needed_here }, facts)
    }

    /// A snapshot without its pages; its views have lost pages.
    pub(crate) fn lost(parts: SnapshotParts, lost: Lost) -> Self {
        Self::new(parts, Standing::Lost(lost), SealFacts::default())
    }

    fn new(parts: SnapshotParts, standing: Standing, seal_facts: SealFacts) -> Self {
        let SnapshotParts { id, parent_id, domain, generation, created_unix_ms, volumes, blobs, records } =
            parts;
        let progress = Progress { standing, is_deleted: false, seal_facts, seal_parts: None, failure: None };
        Self {
            id,
            parent_id,
            domain,
            generation,
            created_unix_ms,
            volumes,
            blobs,
            records,
            parent: Weak::new(),
            working_set: Known::new(),
            editions: Editions::new(),
            withdrawal: OnceLock::new(),
            progress: Mutex::new(progress),
            changed: Condvar::new(),
            news: Notify::new(),
        }
    }

    /// Gives this undecided snapshot the state of `made`, for all of its holders; if it was deleted meanwhile it stays
    /// so. False if `made` is undecided too, or this one no longer is.
    pub(crate) fn decide(&self, made: &Self) -> bool {
        if !self.is_undecided() {
            return false;
        }
        // Before the state, as readers that see the new state use the views.
        for (volume, made) in self.volumes.iter().zip(&made.volumes) {
            volume.view.improve(&volume.view.load(), made.view.load());
        }
        self.editions.replace_by(&made.editions);
        let (is_decided, seal_facts) = (!made.is_undecided(), made.seal_facts());
        let nothing = Standing::Lost(Lost::default());
        let mut standing = std::mem::replace(&mut lock(&made.progress).standing, nothing);
        let mut progress = lock(&self.progress);
        std::mem::swap(&mut progress.standing, &mut standing);
        progress.seal_facts = seal_facts;
        drop(progress);
        drop(standing);
        self.tell();
        is_decided
    }

    /// True if it counts as lost only until that is decided.
    pub(crate) fn is_undecided(&self) -> bool {
        lock(&self.progress).is_undecided()
    }

    /// True if its pages are lost, or unavailable now; it may have been deleted since.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(lock(&self.progress).standing, Standing::Lost(_))
    }

    /// Its name.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Its parent.
    pub fn parent_id(&self) -> Option<SnapshotId> {
        self.parent_id
    }

    /// The domain that it belongs to.
    pub fn domain(&self) -> &DomainName {
        &self.domain
    }

    /// Number of pauses before it in its line.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Time of the pause, in milliseconds since 1970.
    pub fn created_unix_ms(&self) -> u64 {
        self.created_unix_ms
    }

    /// Its volumes, memory first.
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<LiveView> {
        &self.volumes[0].view
    }

    /// Device state and metadata by name.
    pub fn blobs(&self) -> &BTreeMap<String, Bytes> {
        &self.blobs
    }

    /// The known working set of its guests.
    pub(crate) fn working_set(&self) -> &Known {
        &self.working_set
    }

    /// The last known edition of its manifest.
    pub(crate) fn editions(&self) -> &Editions {
        &self.editions
    }

    /// Its records, if this node has a catalog.
    pub(crate) fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    /// Its present status.
    pub fn status(&self) -> SnapshotStatus {
        let progress = lock(&self.progress);
        let failure = match &progress.standing {
            Standing::Lost(lost) => Some(lost.reason.clone()),
            Standing::Captured(_) | Standing::Named { .. } | Standing::Remote(_) => progress.failure.clone(),
        };
        let remote = self.remote_status(&progress.standing);
        SnapshotStatus {
            state: progress.state(),
            classes: progress.seal_facts.classes,
            seal_time: progress.seal_facts.seal_time,
            seal_parts: progress.seal_parts,
            failure,
            is_undecided: progress.is_undecided(),
            remote,
        }
    }

    /// Its state now.
    pub fn state(&self) -> SnapshotState {
        lock(&self.progress).state()
    }

    /// True if its owner deleted it.
    pub(crate) fn is_deleted(&self) -> bool {
        lock(&self.progress).is_deleted
    }

    /// True if its manifest is in the store.
    pub(crate) fn is_published(&self) -> bool {
        self.state() == SnapshotState::Published
    }

    /// Its manifest with the layers, if it is sealed by now; never waits.
    pub fn named_now(&self) -> Option<Named> {
        lock(&self.progress).named().cloned()
    }

    /// The manifest, if it exists by now.
    pub fn manifest_now(&self) -> Option<Arc<Manifest>> {
        Some(Arc::clone(self.named_now()?.manifest()))
    }

    /// Its layers, with the bytes of each at each place; empty until it has a manifest. Never waits.
    pub fn layers_now(&self) -> Vec<PlacedLayer> {
        self.named_now().map(|named| named.placed()).unwrap_or_default()
    }

    /// Its captured parts while it is unsealed.
    fn captured_now(&self) -> Option<Captured> {
        match &lock(&self.progress).standing {
            Standing::Captured(captured) => Some(captured.clone()),
            Standing::Named { .. } | Standing::Remote(_) | Standing::Lost(_) => None,
        }
    }

    /// Recorded facts of its seal.
    pub(crate) fn seal_facts(&self) -> SealFacts {
        lock(&self.progress).seal_facts
    }

    /// Its parent, while this one is unsealed.
    pub(crate) fn parent(&self) -> Option<Arc<Self>> {
        self.captured_now()?.parent
    }

    /// Its parent, if it was paused since this node was started, and the parent is still known.
    pub(crate) fn parent_now(&self) -> Option<Arc<Self>> {
        self.parent.upgrade()
    }

    /// The unsealed snapshots of its line, itself included; the oldest last.
    pub(crate) fn unsealed_line(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let mut line = Vec::new();
        let mut next = Some(Arc::clone(self));
        while let Some((snapshot, captured)) =
            next.and_then(|next| Some((Arc::clone(&next), next.captured_now()?)))
        {
            next = captured.parent;
            line.push(snapshot);
        }
        line
    }

    /// Records an event and returns the work it asks for.
    pub(crate) fn record(&self, event: SnapshotEvent) -> SnapshotWork {
        // Made without the lock, as each layer has one.
        let published = self.named_now().map(|named| Published::of(&named));
        self.record_with(event, |progress| match event {
            SnapshotEvent::Deleted => progress.set_deleted(),
            SnapshotEvent::PublishSucceeded => progress.set_published(published),
            SnapshotEvent::ManifestMissing => progress.set_published(None),
            SnapshotEvent::SealSucceeded
            | SnapshotEvent::SealFailed
            | SnapshotEvent::PublishFailed
            | SnapshotEvent::NamesCame
            | SnapshotEvent::RemoteFailed
            | SnapshotEvent::RemoteWrong => {}
        })
    }

    /// Records that a try failed, with the reason.
    pub(crate) fn record_failure(&self, event: SnapshotEvent, reason: String) -> SnapshotWork {
        self.record_with(event, |progress| progress.failure = Some(reason))
    }

    /// Records the manifest and releases the parent. Returns the captures that the keeper should now forget.
    pub(crate) fn record_sealed(
        &self,
        (named, needed_here): (Named, Vec<Arc<NeededHere>>),
        seal_time: Duration,
        parts: SealParts,
    ) -> (SnapshotWork, Vec<Arc<Capture>>) {
        let mut standing = Standing::Named { named, published: None, needed_here };
        let work = self.record_with(SnapshotEvent::SealSucceeded, |progress| {
            std::mem::swap(&mut progress.standing, &mut standing);
            progress.seal_facts.seal_time = Some(seal_time);
            progress.seal_parts = Some(parts);
            progress.failure = None;
        });
        // The parent is dropped without the lock: its layers may go with it if it was deleted.
        match standing {
            Standing::Captured(Captured { kept, .. }) => (work, kept),
            Standing::Named { .. } | Standing::Remote(_) | Standing::Lost(_) => (work, Vec::new()),
        }
    }

    pub(crate) fn record_classes(&self, classes: PageClasses) {
        lock(&self.progress).seal_facts.classes = Some(classes);
    }

    fn record_with(&self, event: SnapshotEvent, change: impl FnOnce(&mut Progress)) -> SnapshotWork {
        let mut progress = lock(&self.progress);
        let (state, work) =
            progress.state().after(event).expect("an event is recorded only where the table has it");
        change(&mut progress);
        assert_eq!(progress.state(), state, "{event:?} is recorded as the table has it");
        drop(progress);
        self.tell();
        work
    }

    /// Wakes all waiters for a change.
    fn tell(&self) {
        self.changed.notify_all();
        self.news.notify_waiters();
    }
}

impl Drop for Snapshot {
    /// Removes the records of a snapshot that was deleted, and is out of the store, once its last user is gone.
    fn drop(&mut self) {
        let is_over = self.state() == SnapshotState::Discarded;
        if let Some(records) = self.records.as_ref().filter(|_| is_over) {
            records.gone(self.id);
        }
    }
}
