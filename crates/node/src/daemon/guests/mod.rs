//! Guests as the daemon drives them: one small trait, and one module for each kind of VMM.

mod disks;
mod process;
pub(super) mod firecracker;
pub(super) mod qemu;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::{Epoch, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_guest::process::protocol::Hello;
use rekindle_kernel::wakeup::wait_readable;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::endings::Exclusive;
use super::host::Host;
use super::record::RecordedGuest;
use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::{MemoryBacking, TapName, VmmKind};
use crate::disk::DiskWatch;
use crate::keeper::{Held, KeeperClient, KeeperError};
use crate::vmm::firecracker::{FirecrackerFacts, FirecrackerSpec, MemoryPages, VmDirectory};
use crate::vmm::process::GuestControl;
use crate::vmm::qemu::{BootFile, EVENTS, MachineWatch, QemuSpec, told_end};
use crate::vmm::serial_line::SerialLine;
use crate::vmm::vmm_process::VmmProcess;

/// Longest time from a guest's start to its hand-over message.
pub(super) const HANDOVER_LIMIT: Duration = Duration::from_secs(30);

/// Device state and metadata of a snapshot, by name.
pub(super) type Blobs = BTreeMap<String, Bytes>;

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

/// A running guest. Dropped, it runs on under the keeper.
pub(super) trait Guest: Debug + Send {
    /// Its VMM's process.
    fn process(&self) -> &VmmProcess;

    /// Makes vCPUs and devices stand still and takes their state. The guest's faults are served meanwhile.
    fn suspend(&mut self) -> anyhow::Result<Blobs>;

    /// Lets a thawed guest go on whose pause did not come to pass; nothing for one that runs.
    fn go_on(&mut self) -> anyhow::Result<()>;

    /// Gives a new guest its device state and lets it run. Its faults are served meanwhile.
    fn load(&mut self, blobs: &Blobs) -> anyhow::Result<()>;

    /// The connection by which a new guest hands its memory over, which it makes at `listener`; none where its VMM has
    /// refused. An error where it ends or says nothing.
    fn handed_over(&self, listener: &UnixListener) -> anyhow::Result<Option<UnixStream>> {
        let process = self.process().handle();
        let waited_for = [Some(listener.as_fd()), Some(process.as_fd()), self.refusal()];
        let [connection, end, refusal] = wait_readable(waited_for, Some(HANDOVER_LIMIT))?;
        if connection.readable {
            return Ok(Some(listener.accept().context("the guest's hand-over connection")?.0));
        }
        if refusal.readable {
            return Ok(None);
        }
        anyhow::ensure!(!end.readable, "the guest's VMM ended before it handed its memory over");
        anyhow::bail!("the guest's VMM did not hand its memory over within {HANDOVER_LIMIT:?}")
    }

