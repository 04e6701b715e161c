//! Observations of the daemon at the moment of a scrape.

use std::time::Duration;

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use rekindle_api::types::{SandboxState, SnapshotState};
use rekindle_disk::DiskStats;
use rekindle_engine::aside::SetAside;
use rekindle_engine::cache_limits::CacheStatus;
use rekindle_engine::collect::CollectCounts;
use rekindle_engine::peer_sources::PeerCounts;
use rekindle_engine::serve::{PagesByPhase, ServeStats};
use rekindle_engine::sources::{Class, ReadCounts};
use rekindle_engine::store::Traffic;
use rekindle_engine::store_opener::{FailedRequests, Failures};

use super::aside::AsideCounts;
use super::series::{FaultSeconds, Rows};
use super::sessions::Seen;
use super::{cache, collecting};

/// State of the daemon now; the daemon fills it in for each scrape.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Sandboxes by state.
    pub sandboxes: SandboxCounts,
    /// Snapshots by state.
    pub snapshots: SnapshotCounts,
    /// Captures in RAM.
    pub captures: Captures,
    /// Snapshots that wait to be sealed or are being sealed.
    pub seals_waiting: u64,
    /// Sealed snapshots that are not in the store yet.
    pub publishes_waiting: u64,
    /// Counts of the bytes moved to and from the store since the start.
    pub store: Traffic,
    /// Counts of the reads from the store by their urgency.
    pub reads: Vec<(Class, ReadCounts)>,
    /// Counts of the frames that other nodes were asked for.
    pub peers: PeerCounts,
    /// The layer files and their disk.
    pub cache: CacheStatus,
    /// Counts of collections of the store.
    pub collected: CollectCounts,
    /// True if the store is away.
    pub store_away: bool,
    /// Layer files that a start set aside.
    pub set_aside: SetAside,
    /// Things at the keeper that a start set aside.
    pub held_aside: AsideCounts,
}

/// RAM that captures hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Captures {
    /// Bytes held, those not freed yet included.
    pub bytes_held: u64,
    /// Bytes that may be held.
    pub bytes_max: u64,
    /// Bytes that images hold beside them.
    pub image_bytes: u64,
    /// The age of the oldest snapshot that is not sealed; zero where all are.
    pub oldest_age: Duration,
}

/// Sandboxes by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SandboxCounts {
    /// Their guests run.
    pub running: u64,
    /// Their guests wait for pages that cannot be had now.
    pub stalled: u64,
    /// Their guests ended with a snapshot.
    pub paused: u64,
    /// Their guests ended without one.
    pub stopped: u64,
    /// Those that lost a part they need.
    pub lost: u64,
    /// Those whose state is unknown for now.
    pub undecided: u64,
}

/// Snapshots by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotCounts {
    /// Frozen in RAM.
    pub captured: u64,
    /// On this node's disk.
    pub sealed: u64,
    /// In the store.
    pub published: u64,
    /// At another node, and not in the store.
    pub remote: u64,
    /// Deleted, but stood upon.
    pub discarded: u64,
    /// Lost before they were sealed.
    pub lost: u64,
    /// Those whose state is unknown for now.
    pub undecided: u64,
}

impl SandboxCounts {
    /// Counts one more.
    pub fn count(&mut self, state: SandboxState) {
        let counter = match state {
            SandboxState::Running => &mut self.running,
            SandboxState::Stalled => &mut self.stalled,
            SandboxState::Paused => &mut self.paused,
            SandboxState::Stopped => &mut self.stopped,
            SandboxState::Lost => &mut self.lost,
            SandboxState::Undecided => &mut self.undecided,
        };
        *counter += 1;
    }
}

impl SnapshotCounts {
    /// Counts one more.
    pub fn count(&mut self, state: SnapshotState) {
        let counter = match state {
            SnapshotState::Captured => &mut self.captured,
            SnapshotState::Sealed => &mut self.sealed,
            SnapshotState::Published => &mut self.published,
            SnapshotState::Remote => &mut self.remote,
            SnapshotState::Discarded => &mut self.discarded,
            SnapshotState::Lost => &mut self.lost,
            SnapshotState::Undecided => &mut self.undecided,
        };
        *counter += 1;
    }
}

