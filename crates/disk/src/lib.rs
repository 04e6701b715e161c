//! Disks: a volume of a snapshot with its guest's writes over it, served over NBD at a unix socket.

mod access;
mod connection;
mod cold;
mod content;
mod gate;
mod import;
mod inbox;
pub mod limits;
mod marks;
mod nbd;
mod overlay;
mod served;
mod server;
mod stats;

pub use access::Access;
pub use import::{ImageFile, ImportError, Imported};
pub use overlay::{Overlay, OverlayError, OverlayFiles};
pub use server::{Disk, DiskSource, DiskWatch, Frozen};
pub use stats::DiskStats;

/// Bytes of a sector, the unit in which guests count a disk.
pub const SECTOR_BYTES: u64 = 512;

/// The length of a disk that has room for `bytes` bytes: whole sectors.
pub fn whole_sectors(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(u64::MAX)
}
