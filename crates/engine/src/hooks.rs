//! Points at which a test can stop background work; the program sets none.

use std::fmt::Debug;
use std::io;

use crate::identity::SnapshotId;

/// Called at the named points, on the thread that does the work, with no lock held.
pub trait Hooks: Debug + Send + Sync {
    /// Before a snapshot's captured pages are compared; may block for ever.
    fn before_compare(&self, _snapshot: SnapshotId) {}

    /// Before a page of the parent is read for comparison; an error stands for a failed read.
    fn parent_read(&self) -> io::Result<()> {
        Ok(())
    }

    /// Before a thread is asked for to save a snapshot on; an error stands for a system that has no thread left.
    fn before_thread(&self, _snapshot: SnapshotId) -> io::Result<()> {
        Ok(())
    }

    /// Before a snapshot that was found in the store is recorded and known.
    fn before_opened(&self, _snapshot: SnapshotId) {}

    /// Before a call waits for a snapshot that others are opening.
    fn before_open_waits(&self, _snapshot: SnapshotId) {}

    /// Before a snapshot waits for its parent's manifest.
    fn before_manifest(&self, _snapshot: SnapshotId) {}

    /// Before a sealed snapshot's manifest goes into the catalog.
    fn before_record(&self, _snapshot: SnapshotId) {}

    /// Before the keeper lets go of a sealed snapshot's memory.
    fn before_forget(&self, _snapshot: SnapshotId) {}
}

/// No hook at all.
#[derive(Debug)]
pub struct NoHooks;

impl Hooks for NoHooks {}
