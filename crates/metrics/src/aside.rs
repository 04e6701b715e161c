//! Counts of the things that a daemon has set aside.

use std::fmt;

/// Counts of the things at the keeper that are set aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsideCounts {
    /// Guests, those included that have only files yet.
    pub guests: u64,
    /// Captured snapshots.
    pub snapshots: u64,
    /// Fault sockets.
    pub fault_sockets: u64,
}

impl AsideCounts {
    /// True if there is any.
    pub fn is_some(self) -> bool {
        self != Self::default()
    }
}

impl fmt::Display for AsideCounts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guests, snapshots, fault_sockets } = self;
        write!(out, "{guests} guests, {snapshots} captured snapshots and {fault_sockets} fault sockets")
    }
}
