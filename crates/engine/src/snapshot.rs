//! One pause and its life: volumes that can be read from the first moment on, and names once they exist.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rekindle_kernel::PageKind;
use tokio::sync::Notify;

use crate::capture::Capture;
use crate::compare::PageClasses;
use crate::deadline::Deadline;
use crate::geometry::bytes_of_pages;
use crate::identity::{LayerId, SnapshotId, VolumeName};
use crate::layer::Layer;
use crate::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use crate::manifest::Manifest;
use crate::records::Records;
use crate::snapshot_record::SealFacts;
use crate::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::view::LiveView;
use crate::working_set::Known;

/// A snapshot.
#[derive(Debug)]
pub struct Snapshot {
    id: SnapshotId,
    parent_id: Option<SnapshotId>,
    generation: u64,
    created_unix_ms: u64,
    volumes: Vec<Volume>,
    blobs: BTreeMap<String, Bytes>,
    /// Its records, if this node has a catalog.
    records: Option<Records>,
    working_set: Known,
    progress: Mutex<Progress>,
    /// Wakes the threads that wait for a change of the progress.
    changed: Condvar,
    /// Wakes the tasks that do.
    news: Notify,
}

/// One address space of a snapshot.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name in the snapshot.
    pub name: VolumeName,
    /// The pages its guest maps it with.
    pub page_kind: PageKind,
    /// Its content.
    pub view: Arc<LiveView>,
}

/// Parts of a new snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotParts {
    pub(crate) id: SnapshotId,
    pub(crate) parent_id: Option<SnapshotId>,
    pub(crate) generation: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) blobs: BTreeMap<String, Bytes>,
    pub(crate) records: Option<Records>,
}

/// A layer of a snapshot, and how much of it is where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedLayer {
    /// Its name.
    pub id: LayerId,
    /// Bytes of its pages.
    pub bytes: u64,
    /// Of those, bytes that this node's disk may hold.
    pub local_bytes: u64,
    /// Bytes of its object, once it is stored.
    pub stored_bytes: Option<u64>,
}

/// State of a snapshot at one moment.
#[derive(Debug, Clone)]
pub struct SnapshotStatus {
    /// Its state.
    pub state: SnapshotState,
    /// Counts of its captured pages, once they were compared.
    pub classes: Option<PageClasses>,
    /// Time its seal took from the proof that its memory is frozen, once it succeeded.
    pub seal_time: Option<Duration>,
    /// Parts of that time, if it was sealed since this engine started.
    pub seal_parts: Option<SealParts>,
    /// Error of the last failed try to seal or publish; none after a success. Of a lost one, why it is lost.
    pub failure: Option<String>,
    /// True if it is called lost only until its record can be read again.
    pub is_undecided: bool,
}

/// Parts of the time of a seal. Of a seal that was tried again, what the last try of each part took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealParts {
    /// Waiting for the proof that the captured memory cannot be written any more; the seal's own time begins after it.
    pub proof: Duration,
    /// Waiting for other seals that compare.
    pub turn: Duration,
    /// Comparing with the parent.
    pub compare: Duration,
    /// Writing the layer.
    pub pack: Duration,
    /// Waiting for the parent's manifest, merging layers where they are many, and making the manifest.
    pub name: Duration,
}

#[derive(Debug)]
struct Progress {
    status: SnapshotStatus,
    /// Until the snapshot is sealed.
    parent: Option<Arc<Snapshot>>,
    manifest: Option<Arc<Manifest>>,
    /// The captures that the keeper has: their bytes count until it forgets them.
    kept: Vec<Arc<Capture>>,
    /// Lives that have begun and not come to their end: none of them may find its record gone.
    lives: usize,
}

/// The snapshot has no manifest yet, after as long a wait as the caller wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot was not sealed in time")]
pub struct NoManifestYet;

impl Snapshot {
    /// A snapshot whose pages are frozen in RAM. If it is recorded, they are held as long as the keeper has them.
    pub(crate) fn captured(
        parts: SnapshotParts,
        parent: Option<Arc<Self>>,
        captures: &[Arc<Capture>],
    ) -> Self {
        let kept = if parts.records.is_some() { captures.to_vec() } else { Vec::new() };
        let progress = Progress::new(SnapshotState::Captured);
        Self::with_progress(parts, Progress { parent, kept, ..progress })
    }

    /// A snapshot that has a manifest; `state` is one of those that do, or `Discarded`.
    pub(crate) fn named(
        parts: SnapshotParts,
        state: SnapshotState,
        manifest: Arc<Manifest>,
        facts: SealFacts,
    ) -> Self {
        let mut progress = Progress::new(state);
        progress.manifest = Some(manifest);
        (progress.status.classes, progress.status.seal_time) = (facts.classes, facts.seal_time);
        Self::with_progress(parts, progress)
    }

    /// A snapshot whose pages are nowhere, with the reason; its views fail whenever they are read.
    pub(crate) fn lost(parts: SnapshotParts, reason: String) -> Self {
        let mut progress = Progress::new(SnapshotState::Lost);
        progress.status.failure = Some(reason);
        Self::with_progress(parts, progress)
    }

