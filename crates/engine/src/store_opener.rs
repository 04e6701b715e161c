//! The means by which an engine comes to its store.

use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::multipart::MultipartStore;

/// A store that was opened.
#[derive(Clone)]
pub struct OpenedStore {
    /// Its objects.
    pub objects: Arc<dyn ObjectStore>,
    /// Its uploads in parts, if they outlive the process that began them; none for a directory.
    pub uploads: Option<Arc<dyn MultipartStore>>,
}

/// Opens a store; may block, even for ever.
pub trait StoreOpener: fmt::Debug + Send + Sync {
    /// Opens it; the error is for people. If `holds` says that it has snapshots, a missing store is not made.
    fn open(&self, holds: Holds) -> Result<OpenedStore, String>;

    /// Requests that failed so far; none for a store that has no requests.
    fn failed_requests(&self) -> FailedRequests {
        FailedRequests::default()
    }
}

impl From<Arc<dyn ObjectStore>> for OpenedStore {
    fn from(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, uploads: None }
    }
}

impl fmt::Debug for OpenedStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("OpenedStore").field(&self.objects).finish()
    }
}

/// The catalog's knowledge of a store before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// This node has never used a store.
    Nothing,
    /// This node has used a store, which may have its snapshots.
    Snapshots,
}

/// Counts of requests to a store that failed and were sent again where their time allowed, by the work they were for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FailedRequests {
    /// Reads and lists.
    pub reading: Failures,
    /// Writes and deletions.
    pub publishing: Failures,
}

/// Counts of failed requests by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Failures {
    /// The store asked for fewer requests.
    pub slow_downs: u64,
    /// It did not answer in time.
    pub timeouts: u64,
    /// The connection broke, or the store had an error of its own.
    pub others: u64,
}
