//! The calls of Firecracker's API that are used, each with exactly the fields that its version knows.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::CallError;
use super::exchange::{ApiSocket, Asked};
use super::found::Found;
use super::spec::{Balloon, Drive, FirecrackerSpec, Interface, MemoryPages, TrackFrom};
use super::version::{Feature, Version};
use super::vsock::{self, GUEST_CID};

/// Longest time of a call that only changes Firecracker's own state.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Longest time of a start: it reads the kernel and the initial RAM disk.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Longest time of a load: some of its own reads of guest memory wait for pages of a store.
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(300);
/// Longest time of a snapshot: all of memory is written at about 1 GiB a second, and pages may have to be fetched.
const CREATE_LIMIT: Duration = Duration::from_secs(600);

/// The kernel that can set a guest's clock to go on by real time.
const CLOCK_KERNEL: (u32, u32) = (5, 16);

/// The API of one Firecracker.
#[derive(Debug)]
pub(super) struct Calls {
    socket: ApiSocket,
}

/// Part of memory that a snapshot writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SnapshotKind {
    /// Pages written since the start, the load or the snapshot before.
    Diff,
    /// Everything.
    Full,
}

/// Firecracker's description of itself.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Instance {
    /// State of its VM.
    pub(super) state: InstanceState,
}

/// State of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum InstanceState {
    /// Not started yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs.
    Running,
    /// Its vCPUs stand.
    Paused,
}

#[derive(Deserialize)]
struct VersionNow {
    firecracker_version: String,
}

impl Calls {
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: ApiSocket::at(socket) }
    }

    /// True once the API socket has a listener.
    pub(super) fn is_there(&self) -> std::io::Result<bool> {
        self.socket.is_there()
    }

    /// `GET /version`.
    pub(super) fn version(&self) -> Result<Version, CallError> {
        let call = "GET /version";
        let now: VersionNow = self.socket.ask(call, CALL_LIMIT)?;
        let version = now.firecracker_version.parse();
        version.map_err(|error: super::version::NoVersion| CallError::Strange {
            call: call.to_owned(),
            reason: error.to_string(),
        })
    }

    /// `GET /`.
    pub(super) fn instance(&self) -> Result<Instance, CallError> {
        self.socket.ask("GET /", CALL_LIMIT)
    }

    /// Configures and starts a VM; the paths are those of the process.
    pub(super) fn boot(
        &self,
        spec: &FirecrackerSpec,
        kernel: &str,
        initrd: Option<&str>,
    ) -> Result<(), CallError> {
        self.put("/machine-config", &machine(spec))?;
        let mut source = json!({ "kernel_image_path": kernel, "boot_args": spec.command_line });
        if let Some(initrd) = initrd {
            source["initrd_path"] = json!(initrd);
        }
        self.put("/boot-source", &source)?;
        for each in &spec.drives {
            self.put(&format!("/drives/{}", each.id), &drive(each))?;
        }
        for each in &spec.interfaces {
            self.put(&format!("/network-interfaces/{}", each.id), &interface(each))?;
        }
        if let Some(Balloon { mib, deflates }) = spec.balloon {
            self.put("/balloon", &json!({ "amount_mib": mib, "deflate_on_oom": deflates }))?;
        }
        if spec.channel {
            self.put("/vsock", &json!({ "guest_cid": GUEST_CID, "uds_path": vsock::SOCKET }))?;
        }
        self.socket.tell("PUT /actions", &json!({ "action_type": "InstanceStart" }), START_LIMIT)
    }

    /// `PUT /snapshot/load`: sent, not answered. The guest runs once it is loaded.
    pub(super) fn begin_load(
        &self,
        spec: &FirecrackerSpec,
        found: &Found,
        state: &str,
        handover: &Path,
    ) -> Result<Asked, CallError> {
        self.socket.begin("PUT /snapshot/load", Some(&load(spec, found, state, handover)), LOAD_LIMIT)
    }

    /// `PATCH /vm`: vCPUs stand, or stood already.
    pub(super) fn pause(&self) -> Result<(), CallError> {
        self.socket.tell("PATCH /vm", &json!({ "state": "Paused" }), CALL_LIMIT)
    }

    /// `PATCH /vm`: vCPUs run.
    pub(super) fn go_on(&self) -> Result<(), CallError> {
        self.socket.tell("PATCH /vm", &json!({ "state": "Resumed" }), CALL_LIMIT)
    }

    /// `PUT /snapshot/create`, of a VM that stands.
    pub(super) fn create_snapshot(
        &self,
        kind: SnapshotKind,
        state: &str,
        memory: &str,
    ) -> Result<(), CallError> {
        let kind = match kind {
            SnapshotKind::Diff => "Diff",
            SnapshotKind::Full => "Full",
        };
        let body = json!({ "snapshot_type": kind, "snapshot_path": state, "mem_file_path": memory });
        self.socket.tell("PUT /snapshot/create", &body, CREATE_LIMIT)
    }

    /// `PATCH /balloon`.
    pub(super) fn set_balloon(&self, mib: u32) -> Result<(), CallError> {
        self.socket.tell("PATCH /balloon", &json!({ "amount_mib": mib }), CALL_LIMIT)
    }

    fn put(&self, path: &str, body: &Value) -> Result<(), CallError> {
        self.socket.tell(&format!("PUT {path}"), body, CALL_LIMIT)
    }
}

fn machine(spec: &FirecrackerSpec) -> Value {
    let mut machine = json!({
        "vcpu_count": spec.cpus,
        "mem_size_mib": spec.memory_bytes >> 20,
        "track_dirty_pages": spec.tracking == TrackFrom::Start,
    });
    if spec.pages == MemoryPages::Huge {
        machine["huge_pages"] = json!("2M");
    }
    if let Some(profile) = &spec.cpu_profile {
        machine["cpu_template"] = json!(profile);
    }
    machine
}

fn drive(drive: &Drive) -> Value {
    json!({
        "drive_id": drive.id,
        "path_on_host": drive.file_name(),
        "is_root_device": drive.is_root,
        "is_read_only": !drive.is_writable(),
    })
}

fn interface(interface: &Interface) -> Value {
    let mut body = json!({ "iface_id": interface.id, "host_dev_name": interface.tap });
    if let Some(mac) = &interface.guest_mac {
        body["guest_mac"] = json!(mac);
    }
    body
}

/// Tracking is on after every load. A field that the version does not know would make it refuse the load.
fn load(spec: &FirecrackerSpec, found: &Found, state: &str, handover: &Path) -> Value {
    let tracking = match found.version.knows(Feature::TrackDirtyPagesOnLoad) {
        true => "track_dirty_pages",
        false => "enable_diff_snapshots",
    };
    let mut body = json!({
        "snapshot_path": state,
        "mem_backend": { "backend_type": "Uffd", "backend_path": handover },
        "resume_vm": true,
    });
    body[tracking] = json!(true);
    if found.version.knows(Feature::NetworkOverrides) && !spec.interfaces.is_empty() {
        let one = |interface: &Interface| json!({ "iface_id": interface.id, "host_dev_name": interface.tap });
        body["network_overrides"] = spec.interfaces.iter().map(one).collect();
    }
    if found.version.knows(Feature::ClockRealtime) && found.host.kernel >= CLOCK_KERNEL {
        body["clock_realtime"] = json!(true);
    }
    body
}
