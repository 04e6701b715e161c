//! The limits of reading from other nodes.

use std::time::Duration;

/// Bytes of a node's name or address.
pub const NODE_BYTES_MAX: usize = 255;

/// Frames of a snapshot that are brought at once from the node that has it, ahead of all need.
pub const REMOTE_FRAMES_AT_ONCE: usize = 8;

/// Time between two looks into the store for the manifest of a snapshot whose node does not say that it is there.
pub const REMOTE_LOOK_EVERY: Duration = Duration::from_secs(5);