    /// A snapshot of which it cannot be said now how it is, with the reason; it is taken for lost until it can.
    pub(crate) fn undecided(parts: SnapshotParts, reason: String) -> Self {
        let mut progress = Progress::new(SnapshotState::Lost);
        progress.status.failure = Some(reason);
        progress.status.is_undecided = true;
        Self::with_progress(parts, progress)
    }

    /// Makes this undecided snapshot what `made` is, for all who hold it; one that was deleted meanwhile is then a deleted
    /// one. The answer is the work to do: `work`, or what its deletion asks for; none if it was not undecided any more.
    pub(crate) fn decide(&self, made: &Self, work: SnapshotWork) -> Option<SnapshotWork> {
        if !self.status().is_undecided {
            return None;
        }
        // Before the state: readers that see the new state use these.
        for (volume, made) in self.volumes.iter().zip(&made.volumes) {
            volume.view.replace_unread(&made.view.load());
        }
        let mut next = std::mem::replace(&mut *lock(&made.progress), Progress::new(SnapshotState::Lost));
        let mut progress = lock(&self.progress);
        if !progress.status.is_undecided {
            return None;
        }
        if next.status.is_undecided {
            progress.status.failure = next.status.failure;
            return Some(SnapshotWork::None);
        }
        let mut work = work;
        if progress.status.state == SnapshotState::Discarded {
            let deleted = next.status.state.after(SnapshotEvent::Deleted);
            (next.status.state, work) = deleted.expect("whatever was made again can be deleted");
        }
        next.lives = progress.lives;
        *progress = next;
        drop(progress);
        self.tell();
        Some(work)
    }

    /// True if its pages are nowhere, or cannot be had now; it may have been deleted since.
    pub(crate) fn is_without_bytes(&self) -> bool {
        let progress = lock(&self.progress);
        match progress.status.state {
            SnapshotState::Lost => true,
            SnapshotState::Discarded => progress.manifest.is_none(),
            SnapshotState::Captured
            | SnapshotState::CapturedForChildren
            | SnapshotState::Sealed
            | SnapshotState::Published => false,
        }
    }

    fn with_progress(parts: SnapshotParts, progress: Progress) -> Self {
        let SnapshotParts { id, parent_id, generation, created_unix_ms, volumes, blobs, records } = parts;
        Self {
            id,
            parent_id,
            generation,
            created_unix_ms,
            volumes,
            blobs,
            records,
            working_set: Known::new(),
            progress: Mutex::new(progress),
            changed: Condvar::new(),
            news: Notify::new(),
        }
    }

    /// Its name.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The snapshot it was a change of.
    pub fn parent_id(&self) -> Option<SnapshotId> {
        self.parent_id
    }

    /// Number of pauses before it in its line.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When it was made, in milliseconds since 1970.
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

    /// Its records, if this node has a catalog.
    pub(crate) fn records(&self) -> Option<&Records> {
        self.records.as_ref()
    }

    /// Its present state.
    pub fn status(&self) -> SnapshotStatus {
        lock(&self.progress).status.clone()
    }

    /// Its state now.
    pub fn state(&self) -> SnapshotState {
        lock(&self.progress).status.state
    }

    /// True if its owner deleted it.
    pub(crate) fn is_deleted(&self) -> bool {
        matches!(self.state(), SnapshotState::CapturedForChildren | SnapshotState::Discarded)
    }

    /// True if its manifest is in the store.
    pub(crate) fn is_published(&self) -> bool {
        self.state() == SnapshotState::Published
    }

    /// The manifest if it exists by now; for callers that must not wait.
    pub fn manifest_now(&self) -> Option<Arc<Manifest>> {
        lock(&self.progress).manifest.clone()
    }

    /// Its layers and how much of each is where; empty until it has a manifest. Waits for nothing.
    pub fn layers_now(&self) -> Vec<PlacedLayer> {
        if self.manifest_now().is_none() {
            return Vec::new();
        }
        let placed = |layer: &Arc<Layer>| PlacedLayer {
            id: layer.id(),
            bytes: bytes_of_pages(layer.pages()),
            local_bytes: layer.local_bytes(),
            stored_bytes: layer.stored_at().map(|stored| stored.object_bytes),
        };
        self.memory().load().layers().iter().map(placed).collect()
    }

    /// Hands what is only in memory to the keeper, which is not the one that had it.
    pub(crate) fn keep_again(&self) -> io::Result<()> {
        let kept = lock(&self.progress).kept.clone();
        let Some(records) = self.records.as_ref().filter(|_| !kept.is_empty()) else { return Ok(()) };
        records.keep(self.id, self.volumes.iter().map(|volume| &volume.name), &kept)?;
        // It may have been forgotten meanwhile, before it was kept again.
        if lock(&self.progress).kept.is_empty() {
            records.forget(self.id);
        }
        Ok(())
    }

    /// Its layers are recorded: the keeper need not hold its captures any more.
    pub(crate) fn forget_kept(&self) {
        let kept = std::mem::take(&mut lock(&self.progress).kept);
        if let Some(records) = &self.records {
            records.forget(self.id);
        }
        drop(kept);
    }

