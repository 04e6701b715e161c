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

/// Layers that a node is asked for in one message.
pub const LAYERS_ASKED_AT_ONCE: usize = 1024;

/// Time for its answer; one that comes later is of no use, as the pages have come from elsewhere.
pub const LAYERS_ASKED_WITHIN: Duration = Duration::from_secs(5);

/// Frames of a layer in one message between nodes: 4 MiB.
pub const PEER_FRAMES_MAX: usize = 16;

/// Time for such a message of a read ahead; after it the store is asked for the rest.
pub const PEER_MESSAGE_WITHIN: Duration = Duration::from_secs(2);

/// Messages of frames of one read ahead that are under way from a node.
pub const PEER_MESSAGES_AT_ONCE: usize = 2;

/// Bounds of the time after which an answer of a node is late, and the store is asked beside.
pub const PEER_LATE_AFTER_MIN: Duration = Duration::from_millis(20);
/// The upper one.
pub const PEER_LATE_AFTER_MAX: Duration = Duration::from_millis(500);

/// Late answers in a row after which a node is not asked for a while.
pub const PEER_LATE_MAX: u32 = 3;

/// Time for which a node that failed is not asked for layers.
pub const PEER_SOURCE_AWAY_FOR: Duration = Duration::from_secs(2);

/// The same for one that sent wrong bytes.
pub const PEER_SOURCE_WRONG_FOR: Duration = Duration::from_secs(600);

/// One in so many reads goes to a node that was slower than the store, to see if it still is.
pub const PEER_TRIED_EVERY: u32 = 32;
