//! The background life of one snapshot: a thread of idle priority that seals it, publishes it and, if it was deleted
//! on the way, takes it out of the store again. It ends when nothing is left to do, or when the engine ends.

use std::sync::Arc;
use std::time::Duration;

use crate::capture::Capture;
use crate::layer::Layer;
use crate::lifecycle::{SnapshotEvent, SnapshotWork};
use crate::limits;
use crate::manifest::Manifest;
use crate::publish::{PublishError, Requests, publish};
use crate::seal::{SealError, Sealer};
use crate::snapshot::Snapshot;
use crate::stop::Stopped;
use crate::sync::idle_priority;

/// What background work stands on.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) sealer: Sealer,
    pub(crate) requests: Requests,
}

/// One snapshot's way from its capture on.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) background: Arc<Background>,
}

impl Life {
    /// Seals and publishes a new snapshot.
    pub(crate) fn run(&self, captures: Vec<Arc<Capture>>) {
        if let Err(error) = idle_priority() {
            tracing::warn!(%error, "sealing at normal priority");
        }
        // Stopped means that the engine ends: what is sealed or published by then stays so.
        if let Ok(work) = self.seal(captures) {
            self.carry_on(work).ok();
        }
    }

    /// Does `work` and what follows from it.
    pub(crate) fn carry_on(&self, mut work: SnapshotWork) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        loop {
            match work {
                SnapshotWork::None | SnapshotWork::FreeLayers => return Ok(()),
                SnapshotWork::Publish => {}
                SnapshotWork::PublishAgain | SnapshotWork::SealAgain => self.wait(&mut pause)?,
                SnapshotWork::RemoveFromStore => return self.remove_from_store(),
            }
            work = self.publish()?;
        }
    }

    /// Captured memory becomes a layer, then the layer gets a name; each step is tried until it succeeds.
    pub(crate) fn seal(&self, captures: Vec<Arc<Capture>>) -> Result<SnapshotWork, Stopped> {
        let Background { sealer, requests: Requests { stop, .. } } = &*self.background;
        let packed = self.until_done(|| sealer.pack(&self.snapshot, &captures, stop))?;
        // The layer is on the disk and in the view: from here on only readers hold the capture.
        drop(captures);
        let sealed = self.until_done(|| sealer.name(&self.snapshot, &packed, stop))?;
        Ok(sealed.record(&self.snapshot))
    }

    fn until_done<T>(&self, mut attempt: impl FnMut() -> Result<T, SealError>) -> Result<T, Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(SealError::Stopped(stopped)) => return Err(stopped),
                Err(error) => {
                    tracing::warn!(snapshot = %self.snapshot.id(), %error, "sealing failed, it will be tried again");
                    self.snapshot.record_failure(SnapshotEvent::SealFailed, error.to_string());
                    self.wait(&mut pause)?;
                }
            }
        }
    }

    fn publish(&self) -> Result<SnapshotWork, Stopped> {
        let (manifest, layers) = self.names();
        match publish(&manifest, &layers, &self.background.requests) {
            Ok(()) => Ok(self.snapshot.record(SnapshotEvent::PublishSucceeded)),
            Err(PublishError::Stopped(stopped)) => Err(stopped),
            Err(error) => {
                tracing::warn!(snapshot = %self.snapshot.id(), %error, "publishing failed, it will be tried again");
                Ok(self.snapshot.record_failure(SnapshotEvent::PublishFailed, error.to_string()))
            }
        }
    }

    fn names(&self) -> (Arc<Manifest>, Vec<Arc<Layer>>) {
        let manifest = self.snapshot.manifest_now().expect("what is published is sealed");
        (manifest, self.snapshot.memory().load().layers().to_vec())
    }

    fn remove_from_store(&self) -> Result<(), Stopped> {
        let mut pause = limits::WORK_RETRY_FIRST;
        let requests = &self.background.requests;
        while let Err(error) = requests.wait(requests.store.delete_manifest(self.snapshot.id()))? {
            tracing::warn!(snapshot = %self.snapshot.id(), %error, "deleting failed, it will be tried again");
            self.wait(&mut pause)?;
        }
        Ok(())
    }

    fn wait(&self, pause: &mut Duration) -> Result<(), Stopped> {
        self.background.requests.stop.wait(*pause)?;
        *pause = (*pause * 2).min(limits::WORK_RETRY_LAST);
        Ok(())
    }
}
