//! Things of this machine that one guest has at a time.

use super::network::Network;

/// Things of a guest that another one can have only once its process is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Exclusive {
    /// The network it is in: its taps have no other guest.
    pub(super) network: Network,
    /// True if its memory is of the host's huge pages.
    pub(super) huge_pages: bool,
}

impl Exclusive {
    /// True if both have something in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.huge_pages && other.huge_pages || self.network.shared_tap(&other.network).is_some()
    }
}
