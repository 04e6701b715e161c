//! The collector of a node: deletes from the store what nobody needs, in the order of [`Pass`], beside publishers, sandboxes
//! and other collectors.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::catalog::{Catalog, CatalogError};
use crate::collect_look::{ManifestsLook, look_at_manifests, look_at_objects, look_at_roots, read_manifests};
use crate::collect_records::Doomed;
use crate::collect_steps::{CollectStep, Coverage, Pass, Verdict};
use crate::collectable::Collectable;
use crate::geometry::u64_of;
use crate::limits;
use crate::manifest_memory::ManifestMemory;
use crate::store::{Store, StoreError};
use crate::store_usage::{ListedObjects, StoreUsage, StoredBytes};
use crate::sync::{Mutex, lock};

/// Deletes from the store what nobody needs.
#[derive(Debug)]
pub(crate) struct Collector {
    store: Store,
    /// The memory of passes that are not finished, if this node has a catalog.
    catalog: Option<Catalog>,
    /// The file of what manifests name; without one, a later process reads them again.
    memory_file: Option<PathBuf>,
    times: CollectTimes,
    /// Locked by the one pass that is done at a time.
    work: tokio::sync::Mutex<Collecting>,
    counts: Mutex<CollectCounts>,
}

#[derive(Debug, Default)]
struct Collecting {
    /// None before the first look.
    memory: Option<ManifestMemory>,
    /// Passes whose probation is not over.
    doomed: Vec<Doomed>,
    has_begun: bool,
    /// Snapshots got their tombstones, as their deletions could be undone no more.
    has_ended: bool,
}

/// Times that a collector lets go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CollectTimes {
    /// From a deletion to a second look.
    pub(crate) second_look_after: Duration,
    /// From the last sign of life of a node until its roots are given up.
    pub(crate) node_abandoned_after: Duration,
}

/// Counts of a collector since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectCounts {
    /// Passes that looked at the whole store.
    pub passes: u64,
    /// Objects that were deleted.
    pub deleted: u64,
    /// Manifests that were read.
    pub manifests_read: u64,
    /// The store's bytes at the last pass; none before the first.
    pub stored: StoredBytes,
}

/// Result of a pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Objects that were looked at.
    pub objects: u64,
    /// Objects that this pass condemned.
    pub condemned: u64,
    /// Bytes of these.
    pub condemned_bytes: u64,
    /// Objects that were deleted, condemned by this pass or by earlier ones.
    pub deleted: u64,
    /// Objects that wait for their probation to be over.
    pub waiting: u64,
}

/// An object of the store, and its fate if it was collected now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The object.
    pub object: Collectable,
    /// Its bytes.
    pub bytes: u64,
    /// Its fate.
    pub verdict: Verdict,
}

/// Reason that a pass did not end. What it condemned is kept or deleted by the next one.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The store failed, or has an object that cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The engine ends.
    #[error("the engine is ending")]
    Stopped,
    /// A record in the catalog cannot be read.
    #[error("{0}")]
    Record(String),
}

impl Collector {
    pub(crate) fn new(
        store: Store,
        catalog: Option<Catalog>,
        memory_file: Option<PathBuf>,
        times: CollectTimes,
    ) -> Self {
        let (work, counts) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { store, catalog, memory_file, times, work, counts }
    }

    /// Counts so far.
    pub(crate) fn counts(&self) -> CollectCounts {
        *lock(&self.counts)
    }

    /// The fate of each object, if a pass began now.
    pub(crate) async fn judge(&self) -> Result<Vec<Judged>, CollectError> {
        let mut work = self.work.lock().await;
        let now = self.store.time_now().await?;
        let roots = look_at_roots(&self.store, self.times.node_abandoned_after, now).await?.roots;
        let manifests = self.manifests(&mut work, now).await?;
        let mut objects = look_at_objects(&self.store).await?;
        objects.extend(manifests.objects);
        let coverage = Coverage::of(&roots, manifests.counted);
        let judged = |(object, bytes)| Judged { object, bytes, verdict: coverage.verdict(&object) };
        Ok(objects.into_iter().map(judged).collect())
    }

    /// All objects of the store by what they are for. A manifest that was read before is not read again.
    pub(crate) async fn usage(&self) -> Result<StoreUsage, StoreError> {
        let mut work = self.work.lock().await;
        let mut listed = ListedObjects::of(&self.store.list_everything().await?);
        let memory = self.memory(&mut work);
        let manifests = std::mem::take(&mut listed.manifests);
        let read = read_manifests(&self.store, memory, manifests, &listed.deleted).await?.read;
        self.note_read(memory, read);
        Ok(listed.usage(memory))
    }

