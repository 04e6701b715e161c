//! Every limit of the engine, each with its reason; what is written and what is read obey the same ones.

use std::time::Duration;

/// Bytes of a domain's, volume's or blob's name: a path component everywhere, with room for a prefix.
pub const NAME_BYTES_MAX: usize = 64;

/// Pages of a volume, and of all volumes of a manifest together: 1 TiB.
///
/// Bounds what a short manifest can make its reader allocate: 24 bytes for each 512 pages, 12 MiB.
pub const MANIFEST_PAGES_MAX: u32 = 1 << 28;

/// Volumes of a manifest: memory and a few disks.
pub const MANIFEST_VOLUMES_MAX: usize = 16;

/// Layers a manifest names: a cold resume opens each, so chains are merged before they get longer.
pub const MANIFEST_LAYERS_MAX: usize = 64;

/// Runs of all page maps of a manifest together: 64 times a map that is already called fragmented.
pub const MANIFEST_RUNS_MAX: u32 = 1 << 26;

/// Blobs of a manifest: device state, user metadata, and a few per driver.
pub const MANIFEST_BLOBS_MAX: usize = 16;

/// Bytes of one blob: device state is kilobytes for a microVM and a few megabytes for QEMU.
pub const BLOB_BYTES_MAX: usize = 32 << 20;

/// Bytes of an encoded publication: what the limits above allow at most, so no legal one is refused when read.
pub const PUBLICATION_BYTES_MAX: usize = 2 << 30;

/// Bytes of an encoded layer index: what a layer of [`MANIFEST_PAGES_MAX`] pages can take at most.
pub const LAYER_INDEX_BYTES_MAX: usize = 1 << 30;

/// Memory regions of one guest: a few by address layout, the rest by memory hot-plug.
pub const REGIONS_MAX: usize = 1024;

/// Bytes of a hand-over message: twice what [`REGIONS_MAX`] regions of about 115 bytes take.
pub const HANDOVER_BYTES_MAX: usize = 256 << 10;

/// Fault events read at once: as many as threads can usefully wait, and a batch stays within one page.
pub const FAULT_EVENTS_MAX: usize = 64;

/// Pages installed for one fault on a walk: 25 to 250 of them cost what one avoided fault does.
pub const NEIGHBOUR_PAGES_MAX: u32 = 64;

/// Interrupted installs of one page in a row before the guest is called stalled. Tens of thousands are ordinary while
/// its address space changes.
pub const INTERRUPTIONS_MAX: u32 = 200_000;

/// Interrupted installs tried again before new events are looked at.
pub const RETRIES_PER_TURN: usize = 32;

/// Pause before a failed install is tried again, the first time.
pub const INSTALL_RETRY_FIRST: Duration = Duration::from_millis(10);

/// The longest pause between two tries of a failed install.
pub const INSTALL_RETRY_LAST: Duration = Duration::from_secs(1);

/// Pages installed ahead before new events are looked at: 0.1 ms of copying.
pub const PREFETCH_SLICE_PAGES: u32 = 64;

/// Frames asked for ahead of the guest at once.
pub const PREFETCH_FRAMES_MAX: usize = 32;

/// Faults between two looks at where the faulting thread runs; a look costs about one fault.
pub const PLACEMENT_FAULTS: u32 = 64;
