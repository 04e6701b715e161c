//! The roots by which this node relies on the store for sandboxes that run: they go on although their snapshot is deleted,
//! by whomever.
//!
//! A root is put when a sandbox begins to run, beside its first faults. It names the objects that the sandbox's pages are
//! in, and stays as long as a sandbox runs from any of them, or a snapshot that is not published yet needs one. Such a
//! snapshot gets a root of its own if no other one names what it needs, as after a start.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::age::Age;
use crate::collectable::LayerCopy;
use crate::deleted::Deleted;
use crate::identity::SnapshotId;
use crate::layer::Layer;
use crate::limits;
use crate::rely_steps::{RelyStep, Relying};
use crate::root::{Cause, Root};
use crate::snapshot::Snapshot;
use crate::stop::{Stop, Stopped};
use crate::store::{Store, StoreError};
use crate::store_roots::RootName;
use crate::sync::{Mutex, lock};

/// The snapshots that sandboxes of this node run from, and the roots for them.
#[derive(Debug, Default)]
pub struct RunRoots {
    there: SnapshotsThere,
    running: Mutex<HashMap<SnapshotId, Running>>,
    held: Mutex<Vec<RunRoot>>,
    /// Locked by the task that works on the roots.
    turn: tokio::sync::Mutex<Option<Age>>,
    /// Wakes the task when a sandbox begins to run, or the last one of a snapshot has ended.
    news: Notify,
}

#[derive(Debug)]
struct Running {
    snapshot: Arc<Snapshot>,
    sandboxes: usize,
}

#[derive(Clone, Debug)]
struct RunRoot {
    name: RootName,
    relying: Relying,
    /// Collectors may have given it up, since this node was silent for long or was not there: another one replaces it.
    is_doubted: bool,
}

/// The mark of a sandbox that runs from a snapshot, for as long as it may read any page of it.
#[derive(Debug)]
pub struct RunsFrom {
    roots: Arc<RunRoots>,
    snapshot: Arc<Snapshot>,
}

/// The snapshots of a node, whose pages may be in the store only.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotsThere {
    pub(crate) known: Arc<Mutex<HashMap<SnapshotId, Arc<Snapshot>>>>,
    /// Those that were deleted before the start or by this engine, and must still be held.
    pub(crate) deleted: Arc<Deleted>,
}

impl SnapshotsThere {
    /// The known snapshots, and the deleted ones that are held.
    pub(crate) fn all(&self) -> Vec<Arc<Snapshot>> {
        let mut there: Vec<_> = lock(&self.known).values().cloned().collect();
        there.extend(self.deleted.held());
        there
    }

    /// True if a sandbox or a snapshot may still be found that is not among `all`.
    fn is_incomplete(&self, all: &[Arc<Snapshot>]) -> bool {
        all.iter().any(|snapshot| snapshot.is_undecided()) || self.deleted.origins_may_be_asked()
    }
}

impl RunRoots {
    /// No roots yet.
    pub(crate) fn new(there: SnapshotsThere) -> Self {
        Self { there, ..Self::default() }
    }

    /// A sandbox begins to run from a snapshot. Never waits: the root is put in the background.
    pub(crate) fn begin(self: &Arc<Self>, snapshot: &Arc<Snapshot>) -> RunsFrom {
        let id = snapshot.id();
        let mut running = lock(&self.running);
        running
            .entry(id)
            .or_insert_with(|| Running { snapshot: Arc::clone(snapshot), sandboxes: 0 })
            .sandboxes += 1;
        drop(running);
        self.news.notify_one();
        RunsFrom { roots: Arc::clone(self), snapshot: Arc::clone(snapshot) }
    }

    /// Works on the roots whenever sandboxes begin to run or end, and now and then, until the stop signal.
    pub(crate) async fn keep(&self, store: &Store, stop: &Stop) -> Result<(), Stopped> {
        let mut pause = Duration::ZERO;
        loop {
            let news = tokio::time::timeout(pause, self.news.notified());
            stop.unless_said(news).await?.ok();
            pause = match stop.unless_said(self.look(store)).await? {
                Ok(()) => limits::RUN_ROOTS_LOOK_EVERY,
                Err(error) => {
                    tracing::debug!(%error, "roots for sandboxes that run wait for the store");
                    limits::WORK_RETRY_LAST
                }
            };
        }
    }

