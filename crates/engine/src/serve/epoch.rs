//! A guest between the end of its serving and its next step: a capture, or being served again.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rekindle_kernel::{EventBuffer, Memfd, Pagemap};

use super::installer::Installer;
use crate::capture::CapturedPages;
use crate::handover::Handover;
use crate::image::Image;
use crate::page_set::PageSet;
use crate::regions::Regions;
use crate::tracking::{EpochSets, StoppedMemory, Tracking, changed_pages};

/// The known state of a guest's pages, and the descriptors that it depends on. Until it is dropped, missing pages do
/// not read as zeroes.
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
    /// True until the stream has ended.
    pub(super) connected: bool,
}

impl Epoch {
    /// Begins the epoch of a guest that was handed over, with `tracking` or the one that its memory and its userfaultfd can
    /// do.
    pub fn begin(handover: Handover, tracking: Tracking) -> io::Result<Self> {
        let Handover { regions, userfaultfd, memfd, image, pid, stream } = handover;
        let tracking = match image {
            Some(_) => Tracking::Diverged,
            None => tracking.possible_with(userfaultfd.granted()?),
        };
        stream.set_nonblocking(true)?;
        let (mut installer, events) =
            Installer::register(pid, userfaultfd, regions, tracking, memfd.is_some())?;
        installer.image = image;
        Ok(Self { installer, guest: Guest { memfd, pid, stream, connected: true }, events })
    }

    /// Addresses of the guest's pages.
    pub fn regions(&self) -> &Regions {
        &self.installer.regions
    }

    /// The file of the guest's memory, if it is shared.
    pub fn memfd(&self) -> Option<&Memfd> {
        self.guest.memfd.as_ref()
    }

    /// The image that the guest shares with others, as long as it runs from the image's snapshot.
    pub fn image(&self) -> Option<&Arc<Image>> {
        self.installer.image.as_ref()
    }

    /// Goes on with the image that the guest's memory is a private mapping of, after a recovery.
    pub fn share(&mut self, image: Arc<Image>) {
        self.installer.image = Some(image);
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.guest.pid
    }

    /// The way in which writes were tracked.
    pub fn tracking(&self) -> Tracking {
        self.installer.tracking()
    }

    /// The pages that the guest gave back in this epoch, including those installed again since.
    pub fn removed(&self) -> &PageSet {
        self.installer.pages.removed()
    }

    /// The pages that were written, or were open to untracked writes. It has all written pages only if writes are
    /// tracked by events.
    pub fn written(&self) -> &PageSet {
        self.installer.pages.written()
    }

    /// The pages that this process installed, without those given back since.
    pub fn installed(&self) -> &PageSet {
        self.installer.pages.installed()
    }

    /// The pages that a pause has to capture; scans page tables, so the guest's process must be stopped and still
    /// exist.
    pub fn changed_pages(&self) -> io::Result<CapturedPages> {
        let sets = EpochSets { removed: self.removed(), written: self.written() };
        let memory =
            StoppedMemory { regions: self.regions(), memfd: self.memfd(), pagemap: Pagemap::of(self.pid())? };
        changed_pages(self.tracking(), &sets, &memory)
    }

    /// Begins anew from a snapshot of this very moment, which has all that [`Self::changed_pages`] answered; `kept` are
    /// those pages that it has bytes of. The guest's process must still be stopped.
    ///
    /// After an error the sets are as they were: the next snapshot keeps more pages than it must. Until this has returned
    /// a recovery finds either the old sets or a part of them, which is right with that snapshot as the guest's base.
    pub fn begin_anew(&mut self, kept: &PageSet) -> io::Result<()> {
        if self.tracking().protects() {
            self.installer.protect(kept)?;
        }
        self.installer.pages.forget(kept);
        // It has pages of the snapshot before: what the guest lacks from now on it gets as its own.
        self.installer.image = None;
        Ok(())
    }
}
