//! A working set on its way out of the store: which pages they are, and the reads that bring them.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use object_store::path::Path as ObjectPath;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use crate::extents::RequestCost;
use crate::geometry::u64_of;
use crate::limits;
use crate::packed_set::{PREFIX_BYTES, PackedHead};
use crate::sources::{Reading, SourceError, Sources};
use crate::tag::TaggedError;
use crate::urgency::{Class, Urgency};
use crate::working_set::{WorkingSet, WorkingSetObject};

/// A working set that came out of the store.
#[derive(Debug)]
pub struct StoredSet {
    /// The pages.
    pub set: WorkingSet,
    /// Their bytes, if they were asked for and lie with it.
    pub packed: Option<PackedReads>,
}

/// The reads of packed pages that are under way. Dropping it ends them.
#[derive(Debug)]
pub struct PackedReads {
    pub(crate) head: PackedHead,
    /// The part of the object that each chunk is.
    pub(crate) places: Vec<Range<u64>>,
    pub(crate) reads: Vec<RangeRead>,
    pub(crate) urgency: Arc<Urgency>,
}

/// A read of a part of an object, which has begun or is about to.
#[derive(Debug)]
pub(crate) struct RangeRead {
    /// The bytes that have not been taken yet.
    pub(crate) range: Range<u64>,
    begun: Begun,
}

#[derive(Debug)]
enum Begun {
    Asked(AbortOnDropHandle<Result<Comes, SourceError>>),
    Comes(Box<Comes>),
}

/// An answer whose bytes come.
#[derive(Debug)]
pub(crate) struct Comes {
    arrived: BytesMut,
    reading: Reading,
    _stream: Option<OwnedSemaphorePermit>,
}

/// Reason that a working set in the store is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoredSetError {
    /// It could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is damaged, or its tag is wrong or cannot be checked.
    #[error(transparent)]
    Tagged(#[from] TaggedError),
}

impl StoredSet {
    /// Reads a working set. With `pages`, the reads of its pages begin at once, if they lie with it.
    pub(crate) async fn read(
        sources: &Sources,
        object: WorkingSetObject,
        pages: bool,
    ) -> Result<Self, StoredSetError> {
        let WorkingSetObject { path, bytes } = object;
        let ranges = match pages {
            true => equal_ranges(bytes, sources.request_cost()),
            false => std::iter::once(0..bytes.min(limits::PACKED_HEAD_READ_BYTES)).collect(),
        };
        let urgency = Arc::new(Urgency::of(Class::Ahead));
        let mut reads = ranges.into_iter().map(|range| RangeRead::ask(sources, &path, range, &urgency));
        let mut first = reads.next().expect("there is at least one range");
        // All at once: each waits for its first byte.
        let rest: Vec<RangeRead> = reads.collect();
        let prefix = first.peek(PREFIX_BYTES).await?;
        let Some(head_bytes) = prefix.and_then(|prefix| PackedHead::bytes_of_head(&prefix)) else {
            // One that is longer is refused by its length.
            let length = size_of(bytes).min(limits::WORKING_SET_BYTES_MAX + 1);
            let alone = first.take_head(sources, &path, length).await?;
            return Ok(Self { set: WorkingSet::decode(&alone, sources.keys())?, packed: None });
        };
        let head = PackedHead::decode(&first.take_head(sources, &path, head_bytes).await?, sources.keys())?;
        let set = head.set().clone();
        let places = head.places(u64_of(head_bytes));
        let reads = std::iter::once(first).chain(rest).collect();
        Ok(Self { set, packed: pages.then_some(PackedReads { head, places, reads, urgency }) })
    }
}

/// Equal parts of an object, so many that all streams work and that none costs more than its bytes.
fn equal_ranges(bytes: u64, cost: RequestCost) -> Vec<Range<u64>> {
    let count = (bytes / cost.bytes.max(1)).clamp(1, cost.streams.max(1));
    let count = count.max(bytes.div_ceil(limits::EXTENT_BYTES_MAX));
    (0..count).map(|part| bytes * part / count..bytes * (part + 1) / count).collect()
}

fn size_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl RangeRead {
    fn ask(sources: &Sources, path: &ObjectPath, range: Range<u64>, urgency: &Arc<Urgency>) -> Self {
        let (sources, path, asked) = (sources.clone(), path.clone(), range.clone());
        let urgency = Arc::clone(urgency);
        let read = async move {
            let stream = sources.stream(&urgency).await;
            let reading = sources.working_set(path, asked, &urgency).await?;
            Ok(Comes { arrived: BytesMut::new(), reading, _stream: stream })
        };
        Self { range, begun: Begun::Asked(AbortOnDropHandle::new(tokio::spawn(read))) }
    }

    /// The answer, once its first bytes are there; none if the engine ends.
    async fn comes(&mut self) -> Result<Option<&mut Comes>, SourceError> {
        if let Begun::Asked(asked) = &mut self.begun {
            match asked.await {
                Ok(comes) => self.begun = Begun::Comes(Box::new(comes?)),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Ok(None),
                },
            }
        }
        match &mut self.begun {
            Begun::Comes(comes) => Ok(Some(comes)),
            Begun::Asked(_) => Ok(None),
        }
    }

    /// Waits for its next bytes; false if so many do not come.
    async fn arrive(&mut self, count: usize) -> Result<bool, SourceError> {
        let Some(comes) = self.comes().await? else { return Ok(false) };
        let Comes { arrived, reading, .. } = comes;
        while arrived.len() < count
            && let Some(bytes) = reading.next().await?
        {
            arrived.extend_from_slice(&bytes);
        }
        Ok(arrived.len() >= count)
    }

    /// Its next bytes, which are taken later; none if so many do not come.
    async fn peek(&mut self, count: usize) -> Result<Option<Bytes>, SourceError> {
        let came = self.arrive(count).await?;
        let comes = self.comes().await?.filter(|_| came);
        Ok(comes.map(|comes| Bytes::copy_from_slice(&comes.arrived[..count])))
    }

    /// Takes its next bytes; none if so many do not come.
    pub(crate) async fn take(&mut self, count: usize) -> Result<Option<Bytes>, SourceError> {
        let came = self.arrive(count).await?;
        let comes = self.comes().await?.filter(|_| came);
        let Some(taken) = comes.map(|comes| comes.arrived.split_to(count).freeze()) else { return Ok(None) };
        self.range.start += u64_of(count);
        Ok(Some(taken))
    }

    /// Takes the first bytes of the object, which this read begins with; with another read if it is too short. Fewer if so
    /// many do not come.
    async fn take_head(
        &mut self,
        sources: &Sources,
        path: &ObjectPath,
        count: usize,
    ) -> Result<Bytes, SourceError> {
        let own = count.min(size_of(self.range.end));
        let Some(head) = self.take(own).await? else { return Ok(Bytes::new()) };
        if own == count {
            return Ok(head);
        }
        let urgency = Arc::new(Urgency::of(Class::Ahead));
        let mut more = Self::ask(sources, path, u64_of(own)..u64_of(count), &urgency);
        let rest = more.take(count - own).await?.unwrap_or_default();
        Ok([head, rest].concat().into())
    }

    /// The end of a read all of whose bytes were taken.
    pub(crate) async fn end(self) {
        if let Begun::Comes(comes) = self.begun {
            // An error here was one of the last bytes too.
            comes.reading.end().await.ok();
        }
    }
}
