//! Brings many frames of many layers at once, in few large requests.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use futures_util::stream::{StreamExt as _, iter};

use super::{Fetcher, Shared, claim, fetch_rest, telling, telling_of_silence};
use crate::attempt::{FetchError, blocking};
use crate::extents::extents;
use crate::fetch::FrameKey;
use crate::frame::FrameNumber;
use crate::limits;
use crate::local_file::LocalFile;
use crate::remote_pages::FramesOf;
use crate::single_flight::Claimed;
use crate::sources::Class;
use crate::urgency::Urgency;

/// Frames of one layer that are wanted, each once, in their order.
#[derive(Debug, Clone)]
pub struct WantedFrames {
    /// The layer's file.
    pub file: Arc<LocalFile>,
    /// The frames.
    pub frames: Vec<FrameNumber>,
}

/// Frames that come in one request.
#[derive(Debug)]
struct Extent {
    file: Arc<LocalFile>,
    frames: Range<usize>,
    bytes: u64,
}

impl Fetcher {
    /// Brings frames that are wanted soon, in few large requests; ends when each is there or was tried once. They count
    /// as being fetched from this call on, not from the first poll: whoever asks for one waits for it.
    pub fn bring_all(&self, wanted: Vec<WantedFrames>) -> impl Future<Output = ()> + Send + use<> {
        let (bulk, mine) = self.claim_all(wanted);
        async move { bulk.bring_and_end(mine).await }
    }

    /// Claims those of the frames that are not there and not being fetched: they are the caller's.
    pub(super) fn claim_all(&self, wanted: Vec<WantedFrames>) -> (Bulk, Vec<WantedFrames>) {
        let (shared, class) = (Arc::clone(&self.shared), self.class);
        let mut mine = wanted;
        for WantedFrames { file, frames } in &mut mine {
            let layer = FramesOf::Layer(file.layer().id());
            frames.retain(|frame| !file.is_verified(*frame) && shared.frames.claim((layer, *frame)));
        }
        mine.retain(|wanted| !wanted.frames.is_empty());
        let keys: Vec<FrameKey> = mine.iter().flat_map(WantedFrames::keys).collect();
        let urgency = Arc::new(Urgency::of(class));
        shared.frames.work_on(keys.iter().copied(), &urgency);
        (Bulk { claimed: claim(&shared, keys), shared, class, urgency }, mine)
    }
}

impl WantedFrames {
    pub(super) fn keys(&self) -> impl Iterator<Item = FrameKey> + '_ {
        self.frames.iter().map(|frame| (FramesOf::Layer(self.file.layer().id()), *frame))
    }

    /// Drops the frames that are there by now.
    fn keep_missing(&mut self) -> bool {
        self.frames.retain(|frame| !self.file.is_verified(*frame));
        !self.frames.is_empty()
    }

    /// The parts of the layer's object that have the frames; none while its table is not known.
    fn places(&self) -> Vec<Range<u64>> {
        let stored = self.file.layer().stored();
        let table = stored.as_ref().and_then(|stored| stored.frames());
        table.map_or_else(Vec::new, |table| {
            self.frames.iter().map(|frame| table.frame_range(*frame)).collect()
        })
    }

    /// The frames of requests for parts of the object, which begin and end where wanted frames do.
    fn extents<'a>(
        &'a self,
        places: &'a [Range<u64>],
        requests: Vec<Range<u64>>,
    ) -> impl Iterator<Item = Extent> + 'a {
        let number = |position: usize| self.frames[position].index();
        requests.into_iter().map(move |request| {
            let first = places.partition_point(|place| place.start < request.start);
            let end = places.partition_point(|place| place.end <= request.end);
            let frames = number(first)..number(end - 1) + 1;
            Extent { file: Arc::clone(&self.file), frames, bytes: request.end - request.start }
        })
    }
}

/// The work of one call. Its parts own clones of it.
#[derive(Clone)]
pub(super) struct Bulk {
    pub(super) shared: Arc<Shared>,
    pub(super) claimed: Arc<Claimed<FrameKey, FetchError>>,
    class: Class,
    /// Of the work that is for all frames, before the requests for them are planned.
    urgency: Arc<Urgency>,
}

