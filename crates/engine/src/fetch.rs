//! Brings frames into local files, each fetched once for all its waiters and tried again until it is there or its last
//! waiter gives up.

mod bulk;
mod packed;

use std::ops::Range;
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;

use crate::attempt::Attempts;
use crate::frame::FrameNumber;
use crate::limits;
use crate::local_file::LocalFile;
use crate::remote_pages::{FramesOf, RemotePages};
use crate::single_flight::{Answer, Claimed, SingleFlight, Waiter};
use crate::sources::{Class, Sources};
use crate::stop::{Stop, Stopped};
use crate::sync::block_on;
use crate::urgency::Urgency;

pub use crate::attempt::FetchError;
pub use bulk::WantedFrames;

/// A frame of a layer, or of a volume that another node has.
pub type FrameKey = (FramesOf, FrameNumber);

/// A waiter for frames.
pub type FrameWaiter = dyn Waiter<FrameKey, FetchError>;

/// Fetches frames of one class. Clones share the work under way.
#[derive(Debug, Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
    class: Class,
}

#[derive(Debug)]
struct Shared {
    runtime: Handle,
    attempts: Attempts,
    frames: Arc<SingleFlight<FrameKey, FetchError>>,
    stop: Stop,
}

impl Fetcher {
    /// A fetcher of what guests wait for; it works on `runtime` and reads from `sources`. Once `stop` is signalled, no
    /// call of [`Self::bring`] is kept waiting; requests that do not wait are fetched on.
    pub fn new(runtime: Handle, sources: Sources, stop: Stop) -> Self {
        let attempts = Attempts { sources, tables: Arc::default() };
        let shared = Shared { runtime, attempts, frames: Arc::default(), stop };
        Self { shared: Arc::new(shared), class: Class::Fault }
    }

    /// The same for requests of another class.
    #[must_use]
    pub fn of_class(&self, class: Class) -> Self {
        Self { shared: Arc::clone(&self.shared), class }
    }

    /// Asks for a frame of a local file and returns at once; the waiter is called when it is there. Two files of one
    /// layer share a fetch: a waiter looks whether it is there, and asks again if the fetch was for the other file.
    pub fn request(&self, file: &Arc<LocalFile>, frame: FrameNumber, waiter: Weak<FrameWaiter>) {
        let Self { shared, class } = self;
        let layer = FramesOf::Layer(file.layer().id());
        if !shared.frames.join((layer, frame), waiter) {
            shared.frames.hurry((layer, frame), *class);
            return;
        }
        let claimed = |number: &usize| shared.frames.claim((layer, FrameNumber::new(*number)));
        let ahead = frame.index() + 1..frame.index() + file.frames_ahead(frame);
        let run = frame.index()..frame.index() + 1 + ahead.take_while(claimed).count();
        drop(shared.runtime.spawn(fetch_run(Arc::clone(shared), Arc::clone(file), run, *class)));
    }

    /// The same for a frame of a volume that another node has.
    pub fn request_remote(&self, pages: &Arc<RemotePages>, frame: FrameNumber, waiter: Weak<FrameWaiter>) {
        let Self { shared, class } = self;
        let key = (FramesOf::Remote(pages.of()), frame);
        if shared.frames.join(key, waiter) {
            drop(shared.runtime.spawn(fetch_remote(Arc::clone(shared), Arc::clone(pages), key, *class)));
        } else {
            shared.frames.hurry(key, *class);
        }
    }

    /// Waits until a frame of such a volume is here, until the first failed try, or until the engine ends.
    pub async fn bring_remote(&self, pages: &Arc<RemotePages>, frame: FrameNumber) -> Result<(), FetchError> {
        while !pages.is_here(frame) {
            let answer = Arc::new(Answer::default());
            let waiter: Weak<Answer<FetchError>> = Arc::downgrade(&answer);
            self.request_remote(pages, frame, waiter);
            self.shared.stop.unless_said(answer.said()).await?.map_err(FetchError::Shared)?;
        }
        Ok(())
    }

    /// The same for a thread that may wait: not for fault threads or async tasks.
    pub fn load_remote(&self, pages: &Arc<RemotePages>, frame: FrameNumber) -> Result<(), FetchError> {
        block_on(self.bring_remote(pages, frame))
    }

    /// Waits until a frame is verified in the newest of its layer's files, until the first failed try, or until the engine
    /// ends.
    pub async fn bring(&self, file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
        loop {
            let file = &Arc::clone(file).newest();
            if file.is_verified(frame) {
                return Ok(());
            }
            let answer = Arc::new(Answer::default());
            let waiter: Weak<Answer<FetchError>> = Arc::downgrade(&answer);
            self.request(file, frame, waiter);
            self.shared.stop.unless_said(answer.said()).await?.map_err(FetchError::Shared)?;
        }
    }

    /// The same for a thread that may wait: not for fault threads or async tasks.
    pub fn load(&self, file: &Arc<LocalFile>, frame: FrameNumber) -> Result<(), FetchError> {
        block_on(self.bring(file, frame))
    }

