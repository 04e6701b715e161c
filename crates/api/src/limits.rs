//! The API's limits of size, number and time, each with its reason.

use std::time::Duration;

/// Requests worked on at once: each may hold a thread while the engine waits for RAM or a disk.
pub const REQUESTS_MAX: usize = 256;

/// Waits for a snapshot's state at once: beside [`REQUESTS_MAX`], so that waiting never keeps a pause out.
pub const WAITS_MAX: usize = 128;

/// Verifications at once: each reads a whole snapshot, and a disk gains nothing from more.
pub const VERIFICATIONS_MAX: usize = 8;

/// Collections of the store at once; one works, and the others wait for it.
pub const COLLECTIONS_MAX: usize = 2;

/// Requests for placement data at once: each takes some milliseconds, and waits for nothing.
pub const PLACEMENTS_MAX: usize = 16;

/// Snapshots that one request asks the placement of.
pub const PLACEMENT_SNAPSHOTS_MAX: usize = 256;

/// Snapshots in an answer about what is on the node, and in the file that says it.
pub const SNAPSHOTS_HERE_MAX: usize = 64;

/// Verdicts in the answer of a dry run.
pub const VERDICTS_MAX: usize = 10_000;

/// Captures of others' memory at once: each may bring a body of [`CAPTURE_BODY_BYTES_MAX`].
pub const CAPTURES_MAX: usize = 4;

/// Event streams at once.
pub const EVENT_STREAMS_MAX: usize = 64;

/// Requests for health, readiness, version, metrics and the document at once: answered also when all else is full.
pub const PROBES_MAX: usize = 16;

/// Threads of requests: one for each place that may block, so that none with a place waits for a thread.
pub const THREADS_MAX: usize = REQUESTS_MAX
    + WAITS_MAX
    + CONSOLE_WAITS_MAX
    + VERIFICATIONS_MAX
    + COLLECTIONS_MAX
    + CAPTURES_MAX
    + PLACEMENTS_MAX
    + EVENT_STREAMS_MAX
    + PROBES_MAX;

/// Connections beyond those that are told so at once; more wait for their turn to be told.
pub const REFUSALS_MAX: usize = 64;

/// Longest time for the line and the fields of a request that is refused in any case.
pub const REFUSED_HEAD_WITHIN: Duration = Duration::from_secs(5);

/// Bytes of a request's body: a thousand labelled words, a hundred times over.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// Bytes of a capture's body: the longest device state, as base64, and room to spare.
pub const CAPTURE_BODY_BYTES_MAX: usize = 64 << 20;

/// Bytes of a request's line and fields.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Fields of a request.
pub const HEAD_FIELDS_MAX: usize = 64;

/// Longest time for a request's line and fields, and for a connection to idle.
pub const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// Longest time for a body to arrive.
pub const BODY_WITHIN: Duration = Duration::from_secs(60);

/// Longest time in which a peer takes not a single byte of an answer before its connection is closed.
pub const ANSWER_TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// Longest time of a TLS handshake.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// Longest time that requests already being answered may take when the daemon ends.
pub const ANSWERED_WITHIN_AT_END: Duration = Duration::from_secs(30);

/// Longest time to send an answer when the daemon ends, on a connection whose request is answered or never came whole.
pub const ANSWER_SENT_WITHIN_AT_END: Duration = Duration::from_secs(1);

/// Pause after taking a connection failed, as it does without free descriptors.
pub const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Bytes of a file's path, as the kernel has it.
pub const PATH_BYTES_MAX: usize = 4096;

/// Bytes of a kernel's command line, as x86 has it.
pub const COMMAND_LINE_BYTES_MAX: usize = 2048;

/// Processors of a machine.
pub const CPUS_MAX: u32 = 64;

/// Disks of a machine, and taps.
pub const DEVICES_MAX: usize = 8;

/// Seconds of the longest period of checkpoints: 30 days.
pub const CHECKPOINT_SECONDS_MAX: u32 = 30 * 24 * 3600;

/// Checkpoints of its period that a sandbox keeps.
pub const CHECKPOINTS_KEPT_MAX: u32 = 1000;

/// Reads of consoles that wait for output at once.
pub const CONSOLE_WAITS_MAX: usize = 128;

/// Connections to guests' channels at once: each has a thread.
pub const CHANNELS_MAX: usize = 128;

/// Bytes of a console's output that are known, and of one answer: some hundred screens.
pub const CONSOLE_BYTES_MAX: usize = 256 << 10;

/// Letters of the same as base64.
pub const CONSOLE_TEXT_MAX: usize = CONSOLE_BYTES_MAX.div_ceil(3) * 4;

/// Longest time that one read of a console waits for output, in seconds.
pub const CONSOLE_WAIT_SECONDS_MAX: u32 = 60;

/// Length of one turn of a wait: a client that went away holds its place no longer than this.
pub const WAIT_TURN: Duration = Duration::from_secs(1);

/// Longest time of a wait, in seconds.
pub const WAIT_SECONDS_MAX: u32 = 600;

/// Default time of a wait, in seconds.
pub const WAIT_SECONDS: u32 = 60;

/// Time between two looks if the local socket's file is still there: its removal is not announced.
pub const SOCKET_LOOKED_FOR_EVERY: Duration = Duration::from_secs(1);

/// Time after which a failed try to make it again is repeated.
pub const SOCKET_MADE_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Time between two signs of life of an idle event stream.
pub const EVENT_STREAM_SIGN_EVERY: Duration = Duration::from_secs(15);

/// When to ask again after there was no place, in seconds.
pub const ASK_AGAIN_AFTER_SECONDS: u16 = 1;

/// Entries of one page of a list.
pub const LIST_MAX: u32 = 1000;

/// Sandboxes made by one request.
pub const COUNT_MAX: u32 = 256;

/// Characters of a name or a reference.
pub const NAME_LENGTH_MAX: usize = 64;

/// Nodes that the sandboxes of a node are spread over in one request.
pub const DRAIN_NODES_MAX: usize = 64;

/// Labels of one resource.
pub const LABELS_MAX: usize = 64;

/// Characters of a label's value.
pub const LABEL_VALUE_LENGTH_MAX: usize = 256;

/// Characters of an idempotency key.
pub const IDEMPOTENCY_KEY_LENGTH_MAX: usize = 255;

/// Bytes of a guest's memory: the most that a manifest's pages can cover.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// End of a process's memory: 57 bits of address, of which half are the kernel's.
pub const ADDRESS_MAX: u64 = 1 << 56;

/// Bytes a token has at least: 128 bits, written as letters.
pub const TOKEN_BYTES_MIN: usize = 22;

/// Bytes a token has at most.
pub const TOKEN_BYTES_MAX: usize = 4096;
