//! The parts of a Firecracker VM: kept with its snapshots, so that it is the same on every host that resumes it.

use std::path::PathBuf;

use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::{NameError, VolumeName};
use rekindle_engine::limits::MANIFEST_VOLUMES_MAX;
use rekindle_kernel::PageKind;
use serde::{Deserialize, Serialize};

use super::found::Found;
use crate::qemu::BootFile;

/// A Firecracker VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirecrackerSpec {
    /// Virtual CPUs, 1 to 32.
    pub cpus: u8,
    /// Bytes of guest memory, whole MiB.
    pub memory_bytes: u64,
    /// The pages guest memory is made of on the host.
    #[serde(default)]
    pub pages: MemoryPages,
    /// The kernel it is started with.
    pub kernel: BootFile,
    /// The initial RAM disk beside the kernel.
    #[serde(default)]
    pub initrd: Option<BootFile>,
    /// The kernel's command line.
    pub command_line: String,
    /// Its disks, in the order of the guest's devices.
    #[serde(default)]
    pub drives: Vec<Drive>,
    /// Its network interfaces.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The file of the network namespace it runs in; none: the keeper's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// True if it has a vsock device, by which programs outside connect to those in its guest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub channel: bool,
    /// The balloon, by which memory can be taken back from the guest.
    #[serde(default)]
    pub balloon: Option<Balloon>,
    /// Firecracker's own list of CPU features (its `cpu_template`), which makes CPUs of one vendor alike.
    #[serde(default)]
    pub cpu_profile: Option<String>,
    /// When the guest's writes begin to be tracked.
    #[serde(default)]
    pub tracking: TrackFrom,
    /// The program that saved it last; none before its first pause.
    #[serde(default)]
    pub saved: Option<Saved>,
}

/// Pages of guest memory on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryPages {
    /// 4 KiB.
    #[default]
    Small,
    /// 2 MiB, out of the host's reserve.
    Huge,
}

/// From when on Firecracker tracks writes. One that was resumed always does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackFrom {
    /// From the start: the first pause writes what was written.
    #[default]
    Start,
    /// From the first resume: the first pause writes all of memory.
    Resume,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// Its id at Firecracker and, if it is writable, the name of its volume.
    pub id: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// True if the guest's root file system is on it.
    #[serde(default)]
    pub is_root: bool,
    /// Place of its bytes.
    pub content: DriveContent,
}

/// Place of a disk's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriveContent {
    /// In a file that is never written, the same for every resume.
    ReadOnly(BootFile),
    /// In a file of the VM's own, which is a volume of every snapshot. It begins as a copy of the image at this absolute
    /// path, or as a volume of a snapshot where there is none.
    Writable(Option<PathBuf>),
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its id at Firecracker.
    pub id: String,
    /// The tap device of the host; may be another one at each resume.
    pub tap: String,
    /// The guest's address on it; Firecracker chooses one by default.
    #[serde(default)]
    pub guest_mac: Option<String>,
}

/// A memory balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// MiB it takes at the start.
    pub mib: u32,
    /// True if it gives memory back when the guest runs out.
    pub deflates: bool,
}

/// The program that saved a VM's state, and that is expected to load it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The program and the host.
    pub by: Found,
    /// The tap devices by which the state names its interfaces, in the order of the interfaces.
    pub taps: Vec<String>,
}

/// Reason that there can be no such VM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Firecracker takes 1 to 32.
    #[error("{cpus} CPUs: Firecracker has 1 to 32")]
    Cpus {
        /// The number given.
        cpus: u8,
    },
    /// Firecracker takes whole MiB, and even ones of huge pages.
    #[error("{bytes} bytes of memory: Firecracker takes whole MiB, an even number of them with 2 MiB pages")]
    Memory {
        /// The number given.
        bytes: u64,
    },
    /// Firecracker has no initial RAM disk with huge pages, and no balloon.
    #[error("{what} and 2 MiB pages: Firecracker does not have both")]
    NotWithHugePages {
        /// The other thing asked for.
        what: &'static str,
    },
    /// A name is not usable.
    #[error("{id:?} cannot name a disk: {source}")]
    DriveId {
        /// The name.
        id: String,
        /// The reason.
        source: NameError,
    },
    /// A name is not usable.
    #[error("{id:?} cannot name an interface: letters, digits and '_' can")]
    InterfaceId {
        /// The name.
        id: String,
    },
    /// Two things have one name, or a disk has the memory's.
    #[error("{id:?} names two things")]
    SameIdTwice {
        /// The name.
        id: String,
    },
    /// A snapshot has no more volumes.
    #[error("{drives} disks are more than a snapshot has volumes for")]
    TooManyDrives {
        /// Number of drives.
        drives: usize,
    },
    /// A disk is of no size that Firecracker takes.
    #[error("disk {id}: {bytes} bytes are not a number of 512-byte sectors that a volume can have")]
    DriveSize {
        /// The disk.
        id: String,
        /// Its size.
        bytes: u64,
    },
    /// A file is not found from everywhere.
    #[error("{} is not an absolute path", path.display())]
    RelativePath {
        /// The path.
        path: PathBuf,
    },
}

