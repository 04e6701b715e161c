//! Disks: a volume of a snapshot, with what its guest writes, served over NBD at a unix socket.

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
mod server;

pub use import::{ImportError, Imported, import};
pub use overlay::{Overlay, OverlayError, OverlayFiles};
pub use server::{Access, Disk, DiskSource, DiskStats, DiskWatch, Frozen};
