//! A machine about to be started here: checked against this host, with a place for everything it needs.

use std::path::{Path, PathBuf};

use super::misfit::Misfit;
use super::program::{QemuProgram, host_cpu};
use super::spec::QemuSpec;

/// Longest path of a unix socket (sun_path, unix(7)).
const SOCKET_BYTES_MAX: usize = 107;
/// Longest name of a network device (IFNAMSIZ, linux/if.h).
const TAP_BYTES_MAX: usize = 15;

/// What a start needs beside the machine, and the next start elsewhere needs anew.
#[derive(Clone, Debug)]
pub struct Places {
    /// Where boot files are kept under their digests.
    pub boot_directory: PathBuf,
    /// The absolute path of a file that gets what QEMU prints, at the end.
    pub log: PathBuf,
    /// The absolute path of the socket at which each disk is served over NBD already, in the machine's order.
    pub disks: Vec<PathBuf>,
    /// The tap device of each network device, in the machine's order. It exists already.
    pub taps: Vec<String>,
}

/// A machine that can be started here.
#[derive(Clone, Debug)]
pub struct Launch {
    pub(super) program: QemuProgram,
    pub(super) spec: QemuSpec,
    pub(super) places: Places,
    pub(super) kernel: PathBuf,
    pub(super) initrd: Option<PathBuf>,
}

impl Launch {
    /// Checks that `program` can make the machine `spec` here, as it was made first; reads the boot files through.
    pub fn new(program: &QemuProgram, spec: &QemuSpec, places: Places) -> Result<Self, Misfit> {
        let options = &spec.options;
        options.check_values()?;
        spec.check(program)?;
        check_count("disks' sockets", options.disks.len(), places.disks.len())?;
        check_count("tap devices", options.nics.len(), places.taps.len())?;
        places.check_values()?;
        let kernel = options.kernel.find(&places.boot_directory, "kernel")?;
        let initrd = options.initrd.as_ref().map(|initrd| initrd.find(&places.boot_directory, "initrd"));
        let initrd = initrd.transpose()?;
        Ok(Self { program: program.clone(), spec: spec.clone(), places, kernel, initrd })
    }

    /// The machine.
    pub fn spec(&self) -> &QemuSpec {
        &self.spec
    }
}

impl QemuSpec {
    /// Whether `program` makes the machine as it was made first. Files, sockets and network devices are looked at by
    /// [`Launch::new`].
    pub fn check(&self, program: &QemuProgram) -> Result<(), Misfit> {
        let (made_by, found, machine) = (self.qemu_version, program.version, self.options.machine);
        if found < made_by {
            return Err(Misfit::OlderQemu { made_by, found });
        }
        if !machine.is_versioned() && (found.major, found.minor) != (made_by.major, made_by.minor) {
            return Err(Misfit::OtherQemu { machine, made_by, found });
        }
        let of_machine = match machine.is_versioned() {
            true => self.machine_type.starts_with(&format!("pc-{}-", machine.word())),
            false => self.machine_type == machine.word(),
        };
        if !of_machine || !program.has_machine_type(&self.machine_type) {
            return Err(Misfit::NoSuchMachine { machine_type: self.machine_type.clone(), found });
        }
        program.check_accelerator(self.options.accelerator)?;
        match (&self.host_cpu, host_cpu()) {
            (Some(made_on), found) if *made_on != found => {
                Err(Misfit::OtherCpu { made_on: made_on.clone(), found })
            }
            (Some(_) | None, _) => Ok(()),
        }
    }

    /// Whether the volumes of a snapshot, each with its name and bytes, are those of the machine.
    pub fn check_volumes(&self, memory_bytes: u64, disks: &[(&str, u64)]) -> Result<(), Misfit> {
        let expected = self.options.memory_bytes;
        if memory_bytes != expected {
            return Err(Misfit::VolumeSize {
                volume: "the memory".to_owned(),
                expected,
                found: memory_bytes,
            });
        }
        check_count("disk volumes", self.options.disks.len(), disks.len())?;
        for disk in &self.options.disks {
            let found = disks.iter().find(|(name, _)| *name == disk.name).map_or(0, |(_, bytes)| *bytes);
            if found != disk.bytes {
                let volume = format!("disk {}", disk.name);
                return Err(Misfit::VolumeSize { volume, expected: disk.bytes, found });
            }
        }
        Ok(())
    }
}

impl Places {
    fn check_values(&self) -> Result<(), Misfit> {
        let wrong = |what, value: String, must| Err(Misfit::Value { what, value, must });
        let is_socket = |path: &Path| path.is_absolute() && path.as_os_str().len() <= SOCKET_BYTES_MAX;
        if let Some(socket) = self.disks.iter().find(|socket| !is_socket(socket)) {
            let must = "it must be an absolute path of 107 bytes at most";
            return wrong("a disk's socket", socket.display().to_string(), must);
        }
        let is_tap = |name: &str| {
            let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
            (1..=TAP_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed)
        };
        if let Some(tap) = self.taps.iter().find(|tap| !is_tap(tap)) {
            let must = "it must be the name of a network device: 15 letters, digits, -, _ and . at most";
            return wrong("a tap device", tap.clone(), must);
        }
        Ok(())
    }
}

fn check_count(what: &'static str, expected: usize, given: usize) -> Result<(), Misfit> {
    if expected == given { Ok(()) } else { Err(Misfit::Count { what, expected, given }) }
}
