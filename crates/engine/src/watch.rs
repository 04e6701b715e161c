//! Receivers of news about snapshots.

use std::fmt::Debug;
use std::sync::Arc;

use crate::snapshot::Snapshot;

/// Told of changes, on the thread that made them and with no lock held; it is to be quick.
pub trait Watcher: Debug + Send + Sync {
    /// The snapshot's state has changed, or a try to seal or publish it has failed: [`Snapshot::status`] says which. May
    /// be called before the engine's start has returned, and more than once for one change.
    fn changed(&self, snapshot: &Arc<Snapshot>);
}

/// Tells no one.
#[derive(Debug)]
pub struct NoWatcher;

impl Watcher for NoWatcher {
    fn changed(&self, _: &Arc<Snapshot>) {}
}
