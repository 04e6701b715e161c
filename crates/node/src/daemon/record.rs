//! A sandbox's record in the catalog: all that is needed to find its guest again.

use rekindle_api::types::{Labels, MemoryBacking, Name, PeriodicCheckpoints};
use rekindle_engine::catalog::{Change, Kind};
use rekindle_engine::identity::DomainName;
use rekindle_engine::serve::EpochFacts;
use rekindle_engine::wire::UnknownVersion;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::clock::unix_ms;
use super::spec::{GuestSpec, RecordedVmm};

/// A sandbox as it was last acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    /// Of which form it is; the first had none.
    #[serde(default = "first_version")]
    version: u32,
    pub(super) id: Uuid,
    pub(super) name: Option<Name>,
    pub(super) labels: Labels,
    pub(super) created_unix_ms: u64,
    /// The domain of its snapshots. Version 1 has none: such a sandbox is of the node's own.
    #[serde(default)]
    pub(super) domain: Option<DomainName>,
    /// The parts of its guest.
    pub(super) spec: GuestSpec,
    /// The snapshot of its last pause or checkpoint.
    pub(super) snapshot: Option<Uuid>,
    /// The checkpoints that it takes in a period.
    #[serde(default)]
    pub(super) checkpoints: Option<PeriodicCheckpoints>,
    pub(super) life: RecordedLife,
}

/// Stage that a sandbox has reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum RecordedLife {
    /// Its guest runs.
    Running(RecordedGuest),
    /// Its guest ended with the record's snapshot.
    Paused,
    /// The same, but it was paused only to be forked: it is about to run again, in the next daemon if not in this one.
    Forked,
    /// The same, but it was paused by a drain of this daemon: the next one resumes it.
    Drained { daemon: Uuid },
    /// Its guest ended without one.
    Stopped { reason: Option<String> },
    /// It could not be found again.
    Lost { reason: String },
    /// It cannot be said now; the catalog says it, and is asked again. Never written.
    #[serde(skip)]
    Undecided {
        reason: String,
        /// The guest that it may have.
        guest: Option<Uuid>,
    },
}

/// The record of a new sandbox.
#[derive(Debug)]
pub(super) struct NewSandbox {
    pub(super) id: Uuid,
    pub(super) name: Option<Name>,
    pub(super) labels: Labels,
    pub(super) domain: DomainName,
    pub(super) spec: GuestSpec,
    pub(super) checkpoints: Option<PeriodicCheckpoints>,
}

/// The version that is written, and the newest one that is read.
const VERSION: u32 = 2;

fn first_version() -> u32 {
    1
}

/// A running guest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RecordedGuest {
    /// Id of this one of the sandbox's guests: the keeper's key for it.
    pub(super) id: Uuid,
    /// Its VMM.
    pub(super) vmm: RecordedVmm,
    /// The snapshot that its volumes are changes of.
    pub(super) base: Option<Uuid>,
    /// Addresses of the base's pages, unless its memory began empty.
    pub(super) served: Option<EpochFacts>,
}

impl RecordedLife {
    /// True if its guest ended with the record's snapshot.
    pub(super) fn is_paused(&self) -> bool {
        matches!(self, Self::Paused | Self::Forked | Self::Drained { .. })
    }

    /// The guest that a sandbox has, or may have.
    pub(super) fn guest(&self) -> Option<Uuid> {
        match self {
            Self::Running(guest) => Some(guest.id),
            Self::Undecided { guest, .. } => *guest,
            Self::Paused | Self::Forked | Self::Drained { .. } | Self::Stopped { .. } | Self::Lost { .. } => {
                None
            }
        }
    }
}

impl SandboxRecord {
    /// The record's key in the catalog.
    pub(super) fn key(id: Uuid) -> Vec<u8> {
        id.as_bytes().to_vec()
    }

    /// The record of a new sandbox whose guest runs.
    pub(super) fn new(sandbox: NewSandbox, guest: RecordedGuest) -> Self {
        let NewSandbox { id, name, labels, domain, spec, checkpoints } = sandbox;
        Self {
            version: VERSION,
            id,
            name,
            labels,
            created_unix_ms: unix_ms(),
            domain: Some(domain),
            spec,
            snapshot: None,
            checkpoints: PeriodicCheckpoints::after(None, checkpoints),
            life: RecordedLife::Running(guest),
        }
    }

    /// The record of a sandbox of the node's domain `own`, if it says none.
    pub(super) fn in_domain(mut self, own: &DomainName) -> Self {
        if self.version == first_version() && !matches!(self.life, RecordedLife::Undecided { .. }) {
            self.domain.get_or_insert_with(|| own.clone());
            self.version = VERSION;
        }
        self
    }

