//! Points at which a test can stop background work; the program sets none.

use std::fmt::Debug;
use std::io;

use futures_util::future::{BoxFuture, FutureExt, ready};

use crate::identity::SnapshotId;

/// A test's hooks, called at the named points with no lock held. If a hook returns a future, the work waits for it.
pub trait Hooks: Debug + Send + Sync {
    /// Before a snapshot's captured pages are compared; may wait for ever.
    fn before_compare(&self, _snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    /// Before a page of the parent is read for comparison; an error makes that read fail.
    fn parent_read(&self) -> io::Result<()> {
        Ok(())
    }

    /// Before a snapshot that was found in the store is recorded.
    fn before_opened(&self, _snapshot: SnapshotId) {}

    /// Before a call waits for a snapshot that others are opening.
    fn before_open_waits(&self, _snapshot: SnapshotId) {}

    /// Before a snapshot waits for its parent's manifest.
    fn before_manifest(&self, _snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    /// Before a sealed snapshot's manifest goes into the catalog.
    fn before_record(&self, _snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    /// Before the keeper forgets a sealed snapshot's memory.
    fn before_forget(&self, _snapshot: SnapshotId) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// Hooks that do nothing.
#[derive(Debug)]
pub struct NoHooks;

impl Hooks for NoHooks {}
