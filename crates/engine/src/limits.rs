//! All limits of the engine, each with its reason; writers and readers obey the same ones.

mod peers;
mod working_sets;

use std::time::Duration;

pub use peers::*;
pub use working_sets::*;

/// Bytes of a domain's, volume's or blob's name: a path component everywhere, with room for a prefix.
pub const NAME_BYTES_MAX: usize = 64;

/// Pages of a volume, and of all volumes of a manifest together: 1 TiB.
///
/// Bounds what a short manifest can make its reader allocate: 24 bytes for each 512 pages, 12 MiB.
pub const MANIFEST_PAGES_MAX: u32 = 1 << 28;

/// Volumes of a manifest: memory and a few disks.
pub const MANIFEST_VOLUMES_MAX: usize = 16;

/// Layers a manifest names: some 100 KiB of its bytes, and of the RAM of whoever holds it.
pub const MANIFEST_LAYERS_MAX: usize = 1024;

/// Pauses of one line: one every microsecond for nine years.
pub const MANIFEST_GENERATION_MAX: u64 = 1 << 48;

/// Runs of all page maps of a manifest together: 64 times a map that is already called fragmented.
pub const MANIFEST_RUNS_MAX: u32 = 1 << 26;

/// Blobs of a manifest: device state, user metadata, and a few per driver.
pub const MANIFEST_BLOBS_MAX: usize = 16;

/// Bytes of one blob: device state is kilobytes for a microVM and a few megabytes for QEMU.
pub const BLOB_BYTES_MAX: usize = 32 << 20;

/// Bytes of a manifest object: the most that the limits above allow, so that no legal one is refused when read.
pub const MANIFEST_BYTES_MAX: usize = 2 << 30;

/// Bytes of the tables of layers' objects in a manifest, those of about 6 GiB of pages: 7 ms of a cold resume, whose
/// requests for the tables would take 25 ms and more.
pub const MANIFEST_TABLES_BYTES_MAX: usize = 1 << 20;

/// Bytes of an encoded layer index: the most for a layer of [`MANIFEST_PAGES_MAX`] pages.
pub const LAYER_INDEX_BYTES_MAX: usize = 512 << 20;

/// Bytes of the table of a layer object: the index, the encoded length of each frame, and room to spare.
pub const LAYER_TABLE_BYTES_MAX: u64 = 576 << 20;

/// Open files that a start leaves to the rest of the program, however many snapshots it opens.
pub const SPARE_FILES: usize = 96;

/// Bytes of a store's identity.
pub const STORE_IDENTITY_BYTES_MAX: u64 = 4096;

/// Pause before a store that is away is tried again, the first time.
pub const STORE_RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest such pause.
pub const STORE_RETRY_LAST: Duration = Duration::from_secs(30);

/// Time for a store to be opened, or to give its identity, before it counts as away.
pub const STORE_ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Pause before a store's identity that could not be read is read again: another node may be writing it.
pub const STORE_IDENTITY_AGAIN: Duration = Duration::from_secs(1);

/// Time between two checks of a store's identity, also without writes to it.
pub const STORE_LOOK_EVERY: Duration = Duration::from_secs(30);

/// Signs in the store that are deleted after one publish: the one before, and those that could not be deleted earlier.
pub const SIGNS_DELETED_AT_ONCE: usize = 16;

/// Objects of one snapshot for which a verification asks the store at once.
pub const OBJECTS_LOOKED_FOR_AT_ONCE: usize = 16;

/// Room on the disk that is reserved for the catalog: a deletion writes some 100 KiB before it frees anything.
pub const CATALOG_ROOM_BYTES: u64 = 4 << 20;

/// Memory regions of one guest: a few by address layout, the rest by memory hot-plug.
pub const REGIONS_MAX: usize = 1024;

/// Bytes of a hand-over message: twice the length of [`REGIONS_MAX`] regions of about 115 bytes.
pub const HANDOVER_BYTES_MAX: usize = 256 << 10;

/// Fault events read at once: as many as one page of buffer holds.
pub const FAULT_EVENTS_MAX: usize = 128;

/// Pages installed for one fault on a walk: 25 to 250 of them cost as much as one avoided fault.
pub const NEIGHBOUR_PAGES_MAX: u32 = 64;

/// Successive interrupted installs of one page before the guest counts as stalled. Tens of thousands are normal while
/// its address space changes.
pub const INTERRUPTIONS_MAX: u32 = 200_000;

/// Faults on a huge page that the kernel calls present, before the kernel is no longer believed: more than a guest has
/// threads.
pub const PRESENT_FAULTS_MAX: u32 = 1024;

