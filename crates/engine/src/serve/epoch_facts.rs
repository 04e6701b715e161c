//! The facts of a served guest that its record has, and the digest by which its journal is known.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::regions::{Region, Regions};
use crate::tracking::Tracking;

/// Recorded facts of a served guest; the kept descriptors have everything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochFacts {
    /// The VMM's process.
    pub pid: u32,
    /// Addresses of the guest's pages in it.
    pub regions: Vec<Region>,
    /// The way in which the guest's writes are tracked.
    pub tracking: Tracking,
    /// The snapshot of whose image its memory is a private mapping; none where its memory is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Uuid>,
}

/// A digest of an epoch's facts, the same in every version.
pub(super) fn digest_of(pid: u32, regions: &Regions, tracking: Tracking) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let tracking: u64 = match tracking {
        Tracking::Scan => 0,
        Tracking::Events => 1,
        Tracking::Resident => 2,
        Tracking::Diverged => 3,
    };
    let mut add = |word: u64| {
        hasher.update(&word.to_le_bytes());
    };
    [u64::from(pid), tracking].into_iter().for_each(&mut add);
    for region in regions.iter() {
        let pages = u64::from(region.unit_pages());
        [region.start, region.bytes, region.offset, pages].into_iter().for_each(&mut add);
    }
    *hasher.finalize().as_bytes()
}