    /// Recorded facts of its seal.
    pub(crate) fn seal_facts(&self) -> SealFacts {
        let SnapshotStatus { classes, seal_time, .. } = self.status();
        SealFacts { classes, seal_time }
    }

    /// Waits up to `limit` for the manifest.
    pub fn wait_manifest(&self, limit: Duration) -> Result<Arc<Manifest>, NoManifestYet> {
        self.wait(limit, |progress| progress.manifest.clone()).ok_or(NoManifestYet)
    }

    /// Waits up to `limit` for the state to be `state`; false if it was not.
    pub fn wait_state(&self, state: SnapshotState, limit: Duration) -> bool {
        self.wait(limit, |progress| (progress.status.state == state).then_some(())).is_some()
    }

    /// Waits for the manifest as long as it takes.
    pub(crate) async fn manifest(&self) -> Arc<Manifest> {
        loop {
            // Made before the look: a change after it is not missed.
            let news = self.news.notified();
            if let Some(manifest) = self.manifest_now() {
                return manifest;
            }
            news.await;
        }
    }

    /// The snapshot it was a change of, while this one is unsealed.
    pub(crate) fn parent(&self) -> Option<Arc<Self>> {
        lock(&self.progress).parent.clone()
    }

    /// The unsealed snapshots under this one and itself, if it is unsealed; the oldest last.
    pub(crate) fn unsealed_line(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let mut line = Vec::new();
        let mut next = Some(Arc::clone(self));
        while let Some(snapshot) = next.filter(|snapshot| snapshot.manifest_now().is_none()) {
            next = snapshot.parent();
            line.push(snapshot);
        }
        line
    }

    /// A life begins, which writes its record and works by it.
    pub(crate) fn life_begins(&self) {
        lock(&self.progress).lives += 1;
    }

    /// A life has come to its end; one that the engine's end cut short has not.
    pub(crate) fn life_ends(&self) {
        lock(&self.progress).lives -= 1;
    }

    /// Records an event and returns the work it asks for.
    pub(crate) fn record(&self, event: SnapshotEvent) -> SnapshotWork {
        self.record_with(event, |_| {})
    }

    /// Records that a try failed, and why.
    pub(crate) fn record_failure(&self, event: SnapshotEvent, reason: String) -> SnapshotWork {
        self.record_with(event, |progress| progress.status.failure = Some(reason))
    }

    /// Records the manifest and lets go of the parent.
    pub(crate) fn record_sealed(
        &self,
        manifest: Arc<Manifest>,
        seal_time: Duration,
        parts: SealParts,
    ) -> SnapshotWork {
        let mut parent = None;
        let work = self.record_with(SnapshotEvent::SealSucceeded, |progress| {
            progress.manifest = Some(manifest);
            progress.status.seal_time = Some(seal_time);
            progress.status.seal_parts = Some(parts);
            parent = progress.parent.take();
        });
        // Dropped without the lock: a deleted parent's layers may go with it.
        drop(parent);
        work
    }

    pub(crate) fn record_classes(&self, classes: PageClasses) {
        lock(&self.progress).status.classes = Some(classes);
    }

    fn record_with(&self, event: SnapshotEvent, change: impl FnOnce(&mut Progress)) -> SnapshotWork {
        let mut progress = lock(&self.progress);
        let (state, work) =
            progress.status.state.after(event).expect("an event is recorded only where the table has it");
        progress.status.state = state;
        if matches!(event, SnapshotEvent::SealSucceeded | SnapshotEvent::PublishSucceeded) {
            progress.status.failure = None;
        }
        change(&mut progress);
        drop(progress);
        self.tell();
        work
    }

    /// Wakes all who wait for a change.
    fn tell(&self) {
        self.changed.notify_all();
        self.news.notify_waiters();
    }

    fn wait<T>(&self, limit: Duration, found: impl Fn(&Progress) -> Option<T>) -> Option<T> {
        let deadline = Deadline::after(limit);
        let mut progress: MutexGuard<'_, Progress> = lock(&self.progress);
        loop {
            if let Some(value) = found(&progress) {
                return Some(value);
            }
            let left = deadline.left();
            if left.is_zero() {
                return None;
            }
            progress =
                self.changed.wait_timeout(progress, left).expect("no thread panics while it holds a lock").0;
        }
    }
}

impl Progress {
    fn new(state: SnapshotState) -> Self {
        let status = SnapshotStatus {
            state,
            classes: None,
            seal_time: None,
            seal_parts: None,
            failure: None,
            is_undecided: false,
        };
        Self { status, parent: None, manifest: None, kept: Vec::new(), lives: 0 }
    }
}

impl Drop for Snapshot {
    /// The last user is gone: of a snapshot that was deleted, and is out of the store, nothing needs to stay.
    fn drop(&mut self) {
        let progress = lock(&self.progress);
        let is_over = progress.status.state == SnapshotState::Discarded && progress.lives == 0;
        drop(progress);
        if let Some(records) = self.records.as_ref().filter(|_| is_over) {
            records.gone(self.id);
        }
    }
}
