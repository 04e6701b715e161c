//! The background life of one snapshot: a task that seals it, publishes it and, if it was deleted on the way, takes it
//! out of the store again. It ends when nothing is left to do, or when the engine ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Instrument;

use crate::capture::Capture;
use crate::layer::Layer;
use crate::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use crate::limits;
use crate::manifest::{LocalManifest, Manifest};
use crate::pool::PoolHandle;
use crate::publish::{PublishError, Publisher};
use crate::records::Records;
use crate::seal::{NamedParent, Packed, SealError, Sealed, Sealer, is_frozen};
use crate::snapshot::{SealParts, Snapshot};
use crate::stop::{Stop, Stopped};
use crate::store::{Store, StoreError};
use crate::store_gate::NewSign;
use crate::upload_budget::UploadLease;
use crate::watch::Watcher;
use crate::working_sets;

/// The parts of an engine that background work uses.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) sealer: Sealer,
    /// Compares, packs and merges: each piece of work may take seconds.
    pub(crate) sealing: PoolHandle,
    pub(crate) publisher: Publisher,
    /// Records of snapshots, if this node has a catalog.
    pub(crate) records: Option<Records>,
    pub(crate) watcher: Arc<dyn Watcher>,
}

impl Background {
    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.publisher.store
    }

    /// The word that ends the work.
    pub(crate) fn stop(&self) -> &Stop {
        &self.publisher.stop
    }
}

/// The first work of a life.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// Captured memory.
    Seal(Vec<Arc<Capture>>),
    /// Work that is left of an earlier life, or asked for by the owner.
    Work(SnapshotWork),
}

/// One snapshot's way from its capture on. Clones are of the same one.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) background: Arc<Background>,
}

impl Life {
    /// Does all the work that is left. An engine that ends cuts it short: a snapshot that is sealed or published by then
    /// stays so.
    pub(crate) async fn live(self, beginning: Beginning) {
        let (stop, id) = (self.background.stop(), self.snapshot.id());
        let span = tracing::info_span!("save", snapshot = %id);
        let done = async {
            let work = match beginning {
                Beginning::Seal(captures) => stop.unless_said(self.seal(captures)).await?,
                Beginning::Work(work) => work,
            };
            self.carry_on(work).await
        };
        let is_over = done.instrument(span).await.is_ok();
        // Where the last share of a deleted snapshot goes, its files do.
        let saving = self.background.publisher.pool.clone();
        let end = move || {
            if is_over {
                self.snapshot.life_ends();
            }
            drop(self);
        };
        saving.run(id, end).await;
    }

