//! Virtual machines: the parts of a new one, and its console.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Netns, Reference, TapName, schemas, shapes};

/// A virtual machine to be started. Paths are those of the daemon's machine, and absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The kernel image it boots.
    #[schema(min_length = 1, max_length = 4096, pattern = "^/")]
    pub kernel: String,
    /// The first file system of its kernel.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 4096, pattern = "^/")]
    pub initrd: Option<String>,
    /// Kernel command line; the default lets the kernel use the console.
    #[serde(default)]
    #[schema(max_length = 2048)]
    pub command_line: Option<String>,
    /// Virtual processors.
    #[serde(default = "one")]
    #[schema(default = 1, minimum = 1, maximum = 64)]
    pub cpus: u32,
    /// The kind of machine; QEMU only.
    #[serde(default, deserialize_with = "shapes::word")]
    pub board: Board,
    /// Accelerator; KVM by default, if it works.
    #[serde(default, deserialize_with = "shapes::word_or_none")]
    pub accelerator: Option<Accelerator>,
    /// The model of its processors, in the VMM's words.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    pub cpu: Option<String>,
    /// Its disks, in this order; each is a volume of its snapshots.
    #[serde(default, deserialize_with = "shapes::objects")]
    #[schema(max_items = 8)]
    pub disks: Vec<DiskImage>,
    /// A snapshot on whose disks it boots, in place of `disks`; its memory begins empty and has as many bytes as there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    pub disks_of: Option<Reference>,
    /// Its network devices: tap devices that are there already.
    #[serde(default, deserialize_with = "shapes::objects")]
    #[schema(max_items = 8)]
    pub taps: Vec<Tap>,
    /// The network namespace its VMM runs in; the daemon's where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<Netns>,
    /// True to give it a channel to its guest's agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub channel: bool,
}

fn one() -> u32 {
    1
}

/// Kinds of machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Board {
    /// No firmware tables, no PCI: the quickest to start.
    #[default]
    Microvm,
    /// A PC, whose guest is told by its generation id when it is a clone.
    Q35,
}

/// Way in which a guest's instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By translation: slower, and works everywhere.
    Tcg,
}

/// The image a disk begins as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskImage {
    /// Its name: that of a volume of the sandbox's snapshots.
    #[schema(min_length = 1, max_length = 32, pattern = "^[a-z0-9][a-z0-9-]*$")]
    pub name: String,
    /// A raw image file. It is read once and never written.
    #[schema(min_length = 1, max_length = 4096, pattern = "^/")]
    pub image: String,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    /// The tap device, in the network namespace of the machine's VMM.
    pub device: TapName,
    /// The address the guest sees; one of the VMM's choice where it is not said.
    #[serde(default)]
    #[schema(pattern = "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")]
    pub mac: Option<String>,
}

/// A sandbox's machine, as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShownMachine {
    /// The version of the VMM that made it; of the one that runs it, for Firecracker.
    pub vmm_version: Option<String>,
    /// The kernel image it boots.
    pub kernel: ShownBootFile,
    /// The first file system of its kernel.
    pub initrd: Option<ShownBootFile>,
    /// Kernel command line.
    pub command_line: String,
    /// Virtual processors.
    pub cpus: u32,
    /// The model of its processors, in the VMM's words.
    pub cpu: Option<String>,
    /// The kind of machine; QEMU only.
    pub board: Option<Board>,
    /// Accelerator.
    pub accelerator: Accelerator,
    /// Its disks, in their order.
    pub disks: Vec<ShownDisk>,
    /// The tap devices that its network devices are at, in their order.
    pub taps: Vec<String>,
    /// The file of the network namespace its VMM runs in; none: the daemon's.
    pub netns: Option<String>,
    /// True if it has a channel to its guest's agent.
    #[serde(default)]
    pub channel: bool,
}

/// A file that a machine was booted from. The daemon keeps a copy of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShownBootFile {
    /// Its path when the machine was made.
    pub path: String,
    /// The BLAKE3 digest of its bytes, in hexadecimal.
    pub blake3: String,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShownDisk {
    /// Its name: that of a volume of the sandbox's snapshots.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Options of a connection to the agent of a sandbox's guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConnectSandbox {
    /// The port at which the agent listens: for a machine in Firecracker, whose channel is a vsock device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 0, maximum = 4294967295_u64)]
    pub port: Option<u32>,
    /// True to end another connection to the same channel, which is refused otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_over: Option<bool>,
}

/// Part of a console's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleQuery {
    /// First byte; by default, or if that byte is no longer known, the oldest known one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// If there is no output yet, wait for it at most this many seconds, 0 to 60; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 0, maximum = 60)]
    pub wait_seconds: Option<u32>,
}

/// Output of a guest's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleOutput {
    /// The place of the first byte: all that the sandbox's guests printed since the daemon started is counted.
    pub from: u64,
    /// The place after the last byte: the value of `from` with which to go on.
    pub next: u64,
    /// The bytes, as base64.
    #[schema(schema_with = schemas::base64_bytes)]
    pub bytes: String,
}

/// Text to type at a console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleInput {
    /// The bytes, as base64.
    #[schema(schema_with = schemas::base64_bytes)]
    pub bytes: String,
}
