//! The background life of one snapshot: a thread of idle priority that seals it, publishes it and, if it was deleted
//! on the way, takes it out of the store again. It ends when nothing is left to do, or when the engine ends.

use std::sync::Arc;
use std::time::Duration;

use crate::capture::Capture;
use crate::layer::Layer;
use crate::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use crate::limits;
use crate::manifest::{LocalManifest, Manifest};
use crate::publish::{PublishError, Requests, publish};
use crate::records::Records;
use crate::seal::{SealError, Sealer};
use crate::snapshot::Snapshot;
use crate::stop::Stopped;
use crate::sync::idle_priority;
use crate::watch::Watcher;
use crate::working_sets;

/// The parts of an engine that background work uses.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) sealer: Sealer,
    pub(crate) requests: Requests,
    /// Records of snapshots, if this node has a catalog.
    pub(crate) records: Option<Records>,
    pub(crate) watcher: Arc<dyn Watcher>,
}

/// One snapshot's way from its capture on.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) background: Arc<Background>,
}

impl Life {
    /// Seals and publishes a captured snapshot. Stopped means that the engine ends: what is sealed or published by then
    /// stays so.
    pub(crate) fn run(&self, captures: Vec<Arc<Capture>>) -> Result<(), Stopped> {
        if let Err(error) = idle_priority() {
            tracing::warn!(%error, "sealing at normal priority");
        }
        let _span = tracing::info_span!("save", snapshot = %self.snapshot.id()).entered();
        let work = self.seal(captures)?;
        self.carry_on(work)
    }

    /// Does `work` and what follows from it.
    pub(crate) fn carry_on(&self, mut work: SnapshotWork) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        loop {
            match work {
                SnapshotWork::None | SnapshotWork::FreeLayers => return Ok(()),
                SnapshotWork::Publish => {}
                SnapshotWork::PublishAgain | SnapshotWork::SealAgain => self.wait(&mut pause)?,
                SnapshotWork::RemoveFromStore => return self.remove_from_store(),
            }
            // Deleted before this try began: the deleter takes it out of the store, where it must not come back.
            if self.snapshot.state() == SnapshotState::Discarded {
                return Ok(());
            }
            work = self.publish()?;
        }
    }

    /// Captured memory becomes a layer, then the layer gets a name; each step is tried until it succeeds.
    pub(crate) fn seal(&self, captures: Vec<Arc<Capture>>) -> Result<SnapshotWork, Stopped> {
        let _span = tracing::info_span!("seal", snapshot = %self.snapshot.id()).entered();
        let Background { sealer, requests: Requests { stop, .. }, records, .. } = &*self.background;
        let keeper = || records.as_ref().and_then(|records| records.keeper().process());
        let packed = self.until_done(|| sealer.pack(&self.snapshot, &captures, keeper(), stop))?;
        // The layer is on the disk and in the view: from here on only readers hold the capture, and the keeper.
        drop(captures);
        let sealed = self.until_done(|| sealer.name(&self.snapshot, &packed, stop))?;
        if let Some(records) = records {
            self.until_done(|| sealed.write(&self.snapshot, records, sealer.hooks(), stop))?;
        }
        let work = sealed.record(&self.snapshot);
        self.changed();
        if records.is_some() {
            sealer.hooks().before_forget(self.snapshot.id());
            if stop.is_said() {
                return Err(Stopped);
            }
            self.snapshot.forget_kept();
        }
        Ok(work)
    }

    fn until_done<T>(&self, mut attempt: impl FnMut() -> Result<T, SealError>) -> Result<T, Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(SealError::Stopped(stopped)) => return Err(stopped),
                Err(error) => {
                    tracing::warn!(snapshot = %self.snapshot.id(), %error, "sealing failed, it will be tried again");
                    self.snapshot.record_failure(SnapshotEvent::SealFailed, error.to_string());
                    self.changed();
                    self.wait(&mut pause)?;
                }
            }
        }
    }

    fn publish(&self) -> Result<SnapshotWork, Stopped> {
        let Background { requests, records, .. } = &*self.background;
        let (manifest, layers) = self.names();
        let id = self.snapshot.id();
        let _span = tracing::info_span!("publish", snapshot = %id).entered();
        let done = publish(&manifest, &layers, requests, |publication| match records {
            Some(records) => records.uploaded(id, &LocalManifest::from(publication)),
            None => Ok(()),
        });
        let recorded = done.and_then(|()| match records {
            Some(records) => Ok(records.published(id, self.snapshot.seal_facts())?),
            None => Ok(()),
        });
        let work = match recorded {
            Ok(()) => self.snapshot.record(SnapshotEvent::PublishSucceeded),
            Err(PublishError::Stopped(stopped)) => return Err(stopped),
            Err(error) => {
                tracing::warn!(snapshot = %id, %error, "publishing failed, it will be tried again");
                self.snapshot.record_failure(SnapshotEvent::PublishFailed, error.to_string())
            }
        };
        self.changed();
        if self.snapshot.is_published() {
            self.publish_working_set()?;
        }
        Ok(work)
    }

    /// Publishes a working set that was recorded before anything was in the store. It is no part of the snapshot: if it
    /// cannot be put there now, a later resume tries again.
    fn publish_working_set(&self) -> Result<(), Stopped> {
        let requests = &self.background.requests;
        requests.wait(working_sets::publish(&self.snapshot, &requests.store))
    }

    fn changed(&self) {
        self.background.watcher.changed(&self.snapshot);
    }

    fn names(&self) -> (Arc<Manifest>, Vec<Arc<Layer>>) {
        let manifest = self.snapshot.manifest_now().expect("what is published is sealed");
        (manifest, self.snapshot.memory().load().layers().to_vec())
    }

    fn remove_from_store(&self) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        let (requests, id) = (&self.background.requests, self.snapshot.id());
        let delete = async || {
            requests.store.delete_manifest(id).await?;
            requests.store.delete_working_sets(id).await
        };
        while let Err(error) = requests.wait(delete())? {
            tracing::warn!(snapshot = %id, %error, "deleting failed, it will be tried again");
            self.wait(&mut pause)?;
        }
        Ok(())
    }

    fn wait(&self, pause: &mut Duration) -> Result<(), Stopped> {
        self.background.requests.stop.wait(*pause)?;
        *pause = (*pause * 2).min(limits::WORK_RETRY_LAST);
        Ok(())
    }
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
    use crate::precedence::Precedence;
    use crate::seal::Sealing;
    use crate::snapshot::{SealParts, SnapshotParts, Volume};
    use crate::stop::Stop;
    use crate::store::Store;
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
        let requests =
            Requests { store: store.clone(), runtime: runtime.handle().clone(), stop: Stop::default() };
        let background =
            Arc::new(Background { sealer, requests, records: None, watcher: Arc::new(NoWatcher) });
        let life = Life { snapshot: Arc::new(sealed()), background };
        let again = life.snapshot.record(SnapshotEvent::PublishFailed);
        life.snapshot.record(SnapshotEvent::Deleted);
        assert_eq!(life.carry_on(again), Ok(()));
        assert_eq!(store.traffic().sent_bytes, 0);
    }
}
