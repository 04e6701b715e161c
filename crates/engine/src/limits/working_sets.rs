//! The limits of working sets.

use std::time::Duration;

/// Time after a resume in which the guest's touches are recorded: its first needs, not everything it ever touches.
pub const WORKING_SET_TIME: Duration = Duration::from_secs(5);

/// Pages of a working set: 256 MiB, which takes a tenth of a second to install and bounds the fetches of a bad one.
pub const WORKING_SET_PAGES_MAX: u32 = 1 << 16;

/// Bytes of an encoded working set: twice the length of as many runs of one page.
pub const WORKING_SET_BYTES_MAX: usize = 1 << 20;

/// Pages of one chunk of a packed working set: frames are added until it has half as many. Small enough to be decompressed
/// in a fraction of a millisecond, large enough to be compressed as well as a frame.
pub const PACKED_CHUNK_PAGES_MAX: u32 = 128;

/// Bytes of the head of a packed working set: those of the set, of 1,024 layers' names, and 20 for each of as many pages in
/// frames of their own.
pub const PACKED_HEAD_BYTES_MAX: usize = 4 << 20;

/// Bytes of a packed working set, which are in RAM while it is put in one request.
pub const PACKED_BYTES_MAX: u64 = 128 << 20;

/// Default of the hundredths of a snapshot's bytes in the store that the pages of its working set may take beside it.
pub const WORKING_SET_SHARE_DEFAULT: u8 = 25;

/// Bytes read of a working set whose pages are not wanted: the head of most.
pub const PACKED_HEAD_READ_BYTES: u64 = 128 << 10;

/// Resumes with one working set before one is made without it, to record again all pages that are touched.
pub const WORKING_SET_USES_MAX: u32 = 64;

/// Pages that a guest waited for despite its working set before a new one is written: 0.1 ms of faults.
pub const WORKING_SET_MISSES_MIN: u32 = 32;

/// Time from a working set's last note until it is written: a pause that ended it has answered by then.
pub const WORKING_SET_WRITTEN_AFTER: Duration = Duration::from_secs(1);

/// Longest time to look for a working set in the store, or to put one there: it is only of use in the first seconds.
pub const WORKING_SET_STORE_WAIT: Duration = Duration::from_secs(10);

/// Objects listed to find the newest working set of a snapshot: one, and a few more if nodes wrote at once.
pub const WORKING_SET_OBJECTS_MAX: usize = 64;

/// Time for which the place of a working set holds that was looked for while its snapshot was opened: a resume follows at
/// once, and another node may put a newer one later.
pub const WORKING_SET_SEARCH_HOLDS: Duration = Duration::from_secs(10);
