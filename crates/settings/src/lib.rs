//! Settings of a node: one file, over it the environment, over it flags; each value knows where it came from.

mod closest;
mod error;
mod flags;
mod keep_rules;
mod key;
pub mod keys;
mod layers;
mod memory_mode;
mod peers;
mod reader;
mod room;
mod sockets;
mod store_location;
mod telemetry;
mod times;
mod values;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rekindle_bucket::BucketAccess;
use rekindle_engine::identity::DomainName;
use rekindle_engine::learning::Prefault;
use rekindle_engine::limits;
use rekindle_vmm::firecracker::Jailer;
use serde::Serialize;

pub use error::{SettingsError, Source};
pub use flags::SettingFlags;
pub use keep_rules::KeepRule;
pub use key::Key;
pub use layers::Surroundings;
pub use memory_mode::MemoryMode;
pub use peers::PeerSettings;
pub use room::Room;
pub use store_location::StoreLocation;
pub use telemetry::{LogFormat, spans_url};
pub use times::parse_time;
pub use values::parse_size;

use keys::KEYS;
use layers::Layers;
use reader::Reader;

/// Every setting, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the catalog and the layers.
    pub state_directory: PathBuf,
    /// Directory of the sockets.
    pub run_directory: PathBuf,
    /// The store.
    pub store: StoreLocation,
    /// Options of reaching the store's bucket, where it is in one.
    pub bucket: BucketAccess,
    /// Domain of the snapshots.
    pub domain: DomainName,
    /// File of the keys of domains.
    pub key_ring: PathBuf,
    /// Bytes of RAM that captures may hold together.
    pub capture_bytes_max: u64,
    /// Disk that layer files may take.
    pub cache_bytes_max: Room,
    /// Space that stays free on their disk.
    pub disk_free_bytes_min: Room,
    /// Layer files that stay open; where it is `None`, half of the open files that the process may have.
    pub layer_files_open_max: Option<usize>,
    /// Bytes of snapshots that may be here and not in the store.
    pub unpublished_bytes_max: Room,
    /// True to make sandboxes that could never be paused. Reloads.
    pub run_unpausable: bool,
    /// Factor of the available RAM that bounds the memory of new guests and what running ones have not taken yet. Reloads.
    pub memory_overcommit: usize,
    /// Unsealed snapshots in one line before a pause waits.
    pub unsealed_ancestors_max: usize,
    /// Longest time a pause waits for room.
    pub pause_wait: Duration,
    /// Threads that compare one snapshot; where it is `None`, as many as the engine finds right.
    pub compare_workers: Option<usize>,
    /// Bytes that publishing may send in a second; no limit without.
    pub publish_bytes_a_second_max: Option<NonZeroU64>,
    /// Pages that are brought ahead of a resumed guest. Reloads.
    pub prefault: Prefault,
    /// Whose pages a resumed guest runs on, unless its request says.
    pub memory_mode: MemoryMode,
    /// Hundredths of a snapshot's bytes in the store that its working set may take beside it.
    pub working_set_share: u8,
    /// True if a snapshot can be resumed before it is sealed. Reloads.
    pub serve_before_seal: bool,
    /// Rules that say which snapshots are kept; without any all are. Reloads.
    pub keep: Vec<KeepRule>,
    /// Time between two collections of the store; zero for none.
    pub collect_every: Duration,
    /// Time from a collection to its deletions.
    pub collect_probation: Duration,
    /// Time for which a deleted snapshot can be brought back at least. Reloads.
    pub undelete_window: Duration,
    /// Time without a sign of life after which a collection gives up the roots of another node.
    pub node_abandoned_after: Duration,
    /// Time that files set aside by a start are kept. Reloads.
    pub set_aside_kept: Duration,
    /// Past events that are kept.
    pub events_kept: usize,
    /// File that says what is on this node, for schedulers.
    pub placement_file: Option<PathBuf>,
    /// Lines to log, as directives of `tracing`. Reloads.
    pub log_level: String,
    /// Form of log lines. Reloads.
    pub log_format: LogFormat,
    /// The control API.
    pub api: ApiSettings,
    /// Other nodes.
    pub peers: PeerSettings,
    /// Options of running Firecracker.
    pub firecracker: FirecrackerSettings,
    /// Reports to other programs.
    pub telemetry: TelemetrySettings,
    /// The settings file that was read, if any.
    pub file: Option<PathBuf>,
    /// Environment variables that begin as settings do and are none.
    pub ignored_variables: Vec<String>,
    entries: Vec<Entry>,
}

/// Addresses and users of the control API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// Its unix socket.
    pub socket: PathBuf,
    /// Users who may use the socket besides root and the daemon's own user.
    pub allowed_uids: Vec<u32>,
    /// Connections to each of its listeners, at most.
    pub connections_max: usize,
    /// Its TCP listener, if it has one.
    pub tcp: Option<TcpSettings>,
}

/// The control API over TCP: always with TLS and a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Address to listen at.
    pub listen: SocketAddr,
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The file with the token that clients must show.
    pub token_file: PathBuf,
}

