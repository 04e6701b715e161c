//! Restores the snapshots of the catalog: at the start, and later those that could not be decided then.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};

use super::Engine;
use crate::budget::Budget;
use crate::cache::Cache;
use crate::identity::SnapshotId;
use crate::life::Background;
use crate::lifecycle::SnapshotEvent;
use crate::limits;
use crate::peer::Peers;
use crate::publish::Publisher;
use crate::reaper::ReaperHandle;
use crate::records::Records;
use crate::replay::{ReplayError, Replayed, Replaying};
use crate::root::Cause;
use crate::roots::Fate;
use crate::snapshot::Snapshot;
use crate::store::StoreError;
use crate::sync::lock;

impl Engine {
    /// Tries again to restore undecided snapshots; the number that is still undecided.
    pub fn decide(&self) -> Result<usize, ReplayError> {
        let Some(records) = &self.background.records else { return Ok(0) };
        let there = self.there.all();
        if there.iter().all(|snapshot| !snapshot.is_undecided()) {
            return Ok(0);
        }
        let (cache, budget, reaper) = (&*self.cache, &self.rules.budget, self.rules.reaper.clone());
        let peers = &*self.peers;
        let spare = SpareFiles::held();
        let replayed = Replaying { records, cache, budget, reaper, peers }.decide(&there)?;
        drop(spare);
        let Replayed { known, deleted, work, taken_back, replay: _ } = replayed;
        for snapshot in known.iter().filter(|snapshot| !snapshot.is_undecided()) {
            tracing::info!(snapshot = %snapshot.id(), "a snapshot that could not be read can be by now");
            self.background.watcher.changed(snapshot);
        }
        drop((known, deleted));
        self.go_on_with(work);
        for snapshot in there.iter().filter(|snapshot| taken_back.contains(&snapshot.id())) {
            self.never_was(snapshot);
        }
        drop(there);
        self.there.deleted.let_go(&self.snapshots());
        Ok(self.there.all().iter().filter(|snapshot| snapshot.is_undecided()).count())
    }

    /// Hands the memory of the snapshots without names among `wanted` to a new keeper, as the old one is gone. It finds them
    /// among the known snapshots, `origins` (which may be deleted), and their ancestors. The result lists those that
    /// could not be handed over, with the reasons.
    pub fn keep_again(
        &self,
        wanted: &BTreeSet<SnapshotId>,
        origins: Vec<Arc<Snapshot>>,
    ) -> Vec<(SnapshotId, io::Error)> {
        let known = self.there.all().into_iter().chain(origins);
        let unsealed: BTreeMap<SnapshotId, Arc<Snapshot>> = known
            .flat_map(|snapshot| snapshot.unsealed_line().into_iter().chain([snapshot]))
            .filter(|snapshot| wanted.contains(&snapshot.id()))
            .map(|snapshot| (snapshot.id(), snapshot))
            .collect();
        let keep = |(id, snapshot): (SnapshotId, Arc<Snapshot>)| Some((id, snapshot.keep_again().err()?));
        unsealed.into_iter().filter_map(keep).collect()
    }

    /// Begins to give up the unfinished uploads of layers that this node does not have any more.
    pub(super) fn give_up_lost_uploads(&self) {
        let (background, cache) = (Arc::clone(&self.background), Arc::clone(&self.cache));
        let lives = self.lives.as_ref().expect("the engine has just started");
        lives.begin_other(async move {
            background.publisher.give_up_lost_uploads(|layer| cache.handle(layer)).await;
        });
    }

    /// Begins to hold the bounds on layer files.
    pub(super) fn watch_disk(&self) {
        let lives = self.lives.as_ref().expect("the engine has just started");
        lives.begin_other(Arc::clone(&self.bounded).watch(self.background.stop().clone()));
    }

    /// Begins to take the roots away that an earlier process of this node left in the store, and nothing needs; then keeps
    /// those for sandboxes that run.
    pub(super) fn keep_roots(&self) {
        let background = Arc::clone(&self.background);
        let known: HashMap<_, _> =
            self.snapshots().into_iter().map(|known| (known.id(), Arc::downgrade(&known))).collect();
        let fate = move |id| match known.get(&id).and_then(Weak::upgrade).map(|known| known.is_published()) {
            None => Fate::Unknown,
            Some(true) => Fate::Over,
            Some(false) => Fate::Needed,
        };
        let lives = self.lives.as_ref().expect("the engine has just started");
        lives.begin_other(async move {
            let Publisher { store, stop, .. } = &background.publisher;
            let until_found = async {
                while let Err(error) = find_roots(&background, &fate).await {
                    tracing::debug!(%error, "roots of an earlier process may stay for now");
                    tokio::time::sleep(limits::WORK_RETRY_LAST).await;
                }
            };
            let found = stop.unless_said(until_found).await;
            if found.is_ok() {
                background.run_roots.keep(store, stop).await.ok();
            }
        });
    }

    /// Removes an undecided snapshot whose pause was undone: it is no longer listed, and its last handle lets the
    /// keeper forget it.
    fn never_was(&self, snapshot: &Arc<Snapshot>) {
        lock(&self.there.known).remove(&snapshot.id());
        self.there.deleted.release(snapshot.id());
        snapshot.record(SnapshotEvent::Deleted);
        self.background.watcher.changed(snapshot);
    }
}

/// Descriptors that are reserved while snapshots are opened, so that some are left for the rest of the program.
struct SpareFiles {
    _files: Vec<File>,
}

impl SpareFiles {
    fn held() -> Self {
        Self { _files: (0..limits::SPARE_FILES).map_while(|_| File::open("/dev/null").ok()).collect() }
    }
}

/// Restores the snapshots of the catalog. No file is removed before it is known which are needed.
pub(super) fn replay(
    records: &Records,
    cache: &Cache,
    budget: &Budget,
    (reaper, peers): (ReaperHandle, &dyn Peers),
) -> Result<Replayed, ReplayError> {
    let _span = tracing::info_span!("replay").entered();
    cache.keep_files();
    let _spare = SpareFiles::held();
    let replayed = Replaying { records, cache, budget, reaper, peers }.replay()?;
    cache.let_files_go();
    Ok(replayed)
}

/// Finds the roots that an earlier process of this node left, and takes those away whose snapshots are published.
async fn find_roots(background: &Background, fate: impl Fn(SnapshotId) -> Fate) -> Result<(), StoreError> {
    let Publisher { roots, store, .. } = &background.publisher;
    let names = store.own_roots().await?;
    let (publishes, runs): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.cause == Cause::Publishes);
    background.run_roots.found(store, runs).await?;
    roots.found(store, publishes, fate).await
}
