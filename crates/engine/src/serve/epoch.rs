//! A guest between the end of its epoch and its next step: a capture, or going on.

use std::io;
use std::os::unix::net::UnixStream;

use rekindle_kernel::{EventBuffer, Memfd, Pagemap};

use super::installer::Installer;
use crate::capture::CapturedPages;
use crate::handover::Handover;
use crate::page_set::PageSet;
use crate::regions::Regions;
use crate::tracking::{EpochSets, StoppedMemory, Tracking, changed_pages};

/// The known state of a guest's pages, and the descriptors it lives by. Until it drops, nothing the guest still misses
/// reads as zeroes.
#[derive(Debug)]
pub struct Epoch {
    pub(super) installer: Installer,
    pub(super) guest: Guest,
    /// Buffer that events are read into.
    pub(super) events: EventBuffer,
}

/// The VMM behind the memory.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) memfd: Option<Memfd>,
    pub(super) pid: u32,
    pub(super) stream: UnixStream,
    /// The stream has not ended yet.
    pub(super) connected: bool,
}

impl Epoch {
    /// Begins the epoch of a guest that was handed over. Falls back to what the userfaultfd can do of `tracking`.
    pub fn begin(handover: Handover, tracking: Tracking) -> io::Result<Self> {
        let Handover { regions, userfaultfd, memfd, pid, stream } = handover;
        let tracking = tracking.possible_with(userfaultfd.granted()?);
        stream.set_nonblocking(true)?;
        let (installer, events) = Installer::register(pid, userfaultfd, regions, tracking, memfd.is_some())?;
        Ok(Self { installer, guest: Guest { memfd, pid, stream, connected: true }, events })
    }

    /// Addresses of the guest's pages.
    pub fn regions(&self) -> &Regions {
        &self.installer.regions
    }

    /// The file behind the guest's memory, where it shares it.
    pub fn memfd(&self) -> Option<&Memfd> {
        self.guest.memfd.as_ref()
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.guest.pid
    }

    /// The way in which writes were tracked.
    pub fn tracking(&self) -> Tracking {
        self.installer.tracking()
    }

    /// The pages the guest gave back in this epoch, also those that came back since.
    pub fn removed(&self) -> &PageSet {
        self.installer.pages.removed()
    }

    /// The pages known to have been written, or to have been open to unseen writes. Alone it is all that was written
    /// only if writes were events.
    pub fn written(&self) -> &PageSet {
        self.installer.pages.written()
    }

    /// The pages installed by this process and not given back since.
    pub fn installed(&self) -> &PageSet {
        self.installer.pages.installed()
    }

    /// The pages a pause has to capture, asked of the kernel while the guest is stopped and its process still there.
    pub fn changed_pages(&self) -> io::Result<CapturedPages> {
        let sets = EpochSets { removed: self.removed(), written: self.written() };
        let memory =
            StoppedMemory { regions: self.regions(), memfd: self.memfd(), pagemap: Pagemap::of(self.pid())? };
        changed_pages(self.tracking(), &sets, &memory)
    }
}