/// Interrupted installs that are tried again before new events are read.
pub const RETRIES_PER_TURN: usize = 32;

/// Pause before a failed install is tried again, the first time.
pub const INSTALL_RETRY_FIRST: Duration = Duration::from_millis(10);

/// The longest pause between two tries of a failed install.
pub const INSTALL_RETRY_LAST: Duration = Duration::from_secs(1);

/// Pages that are installed ahead before new events are read: 0.4 ms of copying.
pub const PREFETCH_SLICE_PAGES: u32 = 256;

/// Pages of an image that are mapped in the time in which one is copied.
pub const SHARED_PAGES_A_COPY: u32 = 4;

/// Frames that pages ahead of the guest wait for at once: 256 MiB. Large reads bring them side by side, so of few frames
/// the last would hold up all that is there.
pub const PREFETCH_FRAMES_MAX: usize = 1024;

/// Longest time a recovery waits for a killed server to leave the kernel: its process is being torn down.
pub const SERVER_END_WAIT: Duration = Duration::from_secs(10);

/// Pause between two checks of that.
pub const SERVER_END_ASK: Duration = Duration::from_millis(1);

/// Faults between two checks of the processor of the faulting thread; a check costs about one fault.
pub const PLACEMENT_FAULTS: u32 = 64;

/// Layers that a merge leaves in a manifest at most, with one more of each volume: a start opens each, which takes a
/// descriptor and a mapping. Pauses whose merge has to wait for the store go on to what is legal.
pub const MERGED_LAYERS_MAX: usize = 64;

/// Layers a manifest names before a seal merges the smallest of them.
pub const MERGE_AT_LAYERS: usize = MERGED_LAYERS_MAX / 2;

/// The zstd level of stored frames: the fastest, a cold fault waits for one of them.
pub const ZSTD_LEVEL: i32 = 1;

/// Bytes packed in one write: larger ones are slower on ext4, smaller ones cost calls.
pub const PACK_WRITE_BYTES: usize = 1 << 20;

/// Longest total time that a seal gives way to resuming guests, each of which takes some 50 ms.
pub const GIVE_WAY_MAX: Duration = Duration::from_millis(200);

/// Time of a guest's first steps after its resume; seals give way to these too.
pub const FIRST_STEPS: Duration = Duration::from_millis(20);

/// Seals that compare and pack at once: threads of idle priority.
pub const SEALS_AT_ONCE: usize = 2;

/// Threads of idle priority that do the short work of saving, such as writing a record.
pub const SAVING_THREADS: usize = 2;

/// Large reads ahead of guests that are under way at once: more do not make a store faster.
pub const AHEAD_STREAMS: usize = 16;

/// Bytes of one request ahead of a guest: the last page of a longer one would come late.
pub const EXTENT_BYTES_MAX: u64 = 32 << 20;

/// Frames of one such request that are decompressed and written at once.
pub const EXTENT_FRAMES_AT_ONCE: usize = 4;

/// Bytes of such a request that are in RAM at once: the frames above, and what has come of the next ones.
pub const EXTENT_HELD_BYTES: u64 = 2 << 20;

/// Time until an answer begins, before a source's is measured: that of an object store nearby.
pub const FIRST_BYTE_GUESS: Duration = Duration::from_millis(20);

/// Bytes in a second of one answer, before a source's are measured: those of an object store nearby.
pub const BYTES_A_SECOND_GUESS: u64 = 128 << 20;

/// Shortest answer whose bytes in a second are measured.
pub const SPEED_BYTES_MIN: u64 = 128 << 10;

/// Least bytes that a request is worth, however fast a source begins to answer: requests cost processor time too.
pub const BYTES_WORTH_A_REQUEST_MIN: u64 = 256 << 10;

/// Most bytes that a request is worth, however slowly a source begins to answer: all of them may be for nothing.
pub const BYTES_WORTH_A_REQUEST_MAX: u64 = 8 << 20;

/// Threads that read and verify frames of this disk ahead of a guest.
pub const LOADS_AT_ONCE: usize = 4;

/// Reads of a class for each one that is asked a second time.
pub const HEDGE_READS: u32 = 20;

/// Reads that may be asked a second time one after the other, once none was for long.
pub const HEDGES_IN_A_ROW: u32 = 3;

/// Answers from whose times the usual one follows: those of the last seconds.
pub const HEDGE_TIMES: usize = 64;

/// Answers that must have been seen before a time counts as usual.
pub const HEDGE_TIMES_MIN: usize = 20;