    /// Puts the roots that are missing, goes on with those that are begun, and takes away those that nothing needs.
    pub(crate) async fn look(&self, store: &Store) -> Result<(), StoreError> {
        let mut turn = self.turn.lock().await;
        self.show_life(&mut turn, store).await?;
        // In this order: a snapshot is known before the sandbox ends that was paused into it.
        let running = self.may_run();
        let there = self.there.all();
        let is_incomplete = self.there.is_incomplete(&there);
        let is_unpublished = |snapshot: &Arc<Snapshot>| !snapshot.is_published() && !snapshot.is_deleted();
        let unpublished: Vec<_> = there.into_iter().filter(is_unpublished).collect();
        // The node has its name once the store is open.
        if !(running.is_empty() && unpublished.is_empty()) {
            store.objects().await?;
        }
        let layers: Vec<_> =
            running.iter().chain(&unpublished).flat_map(|snapshot| layers(snapshot)).collect();
        // Again for layers of which an object was found to be gone, and another one is known.
        while self.begin_roots(store, &running, &unpublished) {
            self.rely_on_all(store, &layers).await?;
        }
        self.rely_on_all(store, &layers).await?;
        let needed = running.iter().chain(&unpublished).flat_map(|snapshot| copies(snapshot)).collect();
        if is_incomplete { Ok(()) } else { self.take_away_needless(store, &needed).await }
    }

    /// The roots that an earlier process of this node left. They stay until it is known what still needs them.
    pub(crate) async fn found(
        &self,
        store: &Store,
        names: impl IntoIterator<Item = RootName>,
    ) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        for name in names {
            let is_known = lock(&self.held).iter().any(|held| held.name == name);
            if !is_known && let Some(root) = store.read_root(name).await? {
                lock(&self.held).push(RunRoot { name, relying: Relying::on(root), is_doubted: true });
            }
        }
        Ok(())
    }

    /// Puts a root for sandboxes that run from a snapshot whose publish has a root until this has returned.
    pub(crate) async fn take_over(&self, store: &Store, snapshot: &Arc<Snapshot>) -> Result<(), StoreError> {
        let is_run_from = lock(&self.running).contains_key(&snapshot.id());
        let named = copies(snapshot);
        if !is_run_from || named.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let root = Root { snapshot: snapshot.id(), cause: Cause::Runs, named };
        let name = store.name_for(&root);
        // Noted before it is put: a put that fails may land.
        lock(&self.held).push(RunRoot { name, relying: Relying::on(root.clone()), is_doubted: false });
        store.put_root(name, &root).await?;
        self.change(name, |relying| *relying = Relying::covered(root));
        Ok(())
    }

    /// The snapshots that sandboxes run from, and the deleted ones from which one of the previous process may still run.
    fn may_run(&self) -> Vec<Arc<Snapshot>> {
        let mut may_run: Vec<_> =
            lock(&self.running).values().map(|running| Arc::clone(&running.snapshot)).collect();
        if self.there.deleted.origins_may_be_asked() {
            may_run.extend(self.there.deleted.held());
        }
        may_run
    }

    /// Shows a sign of life if this node has had roots for long. After a long silence all roots are in doubt.
    async fn show_life(&self, shown: &mut Option<Age>, store: &Store) -> Result<(), StoreError> {
        if lock(&self.held).is_empty() {
            *shown = None;
            return Ok(());
        }
        let last = *shown.get_or_insert_with(Age::now);
        if last.is_over(limits::LIFE_SHOWN_EVERY) {
            store.show_life().await?;
            *shown = Some(Age::now());
        }
        if last.is_over(limits::ROOT_TRUSTED_FOR) {
            lock(&self.held).iter_mut().for_each(|held| held.is_doubted = true);
        }
        Ok(())
    }

    /// Begins the roots that are missing. True if one was.
    fn begin_roots(&self, store: &Store, running: &[Arc<Snapshot>], unpublished: &[Arc<Snapshot>]) -> bool {
        let mut is_begun = false;
        for snapshot in running {
            is_begun |= self.begin_root(store, snapshot.id(), copies(snapshot));
        }
        for snapshot in unpublished {
            // Its own uploads have the root of its publish.
            let of_others =
                copies(snapshot).into_iter().filter(|copy| copy.object.publisher != snapshot.id());
            is_begun |= self.begin_root(store, snapshot.id(), of_others.collect());
        }
        is_begun
    }

    /// Begins a root for the copies of a snapshot. False if others name them all.
    fn begin_root(&self, store: &Store, snapshot: SnapshotId, named: BTreeSet<LayerCopy>) -> bool {
        let undoubted = self.undoubted();
        let is_named = |copy| undoubted.iter().any(|held| held.relying.root().named.contains(copy));
        if named.iter().all(is_named) {
            return false;
        }
        let root = Root { snapshot, cause: Cause::Runs, named };
        let name = store.name_for(&root);
        lock(&self.held).push(RunRoot { name, relying: Relying::on(root), is_doubted: false });
        true
    }

    fn undoubted(&self) -> Vec<RunRoot> {
        lock(&self.held).iter().filter(|held| !held.is_doubted).cloned().collect()
    }

    async fn rely_on_all(&self, store: &Store, layers: &[Arc<Layer>]) -> Result<(), StoreError> {
        let names: Vec<_> = self.undoubted().iter().map(|held| held.name).collect();
        for name in names {
            self.rely(store, name, layers).await?;
        }
        Ok(())
    }

    /// Takes the steps to relying on what a root names, as far as collectors let it.
    async fn rely(&self, store: &Store, name: RootName, layers: &[Arc<Layer>]) -> Result<(), StoreError> {
        loop {
            let held = lock(&self.held).iter().find(|held| held.name == name).cloned();
            let Some(RunRoot { relying, .. }) = held else { return Ok(()) };
            match relying.next() {
                RelyStep::PutRoot(root) => {
                    store.put_root(name, &root).await?;
                    self.change(name, Relying::rooted);
                }
                RelyStep::ListCondemned => {
                    let condemned = store.condemned_copies().await?;
                    if !self.change(name, |relying| relying.listed(&condemned)) {
                        return Ok(());
                    }
                }
                RelyStep::See(copy) => {
                    let is_there = match store.layer_bytes(copy.layer, &copy.object).await {
                        Ok(_) => true,
                        Err(StoreError::NotFound(_)) => false,
                        Err(error) => return Err(error),
                    };
                    if !is_there && !has_another(layers, copy) {
                        let snapshot = relying.root().snapshot;
                        tracing::error!(%snapshot, %copy, "a sandbox runs, or may run, from a snapshot whose pages are deleted");
                    }
                    self.change(name, |relying| relying.looked(copy, is_there));
                }
                RelyStep::Done => return Ok(()),
            }
        }
    }

    fn change<T: Default>(&self, name: RootName, change: impl FnOnce(&mut Relying) -> T) -> T {
        let mut held = lock(&self.held);
        held.iter_mut()
            .find(|held| held.name == name)
            .map(|held| change(&mut held.relying))
            .unwrap_or_default()
    }

    async fn take_away_needless(
        &self,
        store: &Store,
        needed: &BTreeSet<LayerCopy>,
    ) -> Result<(), StoreError> {
        let undoubted = self.undoubted();
        let relied_on = undoubted.iter().filter_map(|held| held.relying.relied_on());
        let relied_on: BTreeSet<_> = relied_on.flatten().copied().collect();
        let is_needless = |held: &&RunRoot| {
            let mut needed = held.relying.root().named.intersection(needed);
            needed.all(|copy| held.is_doubted && relied_on.contains(copy))
        };
        let needless: Vec<_> = lock(&self.held).iter().filter(is_needless).map(|held| held.name).collect();
        for name in needless {
            store.take_root_away(name).await?;
            lock(&self.held).retain(|held| held.name != name);
        }
        Ok(())
    }
}

