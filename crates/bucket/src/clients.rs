//! The clients of one bucket: one for reads, whose tries are short, and one for writes, whose tries are patient.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    BackoffConfig, CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, RetryConfig,
};

use super::slow_down::Class;

/// A bucket. Its clients hold credentials, so only its name is shown.
pub(super) struct Clients {
    name: String,
    reading: Arc<dyn Client>,
    publishing: Arc<dyn Client>,
}

/// A client of a bucket.
pub(super) trait Client: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Client for T {}

impl Clients {
    /// The bucket of this name, with a client of each class.
    pub(super) fn new(
        name: String,
        client: impl Fn(Class) -> std::result::Result<Arc<dyn Client>, String>,
    ) -> std::result::Result<Self, String> {
        Ok(Self { name, reading: client(Class::Reading)?, publishing: client(Class::Publishing)? })
    }
}

/// Tries of a request of this class within one call; the engine's callers try again later.
pub(super) fn retries(class: Class) -> RetryConfig {
    let (max_retries, retry_timeout, last) = match class {
        Class::Reading => (5, Duration::from_secs(20), Duration::from_secs(1)),
        Class::Publishing => (8, Duration::from_secs(120), Duration::from_secs(10)),
    };
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(50), max_backoff: last, base: 2. };
    RetryConfig { backoff, max_retries, retry_timeout }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[async_trait]
impl ObjectStore for Clients {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.publishing.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.publishing.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.reading.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.reading.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.publishing.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.reading.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.reading.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.reading.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.publishing.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Clients {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.publishing.create_multipart(path).await
    }

    async fn create_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<MultipartId> {
        self.publishing.create_multipart_opts(path, options).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        number: usize,
        payload: PutPayload,
    ) -> Result<PartId> {
        self.publishing.put_part(path, id, number, payload).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.publishing.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.publishing.abort_multipart(path, id).await
    }
}
