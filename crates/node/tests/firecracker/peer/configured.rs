//! Settings of a VM before it starts: each body with exactly the fields of the API, others refused.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default)]
pub(super) struct Configured {
    pub(super) machine: Option<Machine>,
    pub(super) boot: Option<BootSource>,
    pub(super) drives: Vec<Drive>,
    pub(super) interfaces: Vec<Interface>,
    pub(super) balloon: Option<Balloon>,
    pub(super) vsock: Option<VsockDevice>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VsockDevice {
    pub(super) guest_cid: u32,
    pub(super) uds_path: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: u64,
    #[serde(default)]
    pub(super) smt: bool,
    #[serde(default)]
    pub(super) track_dirty_pages: bool,
    #[serde(default)]
    pub(super) huge_pages: Option<String>,
    #[serde(default, rename = "cpu_template")]
    pub(super) cpu_profile: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: PathBuf,
    #[serde(default)]
    pub(super) initrd_path: Option<PathBuf>,
    #[serde(default)]
    pub(super) boot_args: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) path_on_host: PathBuf,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    #[serde(default)]
    pub(super) cache_type: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    pub(super) iface_id: String,
    pub(super) host_dev_name: String,
    #[serde(default)]
    pub(super) guest_mac: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Balloon {
    pub(super) amount_mib: u32,
    pub(super) deflate_on_oom: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BalloonUpdate {
    pub(super) amount_mib: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Action {
    pub(super) action_type: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmState {
    pub(super) state: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateSnapshot {
    #[serde(default)]
    pub(super) snapshot_type: Option<String>,
    pub(super) snapshot_path: PathBuf,
    pub(super) mem_file_path: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadSnapshot {
    pub(super) snapshot_path: PathBuf,
    pub(super) mem_backend: MemoryBackend,
    #[serde(default)]
    pub(super) enable_diff_snapshots: bool,
    #[serde(default)]
    pub(super) track_dirty_pages: bool,
    #[serde(default)]
    pub(super) resume_vm: bool,
    #[serde(default)]
    pub(super) network_overrides: Vec<NetworkOverride>,
    #[serde(default, rename = "clock_realtime")]
    pub(super) _clock_realtime: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryBackend {
    pub(super) backend_type: String,
    pub(super) backend_path: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct NetworkOverride {
    pub(super) iface_id: String,
    pub(super) host_dev_name: String,
}
