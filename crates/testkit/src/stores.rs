//! A store that fails, stalls, lies, or returns short or damaged bytes, as a test sets it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::sync::watch;

/// Operations of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A multipart upload is begun.
    Begin,
    /// An object or a part is written, or a multipart upload is completed.
    Put,
    /// An object, or a range of one, is read.
    Get,
    /// An object is deleted.
    Delete,
    /// Objects are listed by a prefix.
    List,
}

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
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The operation that it hits.
    pub on: Operation,
    /// The prefix of the object names that it hits; empty for all.
    pub under: &'static str,
    /// The fault.
    pub fault: Fault,
    /// Number of such operations that succeed first.
    pub after: u32,
    /// Number of operations that are then hit.
    pub times: u32,
}

impl Rule {
    /// Hits every such operation.
    pub fn always(on: Operation, under: &'static str, fault: Fault) -> Self {
        Self { on, under, fault, after: 0, times: u32::MAX }
    }

    /// Hits one operation.
    pub fn once(on: Operation, under: &'static str, fault: Fault) -> Self {
        Self { times: 1, ..Self::always(on, under, fault) }
    }
}

/// The faults of a store, from the test's side. Clones control the same store.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the faults, so that stalled operations check again.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    active: Vec<Active>,
    calls: Vec<(Operation, Path)>,
    struck: usize,
    stalled: usize,
}

#[derive(Debug)]
struct Active {
    number: u64,
    rule: Rule,
    seen: u32,
}

/// A fault that lasts until this is dropped.
#[derive(Debug)]
#[must_use = "dropped, the fault ends"]
pub struct Injected {
    faults: Faults,
    number: u64,
}

impl Faults {
    fn new() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), changes: watch::Sender::new(0) }))
    }

    /// Applies `rule` until the result is dropped.
    pub fn inject(&self, rule: Rule) -> Injected {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.active.push(Active { number, rule, seen: 0 });
        Injected { faults: self.clone(), number }
    }

    /// Makes every operation fail until the result is dropped.
    pub fn outage(&self) -> Vec<Injected> {
        [Operation::Begin, Operation::Put, Operation::Get, Operation::Delete, Operation::List]
            .map(|on| self.inject(Rule::always(on, "", Fault::Fail)))
            .into()
    }

    /// Number of calls of an operation on objects whose names start with `under`.
    pub fn calls(&self, on: Operation, under: &str) -> usize {
        let called =
            |(operation, path): &&(Operation, Path)| *operation == on && path.as_ref().starts_with(under);
        self.state().calls.iter().filter(called).count()
    }

    /// Number of operations that were hit by a fault.
    pub fn struck(&self) -> usize {
        self.state().struck
    }

    /// Blocks until some operation is stalled.
    pub fn wait_stalled(&self) {
        self.wait_until(|faults| faults.state().stalled > 0);
    }

    /// Blocks until there were `times` calls of an operation on objects whose names start with `under`.
    pub fn wait_calls(&self, on: Operation, under: &str, times: usize) {
        self.wait_until(|faults| faults.calls(on, under) >= times);
    }

    fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        let mut changes = self.0.changes.subscribe();
        let runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
        runtime.block_on(async {
            while !reached(self) {
                changes.changed().await.expect("the sender is ours");
            }
        });
    }

    /// The fault that hits this operation, after waiting for stalls to end.
    async fn strike(&self, on: Operation, path: &Path) -> Option<Fault> {
        self.state().calls.push((on, path.clone()));
        self.changed();
        loop {
            let (number, fault) = self.state().next_fault(on, path)?;
            assert!(fault != Fault::Panic, "a test lets this panic");
            if fault != Fault::Stall {
                return Some(fault);
            }
            self.stall(number).await;
        }
    }

    /// Waits until the fault is over.
    async fn stall(&self, number: u64) {
        let mut changes = self.0.changes.subscribe();
        self.state().stalled += 1;
        self.changed();
        while self.state().active.iter().any(|active| active.number == number) {
            changes.changed().await.expect("the sender is ours");
        }
        self.state().stalled -= 1;
    }

    fn changed(&self) {
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no thread panics while it holds a lock")
    }
}

impl State {
    fn next_fault(&mut self, on: Operation, path: &Path) -> Option<(u64, Fault)> {
        let mut struck = None;
        for active in &mut self.active {
            let Rule { under, fault, after, times, .. } = active.rule;
            if active.rule.on != on || !path.as_ref().starts_with(under) {
                continue;
            }
            active.seen += 1;
            if active.seen > after && active.seen - after <= times {
                struck = Some((active.number, fault));
                break;
            }
        }
        self.struck += usize::from(struck.is_some());
        struck
    }
}

impl Drop for Injected {
    fn drop(&mut self) {
        self.faults.state().active.retain(|active| active.number != self.number);
        self.faults.changed();
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
        Self { inner, faults: Faults::new() }
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
        match self.faults.strike(Operation::Put, path).await {
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
        let fault = self.faults.strike(Operation::Begin, path).await;
        if !matches!(fault, None | Some(Fault::Stall)) {
            return Err(refused());
        }
        let inner = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(UnreliableUpload { inner, faults: self.faults(), path: path.clone() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        match self.faults.strike(Operation::Get, path).await {
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
                let fault = faults.strike(Operation::Delete, &path).await;
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
            match faults.strike(Operation::List, &prefix).await {
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
            match faults.strike(Operation::Put, &path).await {
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
        match self.faults.strike(Operation::Put, &self.path).await {
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
