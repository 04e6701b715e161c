//! The limits of the protocol between nodes, and of both its ends.

use std::time::Duration;

use rekindle_engine::limits::LAYERS_ASKED_AT_ONCE;

/// Version of the protocol. Nodes of different versions refuse each other.
pub const VERSION: u32 = 1;

/// Runs of pages in one request.
pub const RUNS_MAX: usize = 512;

/// Pages of one request: 4 MiB.
pub const PAGES_MAX: u32 = 1024;

/// Bytes of a request: runs take at most ten bytes each.
pub const REQUEST_BYTES_MAX: usize = 8 << 10;

/// Bytes of the question which layers a node has: 1,024 of them.
pub const LAYERS_BYTES_MAX: usize = LAYERS_ASKED_AT_ONCE * 32 + 8;

/// Bytes of the question to take a sandbox: 64 labels, each of them two words.
pub const TAKING_BYTES_MAX: usize = 64 << 10;

/// Labels of a sandbox.
pub const LABELS_MAX: usize = 64;

/// Bytes of a name, and of a label's value, of up to 256 characters.
pub const WORD_BYTES_MAX: usize = 1 << 10;

/// Time for the answer of a node that is to take a sandbox: its VMM starts in it.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Bytes of an error's text.
pub const ERROR_BYTES_MAX: usize = 4 << 10;

/// Connections that a listener serves at once.
pub const CONNECTIONS_MAX: usize = 256;

/// Requests of one connection at once.
pub const STREAMS_MAX: u32 = 64;

/// Bytes of pages that a listener holds in answers at once.
pub const ANSWERS_BYTES_MAX: u64 = 64 << 20;

/// Bytes of one stream, and of a connection, that may be on the way: a window over the round trip bounds the rate.
pub const WINDOW_BYTES: u32 = 16 << 20;

/// Bytes of an HTTP/2 frame.
pub const FRAME_BYTES: u32 = 256 << 10;

/// Time in which a connection is made, with its handshake.
pub const CONNECTED_WITHIN: Duration = Duration::from_secs(5);

/// Time in which the addresses of a host are found.
pub const LOOKED_UP_WITHIN: Duration = Duration::from_secs(5);

/// Time for which a failed connection is not tried again, so that a node that is away costs one try and not one a read.
pub const AWAY_FOR: Duration = Duration::from_millis(200);

/// Time without a sign of the other end after which it is asked for one, and again after which it counts as gone.
pub const SIGN_EVERY: Duration = Duration::from_secs(5);

/// Time for an answer that a guest waits for.
pub const FAULT_ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Time for any other answer.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Time for which a node waits for a snapshot to be published before it answers that it is not.
pub const PUBLISHED_WAIT: Duration = Duration::from_secs(15);

/// Time in which a request's body has to come.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Time between two tries to accept connections after the system refused one.
pub const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);