impl RunsFrom {
    /// The snapshot.
    pub const fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl Drop for RunsFrom {
    fn drop(&mut self) {
        let id = self.snapshot.id();
        let mut running = lock(&self.roots.running);
        let ended = match running.get_mut(&id) {
            Some(last) if last.sandboxes == 1 => running.remove(&id),
            Some(more) => {
                more.sandboxes -= 1;
                None
            }
            None => None,
        };
        drop(running);
        if ended.is_some() {
            self.roots.news.notify_one();
        }
        // Without the lock: its files may go with it.
        drop(ended);
    }
}

/// Notes that an object is gone. True if another one of its layer is known.
fn has_another(layers: &[Arc<Layer>], gone: LayerCopy) -> bool {
    layers.iter().filter(|layer| layer.id() == gone.layer).any(|layer| {
        layer.facts().note_gone(gone.object);
        layer.stored_at().is_some_and(|stored| stored.object != gone.object)
    })
}

/// The objects in the store that pages of a snapshot are in.
fn copies(snapshot: &Snapshot) -> BTreeSet<LayerCopy> {
    let copy = |layer: &Arc<Layer>| Some(LayerCopy { layer: layer.id(), object: layer.stored_at()?.object });
    layers(snapshot).iter().filter_map(copy).collect()
}

/// The layers that pages of a snapshot are in; before it has its own, those of the nearest ancestor that has.
fn layers(snapshot: &Snapshot) -> Vec<Arc<Layer>> {
    match snapshot.named_now() {
        Some(named) => named.layers().to_vec(),
        None => snapshot.parent().map(|parent| layers(&parent)).unwrap_or_default(),
    }
}