    /// Condemns what nobody needs, and deletes it if there is no probation. Finishes what is due of earlier passes.
    pub(crate) async fn collect(&self, probation: Duration) -> Result<Collected, CollectError> {
        let probation = probation.min(limits::PROBATION_MAX);
        let mut work = self.work.lock().await;
        self.begin(&mut work).await?;
        let mut done = Collected { deleted: self.finish_due(&mut work).await?, ..Collected::default() };
        loop {
            let condemned = self.pass(&mut work, probation, &mut done).await?;
            let (deleted, ended) = (self.finish_due(&mut work).await?, std::mem::take(&mut work.has_ended));
            done.deleted += deleted;
            // What belongs to a snapshot that has just got its tombstone is not needed any more.
            if condemned < limits::CONDEMNED_OBJECTS_MAX && !ended {
                break;
            }
        }
        done.waiting = work.doomed.iter().map(|doomed| u64_of(doomed.objects.len())).sum();
        Ok(done)
    }

    /// Deletes what is due. The time until more is due, if anything waits.
    pub(crate) async fn go_on(&self) -> Result<Option<Duration>, CollectError> {
        let mut work = self.work.lock().await;
        self.begin(&mut work).await?;
        self.finish_due(&mut work).await?;
        Ok(work.doomed.iter().map(Doomed::wait).min())
    }

    /// Finds the passes that an earlier process of this node did not finish. Lists of which nothing was deleted go.
    async fn begin(&self, work: &mut Collecting) -> Result<(), CollectError> {
        if !work.has_begun {
            let remembered = self.catalog.as_ref().map(Doomed::remembered).transpose();
            work.doomed = remembered.map_err(CollectError::Record)?.unwrap_or_default();
            work.has_begun = true;
        }
        for list in self.store.own_lists().await? {
            if work.doomed.iter().all(|doomed| doomed.list != list) {
                self.store.delete(list).await?;
            }
        }
        Ok(())
    }

    /// One pass up to its second look. Returns the number of objects that it condemned.
    async fn pass(
        &self,
        work: &mut Collecting,
        probation: Duration,
        done: &mut Collected,
    ) -> Result<usize, CollectError> {
        let now = self.store.time_now().await?;
        let (begun, mut last_change) = (Instant::now(), i64::MIN);
        let (mut pass, list, mut listed) = (Pass::new(), self.store.new_list(), SystemTime::now());
        let (mut bytes, mut condemned) = (HashMap::new(), 0);
        let (mut abandoned, mut old_tombstones) = (Vec::new(), Vec::new());
        loop {
            pass = match pass.next() {
                CollectStep::ListRoots => {
                    let look = look_at_roots(&self.store, self.times.node_abandoned_after, now).await?;
                    abandoned = look.abandoned;
                    pass.roots(look.roots)
                }
                CollectStep::ListManifests => {
                    let look = self.manifests(work, now).await?;
                    old_tombstones = look.old_tombstones;
                    last_change = look.last_change_unix_ms;
                    bytes.extend(look.objects);
                    pass.manifests(look.counted)
                }
                CollectStep::ListObjects => {
                    bytes.extend(look_at_objects(&self.store).await?);
                    done.objects = u64_of(bytes.len());
                    lock(&self.counts).stored = StoredBytes::of(&bytes, self.memory(work));
                    let is_new = |object: &&Collectable| {
                        work.doomed.iter().all(|doomed| !doomed.objects.contains(object))
                    };
                    let objects: Vec<_> = bytes.keys().filter(is_new).copied().collect();
                    pass.objects(objects, limits::CONDEMNED_OBJECTS_MAX)
                }
                CollectStep::PutList(objects) => {
                    condemned = objects.0.len();
                    listed = SystemTime::now();
                    self.store.put_list(&list, &objects).await?;
                    self.wait_for_roots(last_change, now, begun).await;
                    pass.list_put()
                }
                CollectStep::Delete(_) | CollectStep::TakeListAway => {
                    let objects = pass.doomed().cloned().unwrap_or_default();
                    done.condemned += u64_of(objects.len());
                    done.condemned_bytes +=
                        objects.iter().filter_map(|object| bytes.get(object)).sum::<u64>();
                    self.doom(work, Doomed { list, objects, listed, due: SystemTime::now() + probation })?;
                    break;
                }
                CollectStep::Done => break,
            };
        }
        let silence = i64::try_from(self.times.node_abandoned_after.as_millis()).unwrap_or(i64::MAX);
        let since = now.saturating_sub(silence);
        let old_origins = self.store.old_origins(self.memory(work), since).await?;
        for path in abandoned.into_iter().chain(old_tombstones).chain(old_origins) {
            self.store.delete(path).await?;
        }
        lock(&self.counts).passes += 1;
        Ok(condemned)
    }

