//! The background life of one snapshot: a task that seals it, publishes it and, if it was deleted meanwhile, removes it
//! from the store. It ends when nothing is left to do, or when the engine ends.

mod following;
mod removal;
mod telling;

use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::path::Path as ObjectPath;
use tracing::Instrument;

use crate::capture::Capture;
use crate::follow::Follower;
use crate::lifecycle::{SnapshotEvent, SnapshotState, SnapshotWork};
use crate::limits;
use crate::manifest::LocalManifest;
use crate::named::Named;
use crate::origin::Origin;
use crate::pool::PoolHandle;
use crate::publish::{PublishError, Publisher};
use crate::reaper::ReaperHandle;
use crate::records::Records;
use crate::run_roots::RunRoots;
use crate::seal::{NamedParent, Packed, SealError, Sealed, Sealer, is_frozen};
use crate::snapshot::{SealParts, Snapshot};
use crate::stop::{Stop, Stopped};
use crate::store::Store;
use crate::store_gate::NewSign;
use crate::watch::Watcher;
use crate::working_sets::WorkingSets;

/// The parts of an engine that background work uses.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) sealer: Sealer,
    /// The pool that compares, packs and merges: each piece of work may take seconds.
    pub(crate) sealing: PoolHandle,
    pub(crate) publisher: Publisher,
    pub(crate) reaper: ReaperHandle,
    /// Records of snapshots, if this node has a catalog.
    pub(crate) records: Option<Records>,
    pub(crate) watcher: Arc<dyn Watcher>,
    pub(crate) run_roots: Arc<RunRoots>,
    pub(crate) sets: Arc<WorkingSets>,
    /// This node, as others reach it, if they do.
    pub(crate) origin: Option<Origin>,
    pub(crate) follower: Follower,
}

impl Background {
    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.publisher.store
    }

    /// The signal that ends the work.
    pub(crate) fn stop(&self) -> &Stop {
        &self.publisher.stop
    }
}

/// The next work of a life, with its inputs.
#[derive(Debug)]
pub(crate) enum Work {
    Nothing,
    Seal(Seal),
    Publish(Named),
    /// Bring what another node has, until the snapshot has names.
    Follow,
    RemoveFromStore,
}

/// A step of a seal, with the results of the steps before it, so that a failed try repeats only its own step.
#[derive(Debug)]
pub(crate) enum Seal {
    /// Compare captured memory and pack it into layers.
    Pack(Arc<[Arc<Capture>]>),
    /// Make the manifest of the layers, on top of the parent's.
    Name(Arc<Packed>),
    /// Record the sealed snapshot.
    Record(Arc<Sealed>),
}

/// A try that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    what: &'static str,
    /// The event for the snapshot's lifecycle. A failed removal is none: nothing waits for it.
    event: Option<SnapshotEvent>,
    reason: String,
}

/// The life of one snapshot from its capture on. Clones are the same life.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) background: Arc<Background>,
}

impl Work {
    /// Work that seals captured memory.
    pub(crate) fn seal(captures: Vec<Arc<Capture>>) -> Self {
        Self::Seal(Seal::Pack(captures.into()))
    }

    /// The work that an earlier life of a snapshot has left; `captures` are those of a captured one.
    pub(crate) fn left(snapshot: &Snapshot, captures: Vec<Arc<Capture>>) -> Self {
        match snapshot.state() {
            SnapshotState::Captured | SnapshotState::CapturedForChildren => Self::seal(captures),
            SnapshotState::Sealed => Self::publish(snapshot),
            SnapshotState::Remote => Self::Follow,
            SnapshotState::Discarded => Self::RemoveFromStore,
            SnapshotState::Published | SnapshotState::Lost => Self::Nothing,
        }
    }

    /// The work that the lifecycle table asks for after `now`.
    pub(crate) fn asked(asked: SnapshotWork, snapshot: &Snapshot, now: Self) -> Self {
        match asked {
            SnapshotWork::None => Self::Nothing,
            SnapshotWork::Again => now,
            SnapshotWork::Publish => Self::publish(snapshot),
            SnapshotWork::RemoveFromStore => Self::RemoveFromStore,
        }
    }

    fn publish(snapshot: &Snapshot) -> Self {
        Self::Publish(snapshot.named_now().expect("a sealed snapshot has names"))
    }
}

