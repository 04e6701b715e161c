//! A resume of the last snapshot on a node that has nothing of it, with the store's answers in virtual time.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::Either;
use object_store::ObjectStore;
use rekindle_engine::ahead::missing_frames;
use rekindle_engine::cache::Cache;
use rekindle_engine::fetch::{FetchError, Fetcher, FrameKey, WantedFrames};
use rekindle_engine::geometry::{GuestPages, usize_of};
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::open::open_unrecorded;
use rekindle_engine::packed_reads::PackedReads;
use rekindle_engine::read_plan::ReadPlan;
use rekindle_engine::single_flight::Waiter;
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::sources::{Class, Sources};
use rekindle_engine::stop::Stop;
use rekindle_engine::store::Store;
use rekindle_engine::working_sets;
use rekindle_kernel::PAGE_BYTES;
use rekindle_testkit::timed_store::{Network, ReadLog, TimedRead, TimedStore};
use tokio::runtime::{Builder, Runtime};

use super::pauses::{Stored, check, keys};

/// The node's knowledge of the pages that its guest needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// It knows them from elsewhere.
    Given,
    /// They are recorded in the store.
    WorkingSet,
}

/// The reads of a resume.
pub(crate) struct Resumed {
    /// Every read, in the order of their ends.
    pub(crate) reads: Vec<TimedRead>,
    /// When the first of the pages was there, since the resume was asked for.
    pub(crate) first_page: Duration,
    /// When the last one was.
    pub(crate) last_page: Duration,
}

/// Resumes the last snapshot and reads `wanted`; every byte is compared.
pub(crate) fn resume(
    stored: &Stored,
    network: Network,
    wanted: &[GuestPages],
    knowledge: Knowledge,
) -> anyhow::Result<Resumed> {
    let directory = tempfile::tempdir().context("a directory for a node")?;
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let cold = Cold::new(&runtime, (Arc::clone(&stored.objects), keys()), network, directory.path())?;
    // Only in the runtime is the time the virtual one.
    let (snapshot, resumed) = runtime.block_on(cold.bring(stored.last, wanted, knowledge))?;
    for run in wanted {
        let mut bytes = vec![0; usize_of(run.count()) * PAGE_BYTES];
        ReadPlan::new(snapshot.memory(), *run).read(&cold.fetcher, &mut bytes)?;
        check(&stored.content, *run, &bytes)?;
    }
    Ok(resumed)
}

/// Resumes a snapshot, of which the pages in its working set are wanted; they are all read back.
pub(crate) fn resume_recorded(
    (objects, keys): (Arc<dyn ObjectStore>, KeyRing),
    snapshot: SnapshotId,
    network: Network,
    knowledge: Knowledge,
) -> anyhow::Result<Resumed> {
    let directory = tempfile::tempdir().context("a directory for a node")?;
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let other =
        Cold::new(&runtime, (Arc::clone(&objects), keys.clone()), network, &directory.path().join("other"))?;
    let found = runtime.block_on(async {
        let snapshot = open_unrecorded(snapshot, &other.sources, &other.cache).await?;
        working_sets::find(&snapshot, &other.sources, false).await.context("it has a working set")
    })?;
    let cold = Cold::new(&runtime, (objects, keys), network, &directory.path().join("cold"))?;
    let (snapshot, resumed) = runtime.block_on(cold.bring(snapshot, found.set.runs(), knowledge))?;
    for run in found.set.runs() {
        let mut bytes = vec![0; usize_of(run.count()) * PAGE_BYTES];
        ReadPlan::new(snapshot.memory(), *run).read(&cold.fetcher, &mut bytes)?;
    }
    Ok(resumed)
}

/// A node that has nothing.
struct Cold {
    sources: Sources,
    fetcher: Fetcher,
    cache: Cache,
    log: ReadLog,
}

impl Cold {
    fn new(
        runtime: &Runtime,
        (objects, keys): (Arc<dyn ObjectStore>, KeyRing),
        network: Network,
        directory: &std::path::Path,
    ) -> anyhow::Result<Self> {
        let entered = runtime.enter();
        let timed = TimedStore::new(objects, network);
        let log = timed.log();
        let sources = Sources::new(Store::new(Arc::new(timed)), keys.clone());
        let fetcher = Fetcher::new(runtime.handle().clone(), sources.clone(), Stop::default());
        drop(entered);
        Ok(Self { sources, fetcher, cache: Cache::open(directory, keys)?, log })
    }

    /// Opens the snapshot and brings the pages.
    async fn bring(
        &self,
        snapshot: SnapshotId,
        wanted: &[GuestPages],
        knowledge: Knowledge,
    ) -> anyhow::Result<(Snapshot, Resumed)> {
        let snapshot = open_unrecorded(snapshot, &self.sources, &self.cache).await?;
        let found = match knowledge {
            Knowledge::Given => None,
            Knowledge::WorkingSet => {
                let found = working_sets::find(&snapshot, &self.sources, true).await;
                Some(found.context("its working set is in the store")?)
            }
        };
        let (recorded, packed) = found.map(|found| (found.set, found.packed)).unzip();
        let wanted = recorded.as_ref().map_or(wanted, |set| set.runs());
        let frames = missing_frames(snapshot.memory(), wanted.iter().copied());
        let first_page = self.bring_frames(frames, packed.flatten()).await;
        let left = missing_frames(snapshot.memory(), wanted.iter().copied());
        ensure!(left.is_empty(), "{} layers have frames that did not come", left.len());
        let first_page = first_page.context("a frame was wanted")?;
        let resumed = Resumed { reads: self.log.reads(), first_page, last_page: self.log.now() };
        Ok((snapshot, resumed))
    }

    /// Brings frames as a resume does that knows its pages; says when the first of them was there.
    async fn bring_frames(&self, frames: Vec<WantedFrames>, packed: Option<PackedReads>) -> Option<Duration> {
        let fetcher = self.fetcher.of_class(Class::Ahead);
        let first = Arc::new(First { log: self.log.clone(), at: OnceLock::new() });
        let bringing = match packed {
            Some(packed) => Either::Left(fetcher.bring_packed(packed, frames.clone())),
            None => Either::Right(fetcher.bring_all(frames.clone())),
        };
        for WantedFrames { file, frames } in &frames {
            for frame in frames {
                let waiter: Weak<First> = Arc::downgrade(&first);
                fetcher.request(file, *frame, waiter);
            }
        }
        bringing.await;
        first.at.get().copied()
    }
}

/// Notes when the first frame came.
struct First {
    log: ReadLog,
    at: OnceLock<Duration>,
}

impl Waiter<FrameKey, FetchError> for First {
    fn ready(&self, _: FrameKey) {
        self.at.get_or_init(|| self.log.now());
    }

    fn failing(&self, _: FrameKey, _: &Arc<FetchError>) {}
}
