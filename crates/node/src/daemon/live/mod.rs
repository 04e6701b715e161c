//! A guest that runs under the keeper: started, served, frozen, found again, ended.

mod birth;
mod checkpoint;
mod pause;
mod serving;

use std::sync::Arc;

use rekindle_engine::run_roots::RunsFrom;
use rekindle_engine::serve::{Epoch, EpochFacts, FaultServer};
use rekindle_engine::snapshot::Snapshot;
use rekindle_keeper::KeeperIdentity;
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_vmm::process::GuestControl;
use rekindle_vmm::serial_line::SerialLine;
use uuid::Uuid;

use crate::daemon::channel::GuestChannel;
use crate::daemon::claims::Claim;
use crate::daemon::endings::Ending;
use crate::daemon::epochs::put_epoch;
use crate::daemon::exclusive::Exclusive;
use crate::daemon::guest_watch::GuestWatch;
use crate::daemon::guests::Guest;
use crate::daemon::keeping::Keeping;
use crate::daemon::keys::guest_key;
use crate::daemon::notes::UnsettledChange;
use crate::daemon::record::{RecordedGuest, SandboxRecord};
use crate::daemon::spec::GuestSpec;

pub(in crate::daemon) use checkpoint::Checkpointed;
pub(in crate::daemon) use pause::{Paused, Wanted};

/// A running guest and, if it came from a snapshot, the server of its faults. Dropped, it runs on under the keeper.
#[derive(Debug)]
pub(in crate::daemon) struct Live {
    /// Its id, which is its key at the keeper.
    pub(in crate::daemon) id: Uuid,
    guest: Box<dyn Guest>,
    /// The snapshot that its volumes are changes of.
    base: Option<RunsFrom>,
    memory: Memory,
    /// A pause or a checkpoint of it that the catalog may have although it was not acknowledged.
    unsettled: Option<UnsettledPause>,
    /// The keeper that was given everything a later daemon needs of it.
    kept_by: KeeperIdentity,
    /// Reason that it cannot go on, if it stands still although no operation has it.
    stuck: Option<String>,
    claim: Claim,
}

/// A pause or a checkpoint that the catalog may have although it was not acknowledged.
#[derive(Debug)]
struct UnsettledPause {
    change: UnsettledChange,
    /// The sandbox's record before it.
    before: Box<SandboxRecord>,
}

/// Source of a guest's pages.
#[derive(Debug)]
enum Memory {
    /// It began empty.
    Own,
    /// The base.
    Served { server: FaultServer, facts: EpochFacts },
    /// The base, but its pages are not served now: the guest stands still or waits. Its epoch is in hand, because the
    /// keeper that holds the same may be gone.
    Unserved { epoch: Box<Epoch> },
}

impl Live {
    /// Its record for the catalog.
    pub(in crate::daemon) fn recorded(&self) -> RecordedGuest {
        let served = match &self.memory {
            Memory::Own => None,
            Memory::Served { facts, .. } => Some(facts.clone()),
            Memory::Unserved { epoch } => Some(epoch.facts()),
        };
        let base = self.base.as_ref().map(|base| base.snapshot().id().uuid());
        RecordedGuest { id: self.id, vmm: self.guest.recorded(), base, served }
    }

    /// Shows how its faults are served, from anywhere.
    pub(in crate::daemon) fn watch(&self) -> GuestWatch {
        let memory = match &self.memory {
            Memory::Served { server, .. } => Some(server.watch()),
            Memory::Own | Memory::Unserved { .. } => None,
        };
        GuestWatch {
            memory,
            disks: self.guest.disk_watches(),
            stuck: self.stuck.clone(),
            machine: self.guest.machine_watch(),
        }
    }

    /// False only where it has written nothing to its memory and its disks since the snapshot that it is changes of. It runs
    /// meanwhile. Nothing tells of the writes of a guest that began empty.
    pub(in crate::daemon) fn may_have_changed(&self) -> std::io::Result<bool> {
        match &self.memory {
            Memory::Served { server, .. } if !self.guest.disks_may_have_changed() => {
                server.may_have_changed()
            }
            Memory::Own | Memory::Served { .. } | Memory::Unserved { .. } => Ok(true),
        }
    }

    /// The snapshot that its pages come from, if they come from one.
    pub(in crate::daemon) fn base(&self) -> Option<Arc<Snapshot>> {
        self.base.as_ref().map(|base| Arc::clone(base.snapshot()))
    }

    /// The keeper that has everything of it.
    pub(in crate::daemon) fn kept_by(&self) -> KeeperIdentity {
        self.kept_by
    }

    /// Its process, to be asked and ended from anywhere.
    pub(in crate::daemon) fn process(&self) -> Arc<ProcessHandle> {
        self.guest.process().handle()
    }

    /// The account that its VMM, which has ended, gave of its end.
    pub(in crate::daemon) fn told_end(&self) -> Option<String> {
        self.guest.machine_watch().and_then(|watch| watch.ending())
    }

    /// The parts for a snapshot of it, if they are more than those it was started with.
    pub(in crate::daemon) fn saved_spec(&self) -> Option<GuestSpec> {
        self.guest.saved_spec()
    }

    /// Our ends of its serial line, once more, where it has one.
    pub(in crate::daemon) fn serial(&self) -> std::io::Result<Option<SerialLine>> {
        self.guest.serial()
    }

    /// The channel to its agent, if its machine has one.
    pub(in crate::daemon) fn channel(&self) -> Option<GuestChannel> {
        self.guest.channel()
    }

    /// The control socket of a process guest.
    pub(in crate::daemon) fn control(&mut self) -> Option<&mut GuestControl> {
        self.guest.control()
    }

    /// Hands everything to the keeper that a new daemon needs, after the one that had it died.
    pub(in crate::daemon) fn keep_again(&mut self, keeping: &Keeping) -> anyhow::Result<()> {
        let (key, keeper) = (guest_key(self.id), keeping.client());
        self.guest.keep_under(&keeper, &key)?;
        self.guest.keep_disks(&keeper, &key)?;
        match &self.memory {
            Memory::Own => {}
            Memory::Served { server, .. } => put_epoch(&keeper, &key, server.kept())?,
            Memory::Unserved { epoch } => put_epoch(&keeper, &key, &epoch.kept()?)?,
        }
        if let Some(UnsettledPause { before, .. }) = &self.unsettled {
            keeping.note_unsettled(self.id, &self.note(None), Some(before))?;
        }
        self.kept_by = keeper.identity();
        Ok(())
    }

    /// Tells the guest to end; the caller waits for its end.
    pub(in crate::daemon) fn end(mut self) -> Ending {
        let process = self.process();
        // An error says that it has ended already.
        process.signal(Signal::Kill).ok();
        self.end_serving();
        let (guest, has) = (self.id, self.claim.exclusive());
        Ending::Guest { guest, has, process, epoch: self.take_epoch() }
    }

    /// Closes the memory of a guest whose process has ended: the kernel may be about to end another guest for want of it.
    pub(in crate::daemon) fn free_memory_if_ended(&mut self) {
        if !self.guest.process().handle().is_alive() {
            self.memory = Memory::Own;
            self.guest.close_memory();
        }
    }

    /// Lets go of a guest whose process has ended by itself.
    pub(in crate::daemon) fn ended(self) -> Ending {
        let (guest, process) = (self.id, self.process());
        drop(self);
        Ending::Guest { guest, has: Exclusive::default(), process, epoch: None }
    }
}
