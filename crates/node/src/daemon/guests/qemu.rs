//! A guest in QEMU as the daemon drives it.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_api::types::{Accelerator, Board, Machine};
use rekindle_disk::{DiskWatch, whole_sectors};
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::{Epoch, Neighbours, Placement, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::{Tracking, file_pages};
use rekindle_guest::machine::linux_command_line;
use rekindle_input::asker::Asker;
use rekindle_keeper::{Held, KeeperClient, KeeperError};
use rekindle_kernel::{Memfd, PageKind};
use rekindle_vmm::DEVICE_STATE;
use rekindle_vmm::copied_memory::copy_pages;
use rekindle_vmm::kernel_format::KernelFormats;
use rekindle_vmm::namespace::Namespace;
use rekindle_vmm::qemu::{
    self, DiskSpec, KeptParts, Launch, MachineWatch, NicSpec, Places, QemuGuest, QemuOptions, QemuProgram,
    QemuSpec,
};
use rekindle_vmm::serial_line::SerialLine;
use rekindle_vmm::vmm_process::VmmProcess;
use uuid::Uuid;

use super::disks::{self, NamedDisk};
use super::{Blobs, Guest, HANDOVER_LIMIT, Handover, copied};
use crate::daemon::boot_directory::{boot_directory, keep_boot_files};
use crate::daemon::channel::GuestChannel;
use crate::daemon::guest_files::log_name;
use crate::daemon::host::Host;
use crate::daemon::keys::guest_key;
use crate::daemon::network::Network;
use crate::daemon::record::RecordedGuest;
use crate::daemon::spec::RecordedVmm;

#[derive(Debug)]
struct DrivenQemu {
    guest: QemuGuest,
    disks: Vec<NamedDisk>,
}

/// The requested machine, as the QEMU of this host makes it; its boot files are kept from here on.
pub(in crate::daemon) fn settle(
    host: &Host,
    machine: &Machine,
    memory_bytes: u64,
    disks: &[(VolumeName, u64)],
    asker: &Asker,
) -> anyhow::Result<QemuSpec> {
    let program = host.qemu.get()?;
    let directory = boot_directory(host);
    let (kernel, initrd) = keep_boot_files(&directory, machine, KernelFormats::QEMU, memory_bytes, asker)?;
    let by_kvm = program.check_accelerator(qemu::Accelerator::Kvm).is_ok();
    let accelerator = match machine.accelerator {
        Some(Accelerator::Tcg) => qemu::Accelerator::Tcg,
        Some(Accelerator::Kvm) => qemu::Accelerator::Kvm,
        None if by_kvm => qemu::Accelerator::Kvm,
        None => qemu::Accelerator::Tcg,
    };
    let options = QemuOptions {
        machine: match machine.board {
            Board::Microvm => qemu::Machine::Microvm,
            Board::Q35 => qemu::Machine::Q35,
        },
        accelerator,
        cpu_model: machine.cpu.clone().unwrap_or_else(|| accelerator.default_cpu_model().to_owned()),
        cpus: machine.cpus,
        memory_bytes,
        kernel,
        initrd,
        command_line: machine.command_line.clone().unwrap_or_else(linux_command_line),
        disks: disks.iter().map(|(name, bytes)| DiskSpec { name: name.to_string(), bytes: *bytes }).collect(),
        nics: machine
            .taps
            .iter()
            .map(|tap| NicSpec { mac: tap.mac.clone().unwrap_or_else(any_mac) })
            .collect(),
        channel: machine.channel,
    };
    Ok(options.settle(&program)?)
}

/// A random hardware address of the locally administered kind.
fn any_mac() -> String {
    let [.., third, second, first] = Uuid::now_v7().into_bytes();
    format!("52:54:00:{first:02x}:{second:02x}:{third:02x}")
}

pub(super) fn start(
    host: &Host,
    id: Uuid,
    spec: &QemuSpec,
    network: Network,
    base: Option<&Arc<Snapshot>>,
) -> anyhow::Result<Box<dyn Guest>> {
    let disks = disks::begin(host, id, &volumes(spec)?, base)?;
    let launch = launch(host, id, spec, network, &disks)?;
    let guest = QemuGuest::start(&host.keeping.client(), &guest_key(id), &launch)?;
    Ok(Box::new(DrivenQemu { guest, disks }))
}

pub(super) fn start_served(
    host: &Host,
    id: Uuid,
    spec: &QemuSpec,
    network: Network,
    base: &Arc<Snapshot>,
    handover: Handover<'_>,
) -> anyhow::Result<Box<dyn Guest>> {
    let found: Vec<(&str, u64)> = base.volumes()[1..]
        .iter()
        .map(|volume| (volume.name.as_str(), u64::from(volume.view.pages()) * 4096))
        .collect();
    let rounded = whole_pages(spec);
    rounded.check_volumes(u64::from(base.memory().pages()) * 4096, &found)?;
    let disks = disks::begin(host, id, &volumes(spec)?, Some(base))?;
    let launch = launch(host, id, spec, network, &disks)?;
    let (keeper, key) = (host.keeping.client(), guest_key(id));
    let guest = QemuGuest::resume(&keeper, &key, &launch, handover.socket, handover.image)?;
    Ok(Box::new(DrivenQemu { guest, disks }))
}

pub(super) fn attach(
    host: &Host,
    recorded: &RecordedGuest,
    pid: u32,
    spec: &QemuSpec,
    base: Option<&Arc<Snapshot>>,
    held: &mut Held,
) -> anyhow::Result<Box<dyn Guest>> {
    // First, so that it does not wait for its disks longer than it must.
    let disks = disks::recover(host, recorded.id, &volumes(spec)?, base, held)?;
    let names = spec.options.disks.iter().map(|disk| disk.name.clone()).collect();
    let parts = KeptParts::take(held, pid, log(host, recorded.id), names);
    let guest = QemuGuest::attach(parts.context("the keeper holds only a part of the guest")?)?;
    Ok(Box::new(DrivenQemu { guest, disks }))
}

fn launch(
    host: &Host,
    id: Uuid,
    spec: &QemuSpec,
    network: Network,
    disks: &[NamedDisk],
) -> anyhow::Result<Launch> {
    let places = Places {
        boot_directory: boot_directory(host),
        log: log(host, id),
        disks: disks.iter().map(|disk| disk.socket().to_owned()).collect(),
        taps: network.taps,
        netns: network.netns.map(|file| Namespace { file, starter: host.keeping.program().to_owned() }),
    };
    Ok(Launch::new(&host.qemu.get()?, spec, places)?)
}

/// Checks that a snapshot of the machine can be brought up here.
pub(super) fn check_here(host: &Host, spec: &QemuSpec) -> anyhow::Result<()> {
    Ok(spec.check_here(&host.qemu.get()?, &boot_directory(host))?)
}

/// A missing thing that a resume of the machine needs, as far as it is seen without asking QEMU.
pub(super) fn absent_here(host: &Host, spec: &QemuSpec) -> Option<String> {
    if let Err(error) = QemuProgram::locate() {
        return Some(error.to_string());
    }
    let absent = spec.options.absent_boot_files(&boot_directory(host));
    (!absent.is_empty()).then(|| format!("its {} is gone", absent.join(" and its ")))
}

/// Path of the log of a guest's VMM.
fn log(host: &Host, id: Uuid) -> PathBuf {
    host.run_directory.join(log_name(id))
}

/// The disks by name, each with its bytes: whole sectors, as QEMU counts them, also where an older rekindle made the machine.
fn volumes(spec: &QemuSpec) -> anyhow::Result<Vec<(VolumeName, u64)>> {
    let volume = |disk: &DiskSpec| Ok((VolumeName::from_str(&disk.name)?, whole_sectors(disk.bytes)));
    spec.options.disks.iter().map(volume).collect()
}

/// The machine with disks as long as their volumes are.
fn whole_pages(spec: &QemuSpec) -> QemuSpec {
    let mut spec = spec.clone();
    for disk in &mut spec.options.disks {
        disk.bytes = pages_covering(disk.bytes).map_or(disk.bytes, |pages| u64::from(pages) * 4096);
    }
    spec
}

impl DrivenQemu {
    /// The memory of the frozen guest, and whether it is a copy.
    fn memory(&self, epoch: Option<&Epoch>) -> anyhow::Result<(PausedVolume, bool)> {
        let (memfd, pages, is_copy) = match epoch {
            Some(epoch) => {
                let pages = epoch.changed_pages().context("finding the guest's written pages")?;
                let own = epoch.memfd().map(Memfd::try_clone).transpose()?;
                let is_copy = own.is_none();
                let copy = || copy_pages(epoch.pid(), epoch.regions(), &pages.kept);
                let memfd = own.map_or_else(copy, Ok).context("copying the guest's written pages")?;
                (memfd, pages, is_copy)
            }
            None => {
                let memfd = self.guest.memory().context("the guest's memory file is not at hand")?;
                let pages = pages_covering(memfd.bytes()).context("the guest's memory is too large")?;
                let pages = file_pages(memfd, pages).context("finding the guest's pages")?;
                (memfd.try_clone()?, pages, false)
            }
        };
        let (name, page_kind) = (VolumeName::memory(), PageKind::Small);
        Ok((PausedVolume { name, page_kind, memfd, pages }, is_copy))
    }
}

impl Guest for DrivenQemu {
    fn process(&self) -> &VmmProcess {
        &self.guest.process
    }

    fn suspend(&mut self) -> anyhow::Result<Blobs> {
        Ok(Blobs::from([(DEVICE_STATE.to_owned(), self.guest.suspend()?)]))
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        self.disks.iter().for_each(NamedDisk::thaw);
        Ok(self.guest.go_on()?)
    }

    fn load(&mut self, blobs: &Blobs) -> anyhow::Result<()> {
        Ok(self.guest.load(blobs.get(DEVICE_STATE).context("the snapshot has no device state")?)?)
    }

    fn handed_over(&self, listener: &UnixListener) -> anyhow::Result<Option<UnixStream>> {
        Ok(Some(self.guest.handed_over(listener, HANDOVER_LIMIT)?))
    }

    fn volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        let (memory, _) = self.memory(epoch)?;
        let disks = self.disks.iter().map(NamedDisk::freeze);
        std::iter::once(Ok(memory)).chain(disks).collect()
    }

    fn copied_volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        let (memory, is_copy) = self.memory(epoch)?;
        let memory = if is_copy { memory } else { copied(memory)? };
        let disks = self.disks.iter().map(|disk| copied(disk.freeze()?));
        std::iter::once(Ok(memory)).chain(disks).collect()
    }

    fn goes_on_from(&mut self, base: &Arc<Snapshot>, _is_served: bool) -> anyhow::Result<()> {
        self.disks.iter().try_for_each(|disk| disk.rebase(base))
    }

    fn disk_bytes_held(&self) -> u64 {
        self.disks.iter().map(NamedDisk::bytes_held).sum()
    }

    fn disks_may_have_changed(&self) -> bool {
        self.disks.iter().any(NamedDisk::is_changed)
    }

    fn disk_watches(&self) -> Vec<(VolumeName, DiskWatch)> {
        self.disks.iter().map(NamedDisk::watch).collect()
    }

    fn machine_watch(&self) -> Option<MachineWatch> {
        self.guest.watch()
    }

    fn serve_options(&self) -> ServeOptions {
        ServeOptions {
            tracking: Tracking::Scan,
            placement: Placement::FollowFaults,
            neighbours: Neighbours::Adaptive,
        }
    }

    fn recorded(&self) -> RecordedVmm {
        RecordedVmm::Qemu { pid: self.guest.id() }
    }

    fn close_memory(&mut self) {
        self.guest.close_memory();
        self.disks.clear();
    }

    fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError> {
        self.guest.keep_under(keeper, key)
    }

    fn keep_disks(&self, keeper: &KeeperClient, key: &str) -> anyhow::Result<()> {
        self.disks.iter().try_for_each(|disk| disk.keep_under(keeper, key))
    }

    fn serial(&self) -> std::io::Result<Option<SerialLine>> {
        SerialLine::of_socket(self.guest.serial()).map(Some)
    }

    fn channel(&self) -> Option<GuestChannel> {
        self.guest.channel().map(|port| GuestChannel::Port(Arc::clone(port)))
    }
}