/// Options of running Firecracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirecrackerSettings {
    /// The program; the one that the search path has where it is not said.
    pub program: Option<PathBuf>,
    /// Options of its jail, if it is jailed.
    pub jailer: Option<Jailer>,
    /// True if it filters its system calls.
    pub seccomp: bool,
}

/// Reports to other programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Address that spans are sent to, as OTLP over HTTP.
    pub otlp_endpoint: Option<String>,
    /// Under which name.
    pub service_name: String,
}

/// A setting's value and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The setting.
    pub key: &'static Key,
    /// Its value for people; `None` where there is none.
    pub shown: Option<String>,
    /// Its value for programs; null where there is none.
    pub value: serde_json::Value,
    /// Its source.
    pub source: Source,
}

/// A setting that differs between two loads.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The setting.
    pub key: &'static Key,
    /// Its value before.
    pub before: String,
    /// Its value after.
    pub after: String,
}

/// An [`Entry`] as `rekindle settings --json` has it.
#[derive(Debug, Serialize)]
struct EntryJson<'a> {
    key: &'a str,
    value: &'a serde_json::Value,
    source: String,
    variable: String,
    reloads: bool,
}

impl Settings {
    /// The settings of this process: from flags, else the environment, else the settings file, else defaults.
    pub fn load(flags: &SettingFlags) -> Result<Self, SettingsError> {
        Self::load_in(flags, &Surroundings::of_process())
    }

    /// The same in given surroundings.
    pub fn load_in(flags: &SettingFlags, around: &Surroundings) -> Result<Self, SettingsError> {
        let layers = Layers::gather(flags, around)?;
        let mut read = Reader { layers, entries: Vec::with_capacity(KEYS.len()) };
        let state_directory = match default_state_directory(around) {
            Some(default) => read.value("state_directory", &values::PATH, default)?,
            None => read.given("state_directory", &values::PATH)?.ok_or(SettingsError::NoHome)?,
        };
        let run_directory =
            read.value("run_directory", &values::PATH, default_run_directory(around, &state_directory))?;
        Ok(Self {
            store: read.value(
                "store",
                &values::STORE,
                StoreLocation::Directory(state_directory.join("store")),
            )?,
            domain: read.value("domain", &values::DOMAIN, "default".parse().expect("a legal name"))?,
            key_ring: read.value("key_ring", &values::PATH, state_directory.join("key-ring.json"))?,
            capture_bytes_max: read.value("capture_bytes_max", &values::BYTES, default_capture_bytes())?,
            cache_bytes_max: read.value("cache_bytes_max", &values::ROOM, Room::None)?,
            disk_free_bytes_min: read.value("disk_free_bytes_min", &values::ROOM, DISK_FREE_DEFAULT)?,
            layer_files_open_max: read.value("layer_files_open_max", &values::AUTO_COUNT, None)?,
            unpublished_bytes_max: read.value("unpublished_bytes_max", &values::ROOM, Room::None)?,
            run_unpausable: read.value("run_unpausable", &values::SWITCH, false)?,
            memory_overcommit: read.value("memory_overcommit", &values::COUNT, 4)?,
            unsealed_ancestors_max: read.value(
                "unsealed_ancestors_max",
                &values::COUNT,
                limits::UNSEALED_DEFAULT,
            )?,
            pause_wait: read.value("pause_wait", &values::TIME, limits::PAUSE_WAIT_DEFAULT)?,
            compare_workers: read.value("compare_workers", &values::WORKERS, None)?,
            publish_bytes_a_second_max: read.value("publish_bytes_a_second_max", &values::RATE, None)?,
            prefault: read.value("prefault", &values::PREFAULT, Prefault::WorkingSet)?,
            memory_mode: read.value("memory_mode", &values::MEMORY_MODE, MemoryMode::Auto)?,
            working_set_share: read.value(
                "working_set_share",
                &values::PERCENT,
                limits::WORKING_SET_SHARE_DEFAULT,
            )?,
            serve_before_seal: read.value("serve_before_seal", &values::SWITCH, true)?,
            keep: read.value("keep", &values::KEEP, Vec::new())?,
            undelete_window: read.value("undelete_window", &values::TIME, Duration::ZERO)?,
            collect_every: read.value("collect_every", &values::TIME, COLLECT_EVERY)?,
            collect_probation: read.value("collect_probation", &values::TIME, COLLECT_PROBATION)?,
            node_abandoned_after: read.value(
                "node_abandoned_after",
                &values::SILENCE,
                limits::NODE_ABANDONED_AFTER,
            )?,
            set_aside_kept: read.value("set_aside_kept", &values::TIME, SET_ASIDE_KEPT)?,
            events_kept: read.value("events_kept", &values::COUNT, 10_000)?,
            placement_file: read.given("placement_file", &values::PATH)?,
            log_level: read.value("log_level", &values::LEVEL, "info".to_owned())?,
            log_format: read.value("log_format", &values::FORMAT, LogFormat::Human)?,
            bucket: read.bucket()?,
            api: ApiSettings {
                socket: read.value("api.socket", &values::PATH, run_directory.join("api.sock"))?,
                allowed_uids: read.value("api.allowed_uids", &values::USERS, Vec::new())?,
                connections_max: read.value("api.connections_max", &values::COUNT, CONNECTIONS_DEFAULT)?,
                tcp: read.tcp()?,
            },
            peers: read.peers()?,
            firecracker: FirecrackerSettings {
                program: read.given("firecracker.program", &values::PATH)?,
                seccomp: read.value("firecracker.seccomp", &values::SWITCH, true)?,
                jailer: read.jailer()?,
            },
            telemetry: TelemetrySettings {
                otlp_endpoint: read.given("telemetry.otlp_endpoint", &values::COLLECTOR)?,
                service_name: read.value("telemetry.service_name", &values::NAME, "rekindle".to_owned())?,
            },
            file: read.layers.file,
            ignored_variables: read.layers.ignored,
            entries: read.entries,
            state_directory,
            run_directory,
        })
    }

