//! Reasons that a machine cannot be started here, found before anything is started.

use std::io;
use std::path::PathBuf;

use super::machine::{Accelerator, Machine};
use super::version::Version;

/// A machine does not fit this host, or makes no sense anywhere.
#[derive(Debug, thiserror::Error)]
pub enum Misfit {
    /// A value that no machine can have.
    #[error("{what} is {value}, but {must}")]
    Value {
        /// Name of the value.
        what: &'static str,
        /// The value.
        value: String,
        /// The value required.
        must: &'static str,
    },
    /// QEMU here is older than the one that made the machine.
    #[error("it was made by QEMU {made_by}, and QEMU here is {found}: install QEMU {made_by} or a later one")]
    OlderQemu {
        /// The version that made it.
        made_by: Version,
        /// The version here.
        found: Version,
    },
    /// The machine's devices are not the same from one QEMU to the next.
    #[error(
        "it was made by QEMU {made_by}, and QEMU here is {found}: a {} can only go on under QEMU {}.{}.x; q35 is the \
         machine that later ones can take over",
        machine.word(), made_by.major, made_by.minor
    )]
    OtherQemu {
        /// The machine.
        machine: Machine,
        /// The version that made it.
        made_by: Version,
        /// The version here.
        found: Version,
    },
    /// QEMU here does not know the machine.
    #[error("QEMU {found} has no machine {machine_type}")]
    NoSuchMachine {
        /// The machine with its version.
        machine_type: String,
        /// The version here.
        found: Version,
    },
    /// The accelerator does not work here.
    #[error("it needs {}, which does not work here: {reason}", accelerator.word())]
    NoAccelerator {
        /// The accelerator it needs.
        accelerator: Accelerator,
        /// The reason that it does not work.
        reason: String,
    },
    /// The machine has the CPU of the host it was started on, and this is another.
    #[error("its CPU is its host's, {made_on}, and the CPU here is {found}")]
    OtherCpu {
        /// The CPU it was started on.
        made_on: String,
        /// The CPU here.
        found: String,
    },
    /// A file the machine boots from is at none of its places.
    #[error(
        "its {role} is not here: {}; put the file with BLAKE3 {blake3} in any of these places",
        told_places(places)
    )]
    NoBootFile {
        /// Kernel or initrd.
        role: &'static str,
        /// The digest of the bytes that are needed.
        blake3: String,
        /// Each place where it was looked for, with what is there.
        places: Vec<(PathBuf, FoundInstead)>,
    },
    /// The volumes of a snapshot are not those of its machine.
    #[error("{volume} has {found} bytes, but the machine's has {expected}")]
    VolumeSize {
        /// The memory or a disk.
        volume: String,
        /// Bytes of the machine's.
        expected: u64,
        /// Bytes of the snapshot's; 0 where it has none.
        found: u64,
    },
    /// Sockets or network devices were not named for all of the machine's.
    #[error("the machine has {expected} {what}, {given} were named")]
    Count {
        /// Disks' sockets or network devices.
        what: &'static str,
        /// Number the machine has.
        expected: usize,
        /// Number named.
        given: usize,
    },
}

/// The thing found in the place of a boot file.
#[derive(Debug, thiserror::Error)]
pub enum FoundInstead {
    /// A file with other bytes.
    #[error("has other bytes (BLAKE3 {blake3})")]
    OtherBytes {
        /// Their digest.
        blake3: String,
    },
    /// Nothing that can be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
}

fn told_places(places: &[(PathBuf, FoundInstead)]) -> String {
    let told: Vec<_> = places.iter().map(|(path, found)| format!("{} {found}", path.display())).collect();
    told.join("; ")
}
