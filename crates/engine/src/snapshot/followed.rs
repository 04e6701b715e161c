//! The node that has a snapshot, and the follower of it there.

use std::sync::Arc;

use crate::peer::Peer;

/// The node that has a snapshot, and the life that follows it there.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) peer: Arc<dyn Peer>,
    pub(super) by: Follower,
}

/// The follower of a snapshot that another node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follower {
    /// Its life.
    Life,
    /// Its life, which is told to end.
    EndingLife,
    /// None.
    Nobody,
}