impl Life {
    /// Does all work that is left. The end of the engine cuts it short: a snapshot that is sealed or published by then
    /// stays so.
    pub(crate) async fn live(self, work: Work) {
        let id = self.snapshot.id();
        let span = tracing::info_span!("save", snapshot = %id);
        let told = self.tell_origin(&work);
        // If the end of the engine cuts it short, the next start continues it.
        let (carried_on, ()) = tokio::join!(self.carry_on(work).instrument(span), told);
        carried_on.ok();
        // The files of a deleted snapshot are removed with its last handle, by a thread that may wait.
        let saving = self.background.publisher.pool.clone();
        saving.run(id, move || drop(self)).await;
    }

    /// Does `work` and all work that follows.
    pub(crate) async fn carry_on(&self, mut work: Work) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        while !matches!(work, Work::Nothing) {
            work = match self.attempt(&work).await? {
                Ok(next) => {
                    pause = limits::WORK_RETRY_FIRST;
                    next
                }
                Err(failure) => {
                    let asked = self.failed(failure);
                    self.background.stop().unless_said(self.pause(&work, longer(&mut pause))).await?;
                    Work::asked(asked, &self.snapshot, work)
                }
            };
        }
        Ok(())
    }

    /// One try of `work`; returns the work that follows.
    pub(crate) async fn attempt(&self, work: &Work) -> Result<Result<Work, Failure>, Stopped> {
        let (stop, id) = (self.background.stop(), self.snapshot.id());
        match work {
            Work::Nothing => Ok(Ok(Work::Nothing)),
            Work::Seal(step) => {
                let span = tracing::info_span!("seal", snapshot = %id);
                let done = stop.unless_said(self.seal(step).instrument(span)).await?;
                Ok(done.map_err(|error| Failure::new("sealing", Some(SnapshotEvent::SealFailed), &error)))
            }
            Work::Publish(named) => {
                let span = tracing::info_span!("publish", snapshot = %id);
                match self.publish(named).instrument(span).await {
                    Err(PublishError::Stopped(stopped)) => Err(stopped),
                    Err(error) => {
                        Ok(Err(Failure::new("publishing", Some(SnapshotEvent::PublishFailed), &error)))
                    }
                    Ok(next) => Ok(Ok(next)),
                }
            }
            Work::Follow => {
                let span = tracing::info_span!("follow", snapshot = %id);
                let done = stop.unless_said(self.follow_unless_let_go().instrument(span)).await?;
                let event = Some(SnapshotEvent::RemoteFailed);
                Ok(done.map_err(|error| Failure::new("reading from its node", event, &error)))
            }
            Work::RemoveFromStore => {
                let done = stop.unless_said(self.delete()).await?;
                Ok(done.map(|()| Work::Nothing).map_err(|error| Failure::new("deleting", None, &error)))
            }
        }
    }

    /// Records that a try failed; returns the work for after a pause.
    fn failed(&self, Failure { what, event, reason }: Failure) -> SnapshotWork {
        tracing::warn!(snapshot = %self.snapshot.id(), error = %reason, "{what} failed, it will be tried again");
        let Some(event) = event else { return SnapshotWork::Again };
        let asked = self.snapshot.record_failure(event, reason);
        self.changed();
        asked
    }

    async fn seal(&self, step: &Seal) -> Result<Work, SealError> {
        match step {
            // Afterwards the layers are on the disk and in the views: only readers and the keeper hold the captures.
            Seal::Pack(captures) => Ok(Work::Seal(Seal::Name(Arc::new(self.pack(captures).await?)))),
            Seal::Name(packed) => Ok(Work::Seal(Seal::Record(Arc::new(self.name(packed).await?)))),
            Seal::Record(sealed) => self.record(sealed).await,
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

    /// Waits for the proof that memory is frozen: the VMM was told to end, and that takes time.
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

    /// The keeper's process, which holds captured memory too.
    fn keeper(&self) -> Option<u32> {
        self.background.records.as_ref().and_then(|records| records.keeper().process())
    }

    /// Makes the manifest. The wait for the parent takes no thread, and the frames of a merge are on this node before
    /// one is taken.
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
        let refuted = |reason| SealError::Refuted { parent: parent.id(), reason };
        let named = parent.names().await.map_err(refuted)?;
        let (of, its) = (Arc::clone(&parent), named.clone());
        let merges = self.save(move |life| life.background.sealer.plan_merges(&of, &its)).await;
        self.background.sealer.bring(parent, named, merges).await
    }

    /// Writes the record, makes the snapshot a named one, and lets the keeper forget its memory.
    async fn record(&self, sealed: &Arc<Sealed>) -> Result<Work, SealError> {
        let (hooks, id) = (self.background.sealer.hooks(), self.snapshot.id());
        if let Some(records) = self.background.records.clone() {
            hooks.before_record(id).await;
            let sealed = Arc::clone(sealed);
            self.save(move |life| sealed.write(&life.snapshot, &records)).await?;
        }
        let sealed = Arc::clone(sealed);
        let (asked, kept) = self.save(move |life| sealed.record(&life.snapshot)).await;
        self.changed();
        if let Some(records) = self.background.records.clone() {
            hooks.before_forget(id).await;
            self.save(move |life| records.forget(life.snapshot.id())).await;
        }
        drop(kept);
        Ok(Work::asked(asked, &self.snapshot, Work::Nothing))
    }

    /// Does work that may take seconds, on the pool for that.
    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let life = self.clone();
        self.background.sealing.run(self.snapshot.id(), move || work(&life)).await
    }

    /// Does short work that may wait for the disk or for the keeper, on the pool for that.
    async fn save<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let life = self.clone();
        self.background.publisher.pool.run(self.snapshot.id(), move || work(&life)).await
    }

    async fn publish(&self, named: &Named) -> Result<Work, PublishError> {
        let (id, records) = (self.snapshot.id(), self.background.records.clone());
        // RAM comes first: reading and encoding what was just sealed would slow the freeing of its captures.
        self.background.stop().unless_said(self.background.reaper.freed()).await?;
        let room = self.background.publisher.room(named).await?;
        // It was deleted before this try began: the deleter removes it from the store, where it must not come back.
        if self.snapshot.is_deleted() {
            return Ok(Work::Nothing);
        }
        let uploaded = move |publication: &_| {
            let Some(records) = records else { return Ok(None) };
            let manifest = LocalManifest::from(publication);
            records.uploaded(id, &manifest)?;
            Ok(Some(manifest))
        };
        let publisher = &self.background.publisher;
        let of_snapshot = (self.snapshot.domain(), self.snapshot.editions());
        let published = publisher.publish(named, of_snapshot, room, uploaded).await;
        // The deletion took away the roots that were there then.
        if published.is_err() && self.snapshot.is_deleted() {
            self.background.stop().unless_said(self.let_roots_go()).await?;
        }
        let (manifest, put_as) = published?;
        self.background.stop().unless_said(self.record_published(manifest, &put_as)).await??;
        let asked = self.snapshot.record(SnapshotEvent::PublishSucceeded);
        self.changed();
        if self.snapshot.is_published() {
            self.background.stop().unless_said(self.take_roots_away()).await?;
            self.background.stop().unless_said(self.background.store().delete_old_signs()).await?;
            // A working set is not part of the snapshot: if it cannot be put now, a later resume tries again.
            self.background.stop().unless_said(self.background.sets.begin(&self.snapshot)).await?;
        }
        Ok(Work::asked(asked, &self.snapshot, Work::Nothing))
    }

    /// Takes the roots away that the manifest makes needless. One that stays is taken away by a later try or start.
    async fn take_roots_away(&self) {
        let (store, id) = (self.background.store(), self.snapshot.id());
        self.take_root_over().await;
        self.background.publisher.roots.let_go(store, id).await;
    }

    /// Puts a sign into the store, then records in the catalog that the snapshot is published, with that sign.
    async fn record_published(
        &self,
        manifest: Option<LocalManifest>,
        put_as: &ObjectPath,
    ) -> Result<(), PublishError> {
        let sign = self.background.store().leave_sign(put_as).await?;
        let remember = sign.as_ref().map(NewSign::change);
        let record = move |life: &Self| match (&life.background.records, manifest) {
            (Some(records), Some(manifest)) => {
                records.published(life.snapshot.domain(), life.snapshot.seal_facts(), &manifest, remember)
            }
            _ => Ok(()),
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
}

impl Failure {
    fn new(what: &'static str, event: Option<SnapshotEvent>, error: &impl std::error::Error) -> Self {
        Self { what, event, reason: error.to_string() }
    }

    /// The reason.
    pub(crate) fn into_reason(self) -> String {
        self.reason
    }
}

/// The pause before a try; makes the next one longer.
fn longer(pause: &mut Duration) -> Duration {
    let now = *pause;
    *pause = (now * 2).min(limits::WORK_RETRY_LAST);
    now
}

#[cfg(all(test, not(shuttle)))]
mod tests;
