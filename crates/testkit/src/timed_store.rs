//! A store over another one that answers after the time that a model of a network gives, by the runtime's clock, and
//! notes every read. On a runtime whose clock is paused the time is virtual.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// Bytes of an answer that come together.
const CHUNK_BYTES: usize = 256 << 10;

/// The network between a node and a store.
#[derive(Debug, Clone, Copy)]
pub struct Network {
    /// Time from a request to the first byte of its answer.
    pub first_byte: Duration,
    /// Bytes in a second of one answer.
    pub bytes_a_second: u64,
    /// Answers that come at once; further requests wait.
    pub streams: usize,
}

/// A read that was answered, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimedRead {
    /// The object, or the prefix of a list.
    pub path: String,
    /// True for a list.
    pub is_list: bool,
    /// Bytes of the object that came.
    pub range: Range<u64>,
    /// When it was asked for, since the store was made.
    pub asked: Duration,
    /// When the last byte was there.
    pub answered: Duration,
}

/// The store.
#[derive(Debug)]
pub struct TimedStore {
    inner: Arc<dyn ObjectStore>,
    network: Network,
    streams: Arc<Semaphore>,
    log: ReadLog,
}

/// The reads of a store so far, from the test's side. Clones are of the same store.
#[derive(Debug, Clone)]
pub struct ReadLog {
    made: Instant,
    reads: Arc<Mutex<Vec<TimedRead>>>,
}

/// An answer under way: it has a stream of its own.
struct Answer {
    permit: OwnedSemaphorePermit,
    asked: Instant,
    began: Instant,
}

impl TimedStore {
    /// A store that has the objects of `inner`, made on a runtime.
    pub fn new(inner: Arc<dyn ObjectStore>, network: Network) -> Self {
        let log = ReadLog { made: Instant::now(), reads: Arc::default() };
        Self { inner, network, streams: Arc::new(Semaphore::new(network.streams)), log }
    }

    /// Its reads.
    pub fn log(&self) -> ReadLog {
        self.log.clone()
    }

    /// Waits for the first byte of an answer.
    async fn answer(&self) -> Answer {
        let asked = Instant::now();
        let permit = Arc::clone(&self.streams).acquire_owned().await.expect("it is never closed");
        let began = Instant::now() + self.network.first_byte;
        sleep_until(began).await;
        Answer { permit, asked, began }
    }
}

impl ReadLog {
    /// The reads that were answered, in the order of their ends.
    pub fn reads(&self) -> Vec<TimedRead> {
        self.entries().clone()
    }

    /// Time since the store was made.
    pub fn now(&self) -> Duration {
        self.made.elapsed()
    }

    fn note(&self, path: &Path, is_list: bool, range: Range<u64>, answer: Answer) {
        let asked = answer.asked.duration_since(self.made);
        let answered = self.now();
        self.entries().push(TimedRead { path: path.to_string(), is_list, range, asked, answered });
        drop(answer.permit);
    }

    fn entries(&self) -> MutexGuard<'_, Vec<TimedRead>> {
        self.reads.lock().expect("no thread panics while it holds a lock")
    }
}

impl Network {
    fn time_of(self, bytes: usize) -> Duration {
        let bytes = u32::try_from(bytes).expect("an answer is short");
        Duration::from_secs(1) * bytes / u32::try_from(self.bytes_a_second).expect("a network of today")
    }
}

impl fmt::Display for TimedStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "timed {}", self.inner)
    }
}

#[async_trait]
impl ObjectStore for TimedStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let answer = self.answer().await;
        let found = self.inner.get_opts(path, options).await?;
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let (attributes, extensions) = (found.attributes.clone(), found.extensions.clone());
        let body = Body {
            bytes: found.bytes().await?,
            sent: 0,
            network: self.network,
            end: Some((answer, self.log(), path.clone(), range.clone())),
        };
        let chunks = futures_util::stream::unfold(body, Body::next).boxed();
        Ok(GetResult { payload: GetResultPayload::Stream(chunks), meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let (listed, log, first_byte) = (self.inner.list(Some(&prefix)), self.log(), self.network.first_byte);
        let streams = Arc::clone(&self.streams);
        let waited = async move {
            let asked = Instant::now();
            let permit = streams.acquire_owned().await.expect("it is never closed");
            let began = Instant::now() + first_byte;
            sleep_until(began).await;
            log.note(&prefix, true, 0..0, Answer { permit, asked, began });
            listed
        };
        futures_util::stream::once(waited).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// The bytes of an answer that are still to come.
struct Body {
    bytes: Bytes,
    sent: usize,
    network: Network,
    /// The read, noted once they have come.
    end: Option<(Answer, ReadLog, Path, Range<u64>)>,
}

impl Body {
    async fn next(mut self) -> Option<(Result<Bytes>, Self)> {
        let (answer, ..) = self.end.as_ref()?;
        let began = answer.began;
        let chunk = self.bytes.split_to(CHUNK_BYTES.min(self.bytes.len()));
        self.sent += chunk.len();
        sleep_until(began + self.network.time_of(self.sent)).await;
        if self.bytes.is_empty()
            && let Some((answer, log, path, range)) = self.end.take()
        {
            log.note(&path, false, range, answer);
        }
        Some((Ok(chunk), self))
    }
}