    /// The record that the catalog has under `key`. One that cannot be read is undecided, with what can be read of it.
    pub(super) fn decode(key: &[u8], value: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Form {
            #[serde(default = "first_version")]
            version: u32,
        }
        let form = serde_json::from_slice::<Form>(value).map(|form| form.version);
        let known = form.map(|version| UnknownVersion::check(version, VERSION));
        let reason = match (known, serde_json::from_slice::<Self>(value)) {
            (Ok(Err(unknown)), _) => format!("its record: {unknown}"),
            (Ok(Ok(())), Ok(record)) => return record,
            (Err(error), _) | (_, Err(error)) => format!("its record cannot be read: {error}"),
        };
        tracing::error!(sandbox = %Uuid::from_slice(key).unwrap_or_default(), reason, "a sandbox is undecided");
        Self::undecided(key, value, reason)
    }

    fn undecided(key: &[u8], value: &[u8], reason: String) -> Self {
        fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
            T::deserialize(value).ok()
        }
        let value: Value = serde_json::from_slice(value).unwrap_or_default();
        let unknown = GuestSpec::Process { memory_bytes: 0, backing: MemoryBacking::Shared };
        Self {
            version: VERSION,
            id: Uuid::from_slice(key).unwrap_or_default(),
            name: read(&value["name"]),
            labels: read(&value["labels"]).unwrap_or_default(),
            created_unix_ms: read(&value["created_unix_ms"]).unwrap_or_default(),
            domain: read(&value["domain"]),
            spec: read(&value["spec"]).unwrap_or(unknown),
            snapshot: read(&value["snapshot"]),
            checkpoints: read(&value["checkpoints"]),
            life: RecordedLife::Undecided { reason, guest: read(&value["life"]["id"]) },
        }
    }

    /// The record's value in the catalog.
    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain data")
    }

    /// The snapshot its running guest came from.
    pub(super) fn origin(&self) -> Option<Uuid> {
        self.guest().and_then(|guest| guest.base)
    }

    /// Its running guest.
    pub(super) fn guest(&self) -> Option<&RecordedGuest> {
        match &self.life {
            RecordedLife::Running(guest) => Some(guest),
            RecordedLife::Paused
            | RecordedLife::Forked
            | RecordedLife::Drained { .. }
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. }
            | RecordedLife::Undecided { .. } => None,
        }
    }
}

/// The change that writes a record.
pub(super) fn put(record: &SandboxRecord) -> Change {
    Change::Put { kind: Kind::Sandbox, key: SandboxRecord::key(record.id), value: record.encode() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_is_undecided_with_what_can_be_read_of_it() {
        let (id, guest) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let newer = serde_json::json!({
            "version": 3, "id": id, "name": "a", "labels": {"x": "y"}, "created_unix_ms": 7, "spec": {"vmm": "newest"},
            "snapshot": null, "life": {"state": "running", "id": guest},
        });
        let record = SandboxRecord::decode(id.as_bytes(), newer.to_string().as_bytes());
        assert_eq!((record.id, record.name.as_deref(), record.created_unix_ms), (id, Some("a"), 7));
        let RecordedLife::Undecided { reason, guest: found } = record.life else {
            unreachable!("it is newer")
        };
        assert!(reason.contains("version 3") && found == Some(guest), "{reason}");
        let named = serde_json::json!({
            "id": id, "name": "no name", "labels": {"x": "y"}, "created_unix_ms": 7, "snapshot": null,
            "spec": {"vmm": "process", "memory_bytes": 4096, "backing": "shared"}, "life": {"state": "paused"},
        });
        let record = SandboxRecord::decode(id.as_bytes(), named.to_string().as_bytes());
        assert_eq!((record.name, record.labels.get("x").map(String::as_str)), (None, Some("y")));
        assert!(
            matches!(&record.life, RecordedLife::Undecided { reason, .. } if reason.contains("cannot be a name"))
        );
        let record = SandboxRecord::decode(id.as_bytes(), b"nonsense");
        assert_eq!(record.id, id);
        assert!(matches!(record.life, RecordedLife::Undecided { guest: None, .. }));
    }

    #[test]
    fn a_record_of_the_first_version_which_did_not_say_so_is_read() {
        let id = Uuid::from_u128(1);
        let first = serde_json::json!({
            "id": id, "name": null, "labels": {}, "created_unix_ms": 7, "snapshot": null, "life": {"state": "paused"},
            "spec": {"vmm": "process", "memory_bytes": 4096, "backing": "shared"},
        });
        let record = SandboxRecord::decode(id.as_bytes(), first.to_string().as_bytes());
        assert!(matches!(record.life, RecordedLife::Paused), "{record:?}");
        assert_eq!(record.domain, None);
        let own: DomainName = "tenant-1".parse().expect("a legal name");
        let again = SandboxRecord::decode(id.as_bytes(), &record.in_domain(&own).encode());
        assert!(matches!(again.life, RecordedLife::Paused), "{again:?}");
        assert_eq!(again.domain, Some(own), "it is of the domain that the node had then");
    }
}