impl Observed {
    /// Registers everything seen, with the sessions of fault serving.
    pub(super) fn register(&self, sessions: &Seen, registry: &mut Registry) {
        registry.register(
            "version",
            "The program's version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        self.register_counts(registry);
        self.register_captures(registry);
        gauge(registry, "fault_servers", "Guests whose page faults are served", sessions.serving);
        register_served(&sessions.stats, registry);
        self.register_store(registry);
        cache::register(&self.cache, registry);
        collecting::register(self.collected, registry);
    }

    fn register_counts(&self, registry: &mut Registry) {
        let SandboxCounts { running, stalled, paused, stopped, lost, undecided } = self.sandboxes;
        let sandboxes = [
            ([("state", "running")], running),
            ([("state", "stalled")], stalled),
            ([("state", "paused")], paused),
            ([("state", "stopped")], stopped),
            ([("state", "lost")], lost),
            ([("state", "undecided")], undecided),
        ];
        registry.register("sandboxes", "Sandboxes by state", Rows::gauges(sandboxes));
        let SnapshotCounts { captured, sealed, published, remote, discarded, lost, undecided } =
            self.snapshots;
        let snapshots = [
            ([("state", "captured")], captured),
            ([("state", "sealed")], sealed),
            ([("state", "published")], published),
            ([("state", "remote")], remote),
            ([("state", "discarded")], discarded),
            ([("state", "lost")], lost),
            ([("state", "undecided")], undecided),
        ];
        registry.register("snapshots", "Snapshots by state", Rows::gauges(snapshots));
        gauge(
            registry,
            "seals_waiting",
            "Snapshots that wait to be sealed or are being sealed",
            self.seals_waiting,
        );
        gauge(
            registry,
            "publishes_waiting",
            "Sealed snapshots that are not in the store yet",
            self.publishes_waiting,
        );
    }

    fn register_captures(&self, registry: &mut Registry) {
        let Captures { bytes_held, bytes_max, image_bytes, oldest_age } = self.captures;
        let held = ConstGauge::new(bytes_held);
        registry.register_with_unit("captures_held", "RAM held by captures", Unit::Bytes, held);
        let limit = ConstGauge::new(bytes_max);
        registry.register_with_unit("captures_limit", "RAM that captures may hold", Unit::Bytes, limit);
        registry.register_with_unit(
            "image",
            "RAM of the pages that guests of one snapshot share, which captures may take back",
            Unit::Bytes,
            ConstGauge::new(image_bytes),
        );
        registry.register_with_unit(
            "captures_oldest_age",
            "Age of the oldest snapshot that is not sealed",
            Unit::Seconds,
            ConstGauge::new(oldest_age.as_secs_f64()),
        );
    }

    fn register_store(&self, registry: &mut Registry) {
        gauge(
            registry,
            "store_away",
            "1 while the store is not there, or another one is in its place",
            self.store_away.into(),
        );
        let SetAside { files, bytes } = self.set_aside;
        gauge(
            registry,
            "set_aside_files",
            "Layer files that a start set aside, as its catalog did not name them",
            files,
        );
        let held = ConstGauge::new(bytes);
        registry.register_with_unit("set_aside", "Bytes on the disk of those files", Unit::Bytes, held);
        let AsideCounts { guests, snapshots, fault_sockets } = self.held_aside;
        let held = [
            ([("kind", "guest")], guests),
            ([("kind", "snapshot")], snapshots),
            ([("kind", "fault_socket")], fault_sockets),
        ];
        registry.register(
            "set_aside_held",
            "What the keeper holds that a start set aside, as its catalog did not name it",
            Rows::gauges(held),
        );
        let Traffic { fetches, fetched_bytes, sent_bytes, stored_bytes, failed } = self.store;
        register_failed_requests(&failed, registry);
        register_reads(&self.reads, registry);
        register_peers(self.peers, registry);
        counter(registry, "store_fetches", "Requests that read from the store", fetches);
        let moved = [
            ("store_fetched", "Bytes read from the store", fetched_bytes),
            ("store_sent", "Bytes given to uploads, failed ones included", sent_bytes),
            ("store_stored", "Bytes of objects written completely", stored_bytes),
        ];
        for (name, help, bytes) in moved {
            registry.register_with_unit(name, help, Unit::Bytes, ConstCounter::new(bytes));
        }
    }
}

fn register_failed_requests(failed: &FailedRequests, registry: &mut Registry) {
    let FailedRequests { reading, publishing } = failed;
    let rows =
        [("reading", reading), ("publishing", publishing)].into_iter().flat_map(|(class, failures)| {
            let Failures { slow_downs, timeouts, others } = *failures;
            [("slow_down", slow_downs), ("timeout", timeouts), ("other", others)]
                .map(|(reason, failed)| ([("class", class), ("reason", reason)], failed))
        });
    registry.register(
        "store_failed_requests",
        "Requests to a bucket that failed and were sent again where their time allowed, by their work and reason",
        Rows::counters(rows),
    );
}

fn register_peers(PeerCounts { frames, bytes, failed, late }: PeerCounts, registry: &mut Registry) {
    let help = "Frames of layers that other nodes sent, and that were right";
    registry.register("peer_frames", help, ConstCounter::new(frames));
    let help = "Bytes of those frames";
    registry.register_with_unit("peer_frames", help, Unit::Bytes, ConstCounter::new(bytes));
    registry.register(
        "peer_reads_elsewhere",
        "Reads of frames that went to the store as well, since a node failed, was wrong or was late",
        Rows::counters([([("reason", "failed")], failed), ([("reason", "late")], late)]),
    );
}

fn register_reads(reads: &[(Class, ReadCounts)], registry: &mut Registry) {
    let named = |class: &Class| match class {
        Class::Fault => "fault",
        Class::Ahead => "ahead",
        Class::Background => "background",
    };
    let hedges = reads.iter().flat_map(|(class, ReadCounts { hedges, .. })| {
        [("sent", hedges.sent), ("won", hedges.won)]
            .map(|(result, count)| ([("class", named(class)), ("result", result)], count))
    });
    let help = "Reads of the store that were asked a second time, and second answers that came first";
    registry.register("store_hedges", help, Rows::counters(hedges));
    let ended = reads.iter().map(|(class, counts)| ([("class", named(class))], counts.ended));
    registry.register(
        "store_reads_ended",
        "Reads of the store that their time limit ended",
        Rows::counters(ended),
    );
}

fn register_served(served: &ServeStats, registry: &mut Registry) {
    let by_source = [
        ("capture", served.capture_by_phase),
        ("layer", served.layer_by_phase),
        ("peer", served.peer_by_phase),
        ("zero", served.zero_by_phase),
    ];
    let pages =
        by_source.into_iter().flat_map(|(source, PagesByPhase { captured, packed, remote, flat })| {
            [("captured", captured), ("packed", packed), ("remote", remote), ("flat", flat)]
                .map(|(phase, pages)| ([("source", source), ("phase", phase)], pages))
        });
    registry.register(
        "served_pages",
        "Pages of 4096 bytes installed into guests, by where they came from and how far their snapshot was saved",
        Rows::counters(pages),
    );
    registry.register_with_unit(
        "fault",
        "Times of faults: one in sixteen of those answered at once, all of those that waited for a frame",
        Unit::Seconds,
        FaultSeconds([("at_once", served.at_once), ("after_fetch", served.after_fetch)]),
    );
    let ahead = [
        ([("reason", "neighbour")], served.pages_neighbour),
        ([("reason", "prefetch")], served.pages_prefetched),
    ];
    registry.register(
        "served_ahead_pages",
        "Of those, pages installed before the guest asked for them",
        Rows::counters(ahead),
    );
    counter(
        registry,
        "shared_pages",
        "Pages of 4096 bytes mapped into guests from the memory that their snapshot's guests share, which had them",
        served.pages_shared,
    );
    counter(registry, "faults", "Missing pages that guests waited for", served.faults);
    counter(registry, "fault_misses", "Faults that had to wait for a frame to be fetched", served.misses);
    counter(registry, "fault_retries", "Installs that were tried again", served.retries);
    counter(registry, "removed_pages", "Pages that guests gave back", served.pages_removed);
    counter(registry, "write_protect_faults", "First writes to protected pages", served.write_protect_faults);
}

/// Registers what all disks did.
pub(super) fn register_disks(disks: &DiskStats, registry: &mut Registry) {
    let DiskStats { bytes_read, bytes_written, bytes_zeroed, requests, failed_requests, cold_requests } =
        disks;
    counter(registry, "disk_requests", "Requests of guests that their disks answered", *requests);
    counter(registry, "disk_failed_requests", "Of those, answered with an error", *failed_requests);
    counter(
        registry,
        "disk_cold_requests",
        "Requests that had to wait for a frame to be fetched",
        *cold_requests,
    );
    let moved = [
        ("disk_read", "Bytes that guests read from their disks", bytes_read),
        ("disk_written", "Bytes that guests wrote to their disks", bytes_written),
        ("disk_zeroed", "Bytes that guests made zero or discarded on their disks", bytes_zeroed),
    ];
    for (name, help, bytes) in moved {
        registry.register_with_unit(name, help, Unit::Bytes, ConstCounter::new(*bytes));
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(value));
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}
