//! A store that fails, stalls, lies, or returns short or damaged bytes, as a test sets it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use crate::rules::{self, Rules};

pub use crate::rules::Operation;

/// Faults of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and nothing was done.
    Fail,
    /// It succeeds, and is reported as failed.
    Lie,
    /// It is not answered until the fault ends, and then succeeds.
    Stall,
    /// It panics.
    Panic,
    /// Half of the bytes read are missing; a write fails.
    Truncate,
    /// One bit of the bytes read is wrong; a write fails.
    Corrupt,
}

/// Error text of an operation that fails by a fault.
pub const REFUSAL: &str = "a test lets this fail";

/// A fault and the operations that it hits.
pub type Rule = rules::Rule<Fault>;

/// The faults of a store, from the test's side. Clones control the same store.
pub type Faults = Rules<Fault>;

/// A fault that lasts until this is dropped.
pub type Injected = rules::Injected<Fault>;

impl Faults {
    /// Makes every operation fail until the result is dropped.
    pub fn outage(&self) -> Vec<Injected> {
        [Operation::Begin, Operation::Put, Operation::Get, Operation::Delete, Operation::List]
            .map(|on| self.inject(Rule::always(on, "", Fault::Fail)))
            .into()
    }

    /// The fault that hits this operation, after waiting for stalls to end.
    async fn met(&self, on: Operation, path: &Path) -> Option<Fault> {
        self.called(on, path.as_ref());
        loop {
            let (number, fault) = self.strike(on, path.as_ref())?;
            assert!(fault != Fault::Panic, "a test lets this panic");
            if fault != Fault::Stall {
                return Some(fault);
            }
            self.ended(number).await;
        }
    }
}

/// A store over another one, with faults.
#[derive(Debug)]
pub struct UnreliableStore {
    inner: Arc<dyn ObjectStore>,
    faults: Faults,
}

impl UnreliableStore {
    /// A store that behaves like `inner` as long as no fault is set.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, faults: Faults::default() }
    }

    /// The control of its faults.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }
}

impl fmt::Display for UnreliableStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unreliable {}", self.inner)
    }
}

fn refused() -> Error {
    Error::Generic { store: "test", source: REFUSAL.into() }
}

#[async_trait]
impl ObjectStore for UnreliableStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.faults.met(Operation::Put, path).await {
            None | Some(Fault::Stall) => self.inner.put_opts(path, payload, options).await,
            Some(Fault::Lie) => {
                self.inner.put_opts(path, payload, options).await?;
                Err(refused())
            }
            Some(Fault::Fail | Fault::Panic | Fault::Truncate | Fault::Corrupt) => Err(refused()),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let fault = self.faults.met(Operation::Begin, path).await;
        if !matches!(fault, None | Some(Fault::Stall)) {
            return Err(refused());
        }
        let inner = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(UnreliableUpload { inner, faults: self.faults(), path: path.clone() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        match self.faults.met(Operation::Get, path).await {
            None | Some(Fault::Stall) => self.inner.get_opts(path, options).await,
            Some(Fault::Fail | Fault::Panic | Fault::Lie) => Err(refused()),
            Some(Fault::Truncate) => {
                changed_answer(self.inner.get_opts(path, options).await?, |bytes| {
                    bytes.truncate(bytes.len() / 2);
                })
                .await
            }
            Some(Fault::Corrupt) => {
                changed_answer(self.inner.get_opts(path, options).await?, |bytes| {
                    let middle = bytes.len() / 2;
                    if let Some(byte) = bytes.get_mut(middle) {
                        *byte ^= 1;
                    }
                })
                .await
            }
        }
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let mut answers = Vec::with_capacity(ranges.len());
        for range in ranges {
            let options = GetOptions { range: Some(range.clone().into()), ..GetOptions::default() };
            answers.push(self.get_opts(path, options).await?.bytes().await?);
        }
        Ok(answers)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), self.faults());
        let delete = move |path: Path| {
            let (inner, faults) = (Arc::clone(&inner), faults.clone());
            async move {
                let fault = faults.met(Operation::Delete, &path).await;
                if matches!(fault, None | Some(Fault::Lie | Fault::Stall)) {
                    inner.delete(&path).await?;
                }
                if fault.is_none() { Ok(path) } else { Err(refused()) }
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, faults) = (Arc::clone(&self.inner), self.faults());
        let prefix = prefix.cloned().unwrap_or_default();
        let listed = async move {
            match faults.met(Operation::List, &prefix).await {
                None | Some(Fault::Stall) => inner.list(Some(&prefix)),
                Some(Fault::Fail | Fault::Panic | Fault::Lie | Fault::Truncate | Fault::Corrupt) => {
                    futures_util::stream::once(async { Err(refused()) }).boxed()
                }
            }
        };
        futures_util::stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

async fn changed_answer(answer: GetResult, change: impl FnOnce(&mut Vec<u8>)) -> Result<GetResult> {
    let (meta, range) = (answer.meta.clone(), answer.range.clone());
    let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
    let mut bytes = answer.bytes().await?.to_vec();
    change(&mut bytes);
    let body = futures_util::stream::once(async { Ok(Bytes::from(bytes)) }).boxed();
    Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes, extensions })
}

#[derive(Debug)]
struct UnreliableUpload {
    inner: Box<dyn MultipartUpload>,
    faults: Faults,
    path: Path,
}

#[async_trait]
impl MultipartUpload for UnreliableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.inner.put_part(data);
        let (faults, path) = (self.faults.clone(), self.path.clone());
        Box::pin(async move {
            match faults.met(Operation::Put, &path).await {
                None | Some(Fault::Stall) => part.await,
                Some(Fault::Lie) => {
                    part.await?;
                    Err(refused())
                }
                Some(Fault::Fail | Fault::Panic | Fault::Truncate | Fault::Corrupt) => Err(refused()),
            }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        match self.faults.met(Operation::Put, &self.path).await {
            None | Some(Fault::Stall) => self.inner.complete().await,
            Some(Fault::Lie) => {
                self.inner.complete().await?;
                Err(refused())
            }
            Some(Fault::Fail | Fault::Panic | Fault::Truncate | Fault::Corrupt) => Err(refused()),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
