//! The parts of a QEMU machine: all that a resume elsewhere must know to make the same one.

use std::collections::BTreeSet;

use rekindle_engine::identity::VolumeName;
use serde::{Deserialize, Serialize};

use super::boot_file::BootFile;
use super::machine::{Accelerator, Machine};
use super::misfit::Misfit;
use super::program::{QemuProgram, host_cpu};
use super::version::Version;

/// The name of the blob that holds a snapshot's [`QemuSpec`], as JSON.
pub const SPEC_BLOB: &str = "qemu";

const MIB: u64 = 1 << 20;
/// Largest number in one machine; QEMU itself allows more.
const CPUS_MAX: u32 = 64;
const DISKS_MAX: usize = 8;
const NICS_MAX: usize = 4;
/// Longest kernel command line: the limit of x86 Linux (COMMAND_LINE_SIZE).
const COMMAND_LINE_BYTES_MAX: usize = 2047;
const CPU_MODEL_BYTES_MAX: usize = 1024;

/// A disk of the machine; a volume of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The volume's name, whose first 20 bytes the guest sees as the disk's serial number.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
}

/// A network device of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// Its address, as six hexadecimal numbers with colons between them.
    pub mac: String,
}

/// A machine as it is requested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuOptions {
    /// The board.
    pub machine: Machine,
    /// Its accelerator.
    pub accelerator: Accelerator,
    /// The CPU, in QEMU's words for `-cpu`.
    pub cpu_model: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Its kernel.
    pub kernel: BootFile,
    /// Its initrd.
    pub initrd: Option<BootFile>,
    /// Kernel command line.
    pub command_line: String,
    /// Its disks, in the order the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Its network devices, in that order.
    pub nics: Vec<NicSpec>,
    /// True if it has a channel to its guest's agent; machines of older snapshots have none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub channel: bool,
}

/// A machine as it was first started: the request, and QEMU's choices. Goes into a blob of each of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuSpec {
    /// The options given.
    #[serde(flatten)]
    pub options: QemuOptions,
    /// The QEMU that started it first.
    pub qemu_version: Version,
    /// The board with its version, as that QEMU called it.
    pub machine_type: String,
    /// The host's CPU, where the guest's is the same.
    pub host_cpu: Option<String>,
}

impl QemuOptions {
    /// A machine with one CPU, no disks and no network, that boots `kernel` under TCG.
    pub fn new(memory_bytes: u64, kernel: BootFile) -> Self {
        Self {
            machine: Machine::Microvm,
            accelerator: Accelerator::Tcg,
            cpu_model: Accelerator::Tcg.default_cpu_model().to_owned(),
            cpus: 1,
            memory_bytes,
            kernel,
            initrd: None,
            command_line: String::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            channel: false,
        }
    }

    /// The machine as `program` makes it, if it can.
    pub fn settle(self, program: &QemuProgram) -> Result<QemuSpec, Misfit> {
        self.check_values()?;
        let machine_type = program.machine_type(self.machine)?;
        program.check_accelerator(self.accelerator)?;
        let host_cpu = self.has_host_cpu().then(host_cpu);
        Ok(QemuSpec { options: self, qemu_version: program.version, machine_type, host_cpu })
    }

    /// True if the guest's CPU is the host's.
    fn has_host_cpu(&self) -> bool {
        let model = self.cpu_model.split(',').next().unwrap_or_default();
        self.accelerator == Accelerator::Kvm && (model == "host" || model == "max")
    }

    /// Checks that every value can be one of a machine. They may come from another node.
    pub(super) fn check_values(&self) -> Result<(), Misfit> {
        let wrong = |what, value: String, must| Err(Misfit::Value { what, value, must });
        let memory = self.memory_bytes;
        if memory < MIB || !memory.is_multiple_of(MIB) {
            return wrong("memory", format!("{memory} bytes"), "it must be whole MiB, one at least");
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return wrong("the number of CPUs", self.cpus.to_string(), "there must be 1 to 64");
        }
        if self.cpu_model.len() > CPU_MODEL_BYTES_MAX || !self.cpu_model.chars().all(is_of_cpu_model) {
            return wrong("the CPU model", self.cpu_model.clone(), "it must be one that `-cpu help` lists");
        }
        if self.command_line.len() > COMMAND_LINE_BYTES_MAX || self.command_line.contains('\0') {
            let length = format!("{} bytes long", self.command_line.len());
            return wrong("the kernel's command line", length, "2047 bytes without a zero are the most");
        }
        self.check_devices()
    }

    fn check_devices(&self) -> Result<(), Misfit> {
        let wrong = |what, value: String, must| Err(Misfit::Value { what, value, must });
        let names: BTreeSet<_> = self.disks.iter().map(|disk| &disk.name).collect();
        if self.disks.len() > DISKS_MAX || names.len() < self.disks.len() {
            return wrong(
                "the number of disks",
                self.disks.len().to_string(),
                "8 of different names are the most",
            );
        }
        if self.disks.iter().any(|disk| disk.bytes == 0) {
            return wrong("a disk's length", "0 bytes".to_owned(), "it must have some");
        }
        let is_name = |name: &str| name.parse().is_ok_and(|name: VolumeName| name != VolumeName::memory());
        if let Some(disk) = self.disks.iter().find(|disk| !is_name(&disk.name)) {
            return wrong(
                "a disk's name",
                disk.name.clone(),
                "it must be of a-z, 0-9 and -, and not `memory`",
            );
        }
        if self.nics.len() > NICS_MAX {
            return wrong("the number of network devices", self.nics.len().to_string(), "4 are the most");
        }
        match self.nics.iter().find(|nic| !is_mac(&nic.mac)) {
            Some(nic) => {
                wrong("a network device's address", nic.mac.clone(), "it must look like 52:54:00:12:34:56")
            }
            None => Ok(()),
        }
    }
}

fn is_of_cpu_model(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-+_.=,".contains(character)
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    let is_byte = |part: &&str| part.len() == 2 && part.chars().all(|digit| digit.is_ascii_hexdigit());
    parts.len() == 6 && parts.iter().all(is_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_before_channels_has_none_and_is_written_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let kernel = BootFile::keep_bytes(b"a kernel", directory.path()).expect("there is room");
        let without = QemuOptions::new(64 << 20, kernel);
        let written = serde_json::to_value(&without).expect("plain data");
        assert!(written.get("channel").is_none(), "{written}");
        assert_eq!(serde_json::from_value::<QemuOptions>(written).expect("it is one"), without);
        let with = QemuOptions { channel: true, ..without };
        let written = serde_json::to_value(&with).expect("plain data");
        assert_eq!(serde_json::from_value::<QemuOptions>(written).expect("it is one"), with);
    }
}