    /// Waits until sandboxes have their roots that began to run before the last deletion. The store's time was `now` when
    /// this pass had `begun`.
    async fn wait_for_roots(&self, last_change: i64, now: i64, begun: Instant) {
        let gone = Duration::from_millis(u64::try_from(now.saturating_sub(last_change)).unwrap_or_default());
        tokio::time::sleep(self.times.second_look_after.saturating_sub(gone.saturating_add(begun.elapsed())))
            .await;
    }

    async fn manifests(&self, work: &mut Collecting, now: i64) -> Result<ManifestsLook, StoreError> {
        let memory = self.memory(work);
        let look = look_at_manifests(&self.store, memory, now).await?;
        self.note_read(memory, look.read);
        Ok(look)
    }

    fn memory<'a>(&self, work: &'a mut Collecting) -> &'a mut ManifestMemory {
        let file = self.memory_file.as_deref();
        work.memory.get_or_insert_with(|| file.map(ManifestMemory::kept_in).unwrap_or_default())
    }

    /// Counts manifests that were read, and keeps what they name.
    fn note_read(&self, memory: &mut ManifestMemory, read: usize) {
        lock(&self.counts).manifests_read += u64_of(read);
        if let Some(file) = self.memory_file.as_deref()
            && let Err(error) = memory.keep_in(file)
        {
            tracing::warn!(path = %file.display(), %error, "after a restart manifests are read again");
        }
    }

    /// Notes that objects are to be deleted: from then on the list stays until that is done.
    fn doom(&self, work: &mut Collecting, doomed: Doomed) -> Result<(), CatalogError> {
        if let Some(catalog) = &self.catalog {
            doomed.remember(catalog)?;
        }
        work.doomed.push(doomed);
        Ok(())
    }

    /// Does the rest of all passes whose probation is over. Returns the number of objects that were deleted.
    async fn finish_due(&self, work: &mut Collecting) -> Result<u64, CollectError> {
        let mut deleted = 0;
        while let Some(at) = work.doomed.iter().position(|doomed| doomed.wait().is_zero()) {
            let doomed = work.doomed[at].clone();
            let (finished, has_ended) = self.finish(&doomed).await?;
            deleted += finished;
            work.has_ended |= has_ended;
            if let Some(catalog) = &self.catalog {
                doomed.forget(catalog)?;
            }
            work.doomed.remove(at);
        }
        Ok(deleted)
    }

    /// Returns the number of objects that were deleted, and whether snapshots got their tombstones.
    async fn finish(&self, doomed: &Doomed) -> Result<(u64, bool), CollectError> {
        let (mut pass, mut deleted, mut has_ended) = (Pass::of_doomed(doomed.objects.clone()), 0, false);
        loop {
            pass = match pass.next() {
                // The list may be gone, and what is on it may be relied on again.
                CollectStep::Delete(_) if doomed.is_stale() => {
                    tracing::warn!(list = %doomed.list, "a collection has waited for too long; it is begun anew");
                    self.store.delete(doomed.list.clone()).await?;
                    return Ok((deleted, has_ended));
                }
                CollectStep::Delete(_) => {
                    let objects = pass.doomed().into_iter().flatten().take(limits::DELETED_TOGETHER).copied();
                    let objects: Vec<_> = objects.collect();
                    for object in &objects {
                        if let Collectable::Withdrawal(snapshot, withdrawal) = object {
                            has_ended |= self.store.end_withdrawn(*snapshot, *withdrawal).await?;
                        }
                    }
                    self.store.delete_objects(&objects).await?;
                    deleted += u64_of(objects.len());
                    lock(&self.counts).deleted += u64_of(objects.len());
                    objects.iter().fold(pass, |pass, object| pass.deleted(object))
                }
                CollectStep::TakeListAway => {
                    self.store.delete(doomed.list.clone()).await?;
                    pass.list_taken_away()
                }
                CollectStep::ListRoots
                | CollectStep::ListManifests
                | CollectStep::ListObjects
                | CollectStep::PutList(_) => unreachable!("its second look is done"),
                CollectStep::Done => return Ok((deleted, has_ended)),
            };
        }
    }
}
