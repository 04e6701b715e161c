//! Guests as the daemon drives them: one small trait, and one module for each kind of VMM.

mod disks;
mod process;
pub(super) mod firecracker;
pub(super) mod qemu;
mod shown;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use rekindle_api::types::MemoryBacking;
use rekindle_disk::DiskWatch;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::image::Image;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::{Epoch, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_keeper::{Held, KeeperClient, KeeperError};
use rekindle_kernel::wakeup::wait_readable;
use rekindle_vmm::copied_memory::copy_volume;
use rekindle_vmm::process::GuestControl;
use rekindle_vmm::qemu::MachineWatch;
use rekindle_vmm::serial_line::SerialLine;
use rekindle_vmm::vmm_process::VmmProcess;
use uuid::Uuid;

use super::channel::GuestChannel;
use super::host::Host;
use super::record::RecordedGuest;
use super::spec::{GuestSpec, RecordedVmm};

/// Longest time from a guest's start to its hand-over message.
pub(super) const HANDOVER_LIMIT: Duration = Duration::from_secs(30);

/// Device state and metadata of a snapshot, by name.
pub(super) type Blobs = BTreeMap<String, Bytes>;

/// The place at which a new guest hands its memory over, and the image that it maps, if it shares one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover<'a> {
    /// The socket, which listens.
    pub(super) socket: &'a Path,
    pub(super) image: Option<&'a Image>,
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

    /// The same in memory files of their own: the guest goes on with those that it has.
    fn copied_volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        self.volumes(epoch)?.into_iter().map(copied).collect()
    }

    /// True if the memory of a guest that is not served is all there: it has every page that is not zero.
    fn shows_all_memory(&self) -> bool {
        true
    }

    /// Goes on from a snapshot that has its copied volumes; it stands still. With `is_served` its faults are served.
    fn goes_on_from(&mut self, _base: &Arc<Snapshot>, _is_served: bool) -> anyhow::Result<()> {
        Ok(())
    }

    /// Bytes of RAM that its disks hold beside its memory.
    fn disk_bytes_held(&self) -> u64 {
        0
    }

    /// False only where nothing was written to its disks since the snapshot that they are changes of.
    fn disks_may_have_changed(&self) -> bool {
        true
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

    /// The same once it goes on from a snapshot of its copied volumes.
    fn recorded_after_checkpoint(&self) -> RecordedVmm {
        self.recorded()
    }

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

    /// The channel to its agent, if its machine has one.
    fn channel(&self) -> Option<GuestChannel> {
        None
    }

    /// The control socket of a process guest.
    fn control(&mut self) -> Option<&mut GuestControl> {
        None
    }
}

/// The volume in a memory file of its own.
fn copied(volume: PausedVolume) -> anyhow::Result<PausedVolume> {
    let doing = format!("copying volume {}", volume.name);
    copy_volume(volume).context(doing)
}

impl GuestSpec {
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
            Self::Qemu { machine, .. } => qemu::start(host, id, machine, self.network(), base),
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
        if let Some(netns) = self.network().netns.filter(|netns| !netns.exists()) {
            return Some(format!("its network namespace {} is gone", netns.display()));
        }
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

    /// True if a guest of this can run on pages that it shares with others: its memory is small pages that we map.
    pub(super) fn can_share(&self) -> bool {
        match self {
            Self::Process { backing, .. } => *backing == MemoryBacking::Shared,
            Self::Qemu { .. } => true,
            Self::Firecracker { .. } => false,
        }
    }

    /// Starts guest `id` with nothing in it yet: its memory comes from the handler at `handover`, its disks from `base`.
    pub(super) fn start_served(
        &self,
        host: &Host,
        id: Uuid,
        base: &Arc<Snapshot>,
        handover: Handover<'_>,
    ) -> anyhow::Result<Box<dyn Guest>> {
        match self {
            Self::Process { memory_bytes, backing } => {
                process::start(host, id, *memory_bytes, *backing, Some(handover))
            }
            Self::Qemu { machine, .. } => {
                qemu::start_served(host, id, machine, self.network(), base, handover)
            }
            Self::Firecracker { machine } => {
                firecracker::start_served(host, id, machine, base, handover.socket)
            }
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
