//! The limits of reading from other nodes.

use std::time::Duration;

/// Bytes of a node's name or address.
pub const NODE_BYTES_MAX: usize = 255;

/// Bytes of an origin record.
pub const ORIGIN_BYTES_MAX: usize = 4096;

/// Bytes of the reason that a snapshot of another node is refuted.
pub const REFUTED_BYTES_MAX: usize = 4 << 10;

/// Frames of a snapshot that are brought at once from the node that has it, ahead of all need.
pub const REMOTE_FRAMES_AT_ONCE: usize = 8;

/// Pause before a node that has just said that a snapshot is not in the store is asked again.
pub const REMOTE_ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