    /// Readable once its VMM has said that it will not hand its memory over; [`Self::load`] then says why.
    fn refusal(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Its parts in a snapshot of it, if they differ from those it was started with.
    fn saved_spec(&self) -> Option<GuestSpec> {
        None
    }

    /// The volumes of the frozen guest, memory first: the pages changed in `epoch`, or all pages there.
    fn volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>>;

    /// Bytes of RAM that its disks hold beside its memory.
    fn disk_bytes_held(&self) -> u64 {
        0
    }

    /// Watches of its disks, each with its name, that show if they get their pages.
    fn disk_watches(&self) -> Vec<(VolumeName, DiskWatch)> {
        Vec::new()
    }

    /// A watch of its VMM's own actions, if the VMM reports them while it lives.
    fn machine_watch(&self) -> Option<MachineWatch> {
        None
    }

    /// Options of serving its faults.
    fn serve_options(&self) -> ServeOptions;

    /// The facts that a later daemon needs.
    fn recorded(&self) -> RecordedVmm;

    /// Closes the files that are its memory and what its disks hold in memory, once its process has ended.
    fn close_memory(&mut self) {}

    /// Hands it to a keeper that does not hold it: the one that did is gone.
    fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError>;

    /// Hands what its disks hold to a keeper that does not hold it.
    fn keep_disks(&self, _keeper: &KeeperClient, _key: &str) -> anyhow::Result<()> {
        Ok(())
    }

    /// Further handles of our ends of its serial line, where it has one.
    fn serial(&self) -> std::io::Result<Option<SerialLine>> {
        Ok(None)
    }

    /// The control socket of a process guest.
    fn control(&mut self) -> Option<&mut GuestControl> {
        None
    }
}

/// The name of the file, in the run directory, that gets what a guest's VMM prints.
pub(super) fn log_name(guest: Uuid) -> String {
    format!("vmm-{guest}.log")
}

/// The directory in which Firecrackers have their files, each under its guest's id.
pub(super) fn machine_directory(state_directory: &Path) -> PathBuf {
    state_directory.join("machines")
}

/// Removes the files of a guest that has ended. Not every kind of VMM has each of them.
pub(super) fn remove_files(state_directory: &Path, run_directory: &Path, guest: Uuid) {
    std::fs::remove_file(run_directory.join(log_name(guest))).ok();
    let machines = machine_directory(state_directory);
    if let Err(error) = VmDirectory::remove_of(&machines, run_directory, &guest.to_string()) {
        tracing::warn!(%guest, %error, "files of an ended guest stay until the next start");
    }
}

/// The guests that have files in the directory of machines.
pub(super) fn with_files(state_directory: &Path) -> std::io::Result<BTreeSet<Uuid>> {
    let ids = VmDirectory::ids(&machine_directory(state_directory))?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
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

    /// Things of the host that no other guest can have at the same time.
    pub(super) fn exclusive(&self) -> Exclusive {
        let taps = self.taps().into_iter().map(str::to_owned).collect();
        Exclusive { taps, huge_pages: self.backing().is_huge() }
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

    /// Number of its disks.
    pub(super) fn disks(&self) -> usize {
        match self {
            Self::Process { .. } => 0,
            Self::Qemu { machine, .. } => machine.options.disks.len(),
            Self::Firecracker { machine } => machine.drives.len(),
        }
    }

    /// The tap devices that its network devices are at.
    pub(super) fn taps(&self) -> Vec<&str> {
        match self {
            Self::Process { .. } => Vec::new(),
            Self::Qemu { taps, .. } => taps.iter().map(String::as_str).collect(),
            Self::Firecracker { machine } => {
                machine.interfaces.iter().map(|interface| interface.tap.as_str()).collect()
            }
        }
    }

    /// Has its network devices at other taps.
    pub(super) fn attach_to(&mut self, wanted: &[TapName]) -> Answer<()> {
        let had = match self {
            Self::Process { .. } => 0,
            Self::Qemu { taps, .. } => taps.len(),
            Self::Firecracker { machine } => machine.interfaces.len(),
        };
        if wanted.len() != had {
            let why = format!("{} taps were named, and its machine has {had} network devices", wanted.len());
            return Err(Problem::new(Code::WrongState, why));
        }
        match self {
            Self::Process { .. } => {}
            Self::Qemu { taps, .. } => *taps = wanted.iter().map(|TapName(name)| name.clone()).collect(),
            Self::Firecracker { machine } => {
                for (interface, TapName(name)) in machine.interfaces.iter_mut().zip(wanted) {
                    interface.tap.clone_from(name);
                }
            }
        }
        Ok(())
    }

    /// Starts guest `id` on empty memory, its disks as they are in `base`.
    pub(super) fn start(
        &self,
        host: &Host,
        id: Uuid,
        base: Option<&Arc<Snapshot>>,
    ) -> anyhow::Result<Box<dyn Guest>> {
        match self {
            Self::Process { memory_bytes, backing } => {
                process::start(host, id, *memory_bytes, *backing, None)
            }
            Self::Qemu { machine, taps } => qemu::start(host, id, machine, taps, base),
            Self::Firecracker { machine } => firecracker::start(host, id, machine, base),
        }
    }

    /// Checks that a guest can be brought up here on a snapshot with this: its VMM fits, and its files are here.
    pub(super) fn check_here(&self, host: &Host) -> anyhow::Result<()> {
        match self {
            Self::Process { .. } => Ok(()),
            Self::Qemu { machine, .. } => qemu::check_here(host, machine),
            Self::Firecracker { machine } => firecracker::check_here(host, machine),
        }
    }

    /// A missing thing that a resume here needs, as far as it is seen at a glance.
    pub(super) fn absent_here(&self, host: &Host) -> Option<String> {
        match self {
            Self::Process { .. } => None,
            Self::Qemu { machine, .. } => qemu::absent_here(host, machine),
            Self::Firecracker { .. } => firecracker::absent_here(host),
        }
    }

    /// Socket at which guest `id` hands its memory over.
    pub(super) fn handover(&self, host: &Host, id: Uuid) -> anyhow::Result<PathBuf> {
        match self {
            Self::Process { .. } | Self::Qemu { .. } => {
                Ok(host.run_directory.join(format!("handover-{id}.sock")))
            }
            Self::Firecracker { .. } => firecracker::handover(host, id),
        }
    }

    /// Starts guest `id` with nothing in it yet: its memory comes from the handler at `handover`, its disks from `base`.
    pub(super) fn start_served(
        &self,
        host: &Host,
        id: Uuid,
        base: &Arc<Snapshot>,
        handover: &Path,
    ) -> anyhow::Result<Box<dyn Guest>> {
        match self {
            Self::Process { memory_bytes, backing } => {
                process::start(host, id, *memory_bytes, *backing, Some(handover))
            }
            Self::Qemu { machine, taps } => qemu::start_served(host, id, machine, taps, base, handover),
            Self::Firecracker { machine } => firecracker::start_served(host, id, machine, base, handover),
        }
    }

    /// Takes over guest `id`, which an earlier daemon left with the keeper.
    pub(super) fn attach(
        &self,
        host: &Host,
        recorded: &RecordedGuest,
        held: &mut Held,
        base: Option<&Arc<Snapshot>>,
    ) -> anyhow::Result<Box<dyn Guest>> {
        match (self, &recorded.vmm) {
            (Self::Process { memory_bytes, backing }, RecordedVmm::Process(hello)) => {
                process::attach(host, *memory_bytes, *backing, hello.clone(), held)
            }
            (Self::Qemu { machine, .. }, RecordedVmm::Qemu { pid }) => {
                qemu::attach(host, recorded, *pid, machine, base, held)
            }
            (Self::Firecracker { .. }, RecordedVmm::Firecracker(facts)) => {
                firecracker::attach((**facts).clone(), held)
            }
            (Self::Process { .. } | Self::Qemu { .. } | Self::Firecracker { .. }, _) => {
                anyhow::bail!("the catalog says of it both that it is a {:?} and another VMM", self.kind())
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