    /// Every setting with its value and where that came from.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Path of the keeper's socket.
    pub fn keeper_socket(&self) -> PathBuf {
        self.run_directory.join("keeper.sock")
    }

    /// The socket of the keeper of the daemon at `socket`, which may have another run directory than these settings: then
    /// its keeper is beside it.
    pub fn keeper_socket_of(&self, socket: &Path) -> PathBuf {
        let beside = socket.with_file_name("keeper.sock");
        let is_elsewhere = *self.source("run_directory") == Source::Default && beside.exists();
        if is_elsewhere { beside } else { self.keeper_socket() }
    }

    /// The source of a setting's value.
    pub fn source(&self, name: &str) -> &Source {
        self.entries
            .iter()
            .find(|entry| entry.key.name == name)
            .map_or(&Source::Default, |entry| &entry.source)
    }

    /// Settings that `newer` has other values for.
    pub fn changes(&self, newer: &Self) -> Vec<Change> {
        let shown = |entry: &Entry| entry.shown.clone().unwrap_or_else(|| "none".to_owned());
        let pairs = self.entries.iter().zip(&newer.entries);
        pairs
            .filter(|(old, new)| old.value != new.value)
            .map(|(old, new)| Change { key: old.key, before: shown(old), after: shown(new) })
            .collect()
    }

    /// These settings as a running daemon can have them after `newer` was loaded: with the reloadable values of the
    /// newer ones.
    #[must_use]
    pub fn reloaded(&self, newer: &Self) -> Self {
        let pairs = self.entries.iter().zip(&newer.entries);
        Self {
            run_unpausable: newer.run_unpausable,
            memory_overcommit: newer.memory_overcommit,
            prefault: newer.prefault,
            memory_mode: newer.memory_mode,
            serve_before_seal: newer.serve_before_seal,
            keep: newer.keep.clone(),
            undelete_window: newer.undelete_window,
            set_aside_kept: newer.set_aside_kept,
            log_level: newer.log_level.clone(),
            log_format: newer.log_format,
            firecracker: newer.firecracker.clone(),
            entries: pairs.map(|(old, new)| if old.key.reloads { new } else { old }).cloned().collect(),
            ..self.clone()
        }
    }
}

impl Serialize for Entry {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        EntryJson {
            key: self.key.name,
            value: &self.value,
            source: self.source.to_string(),
            variable: self.key.variable(),
            reloads: self.key.reloads,
        }
        .serialize(serializer)
    }
}

/// Connections to one listener of the control API by default: one for each request and event stream that it does at
/// once, and as many that are idle.
pub const CONNECTIONS_DEFAULT: usize = 1024;

/// So that the catalog and other programs on the disk have room.
const DISK_FREE_DEFAULT: Room = Room::Share(5);

/// A month, in which the catalog that names the files may be found again.
const SET_ASIDE_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// A day: what was deleted costs little until then.
const COLLECT_EVERY: Duration = Duration::from_secs(24 * 3600);

/// An hour, in which sandboxes that have just begun to run tell that.
const COLLECT_PROBATION: Duration = Duration::from_secs(3600);

fn default_state_directory(around: &Surroundings) -> Option<PathBuf> {
    if around.is_root {
        return Some(PathBuf::from("/var/lib/rekindle"));
    }
    let base = around
        .directory("XDG_STATE_HOME")
        .or_else(|| Some(around.directory("HOME")?.join(".local/state")))?;
    Some(base.join("rekindle"))
}

fn default_run_directory(around: &Surroundings, state_directory: &Path) -> PathBuf {
    if around.is_root {
        return PathBuf::from("/run/rekindle");
    }
    around
        .directory("XDG_RUNTIME_DIR")
        .map_or_else(|| state_directory.join("run"), |directory| directory.join("rekindle"))
}

/// Half of this machine's RAM, in whole MiB.
fn default_capture_bytes() -> u64 {
    const MIB: u64 = 1 << 20;
    memory_bytes("MemTotal").map_or(limits::CAPTURE_BYTES_DEFAULT, |total| (total / 2 / MIB).max(1) * MIB)
}

/// A figure of /proc/meminfo in bytes.
pub fn memory_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests;
