//! The driver of Firecracker: an unmodified one, over the socket of its API.
//!
//! `docs/firecracker.md` lists every call, field and failure this relies on.

mod calls;
mod capture;
mod directory;
mod drives;
mod error;
mod exchange;
mod files;
mod found;
mod jailer;
mod kept;
mod misfit;
mod spec;
mod start;
mod version;
mod volumes;
mod vsock;

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_engine::serve::{Neighbours, Placement, ServeOptions};
use rekindle_engine::tracking::Tracking;

use super::serial_line::SerialLine;
use super::vmm_process::VmmProcess;
use calls::{Calls, InstanceState, SnapshotKind};
use capture::{Begun, CaptureFiles};
use exchange::Asked;

pub use directory::VmDirectory;
pub use drives::DriveSource;
pub use error::{CallError, FirecrackerError};
pub use files::FileDigests;
pub use found::{Found, Host, NotFirecracker};
pub use jailer::{Jailer, NoJail};
pub use kept::{FirecrackerFacts, FirecrackerParts};
pub use misfit::Misfit;
pub use spec::{
    Balloon, Drive, DriveContent, FirecrackerSpec, Interface, MemoryPages, Saved, SpecError, TrackFrom,
};
pub use version::{Feature, NoVersion, Version};
pub use vsock::Vsock;

/// The program, and directories for its VMs' files.
#[derive(Clone, Debug)]
pub struct Places {
    /// The program, absolute.
    pub program: PathBuf,
    /// Options of its jail, if it is jailed.
    pub jailer: Option<Jailer>,
    /// Directory of API sockets, absolute and short: a socket's path has 107 bytes.
    pub run_directory: PathBuf,
    /// Directory of VMs' disks, absolute; best on the file system of their images, which may then share blocks.
    pub disk_directory: PathBuf,
    /// The absolute path of a file that gets what Firecracker prints on standard error.
    pub log: Option<PathBuf>,
    /// Filter of Firecracker's system calls.
    pub seccomp: Seccomp,
    /// The program `rekindle`, which enters a network namespace.
    pub starter: PathBuf,
    /// Known digests of boot files and read-only disks.
    pub digests: Arc<FileDigests>,
}

/// Filter of Firecracker's system calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// By its own list.
    #[default]
    Filtered,
    /// Not at all (`--no-seccomp`), as some kernels need.
    Unfiltered,
}

impl Places {
    /// Path to listen at for the hand-over of the VM that is resumed under `key`: unless it is in the jail already it
    /// can be there only as a link, for which both have to be on one file system.
    pub fn handover(&self, key: &str) -> io::Result<PathBuf> {
        let id = start::id_of(key);
        match &self.jailer {
            None => Ok(self.run_directory.join(format!("handover-{id}.sock"))),
            Some(jailer) => VmDirectory::handover_in_jail(&self.disk_directory, jailer, &self.program, &id),
        }
    }
}

/// Options of serving a Firecracker's faults: it tracks writes itself, and its userfaultfd reports missing pages only.
pub const SERVE_OPTIONS: ServeOptions = ServeOptions {
    tracking: Tracking::Resident,
    placement: Placement::FollowFaults,
    neighbours: Neighbours::Adaptive,
};

/// A running Firecracker under the keeper. Dropped, it goes on.
///
/// Its process is a field of its own, so that one thread can freeze or kill it while another waits for an answer.
#[derive(Debug)]
pub struct FirecrackerGuest {
    /// The process it is.
    pub process: VmmProcess,
    facts: FirecrackerFacts,
    calls: Calls,
    files: CaptureFiles,
    serial: SerialLine,
    vsock: Option<Arc<Vsock>>,
    /// The load whose answer was not taken yet.
    loading: Option<Asked>,
}

impl FirecrackerGuest {
    /// All that another driver needs to know of it, beside what the keeper holds.
    pub fn facts(&self) -> &FirecrackerFacts {
        &self.facts
    }

    /// The guest's serial console.
    pub fn serial(&self) -> &SerialLine {
        &self.serial
    }

    /// The way to programs in the guest, if the VM has one.
    pub fn vsock(&self) -> Option<&Arc<Vsock>> {
        self.vsock.as_ref()
    }

    /// The program that saves the VM, for the next snapshot's spec.
    pub fn saved(&self) -> Saved {
        let taps = self.facts.spec.interfaces.iter().map(|interface| interface.tap.clone()).collect();
        Saved { by: self.facts.found.clone(), taps }
    }

    /// Readable once Firecracker has answered the load that [`Self::resume`] began: before the hand-over that means
    /// that it failed, and [`Self::finish_load`] says why.
    pub fn loading(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd as _;
        self.loading.as_ref().map(Asked::as_fd)
    }

    /// Waits until the state is loaded and the guest runs. Its faults are served meanwhile, by another thread.
    pub fn finish_load(&mut self) -> Result<(), FirecrackerError> {
        let asked = self.loading.take().ok_or(FirecrackerError::NotLoading)?;
        let log = self.facts.directory.log();
        asked.done(calls::LOAD_LIMIT).map_err(|error| FirecrackerError::from(error).with_words(log))?;
        self.files.loaded().map_err(FirecrackerError::system("putting the loaded state away"))
    }

    /// Makes vCPUs and devices stand, and takes their state; the guest's changed memory is written along with it. Its
    /// faults are served meanwhile. If this fails, the guest may stand still: [`Self::go_on`].
    pub fn suspend(&mut self) -> Result<Vec<u8>, FirecrackerError> {
        self.take_state().map_err(|error| error.with_words(self.facts.directory.log()))
    }

    fn take_state(&self) -> Result<Vec<u8>, FirecrackerError> {
        self.calls.pause()?;
        let ended = self.vsock.as_ref().map_or(Ok(()), |vsock| vsock.end_connections());
        ended.map_err(FirecrackerError::system("ending the connections to the guest"))?;
        let noted = self.files.begin().map_err(FirecrackerError::system("noting that a capture begins"))?;
        let kind = match noted {
            Begun::First if self.facts.is_tracked() => SnapshotKind::Diff,
            Begun::First | Begun::Again => SnapshotKind::Full,
        };
        self.calls.create_snapshot(kind, &self.files.state_path(), &self.files.memory_path())?;
        self.files.state()
    }

    /// Lets a guest go on whose pause did not come to pass; nothing for one that runs.
    pub fn go_on(&mut self) -> Result<(), FirecrackerError> {
        match self.calls.instance()?.state {
            InstanceState::Paused => {
                let given_back = self.files.give_back_memory(self.facts.spec.memory_bytes);
                self.calls.go_on()?;
                given_back.map_err(FirecrackerError::system("giving back the memory of a failed pause"))
            }
            InstanceState::Running | InstanceState::NotStarted => Ok(()),
        }
    }

    /// Makes the balloon take this many MiB from the guest.
    pub fn inflate_balloon(&self, mib: u32) -> Result<(), FirecrackerError> {
        Ok(self.calls.set_balloon(mib)?)
    }
}