    /// Does `work` and what follows from it.
    pub(crate) async fn carry_on(&self, mut work: SnapshotWork) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        loop {
            match work {
                SnapshotWork::None | SnapshotWork::FreeLayers => return Ok(()),
                SnapshotWork::Publish => {}
                SnapshotWork::PublishAgain | SnapshotWork::SealAgain => self.wait(&mut pause).await?,
                SnapshotWork::RemoveFromStore => return self.remove_from_store().await,
            }
            let (manifest, layers) = self.names();
            let room = self.background.publisher.room(&manifest, &layers).await?;
            // Deleted before this try began: the deleter takes it out of the store, where it must not come back.
            if self.snapshot.state() == SnapshotState::Discarded {
                return Ok(());
            }
            work = self.publish(&manifest, &layers, room).await?;
        }
    }

    /// Captured memory becomes a layer, then the layer gets a name; each step is tried until it succeeds.
    pub(crate) async fn seal(&self, captures: Vec<Arc<Capture>>) -> SnapshotWork {
        let span = tracing::info_span!("seal", snapshot = %self.snapshot.id());
        self.sealed_and_recorded(captures).instrument(span).await
    }

    async fn sealed_and_recorded(&self, captures: Vec<Arc<Capture>>) -> SnapshotWork {
        let (hooks, id) = (self.background.sealer.hooks(), self.snapshot.id());
        let captures: Arc<[Arc<Capture>]> = captures.into();
        let packed = Arc::new(self.until_done(|| self.pack(&captures)).await);
        // The layer is on the disk and in the view: from here on only readers hold the capture, and the keeper.
        drop(captures);
        let sealed = Arc::new(self.until_done(|| self.name(&packed)).await);
        if self.background.records.is_some() {
            self.until_done(|| self.write(&sealed)).await;
        }
        let work = self.save(move |life| sealed.record(&life.snapshot)).await;
        self.changed();
        if self.background.records.is_some() {
            hooks.before_forget(id).await;
            self.save(|life| life.snapshot.forget_kept()).await;
        }
        work
    }

    async fn until_done<T, F>(&self, mut attempt: impl FnMut() -> F) -> T
    where
        F: Future<Output = Result<T, SealError>>,
    {
        let mut pause = limits::WORK_RETRY_FIRST;
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(error) => {
                    tracing::warn!(snapshot = %self.snapshot.id(), %error, "sealing failed, it will be tried again");
                    self.snapshot.record_failure(SnapshotEvent::SealFailed, error.to_string());
                    self.changed();
                    tokio::time::sleep(longer(&mut pause)).await;
                }
            }
        }
    }

    async fn pack(&self, captures: &Arc<[Arc<Capture>]>) -> Result<Packed, SealError> {
        let id = self.snapshot.id();
        let mut parts = SealParts::default();
        let begun = Instant::now();
        self.until_frozen(captures).await?;
        parts.proof = begun.elapsed();
        let frozen_at = Instant::now();
        self.background.sealer.hooks().before_compare(id).await;
        let (captures, asked) = (Arc::clone(captures), Instant::now());
        self.work(move |life| {
            parts.turn = asked.elapsed();
            life.background.sealer.pack(&life.snapshot, &captures, frozen_at, parts)
        })
        .await
    }

    /// The proof is asked for until it comes: the VMM was told to end, and takes its time.
    async fn until_frozen(&self, captures: &[Arc<Capture>]) -> Result<(), SealError> {
        let (begun, mut pause) = (Instant::now(), limits::FROZEN_ASK_FIRST);
        for capture in captures {
            let ask = || {
                let capture = Arc::clone(capture);
                self.save(move |life| is_frozen(&capture, life.keeper(), begun.elapsed()))
            };
            while !ask().await? {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(limits::FROZEN_ASK_LAST);
            }
        }
        Ok(())
    }

    /// The process that holds captured memory for this one.
    fn keeper(&self) -> Option<u32> {
        self.background.records.as_ref().and_then(|records| records.keeper().process())
    }

    /// The wait for the parent holds no thread, and the pages that are merged are here before a thread is taken.
    async fn name(&self, packed: &Arc<Packed>) -> Result<Sealed, SealError> {
        let (begun, id) = (Instant::now(), self.snapshot.id());
        self.background.sealer.hooks().before_manifest(id).await;
        let parent = match self.snapshot.parent() {
            Some(parent) => Some(self.named_parent(parent).await?),
            None => None,
        };
        let takes_long = parent.as_ref().is_some_and(NamedParent::is_merged);
        let packed = Arc::clone(packed);
        let name =
            move |life: &Self| life.background.sealer.name(&life.snapshot, &packed, parent.as_ref(), begun);
        if takes_long { self.work(name).await } else { self.save(name).await }
    }

    async fn named_parent(&self, parent: Arc<Snapshot>) -> Result<NamedParent, SealError> {
        let names = parent.manifest().await;
        let (of, its) = (Arc::clone(&parent), Arc::clone(&names));
        let merges = self.save(move |life| life.background.sealer.plan_merges(&of, &its)).await;
        self.background.sealer.bring(parent, names, merges).await
    }

    async fn write(&self, sealed: &Arc<Sealed>) -> Result<(), SealError> {
        self.background.sealer.hooks().before_record(self.snapshot.id()).await;
        let sealed = Arc::clone(sealed);
        self.save(move |life| match &life.background.records {
            Some(records) => sealed.write(&life.snapshot, records),
            None => Ok(()),
        })
        .await
    }

    /// Does a piece of work that may take seconds.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let life = self.clone();
        self.background.sealing.run(self.snapshot.id(), move || work(&life)).await
    }

    /// Does a short piece of work that may wait for the disk or for the keeper.
    async fn save<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let life = self.clone();
        self.background.publisher.pool.run(self.snapshot.id(), move || work(&life)).await
    }

    async fn publish(
        &self,
        manifest: &Manifest,
        layers: &[Arc<Layer>],
        room: UploadLease,
    ) -> Result<SnapshotWork, Stopped> {
        let id = self.snapshot.id();
        let span = tracing::info_span!("publish", snapshot = %id);
        let work = match self.publish_and_record(manifest, layers, room).instrument(span).await {
            Ok(()) => self.snapshot.record(SnapshotEvent::PublishSucceeded),
            Err(PublishError::Stopped(stopped)) => return Err(stopped),
            Err(error) => {
                tracing::warn!(snapshot = %id, %error, "publishing failed, it will be tried again");
                self.snapshot.record_failure(SnapshotEvent::PublishFailed, error.to_string())
            }
        };
        self.changed();
        if self.snapshot.is_published() {
            // A working set that was recorded before anything was in the store is no part of the snapshot: if it cannot
            // be put there now, a later resume tries again.
            let put = working_sets::publish(&self.snapshot, self.background.store());
            self.background.stop().unless_said(put).await?;
            self.background.stop().unless_said(self.background.store().delete_old_signs()).await?;
        }
        Ok(work)
    }

    async fn publish_and_record(
        &self,
        manifest: &Manifest,
        layers: &[Arc<Layer>],
        room: UploadLease,
    ) -> Result<(), PublishError> {
        let (id, records) = (self.snapshot.id(), self.background.records.clone());
        let uploaded = move |publication: &_| match records {
            Some(records) => records.uploaded(id, &LocalManifest::from(publication)),
            None => Ok(()),
        };
        self.background.publisher.publish(manifest, layers, room, uploaded).await?;
        self.background.stop().unless_said(self.record_published()).await?
    }

    /// The store has the sign before the catalog calls the snapshot published, and remembers the sign.
    async fn record_published(&self) -> Result<(), PublishError> {
        let sign = self.background.store().leave_sign(self.snapshot.id()).await?;
        let remember = sign.as_ref().map(NewSign::change);
        let record = |life: &Self| match &life.background.records {
            Some(records) => records.published(life.snapshot.id(), life.snapshot.seal_facts(), remember),
            None => Ok(()),
        };
        self.save(record).await?;
        if let Some(sign) = sign {
            sign.remembered();
        }
        Ok(())
    }

    fn changed(&self) {
        self.background.watcher.changed(&self.snapshot);
    }

    fn names(&self) -> (Arc<Manifest>, Vec<Arc<Layer>>) {
        let manifest = self.snapshot.manifest_now().expect("what is published is sealed");
        (manifest, self.snapshot.memory().load().layers().to_vec())
    }

    async fn remove_from_store(&self) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        let id = self.snapshot.id();
        while let Err(error) = self.background.stop().unless_said(self.delete()).await? {
            tracing::warn!(snapshot = %id, %error, "deleting failed, it will be tried again");
            self.wait(&mut pause).await?;
        }
        Ok(())
    }

    async fn delete(&self) -> Result<(), StoreError> {
        let (store, id) = (self.background.store(), self.snapshot.id());
        store.delete_manifest(id).await?;
        store.delete_working_sets(id).await
    }

    async fn wait(&self, pause: &mut Duration) -> Result<(), Stopped> {
        self.background.stop().wait(longer(pause)).await
    }
}