    /// The sources that it reads from.
    pub(crate) fn sources(&self) -> &Sources {
        &self.shared.attempts.sources
    }

    /// Asks the sources, for a thread that may wait, until the engine ends.
    pub(crate) fn ask<T>(&self, ask: impl AsyncFnOnce(&Sources) -> T) -> Result<T, Stopped> {
        let shared = &self.shared;
        shared.runtime.block_on(shared.stop.unless_said(ask(&shared.attempts.sources)))
    }

    /// Frames being fetched now.
    pub fn under_way(&self) -> usize {
        self.shared.frames.under_way()
    }
}

fn claim(shared: &Shared, keys: Vec<FrameKey>) -> Arc<Claimed<FrameKey, FetchError>> {
    Claimed::new(&shared.frames, keys, |(of, _)| FetchError::CutShort { of })
}

/// Fetches frames one after the other in the layer, of which the first has waiters and the others may be wanted next, in
/// one request if that is possible. They are claimed when this is called, not when it is first polled: a runtime that has
/// ended drops it unpolled.
fn fetch_run(
    shared: Arc<Shared>,
    file: Arc<LocalFile>,
    run: Range<usize>,
    class: Class,
) -> impl Future<Output = ()> {
    let layer = FramesOf::Layer(file.layer().id());
    let keys: Vec<FrameKey> = run.clone().map(|frame| (layer, FrameNumber::new(frame))).collect();
    let claimed = claim(&shared, keys.clone());
    async move {
        if run.len() > 1 {
            let came = telling(&shared, &claimed, layer);
            let urgency = Arc::new(Urgency::of(class));
            shared.frames.work_on(keys.iter().copied(), &urgency);
            telling_of_silence(&shared, &keys, shared.attempts.run(&file, run, &urgency, &came)).await;
        }
        fetch_rest(&shared, &claimed, |_| Arc::clone(&file), class);
    }
}

/// Tells all who wait for a frame of a layer that it came; it leaves the work that claimed it.
fn telling(
    shared: &Shared,
    claimed: &Arc<Claimed<FrameKey, FetchError>>,
    layer: FramesOf,
) -> Arc<impl Fn(FrameNumber) + Send + Sync + use<>> {
    let (of_work, flight) = (Arc::clone(claimed), Arc::clone(&shared.frames));
    Arc::new(move |frame| {
        of_work.let_go((layer, frame));
        flight.succeeded((layer, frame));
    })
}

/// Fetches, one by one, the claimed frames that have not come and have waiters by now.
fn fetch_rest(
    shared: &Arc<Shared>,
    claimed: &Claimed<FrameKey, FetchError>,
    file_of: impl Fn(FramesOf) -> Arc<LocalFile>,
    class: Class,
) {
    for key in claimed.rest() {
        claimed.let_go(key);
        if shared.frames.give_back(key) {
            drop(tokio::spawn(fetch_until_done(Arc::clone(shared), file_of(key.0), key, class)));
        }
    }
}

/// Fetches one frame that has waiters. It is claimed when this is called.
fn fetch_until_done(
    shared: Arc<Shared>,
    file: Arc<LocalFile>,
    key: FrameKey,
    class: Class,
) -> impl Future<Output = ()> {
    let claimed = claim(&shared, vec![key]);
    async move {
        let (only, urgency) = ([key], Arc::new(Urgency::of(class)));
        shared.frames.work_on(only, &urgency);
        let attempt = || telling_of_silence(&shared, &only, shared.attempts.frame(&file, key.1, &urgency));
        shared.frames.fetch(key, attempt, tokio::time::sleep).await;
        claimed.let_go(key);
    }
}

/// Fetches a frame that has waiters from another node. It is claimed when this is called.
fn fetch_remote(
    shared: Arc<Shared>,
    pages: Arc<RemotePages>,
    key: FrameKey,
    class: Class,
) -> impl Future<Output = ()> {
    let claimed = claim(&shared, vec![key]);
    async move {
        let (only, urgency) = ([key], Arc::new(Urgency::of(class)));
        shared.frames.work_on(only, &urgency);
        let attempt = async || Ok(pages.bring(key.1, urgency.now()).await?);
        let attempt = || telling_of_silence(&shared, &only, attempt());
        shared.frames.fetch(key, attempt, tokio::time::sleep).await;
        claimed.let_go(key);
    }
}

/// Goes on with a try that has no answer yet, and tells those who wait for its frames, again and again: also who came
/// after the last time hears of it soon.
async fn telling_of_silence<T>(shared: &Shared, keys: &[FrameKey], attempt: impl Future<Output = T>) -> T {
    let mut attempt = std::pin::pin!(attempt);
    let mut waited = limits::SOURCE_SILENT;
    loop {
        if let Ok(done) = tokio::time::timeout(limits::SOURCE_SILENT, &mut attempt).await {
            return done;
        }
        for key in keys {
            shared.frames.silent(*key, waited);
        }
        waited += limits::SOURCE_SILENT;
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
