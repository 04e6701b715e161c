//! A store in a directory that fails when it is told to.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use rekindle_engine::store::Store;

/// How many more reads and writes succeed.
#[derive(Debug)]
pub(crate) struct Outage {
    reads_left: AtomicU64,
    writes_left: AtomicU64,
    failures: AtomicU64,
}

/// The store.
#[derive(Debug)]
pub(crate) struct OutageStore {
    files: LocalFileSystem,
    outage: Arc<Outage>,
}

impl Outage {
    /// From now on `reads` more reads succeed, and no other.
    pub(crate) fn fail_reads_after(&self, reads: u64) {
        self.reads_left.store(reads, Ordering::SeqCst);
    }

    /// From now on `writes` more writes succeed, each part of an upload being one, and no other.
    pub(crate) fn fail_writes_after(&self, writes: u64) {
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    /// From now on everything succeeds.
    pub(crate) fn end(&self) {
        self.fail_reads_after(u64::MAX);
        self.fail_writes_after(u64::MAX);
    }

    /// Reads and writes that failed so far.
    pub(crate) fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    fn read(&self) -> Result<()> {
        self.take(&self.reads_left)
    }

    fn write(&self) -> Result<()> {
        self.take(&self.writes_left)
    }

    fn take(&self, left: &AtomicU64) -> Result<()> {
        let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            u64::MAX => Some(left),
            left => left.checked_sub(1),
        });
        if taken.is_ok() {
            return Ok(());
        }
        self.failures.fetch_add(1, Ordering::SeqCst);
        Err(Error::Generic { store: "outage", source: "the store is away".into() })
    }
}

impl OutageStore {
    /// A store over `directory`, and what tells it to fail; it does not yet.
    pub(crate) fn over(directory: &Path) -> (Store, Arc<Outage>) {
        std::fs::create_dir_all(directory).expect("the directory can be made");
        let files = LocalFileSystem::new_with_prefix(directory).expect("a store in a directory");
        let [reads_left, writes_left] = [u64::MAX; 2].map(AtomicU64::new);
        let outage = Arc::new(Outage { reads_left, writes_left, failures: AtomicU64::new(0) });
        let store = Self { files: files.with_fsync(true), outage: Arc::clone(&outage) };
        (Store::new(Arc::new(store)), outage)
    }
}

impl fmt::Display for OutageStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} with outages", self.files)
    }
}

/// An upload each part of which may fail.
#[derive(Debug)]
struct OutageUpload {
    upload: Box<dyn MultipartUpload>,
    outage: Arc<Outage>,
}

impl ObjectStore for OutageStore {
    fn put_opts<'this, 'path, 'future>(
        &'this self,
        location: &'path ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'future, Result<PutResult>>
    where
        'this: 'future,
        'path: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            self.outage.write()?;
            self.files.put_opts(location, payload, options).await
        })
    }

    fn put_multipart_opts<'this, 'path, 'future>(
        &'this self,
        location: &'path ObjectPath,
        options: PutMultipartOptions,
    ) -> BoxFuture<'future, Result<Box<dyn MultipartUpload>>>
    where
        'this: 'future,
        'path: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            self.outage.write()?;
            let upload = self.files.put_multipart_opts(location, options).await?;
            let outage = Arc::clone(&self.outage);
            let upload: Box<dyn MultipartUpload> = Box::new(OutageUpload { upload, outage });
            Ok(upload)
        })
    }

    fn get_opts<'this, 'path, 'future>(
        &'this self,
        location: &'path ObjectPath,
        options: GetOptions,
    ) -> BoxFuture<'future, Result<GetResult>>
    where
        'this: 'future,
        'path: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            self.outage.read()?;
            self.files.get_opts(location, options).await
        })
    }

    fn get_ranges<'this, 'path, 'ranges, 'future>(
        &'this self,
        location: &'path ObjectPath,
        ranges: &'ranges [Range<u64>],
    ) -> BoxFuture<'future, Result<Vec<Bytes>>>
    where
        'this: 'future,
        'path: 'future,
        'ranges: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            self.outage.read()?;
            self.files.get_ranges(location, ranges).await
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_delimiter<'this, 'path, 'future>(
        &'this self,
        prefix: Option<&'path ObjectPath>,
    ) -> BoxFuture<'future, Result<ListResult>>
    where
        'this: 'future,
        'path: 'future,
        Self: 'future,
    {
        self.files.list_with_delimiter(prefix)
    }

    fn copy_opts<'this, 'from, 'to, 'future>(
        &'this self,
        from: &'from ObjectPath,
        to: &'to ObjectPath,
        options: CopyOptions,
    ) -> BoxFuture<'future, Result<()>>
    where
        'this: 'future,
        'from: 'future,
        'to: 'future,
        Self: 'future,
    {
        self.files.copy_opts(from, to, options)
    }
}

impl MultipartUpload for OutageUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match self.outage.write() {
            Ok(()) => self.upload.put_part(data),
            Err(error) => Box::pin(async move { Err(error) }),
        }
    }

    fn complete<'this, 'future>(&'this mut self) -> BoxFuture<'future, Result<PutResult>>
    where
        'this: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            self.outage.write()?;
            self.upload.complete().await
        })
    }

    fn abort<'this, 'future>(&'this mut self) -> BoxFuture<'future, Result<()>>
    where
        'this: 'future,
        Self: 'future,
    {
        self.upload.abort()
    }
}
