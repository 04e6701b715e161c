//! The parts of a guest, and what a record says of its VMM.

use std::path::PathBuf;

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{MemoryBacking, VmmKind, Which};
use rekindle_guest::process::protocol::Hello;
use rekindle_keeper::Held;
use rekindle_vmm::firecracker::{FirecrackerFacts, FirecrackerSpec, MemoryPages};
use rekindle_vmm::qemu::{BootFile, EVENTS, QemuSpec, told_end};
use serde::{Deserialize, Serialize};

use super::exclusive::Exclusive;
use super::network::{Network, WantedNetwork};

/// The parts of a guest: kept with its sandbox and with each of its snapshots, so that it is the same when resumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "vmm", rename_all = "snake_case")]
pub(super) enum GuestSpec {
    /// rekindle's own process guest.
    Process {
        /// Bytes of guest memory.
        memory_bytes: u64,
        /// Backing of its memory.
        backing: MemoryBacking,
    },
    /// A machine in QEMU.
    Qemu {
        /// The machine.
        machine: Box<QemuSpec>,
        /// The tap devices it last had, in the machine's order.
        taps: Vec<String>,
        /// The file of the network namespace it last ran in; none: the daemon's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        netns: Option<PathBuf>,
    },
    /// A machine in Firecracker.
    Firecracker {
        /// The machine.
        machine: Box<FirecrackerSpec>,
    },
}

/// Record of a guest in the catalog, so that a later daemon finds it again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "vmm", rename_all = "snake_case")]
pub(super) enum RecordedVmm {
    /// A process guest, by what it said of itself.
    Process(Hello),
    /// A QEMU.
    Qemu {
        /// Its process.
        pid: u32,
    },
    /// A Firecracker.
    Firecracker(Box<FirecrackerFacts>),
}

impl GuestSpec {
    /// Kind of VMM it runs in.
    pub(super) fn kind(&self) -> VmmKind {
        match self {
            Self::Process { .. } => VmmKind::Process,
            Self::Qemu { .. } => VmmKind::Qemu,
            Self::Firecracker { .. } => VmmKind::Firecracker,
        }
    }

    /// Bytes of guest memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Process { memory_bytes, .. } => *memory_bytes,
            Self::Qemu { machine, .. } => machine.options.memory_bytes,
            Self::Firecracker { machine } => machine.memory_bytes,
        }
    }

    /// True if it has a channel to its agent.
    pub(super) fn has_channel(&self) -> bool {
        match self {
            Self::Process { .. } => false,
            Self::Firecracker { machine } => machine.channel,
            Self::Qemu { machine, .. } => machine.options.channel,
        }
    }

    /// Things of the host that no other guest can have at the same time.
    pub(super) fn exclusive(&self) -> Exclusive {
        Exclusive { network: self.network(), huge_pages: self.backing().is_huge() }
    }

    /// Backing of its memory.
    pub(super) fn backing(&self) -> MemoryBacking {
        match self {
            Self::Process { backing, .. } => *backing,
            Self::Qemu { .. } => MemoryBacking::Shared,
            Self::Firecracker { machine } => match machine.pages {
                MemoryPages::Small => MemoryBacking::Private,
                MemoryPages::Huge => MemoryBacking::Huge,
            },
        }
    }

    /// The files that it boots from.
    pub(super) fn boot_files(&self) -> Vec<&BootFile> {
        let (kernel, initrd) = match self {
            Self::Process { .. } => return Vec::new(),
            Self::Qemu { machine, .. } => (&machine.options.kernel, &machine.options.initrd),
            Self::Firecracker { machine } => (&machine.kernel, &machine.initrd),
        };
        std::iter::once(kernel).chain(initrd).collect()
    }

    /// The names and bytes of its disks, each a volume of its snapshots.
    pub(super) fn disks(&self) -> Vec<(&str, u64)> {
        match self {
            Self::Process { .. } => Vec::new(),
            Self::Qemu { machine, .. } => {
                machine.options.disks.iter().map(|disk| (disk.name.as_str(), disk.bytes)).collect()
            }
            Self::Firecracker { machine } => {
                machine.writable_drives().map(|(drive, _)| (drive.id.as_str(), drive.bytes)).collect()
            }
        }
    }

    /// The network that its VMM is in.
    pub(super) fn network(&self) -> Network {
        match self {
            Self::Process { .. } => Network::default(),
            Self::Qemu { taps, netns, .. } => Network { netns: netns.clone(), taps: taps.clone() },
            Self::Firecracker { machine } => {
                let taps = machine.interfaces.iter().map(|interface| interface.tap.clone()).collect();
                Network { netns: machine.netns.clone(), taps }
            }
        }
    }

    /// The network that a request wants for a guest of this.
    pub(super) fn wanted_network(&self, wanted: WantedNetwork<'_>, which: Which<'_>) -> Answer<Network> {
        let (had, refused) = (self.network(), |why: String| Err(Problem::new(Code::WrongState, why)));
        let network = wanted.of(&had, which)?;
        let (named, devices) = (network.taps.len(), had.taps.len());
        let is_process = matches!(self, Self::Process { .. });
        if is_process && (network.netns.is_some() || named > 0) {
            let why = "a process guest has no network: it takes no tap and no network namespace";
            return refused(why.to_owned());
        }
        if named != devices {
            return refused(format!(
                "{named} taps were named, and its machine has {devices} network devices"
            ));
        }
        Ok(network)
    }

    /// Puts its VMM into another network, which has a tap for each of its network devices.
    pub(super) fn attach_to(&mut self, network: Network) {
        match self {
            Self::Process { .. } => {}
            Self::Qemu { taps, netns, .. } => (*taps, *netns) = (network.taps, network.netns),
            Self::Firecracker { machine } => {
                machine.netns = network.netns;
                for (interface, tap) in machine.interfaces.iter_mut().zip(network.taps) {
                    interface.tap = tap;
                }
            }
        }
    }
}

impl RecordedVmm {
    /// Its own account of its end, if it gave one that the keeper still holds.
    pub(super) fn told_end(&self, held: &mut Held) -> Option<String> {
        match self {
            Self::Qemu { pid } => told_end(*pid, held.fds.remove(EVENTS)?),
            Self::Process(_) | Self::Firecracker(_) => None,
        }
    }

    /// The process it was when it was recorded.
    pub(super) fn pid(&self) -> u32 {
        match self {
            Self::Process(hello) => hello.pid,
            Self::Qemu { pid } => *pid,
            Self::Firecracker(facts) => facts.pid,
        }
    }
}
