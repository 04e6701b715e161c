//! Checkpoints a guest: a snapshot is made of copies of what it wrote, and it goes on in the same VMM.

use std::sync::Arc;
use std::time::Duration;

use rekindle_api::control::Answer;
use rekindle_engine::snapshot::Snapshot;

use super::pause::{Captured, Taken, Wanted};
use super::{Live, Memory};
use crate::daemon::host::Host;
use crate::daemon::notes::UnsettledChange;
use crate::daemon::record::RecordedGuest;

/// A checkpoint that was answered; its guest goes on.
pub(in crate::daemon) struct Checkpointed {
    pub(in crate::daemon) snapshot: Arc<Snapshot>,
    /// Time that the guest stood still.
    pub(in crate::daemon) frozen: Duration,
}

impl Live {
    /// Its record once it goes on from a checkpoint.
    pub(in crate::daemon) fn recorded_after(&self, checkpoint: uuid::Uuid) -> RecordedGuest {
        let vmm = self.guest.recorded_after_checkpoint();
        RecordedGuest { base: Some(checkpoint), vmm, ..self.recorded() }
    }

    /// Makes a snapshot of the guest, which then goes on from it. If that fails the guest goes on as if nothing had been
    /// asked.
    ///
    /// A kill before the commit leaves the guest on its old base, and one after it on the snapshot: its page sets are
    /// then too large, which costs copies and no bytes. The next start thaws it in both cases.
    pub(in crate::daemon) fn checkpoint(&mut self, host: &Host, wanted: Wanted<'_>) -> Answer<Checkpointed> {
        let change = UnsettledChange::Checkpoint { snapshot: wanted.id.uuid() };
        let Taken { snapshot, pages, frozen_at } = self.take(host, wanted, (Captured::Copied, change))?;
        if let (Memory::Unserved { epoch }, Some(memory)) = (&mut self.memory, pages.first())
            && let Err(error) = epoch.begin_anew(&memory.kept)
        {
            tracing::warn!(guest = %self.id, %error, "the next snapshot of a guest keeps pages that this one has");
        }
        let is_served = self.epoch().is_some();
        if let Err(error) = self.guest.goes_on_from(&snapshot, is_served) {
            let error = format!("{error:#}");
            tracing::warn!(guest = %self.id, error, "the next snapshot of a guest keeps what this one has");
        }
        self.base = Some(host.engine.runs_from(&snapshot));
        self.go_on_or_say(host);
        Ok(Checkpointed { snapshot, frozen: frozen_at.elapsed() })
    }
}
