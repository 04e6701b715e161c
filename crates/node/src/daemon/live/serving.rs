//! Serves the faults of a guest, lets it go on after a pause that failed, and ends its serving.

use std::sync::Arc;

use anyhow::Context as _;
use rekindle_api::problem::{Code, Problem};
use rekindle_engine::serve::{Epoch, FaultServer, NotServed, ServeOptions};
use rekindle_engine::snapshot::Snapshot;

use super::{Live, Memory};
use crate::daemon::host::Host;

impl Live {
    /// Lets a guest go on, frozen or not, whose pause failed. A guest that cannot go on notes the reason.
    pub(in crate::daemon) fn go_on(&mut self, host: &Host) -> anyhow::Result<()> {
        let went_on = self.thaw_served(host);
        self.stuck = went_on.as_ref().err().map(|error| format!("it could not go on: {error:#}"));
        went_on?;
        // The next daemon thaws a guest whose note stays, which does nothing to one that runs.
        if let Err(error) = host.keeping.note(self.id, &self.note(None)) {
            tracing::warn!(guest = %self.id, %error, "the keeper was not told that a guest goes on");
        }
        Ok(())
    }

    fn thaw_served(&mut self, host: &Host) -> anyhow::Result<()> {
        self.serve_again(host)?;
        self.guest.process().thaw()?;
        self.guest.go_on()
    }

    pub(super) fn go_on_or_say(&mut self, host: &Host) {
        if let Err(error) = self.go_on(host) {
            let error = format!("{error:#}");
            tracing::error!(guest = %self.id, error, "a guest cannot go on after a failed pause; it is tried again");
        }
    }

    /// Tries again to let a guest go on that could not; the error says why it still stands.
    pub(in crate::daemon) fn go_on_if_stuck(&mut self, host: &Host) -> Result<(), Problem> {
        if self.stuck.is_none() && !self.is_served_in_vain() {
            return Ok(());
        }
        self.go_on(host).map_err(|error| {
            Problem::new(Code::GuestFailed, format!("the guest stands still and cannot go on yet: {error:#}"))
        })
    }

    /// True if its server ended although the guest is there.
    fn is_served_in_vain(&self) -> bool {
        match &self.memory {
            Memory::Served { server, .. } => server.has_failed(),
            Memory::Own | Memory::Unserved { .. } => false,
        }
    }

    /// Serves an unserved guest again, from the epoch in hand or that of a server that failed.
    pub(super) fn serve_again(&mut self, host: &Host) -> anyhow::Result<()> {
        if self.is_served_in_vain() {
            self.end_serving();
        }
        let Some(base) = &self.base else { return Ok(()) };
        match std::mem::replace(&mut self.memory, Memory::Own) {
            Memory::Unserved { epoch } => {
                let facts = epoch.facts();
                match serve(host, base.snapshot(), *epoch, self.guest.serve_options()) {
                    Ok(server) => self.memory = Memory::Served { server, facts },
                    Err(NotServed { epoch, error }) => {
                        self.memory = Memory::Unserved { epoch };
                        return Err(error).context("starting the fault server");
                    }
                }
            }
            memory @ (Memory::Own | Memory::Served { .. }) => self.memory = memory,
        }
        Ok(())
    }

    /// Ends the serving, if there is any; the epoch stays in hand.
    pub(super) fn end_serving(&mut self) {
        self.memory = match std::mem::replace(&mut self.memory, Memory::Own) {
            Memory::Served { server, .. } => Memory::Unserved { epoch: Box::new(server.end_epoch()) },
            memory @ (Memory::Own | Memory::Unserved { .. }) => memory,
        };
    }

    pub(super) fn epoch(&self) -> Option<&Epoch> {
        match &self.memory {
            Memory::Unserved { epoch } => Some(epoch),
            Memory::Own | Memory::Served { .. } => None,
        }
    }

    /// Takes the epoch out of a guest that ends.
    pub(super) fn take_epoch(&mut self) -> Option<Box<Epoch>> {
        match std::mem::replace(&mut self.memory, Memory::Own) {
            Memory::Unserved { epoch } => Some(epoch),
            Memory::Own | Memory::Served { .. } => None,
        }
    }
}

/// Serves the faults of a guest from a snapshot's memory.
pub(super) fn serve(
    host: &Host,
    snapshot: &Arc<Snapshot>,
    epoch: Epoch,
    options: ServeOptions,
) -> Result<FaultServer, NotServed> {
    let view = Arc::clone(snapshot.memory());
    let server = FaultServer::resume(view, epoch, host.engine.fetcher().clone(), options)?;
    host.metrics.serving(snapshot.id(), server.watch());
    Ok(server)
}
