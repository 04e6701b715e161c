//! An epoch outside of its server: the parts that a keeper holds, and the recovery of an epoch from them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rekindle_kernel::{Event, Memfd, Pagemap, Userfaultfd, userfaultfd};

use super::epoch::{Epoch, Guest};
use super::epoch_facts::{EpochFacts, digest_of};
use super::epoch_pages::EpochPages;
use super::installer::Installer;
use super::journal::{Journal, Recovered};
use crate::handover::{self, HandoverError};
use crate::regions::{Regions, RegionsError};
use crate::tracking::{EpochSets, StoppedMemory, Tracking, may_have_changed};

pub use super::journal::JournalError;

/// Everything that an epoch is recovered from.
#[derive(Debug)]
pub struct KeptEpoch {
    /// The recorded facts.
    pub facts: EpochFacts,
    /// The descriptor that reports the guest's faults.
    pub userfaultfd: OwnedFd,
    /// The file of the guest's memory, if it is shared.
    pub memfd: Option<OwnedFd>,
    /// The file of the image that its memory is a private mapping of.
    pub image: Option<OwnedFd>,
    /// Open while the VMM lives.
    pub stream: OwnedFd,
    /// The server's notes on the guest's pages.
    pub journal: OwnedFd,
}

/// Reason that a guest cannot be served again from its kept parts.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The journal is damaged, or is another guest's.
    #[error("the kept epoch journal cannot be used: {0}")]
    Journal(#[from] JournalError),
    /// The facts and the journal are not of the same epoch.
    #[error("the kept epoch journal is not that of process {pid} with the memory regions written down")]
    OtherGuest {
        /// The recorded process.
        pid: u32,
    },
    /// The regions are not the memory of the journal's volume.
    #[error("the regions written down are not those of the kept epoch journal: {0}")]
    Regions(#[from] RegionsError),
    /// The descriptor is not a userfaultfd.
    #[error("the kept userfaultfd cannot be used: {0}")]
    Userfaultfd(#[from] userfaultfd::AdoptError),
    /// The userfaultfd does not support the recorded tracking.
    #[error("the kept userfaultfd tells of writes by {possible:?}, not by {tracking:?} as is written down")]
    Tracking {
        /// The recorded tracking.
        tracking: Tracking,
        /// The tracking that the userfaultfd supports.
        possible: Tracking,
    },
    /// The memory file is not that of the regions.
    #[error("the kept memory file cannot be used: {0}")]
    Memory(#[source] HandoverError),
    /// A descriptor cannot be inspected or set up.
    #[error("a kept descriptor cannot be used: {0}")]
    Io(#[from] io::Error),
}

impl KeptEpoch {
    /// A copy with new descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            facts: self.facts.clone(),
            userfaultfd: self.userfaultfd.try_clone()?,
            memfd: self.memfd.as_ref().map(OwnedFd::try_clone).transpose()?,
            image: self.image.as_ref().map(OwnedFd::try_clone).transpose()?,
            stream: self.stream.try_clone()?,
            journal: self.journal.try_clone()?,
        })
    }

    /// False only where the guest has written nothing and given nothing back in this epoch. It may run meanwhile, and so
    /// may its server.
    pub(super) fn may_have_changed(&self, pages: u32) -> io::Result<bool> {
        let EpochFacts { pid, regions, tracking, image: _ } = &self.facts;
        let regions = Regions::new(regions.clone(), pages).map_err(io::Error::other)?;
        let memfd = self.memfd.as_ref().map(OwnedFd::try_clone).transpose()?;
        let memfd = memfd.map(Memfd::adopt).transpose().map_err(io::Error::other)?;
        let (removed, written) = Journal::peek(self.journal.as_fd(), pages)?;
        let sets = EpochSets { removed: &removed, written: &written };
        let memory = StoppedMemory { regions: &regions, memfd: memfd.as_ref(), pagemap: Pagemap::of(*pid)? };
        may_have_changed(*tracking, &sets, &memory)
    }
}

impl Epoch {
    /// The facts to record before the guest is served.
    pub fn facts(&self) -> EpochFacts {
        let regions = self.regions().iter().copied().collect();
        let image = self.image().map(|image| image.snapshot().uuid());
        EpochFacts { pid: self.pid(), regions, tracking: self.tracking(), image }
    }

    /// Everything that another process needs to continue after this one; to be given to the keeper before the guest is
    /// served.
    pub fn kept(&self) -> io::Result<KeptEpoch> {
        Ok(KeptEpoch {
            facts: self.facts(),
            userfaultfd: self.installer.userfaultfd.as_fd().try_clone_to_owned()?,
            memfd: self.memfd().map(|memfd| memfd.as_fd().try_clone_to_owned()).transpose()?,
            image: self.image().map(|image| image.memfd().as_fd().try_clone_to_owned()).transpose()?,
            stream: self.guest.stream.as_fd().try_clone_to_owned()?,
            journal: self.installer.pages.journal().kept()?,
        })
    }

    /// Recovers the epoch of a guest whose server was killed, at any point; waits for a bounded time until the server
    /// is gone.
    ///
    /// Removed and written pages are known; installed ones are not, and are found out by installing. Unread removes are
    /// read when the guest is served. It shares no image until [`Self::share`].
    pub fn recover(kept: KeptEpoch) -> Result<Self, RecoverError> {
        let KeptEpoch { facts, userfaultfd, memfd, image: _, stream, journal } = kept;
        let Recovered { head, journal, events, removed, written } = Journal::recover(journal)?;
        let regions = Regions::new(facts.regions, head.pages)?;
        if digest_of(facts.pid, &regions, facts.tracking) != head.facts {
            return Err(RecoverError::OtherGuest { pid: facts.pid });
        }
        let userfaultfd = Userfaultfd::adopt(userfaultfd)?;
        let (tracking, possible) = (facts.tracking, facts.tracking.possible_with(userfaultfd.granted()?));
        if possible != tracking {
            return Err(RecoverError::Tracking { tracking, possible });
        }
        let memfd = memfd.map(|fd| handover::adopt_memory(fd, &regions)).transpose();
        let memfd = memfd.map_err(RecoverError::Memory)?;
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(true)?;
        let mut pages = EpochPages::recovered(journal, removed, written);
        for event in events.events(events.events_max()) {
            if let Event::Remove(range) | Event::Unmap(range) = event {
                regions.pages_in(range).for_each(|run| pages.remove(run));
            }
        }
        let installer = Installer {
            userfaultfd,
            regions,
            tracking,
            shares_zeroes: head.shares_zeroes,
            image: None,
            pages,
        };
        Ok(Self { installer, guest: Guest { memfd, pid: facts.pid, stream, connected: true }, events })
    }
}
