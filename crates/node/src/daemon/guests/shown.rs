//! A guest's machine as the API shows it.

use rekindle_api::types::{Accelerator, Board, ShownBootFile, ShownDisk, ShownMachine};
use rekindle_vmm::firecracker::FirecrackerSpec;
use rekindle_vmm::qemu::{self, BootFile, QemuSpec};

use crate::daemon::network::Network;
use crate::daemon::spec::{GuestSpec, RecordedVmm};

impl GuestSpec {
    /// The machine, where it is one; `running` is its VMM, if it has one now.
    pub(in crate::daemon) fn shown_machine(&self, running: Option<&RecordedVmm>) -> Option<ShownMachine> {
        match self {
            Self::Process { .. } => None,
            Self::Qemu { machine, .. } => Some(of_qemu(machine, self.network())),
            Self::Firecracker { machine } => Some(of_firecracker(machine, running, self.network())),
        }
    }
}

fn of_qemu(spec: &QemuSpec, network: Network) -> ShownMachine {
    let options = &spec.options;
    ShownMachine {
        vmm_version: Some(spec.qemu_version.to_string()),
        kernel: boot_file(&options.kernel),
        initrd: options.initrd.as_ref().map(boot_file),
        command_line: options.command_line.clone(),
        cpus: options.cpus,
        cpu: Some(options.cpu_model.clone()),
        board: Some(match options.machine {
            qemu::Machine::Microvm => Board::Microvm,
            qemu::Machine::Q35 => Board::Q35,
        }),
        accelerator: match options.accelerator {
            qemu::Accelerator::Tcg => Accelerator::Tcg,
            qemu::Accelerator::Kvm => Accelerator::Kvm,
        },
        disks: options
            .disks
            .iter()
            .map(|disk| ShownDisk { name: disk.name.clone(), bytes: disk.bytes })
            .collect(),
        netns: network.shown_netns(),
        taps: network.taps,
        channel: options.channel,
    }
}

fn of_firecracker(spec: &FirecrackerSpec, running: Option<&RecordedVmm>, network: Network) -> ShownMachine {
    let runs = running.and_then(|vmm| match vmm {
        RecordedVmm::Firecracker(facts) => Some(&facts.found),
        RecordedVmm::Process(_) | RecordedVmm::Qemu { .. } => None,
    });
    let found = runs.or_else(|| spec.saved.as_ref().map(|saved| &saved.by));
    ShownMachine {
        vmm_version: found.map(|found| found.version.to_string()),
        kernel: boot_file(&spec.kernel),
        initrd: spec.initrd.as_ref().map(boot_file),
        command_line: spec.command_line.clone(),
        cpus: u32::from(spec.cpus),
        cpu: spec.cpu_profile.clone(),
        board: None,
        accelerator: Accelerator::Kvm,
        disks: spec
            .drives
            .iter()
            .map(|drive| ShownDisk { name: drive.id.clone(), bytes: drive.bytes })
            .collect(),
        netns: network.shown_netns(),
        taps: network.taps,
        channel: spec.channel,
    }
}

fn boot_file(file: &BootFile) -> ShownBootFile {
    ShownBootFile {
        path: file.named.as_ref().unwrap_or(&file.path).display().to_string(),
        blake3: file.blake3.clone(),
    }
}