/// A pause before a try, and a longer one for the next.
fn longer(pause: &mut Duration) -> Duration {
    let now = *pause;
    *pause = (now * 2).min(limits::WORK_RETRY_LAST);
    now
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cache::Cache;
    use crate::fetch::Fetcher;
    use crate::hooks::NoHooks;
    use crate::identity::{Domain, SnapshotId, VolumeName};
    use crate::manifest::{SnapshotFacts, VolumeShape};
    use crate::page_map::PageMap;
    use crate::pool::Pool;
    use crate::precedence::Precedence;
    use crate::seal::Sealing;
    use crate::snapshot::{SealParts, SnapshotParts, Volume};
    use crate::upload_budget::UploadBudget;
    use crate::view::{LiveView, View};
    use crate::watch::NoWatcher;
    use rekindle_kernel::PageKind;

    fn sealed() -> Snapshot {
        let (id, name, page_kind) = (SnapshotId::new(), VolumeName::memory(), PageKind::Small);
        let facts = SnapshotFacts { snapshot: id, created_unix_ms: 0, blobs: BTreeMap::new() };
        let shape = VolumeShape { name: name.clone(), page_kind, pages: 1 };
        let manifest = Manifest::first(facts, vec![shape], &[]).expect("within limits");
        let view = Arc::new(LiveView::new(View::flat(PageMap::zero(1), Arc::from([]))));
        let parts = SnapshotParts {
            id,
            parent_id: None,
            generation: 0,
            created_unix_ms: 0,
            volumes: vec![Volume { name, page_kind, view }],
            blobs: BTreeMap::new(),
            records: None,
        };
        let snapshot = Snapshot::captured(parts, None, &[]);
        let work = snapshot.record_sealed(Arc::new(manifest), Duration::ZERO, SealParts::default());
        assert_eq!(work, SnapshotWork::Publish);
        snapshot
    }

    #[test]
    fn a_snapshot_that_was_deleted_before_its_next_try_is_not_published() {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
        let store = Store::directory(&directory.path().join("store")).expect("a directory");
        let cache = Arc::new(Cache::open(&directory.path().join("cache")).expect("a directory"));
        let fetcher = Fetcher::new(runtime.handle().clone(), store.clone(), Stop::default());
        let sealing = Sealing { workers: 1, merge_at_layers: limits::MERGE_AT_LAYERS };
        let sealer =
            Sealer::new(cache, fetcher, Domain::shared(), sealing, Precedence::default(), Arc::new(NoHooks));
        let pool = Pool::start("saving", 1).expect("a thread");
        let publisher = Publisher {
            store: store.clone(),
            pool: pool.handle(),
            budget: UploadBudget::new(limits::UPLOAD_BYTES_MAX),
            stop: Stop::default(),
        };
        let watcher = Arc::new(NoWatcher);
        let background =
            Arc::new(Background { sealer, sealing: pool.handle(), publisher, records: None, watcher });
        let life = Life { snapshot: Arc::new(sealed()), background };
        let again = life.snapshot.record(SnapshotEvent::PublishFailed);
        life.snapshot.record(SnapshotEvent::Deleted);
        assert_eq!(runtime.block_on(life.carry_on(again)), Ok(()));
        assert_eq!(store.traffic().sent_bytes, 0);
    }
}
