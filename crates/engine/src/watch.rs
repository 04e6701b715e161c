//! Receivers of news about snapshots and collections.

use std::fmt::Debug;
use std::sync::Arc;

use crate::collect::Collected;
use crate::snapshot::Snapshot;

/// Receiver of changes, called on the thread that made them, with no lock held; it must be quick.
pub trait Watcher: Debug + Send + Sync {
    /// The snapshot's state has changed, or a try to seal or publish it has failed; see [`Snapshot::status`]. May be
    /// called before the engine's start has returned, and more than once for one change.
    fn changed(&self, snapshot: &Arc<Snapshot>);

    /// This node has collected in the store.
    fn collected(&self, _: &Collected) {}
}

/// A watcher that does nothing.
#[derive(Debug)]
pub struct NoWatcher;

impl Watcher for NoWatcher {
    fn changed(&self, _: &Arc<Snapshot>) {}
}