/// Bytes of a file in a store that are read at once.
pub const FILE_READ_BYTES: u64 = 1 << 20;

/// Frames fetched in one request on a walk through a layer: 4 MiB of pages.
pub const READ_AHEAD_FRAMES_MAX: usize = 16;

/// Bytes of one part of an upload: every store accepts parts from 5 MiB on.
pub const UPLOAD_PART_BYTES: usize = 8 << 20;

/// Parts of an upload: services accept 10,000. Those of a larger layer are longer.
pub const UPLOAD_PARTS_MAX: usize = 10_000;

/// Parts of an upload under way at once, as far as their length leaves room for several.
pub const UPLOAD_PARTS_AT_ONCE: usize = 4;

/// Frames that are compressed in one piece of work for an upload: 1 MiB of pages.
pub const UPLOAD_FRAMES_TOGETHER: usize = 4;

/// Such pieces of work of one upload that are done at once or wait to be sent.
pub const UPLOAD_ENCODES_AT_ONCE: usize = 8;

/// Bytes of the longest id that a store gives to an upload or to a part.
pub const UPLOAD_ID_BYTES_MAX: usize = 4 << 10;

/// Most bytes that the upload of one layer holds: the parts under way, one being filled, and the frames being
/// compressed. Longer parts than [`UPLOAD_PART_BYTES`] are held one at a time.
pub const UPLOAD_HELD_BYTES_MAX: u64 = 48 << 20;

/// Smallest number of bytes that an upload leases, which bounds the number of small uploads at once.
pub const UPLOAD_LEASE_BYTES_MIN: u64 = 4 << 20;

/// Bytes that all uploads together may hold: four large ones or 48 small ones at once.
pub const UPLOAD_BYTES_MAX: u64 = 192 << 20;

/// Bytes of an encoded manifest for each run of its page maps, at most.
pub const MANIFEST_RUN_BYTES: u64 = 12;

/// Longest time for a failed upload to remove its parts from the store.
pub const UPLOAD_ABORT_WAIT: Duration = Duration::from_secs(1);

/// Threads that carry requests to the store.
pub const RUNTIME_THREADS: usize = 2;

/// Pause before a failed fetch is tried again, the first time.
pub const FETCH_RETRY_FIRST: Duration = Duration::from_millis(20);

/// The longest pause between two tries of a failed fetch: a guest waits for it.
pub const FETCH_RETRY_LAST: Duration = Duration::from_secs(2);

/// Longest time that the end of an engine waits for calls to a store that do not return.
pub const RUNTIME_END: Duration = Duration::from_secs(5);

/// Bytes that all reads from outside this node together may hold: 64 walks through layers at once.
pub const READ_BYTES_MAX: u64 = 256 << 20;

/// Bytes that a read counts as whose size is known only with its answer.
pub const READ_BYTES_UNKNOWN: u64 = 1 << 20;

/// Time that one read from outside may take, besides what its bytes take at [`READ_BYTES_A_SECOND_MIN`].
pub const READ_WAIT: Duration = Duration::from_secs(30);

/// The same of a read that a guest waits for: it is asked again soon, and a guest is told why it waits.
pub const FAULT_READ_WAIT: Duration = Duration::from_secs(10);

/// Bytes in a second of the slowest source that is still waited for.
pub const READ_BYTES_A_SECOND_MIN: u64 = 64 << 10;

/// Time that reading a manifest may take, however long it is.
pub const MANIFEST_READ_WAIT: Duration = Duration::from_secs(600);

/// Tries to read the newest edition of a manifest: one that was listed may be replaced before it is read.
pub const MANIFEST_READ_TRIES: usize = 4;

/// Time that listing the snapshots in a store may take: a hundred pages of a thousand.
pub const STORE_LIST_WAIT: Duration = Duration::from_secs(60);

/// Longest time that the source of a page may take to answer before the waiting guest counts as stalled.
pub const SOURCE_SILENT: Duration = Duration::from_secs(2);

/// Pause before a failed seal or publish is tried again, the first time.
pub const WORK_RETRY_FIRST: Duration = Duration::from_millis(50);

/// The longest pause between two tries of a failed seal or publish.
pub const WORK_RETRY_LAST: Duration = Duration::from_secs(30);

/// First pause between two checks if a VMM that was told to end has released its memory.
pub const FROZEN_ASK_FIRST: Duration = Duration::from_millis(1);

/// Longest pause between two such checks: freeing memory takes about 23 ms a GiB.
pub const FROZEN_ASK_LAST: Duration = Duration::from_millis(50);

