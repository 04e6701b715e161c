//! A guest in Firecracker as the daemon drives it.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_api::types::{Machine, MemoryBacking};
use rekindle_engine::identity::VolumeName;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::serve::{Epoch, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_input::asker::Asker;
use rekindle_keeper::{Held, KeeperClient, KeeperError};
use rekindle_settings::FirecrackerSettings;
use rekindle_vmm::DEVICE_STATE;
use rekindle_vmm::firecracker::{
    Drive, DriveContent, DriveSource, FirecrackerFacts, FirecrackerGuest, FirecrackerParts, FirecrackerSpec,
    Found, Interface, MemoryPages, NotFirecracker, Places, SERVE_OPTIONS, Seccomp, TrackFrom,
};
use rekindle_vmm::kernel_format::KernelFormats;
use rekindle_vmm::serial_line::SerialLine;
use rekindle_vmm::vmm_process::VmmProcess;
use uuid::Uuid;

use super::{Blobs, Guest};
use crate::daemon::boot_directory::{boot_directory, keep_boot_files};
use crate::daemon::channel::GuestChannel;
use crate::daemon::guest_files::{log_name, machine_directory};
use crate::daemon::host::Host;
use crate::daemon::keys::guest_key;
use crate::daemon::network::Network;
use crate::daemon::spec::{GuestSpec, RecordedVmm};

/// The program, where the settings name none.
const PROGRAM: &str = "firecracker";

/// Default kernel command line, from Firecracker's own documentation.
const COMMAND_LINE: &str = "console=ttyS0 reboot=k panic=1 pci=off";

#[derive(Debug)]
struct DrivenFirecracker(FirecrackerGuest);

/// The requested machine; its boot files are kept from here on.
pub(in crate::daemon) fn settle(
    host: &Host,
    (machine, network): (&Machine, Network),
    (memory_bytes, backing): (u64, MemoryBacking),
    disks: &[(VolumeName, u64)],
    asker: &Asker,
) -> anyhow::Result<FirecrackerSpec> {
    let directory = boot_directory(host);
    let (kernel, initrd) =
        keep_boot_files(&directory, machine, KernelFormats::FIRECRACKER, memory_bytes, asker)?;
    let image = |at: usize| machine.disks.get(at).map(|disk| PathBuf::from(&disk.image));
    let drive = |(at, (name, bytes)): (usize, &(VolumeName, u64))| Drive {
        id: name.to_string(),
        bytes: *bytes,
        is_root: at == 0 && machine.initrd.is_none(),
        content: DriveContent::Writable(image(at)),
    };
    let spec = FirecrackerSpec {
        cpus: u8::try_from(machine.cpus).unwrap_or(u8::MAX),
        memory_bytes,
        pages: if backing.is_huge() { MemoryPages::Huge } else { MemoryPages::Small },
        kernel,
        initrd,
        command_line: machine.command_line.clone().unwrap_or_else(|| COMMAND_LINE.to_owned()),
        drives: disks.iter().enumerate().map(drive).collect(),
        interfaces: machine
            .taps
            .iter()
            .zip(network.taps)
            .enumerate()
            .map(|(at, (asked, tap))| Interface { id: format!("eth{at}"), tap, guest_mac: asked.mac.clone() })
            .collect(),
        netns: network.netns,
        channel: machine.channel,
        balloon: None,
        cpu_profile: machine.cpu.clone(),
        tracking: TrackFrom::Start,
        saved: None,
    };
    spec.validate()?;
    Ok(spec)
}

pub(super) fn start(
    host: &Host,
    id: Uuid,
    spec: &FirecrackerSpec,
    base: Option<&Arc<Snapshot>>,
) -> anyhow::Result<Box<dyn Guest>> {
    let places = places(host, id)?;
    let disks = base.map(|base| DriveSource { snapshot: base, fetcher: host.engine.fetcher() });
    let guest = FirecrackerGuest::start(&host.keeping.client(), &guest_key(id), spec, &places, disks)?;
    Ok(Box::new(DrivenFirecracker(guest)))
}

pub(super) fn start_served(
    host: &Host,
    id: Uuid,
    spec: &FirecrackerSpec,
    base: &Arc<Snapshot>,
    handover: &Path,
) -> anyhow::Result<Box<dyn Guest>> {
    let state = base.blobs().get(DEVICE_STATE).context("the snapshot has no device state")?;
    let (places, keeper) = (places(host, id)?, host.keeping.client());
    let disks = DriveSource { snapshot: base, fetcher: host.engine.fetcher() };
    let guest =
        FirecrackerGuest::resume(&keeper, &guest_key(id), spec, &places, disks, (handover, &state[..]))?;
    Ok(Box::new(DrivenFirecracker(guest)))
}

pub(super) fn attach(facts: FirecrackerFacts, held: &mut Held) -> anyhow::Result<Box<dyn Guest>> {
    let parts = FirecrackerParts::take(held, facts).context("the keeper holds only a part of the guest")?;
    Ok(Box::new(DrivenFirecracker(FirecrackerGuest::attach(parts)?)))
}

/// Checks that a snapshot of the machine can be brought up here.
pub(super) fn check_here(host: &Host, spec: &FirecrackerSpec) -> anyhow::Result<()> {
    let FirecrackerSettings { program, jailer, .. } = &host.settings().firecracker;
    let program = program.clone().map_or_else(find, Ok)?;
    spec.check(&Found::look(&program)?)?;
    if let Some(jailer) = jailer {
        jailer.check()?;
    }
    Ok(())
}

/// A missing thing that a resume of any machine needs, as far as it is seen without asking Firecracker.
pub(super) fn absent_here(host: &Host) -> Option<String> {
    let program = &host.settings().firecracker.program;
    match program.clone().map_or_else(find, Ok) {
        // One that is named alone is looked for in the search path when it is run.
        Ok(program) if program.is_absolute() && !program.is_file() => {
            Some(format!("{} is gone", program.display()))
        }
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Socket at which a guest that is resumed hands its memory over.
pub(super) fn handover(host: &Host, id: Uuid) -> anyhow::Result<PathBuf> {
    Ok(places(host, id)?.handover(&guest_key(id))?)
}

fn places(host: &Host, id: Uuid) -> anyhow::Result<Places> {
    let FirecrackerSettings { program, jailer, seccomp } = &host.settings().firecracker;
    Ok(Places {
        program: program.clone().map_or_else(find, Ok)?,
        jailer: jailer.clone(),
        run_directory: host.run_directory.clone(),
        disk_directory: machine_directory(&host.state_directory),
        log: Some(host.run_directory.join(log_name(id))),
        starter: host.keeping.program().to_owned(),
        seccomp: if *seccomp { Seccomp::Filtered } else { Seccomp::Unfiltered },
        digests: Arc::clone(&host.file_digests),
    })
}

/// The program, where the search path has it.
fn find() -> Result<PathBuf, NotFirecracker> {
    let searched = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&searched).map(|place| place.join(PROGRAM)).find(|path| path.is_file());
    let missing = || {
        std::io::Error::new(std::io::ErrorKind::NotFound, "it is not in PATH; name it by firecracker.program")
    };
    found.ok_or_else(|| NotFirecracker::NotRun { program: PathBuf::from(PROGRAM), source: missing() })
}

impl Guest for DrivenFirecracker {
    fn process(&self) -> &VmmProcess {
        &self.0.process
    }

    fn suspend(&mut self) -> anyhow::Result<Blobs> {
        Ok(Blobs::from([(DEVICE_STATE.to_owned(), self.0.suspend()?.into())]))
    }

    fn go_on(&mut self) -> anyhow::Result<()> {
        Ok(self.0.go_on()?)
    }

    fn load(&mut self, _blobs: &Blobs) -> anyhow::Result<()> {
        Ok(self.0.finish_load()?)
    }

    fn refusal(&self) -> Option<BorrowedFd<'_>> {
        self.0.loading()
    }

    fn volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        Ok(self.0.volumes(epoch)?)
    }

    fn shows_all_memory(&self) -> bool {
        false
    }

    fn copied_volumes(&self, epoch: Option<&Epoch>) -> anyhow::Result<Vec<PausedVolume>> {
        Ok(self.0.copied_volumes(epoch)?)
    }

    fn recorded_after_checkpoint(&self) -> RecordedVmm {
        RecordedVmm::Firecracker(Box::new(self.0.facts().after_checkpoint()))
    }

    fn goes_on_from(&mut self, _base: &Arc<Snapshot>, is_served: bool) -> anyhow::Result<()> {
        Ok(self.0.goes_on_from_checkpoint(is_served)?)
    }

    fn saved_spec(&self) -> Option<GuestSpec> {
        let mut machine = self.0.facts().spec.clone();
        machine.saved = Some(self.0.saved());
        Some(GuestSpec::Firecracker { machine: Box::new(machine) })
    }

    fn disk_bytes_held(&self) -> u64 {
        self.0.disk_bytes_held()
    }

    fn channel(&self) -> Option<GuestChannel> {
        self.0.vsock().map(|vsock| GuestChannel::Vsock(Arc::clone(vsock)))
    }

    fn serve_options(&self) -> ServeOptions {
        SERVE_OPTIONS
    }

    fn recorded(&self) -> RecordedVmm {
        RecordedVmm::Firecracker(Box::new(self.0.facts().clone()))
    }

    fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError> {
        self.0.keep_under(keeper, key)
    }

    fn serial(&self) -> std::io::Result<Option<SerialLine>> {
        self.0.serial().try_clone().map(Some)
    }
}
