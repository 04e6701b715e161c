//! Every limit of a disk's server, each with its reason.

use std::time::Duration;

/// Bytes of one request's data: the most that a client may send that asked for no other limit.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Bytes of one option of a handshake that are read: a few names of at most 4 KiB.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;

/// Bytes of an option that are read and thrown away to refuse it; with more the connection ends.
pub const OPTION_BYTES_SKIPPED_MAX: u32 = 1 << 20;

/// Options of one handshake: a client asks for about ten.
pub const OPTIONS_MAX: u32 = 256;

/// Longest time of a client's handshake.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Connections to one disk at once: clients that use several use 4 to 16.
pub const CONNECTIONS_MAX: usize = 64;

/// Pause before the next connection is taken where the system had no descriptor or thread for the last one.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Requests of one connection that wait for cold pages, before no further one is read from it: QEMU has 16 under way.
pub const COLD_REQUESTS_MAX: usize = 64;

/// Bytes of data that come with such requests, before no further one is read.
pub const COLD_REQUEST_BYTES_MAX: usize = 64 << 20;

/// Frames asked for at once for one request: 8 MiB of pages.
pub const COLD_FRAMES_MAX: usize = 32;

/// Bytes of answers gathered before they are sent, where more requests have come already.
pub const ANSWER_BYTES: usize = 256 << 10;

/// Bytes read ahead of the request that is being read.
pub const READ_AHEAD_BYTES: usize = 64 << 10;

/// Bytes of a buffer that a connection keeps when a large request is done.
pub const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// Stretches whose allocation one answer tells: a client asks again for more.
pub const EXTENTS_MAX: usize = 4096;

/// Bytes that one turn makes zero by writing zeroes; between two turns the disk may freeze.
pub const ZEROED_AT_ONCE_BYTES: u64 = 64 << 20;