/// Longest time that a seal waits for the proof that captured memory can no longer be written. After that it reports
/// the process that holds the memory, and tries again as after any failure.
pub const FROZEN_WAIT: Duration = Duration::from_secs(3);

/// Bytes of the catalog that stay in memory: records are small, and manifests are read at the start.
pub const CATALOG_CACHE_BYTES: usize = 16 << 20;

/// Time between two checks if a waiting pause is still wanted.
pub const WAIT_TURN: Duration = Duration::from_millis(250);

/// Default limit of the RAM that all captures hold together.
pub const CAPTURE_BYTES_DEFAULT: u64 = 64 << 30;

/// Default limit of unsealed snapshots in one line: a read may have to look at each.
pub const UNSEALED_DEFAULT: usize = 8;

/// Default of the longest time that a pause waits for room, with the guest running.
pub const PAUSE_WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// Default number of layer files that stay open without a reader.
pub const LAYER_FILES_OPEN_DEFAULT: usize = 1024;

/// Bytes by which layer files grow before the disk's free space is looked at again.
pub const DISK_LOOK_BYTES: u64 = 16 << 20;

/// Longest time between two looks at the disk: others write to it too.
pub const DISK_LOOK_PAUSE: Duration = Duration::from_secs(5);

/// Part of a bound that stays free after an eviction, as a divisor: so that not every write leads to another one.
pub const DISK_SLACK_DIVISOR: u64 = 16;

/// Bytes of a condemned list: a hundred thousand names.
pub const CONDEMNED_BYTES_MAX: usize = 16 << 20;

/// Bytes of a root: a hundred thousand names.
pub const ROOT_BYTES_MAX: usize = 16 << 20;

/// Time between two looks at the roots for sandboxes that run: one that is not needed any more costs only room until then.
pub const RUN_ROOTS_LOOK_EVERY: Duration = Duration::from_secs(30);

/// Time after which a node that needs roots for long shows a sign of life.
pub const LIFE_SHOWN_EVERY: Duration = Duration::from_secs(8 * 3600);

/// Time for which a node relies on a root that it has put: collectors take it for abandoned only after days.
pub const ROOT_TRUSTED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Longest wait, before a snapshot is forgotten, for short uses of it to end.
pub const FORGET_WAIT: Duration = Duration::from_secs(5);

/// Time between two looks if they have.
pub const FORGET_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes of a tombstone.
pub const TOMBSTONE_BYTES_MAX: usize = 4096;

/// Longest wait, while a snapshot is brought back, for a collector that is deciding about it.
pub const UNDELETE_WAIT: Duration = Duration::from_secs(15);

/// Time between two looks at its list.
pub const UNDELETE_LOOK_EVERY: Duration = Duration::from_millis(500);

/// Longest wait, after a deletion, for the names of other nodes that run from the snapshot.
pub const RUNNERS_ASKED_FOR: Duration = Duration::from_secs(2);

/// Time from the deletion of a snapshot to the second look of a collector that condemns what was its: a sandbox that began
/// to run from the snapshot before that puts its root meanwhile.
pub const SECOND_LOOK_AFTER: Duration = Duration::from_secs(5);

/// Objects that one pass of a collector condemns: about 1.5 MB of names.
pub const CONDEMNED_OBJECTS_MAX: usize = 10_000;

/// Objects that a collector deletes before it checks again that the store is the right one.
pub const DELETED_TOGETHER: usize = 1000;

/// Roots or manifests that a collector reads at once.
pub const COLLECT_READS: usize = 8;

/// Times that a collector lists the roots, as long as some are gone when it reads them.
pub const ROOTS_LISTED_MAX: usize = 16;

/// Time between two looks of a collector at what is due.
pub const COLLECT_LOOK_EVERY: Duration = Duration::from_secs(600);

/// Longest probation: a collector deletes nothing that it listed long ago.
pub const PROBATION_MAX: Duration = Duration::from_secs(12 * 3600);

/// Time for which a collector relies on its own list: others take it for abandoned only after days.
pub const LIST_TRUSTED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Default time without a sign of life after which roots and lists of a node are given up.
pub const NODE_ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// The shortest such time: a node relies on its roots and lists for a day after its last sign.
pub const NODE_ABANDONED_AFTER_MIN: Duration = Duration::from_secs(2 * 24 * 3600);

/// Time for which a tombstone stays: no request lands that late.
pub const TOMBSTONE_STAYS: Duration = Duration::from_secs(30 * 24 * 3600);