impl FirecrackerSpec {
    /// Checks that there can be such a VM, without looking at the files it names.
    pub fn validate(&self) -> Result<(), SpecError> {
        if !(1..=32).contains(&self.cpus) {
            return Err(SpecError::Cpus { cpus: self.cpus });
        }
        let unit = match self.pages {
            MemoryPages::Small => 1 << 20,
            MemoryPages::Huge => 2 << 20,
        };
        let bytes = self.memory_bytes;
        if bytes == 0 || !bytes.is_multiple_of(unit) || pages_covering(bytes).is_none() {
            return Err(SpecError::Memory { bytes });
        }
        let beside = [("an initial RAM disk", self.initrd.is_some()), ("a balloon", self.balloon.is_some())];
        if let (MemoryPages::Huge, Some((what, _))) = (self.pages, beside.iter().find(|(_, there)| *there)) {
            return Err(SpecError::NotWithHugePages { what });
        }
        self.check_drives()?;
        self.check_interfaces()?;
        self.check_paths()
    }

    /// The pages of its memory's volume.
    pub fn page_kind(&self) -> PageKind {
        match self.pages {
            MemoryPages::Small => PageKind::Small,
            MemoryPages::Huge => PageKind::Huge,
        }
    }

    /// The disks that are volumes, in the order of the snapshot's volumes after memory.
    pub fn writable_drives(&self) -> impl Iterator<Item = (&Drive, VolumeName)> {
        let volume = |drive: &Drive| drive.id.parse::<VolumeName>().ok();
        self.drives
            .iter()
            .filter(|drive| drive.is_writable())
            .filter_map(move |drive| Some((drive, volume(drive)?)))
    }

    fn check_drives(&self) -> Result<(), SpecError> {
        if self.drives.len() >= MANIFEST_VOLUMES_MAX {
            return Err(SpecError::TooManyDrives { drives: self.drives.len() });
        }
        for (at, drive) in self.drives.iter().enumerate() {
            let id = || drive.id.clone();
            let name: VolumeName =
                drive.id.parse().map_err(|source| SpecError::DriveId { id: id(), source })?;
            if name == VolumeName::memory() || self.drives[..at].iter().any(|other| other.id == drive.id) {
                return Err(SpecError::SameIdTwice { id: id() });
            }
            let is_size = drive.bytes > 0 && drive.bytes.is_multiple_of(512);
            if !is_size || pages_covering(drive.bytes).is_none() {
                return Err(SpecError::DriveSize { id: id(), bytes: drive.bytes });
            }
        }
        Ok(())
    }

    fn check_interfaces(&self) -> Result<(), SpecError> {
        for (at, interface) in self.interfaces.iter().enumerate() {
            let id = interface.id.clone();
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            if id.is_empty() || !id.bytes().all(allowed) {
                return Err(SpecError::InterfaceId { id });
            }
            if self.interfaces[..at].iter().any(|other| other.id == id) {
                return Err(SpecError::SameIdTwice { id });
            }
        }
        Ok(())
    }

    fn check_paths(&self) -> Result<(), SpecError> {
        let boot = [Some(&self.kernel), self.initrd.as_ref()].into_iter().flatten().map(|file| &file.path);
        let mut all = boot.chain(self.drives.iter().filter_map(|drive| match &drive.content {
            DriveContent::ReadOnly(file) => Some(&file.path),
            DriveContent::Writable(image) => image.as_ref(),
        }));
        match all.find(|path| !path.is_absolute()) {
            Some(path) => Err(SpecError::RelativePath { path: path.clone() }),
            None => Ok(()),
        }
    }
}

impl Drive {
    /// True if the guest may write it.
    pub fn is_writable(&self) -> bool {
        match self.content {
            DriveContent::ReadOnly(_) => false,
            DriveContent::Writable(_) => true,
        }
    }

    /// The name by which Firecracker opens it: in the directory it was started in, so that it is the same in every
    /// process although each has a file of its own.
    pub fn file_name(&self) -> String {
        format!("drive-{}", self.id)
    }
}