impl Bulk {
    /// Brings claimed frames; those that did not come and have waiters are fetched on, one by one.
    pub(super) async fn bring_and_end(self, mine: Vec<WantedFrames>) {
        let keys: Vec<FrameKey> = mine.iter().flat_map(WantedFrames::keys).collect();
        let file = |wanted: &WantedFrames| (wanted.file.layer().id().into(), Arc::clone(&wanted.file));
        let files: HashMap<FramesOf, Arc<LocalFile>> = mine.iter().map(file).collect();
        telling_of_silence(&self.shared, &keys, self.clone().bring(mine)).await;
        fetch_rest(&self.shared, &self.claimed, |layer| Arc::clone(&files[&layer]), self.class);
    }

    async fn bring(self, mut wanted: Vec<WantedFrames>) {
        self.load_all(&wanted).await;
        wanted.retain_mut(WantedFrames::keep_missing);
        let files: Vec<Arc<LocalFile>> = wanted.iter().map(|wanted| Arc::clone(&wanted.file)).collect();
        iter(files).for_each_concurrent(None, |file| self.clone().table(file)).await;
        // Some came with their tables, and only with a table can a file be verified whose index was not known.
        self.load_all(&wanted).await;
        wanted.retain_mut(WantedFrames::keep_missing);
        // Each waits for a stream, unless somebody waits for one of its frames.
        iter(self.plan(&wanted)).for_each_concurrent(None, |extent| self.clone().fetch(extent)).await;
    }

    /// The requests for wanted frames, the longest first, so that none of them is the last to begin.
    fn plan(&self, wanted: &[WantedFrames]) -> Vec<Extent> {
        let places: Vec<Vec<Range<u64>>> = wanted.iter().map(WantedFrames::places).collect();
        let requests = extents(&places, self.shared.attempts.sources.request_cost());
        let of_each = wanted.iter().zip(&places).zip(requests);
        let mut planned: Vec<Extent> =
            of_each.flat_map(|((wanted, places), requests)| wanted.extents(places, requests)).collect();
        planned.sort_by_key(|extent| Reverse(extent.bytes));
        planned
    }

    /// Loads what this disk has, and tells of each frame that is there.
    fn load_all(&self, wanted: &[WantedFrames]) -> impl Future<Output = ()> + Send + use<> {
        let parts = wanted.iter().flat_map(|WantedFrames { file, frames }| {
            frames.chunks(limits::READ_AHEAD_FRAMES_MAX).map(|part| (Arc::clone(file), part.to_vec()))
        });
        let (bulk, parts): (Self, Vec<_>) = (self.clone(), parts.collect());
        let load = move |(file, frames)| bulk.clone().load(file, frames);
        iter(parts).for_each_concurrent(limits::LOADS_AT_ONCE, load)
    }

    async fn load(self, file: Arc<LocalFile>, frames: Vec<FrameNumber>) {
        let layer = file.layer().id();
        let came = telling(&self.shared, &self.claimed, layer.into());
        let loaded = blocking(layer, move || {
            let there =
                |frame: &FrameNumber| file.is_verified(*frame) || matches!(file.load_local(*frame), Ok(true));
            frames.into_iter().filter(there).for_each(|frame| came(frame));
            Ok(())
        });
        // It is cut short only by the end of the engine.
        loaded.await.ok();
    }

    /// Sees that a layer's table is known, if the layer is stored.
    async fn table(self, file: Arc<LocalFile>) {
        let Some(stored) = file.layer().stored().filter(|stored| stored.frames().is_none()) else { return };
        let stream = self.shared.attempts.sources.stream(&self.urgency).await;
        if let Err(error) = self.shared.attempts.table(&file, &stored, &self.urgency).await {
            tracing::debug!(layer = %file.layer().id(), %error, "its frames are not fetched ahead");
        }
        drop(stream);
    }

    async fn fetch(self, extent: Extent) {
        let Extent { file, frames, bytes: _ } = extent;
        let layer = FramesOf::Layer(file.layer().id());
        let came = telling(&self.shared, &self.claimed, layer);
        let urgency = Arc::new(Urgency::of(self.class));
        let keys = frames.clone().map(|frame| (layer, FrameNumber::new(frame)));
        self.shared.frames.work_on(keys.filter(|key| self.claimed.has(*key)), &urgency);
        let stream = self.shared.attempts.sources.stream(&urgency).await;
        self.shared.attempts.run(&file, frames, &urgency, &came).await;
        drop(stream);
    }
}
