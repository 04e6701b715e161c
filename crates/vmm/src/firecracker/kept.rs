//! Firecrackers that outlive their driver: the facts and descriptors with which another driver goes on.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_keeper::{Held, KeeperClient, KeeperError};
use serde::{Deserialize, Serialize};

use super::calls::Calls;
use super::capture::CaptureFiles;
use super::directory::VmDirectory;
use super::found::Found;
use super::spec::{Drive, FirecrackerSpec, TrackFrom};
use super::vsock::Vsock;
use super::{FirecrackerError, FirecrackerGuest};
use crate::serial_line::SerialLine;
use crate::vmm_process::{VmmProcess, take_process};

/// The names of its descriptors among what the keeper holds.
pub(super) const CAPTURE: &str = "capture";
pub(super) const STATE: &str = "state";
pub(super) const PRINTED: &str = "printed";
pub(super) const TYPED: &str = "typed";
/// Both ends of the serial line of one that release 0.1 started.
const SERIAL: &str = "serial";

/// Facts of a running Firecracker beside its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirecrackerFacts {
    /// Its process id.
    pub pid: u32,
    /// The places of its files.
    pub directory: VmDirectory,
    /// The parts of the VM.
    pub spec: FirecrackerSpec,
    /// The program it is, and the host.
    pub found: Found,
    /// Origin of its VM.
    pub origin: Origin,
    /// Snapshots that were taken of it while it went on; it goes on from the last one.
    #[serde(default)]
    pub checkpoints: u32,
}

/// Origin of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// On empty memory, its disks copies of their images.
    Images,
    /// On empty memory, its disks out of a snapshot.
    Disks,
    /// On a snapshot.
    Snapshot,
}

/// Parts with which a driver attaches to a Firecracker that another driver left under the keeper.
#[derive(Debug)]
pub struct FirecrackerParts {
    facts: FirecrackerFacts,
    process: OwnedFd,
    serial: SerialLine,
    files: CaptureFiles,
}

impl FirecrackerFacts {
    /// The same once it goes on from another checkpoint.
    #[must_use]
    pub fn after_checkpoint(&self) -> Self {
        Self { checkpoints: self.checkpoints + 1, ..self.clone() }
    }

    /// The file with what a disk was in the snapshot that the VM goes on from; none where that is nothing.
    pub(super) fn chunks_of(&self, drive: &Drive) -> Option<PathBuf> {
        let name = drive.file_name();
        match (self.checkpoints, self.origin) {
            (0, Origin::Images) => None,
            (0, Origin::Disks | Origin::Snapshot) => Some(self.directory.beside(&name)),
            (number, _) => Some(self.directory.beside(&format!("{name}.{number}"))),
        }
    }

    /// The way to programs in its guest, if it has one.
    pub(super) fn vsock(&self) -> Result<Option<Arc<Vsock>>, FirecrackerError> {
        let directory = || self.directory.root().to_owned();
        let vsock = self.spec.channel.then(|| Vsock::in_directory(directory()).map(Arc::new)).transpose();
        vsock.map_err(FirecrackerError::system("preparing connections to the guest"))
    }

    /// True if Firecracker knows all pages that were written.
    pub(super) fn is_tracked(&self) -> bool {
        match self.origin {
            Origin::Snapshot => true,
            Origin::Images | Origin::Disks => self.spec.tracking == TrackFrom::Start,
        }
    }
}

impl FirecrackerParts {
    /// Takes them out of what the keeper holds under the guest's key; none if that is not all of it.
    pub fn take(held: &mut Held, facts: FirecrackerFacts) -> Option<Self> {
        let process = take_process(held)?;
        let serial = take_serial(held)?;
        let files = if facts.directory.is_jailed() {
            CaptureFiles::InJail(facts.directory.clone())
        } else {
            CaptureFiles::Inherited { memory: held.fds.remove(CAPTURE)?, state: held.fds.remove(STATE)? }
        };
        Some(Self { facts, process, serial, files })
    }
}

impl FirecrackerGuest {
    /// Hands it to a keeper that does not hold it: the one that did is gone.
    pub fn keep_under(&self, keeper: &KeeperClient, key: &str) -> Result<(), KeeperError> {
        self.process.keep_under(keeper, key, &kept_fds(&self.serial, &self.files))
    }

    /// Goes on with one that another driver left, even in the middle of a call: each call has a connection of its own,
    /// and Firecracker does one after the other.
    pub fn attach(parts: FirecrackerParts) -> Result<Self, FirecrackerError> {
        let FirecrackerParts { facts, process, serial, files } = parts;
        let process = VmmProcess::attach(facts.pid, process.as_fd())?;
        let calls = Calls::at(facts.directory.api());
        let vsock = facts.vsock()?;
        Ok(Self { process, facts, calls, files, serial, vsock, loading: None })
    }
}

fn kept_fds<'a>(serial: &'a SerialLine, files: &'a CaptureFiles) -> Vec<(&'static str, BorrowedFd<'a>)> {
    let mut fds = vec![(PRINTED, serial.output.as_fd()), (TYPED, serial.input.as_fd())];
    if let Some((memory, state)) = files.fds() {
        fds.extend([(CAPTURE, memory), (STATE, state)]);
    }
    fds
}

fn take_serial(held: &mut Held) -> Option<SerialLine> {
    match held.fds.remove(SERIAL) {
        Some(socket) => SerialLine::of_socket(socket.as_fd()).ok(),
        None => Some(SerialLine { output: held.fds.remove(PRINTED)?, input: held.fds.remove(TYPED)? }),
    }
}
