//! Pauses a guest: freezes it, has the engine take its memory, and tells it to end; or lets it go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_engine::catalog::Change;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::pause::{Base, CommitError, PausePermit, PausedGuest};
use rekindle_engine::snapshot::Snapshot;
use rekindle_input::asker::Asker;
use rekindle_kernel::{ProcessHandle, Signal, placement};

use super::{Live, UnsettledPause};
use crate::daemon::about::About;
use crate::daemon::endings::Ending;
use crate::daemon::guest_watch::stopped_by_signal;
use crate::daemon::guests::Blobs;
use crate::daemon::host::Host;
use crate::daemon::notes::{GuestNote, UnsettledChange};
use crate::daemon::problems::guest_failed;
use crate::daemon::record::SandboxRecord;
use crate::daemon::spec::GuestSpec;

/// A pause that was answered.
pub(in crate::daemon) struct Paused {
    pub(in crate::daemon) snapshot: Arc<Snapshot>,
    /// Time that the guest stood still until then.
    pub(in crate::daemon) frozen: Duration,
    pub(in crate::daemon) ending: Ending,
}

impl Live {
    /// Pauses the guest into snapshot `id`, which answers at once, with `alongside` in the catalog in the place of the
    /// sandbox's record `before`; the guest is told to end. If that fails the guest goes on as if nothing had been asked,
    /// unless it is none any more.
    pub(in crate::daemon) fn pause(
        mut self: Box<Self>,
        host: &Host,
        id: SnapshotId,
        mut about: About,
        alongside: Vec<Change>,
        before: SandboxRecord,
        asker: &Asker,
    ) -> Result<Paused, (Box<Self>, Problem)> {
        if let Err(problem) = self.go_on_if_stuck(host) {
            return Err((self, problem));
        }
        if let Some(why) = stopped_by_signal(&self.process()) {
            return Err((self, Problem::new(Code::WrongState, format!("{why}, and it can be paused then"))));
        }
        if let Some(why) = self.watch().stopped() {
            let why =
                format!("{why}: it cannot be paused in this state; end it, and resume its last snapshot");
            return Err((self, Problem::new(Code::WrongState, why)));
        }
        // Neither vCPUs nor devices stand before they have what they wait for.
        if let Some(page) = self.watch().stalled() {
            let why =
                format!("the guest waits for {page}; it goes on once that is there, and can be paused then");
            return Err((self, Problem::new(Code::StoreFailed, why)));
        }
        let permit = match self.permit(host, &about, &before, asker) {
            Ok(permit) => permit,
            Err(problem) => return Err((self, problem)),
        };
        let frozen = self.announce_pause(host, id).and_then(|()| Ok((Instant::now(), self.freeze()?)));
        let (frozen_at, mut blobs) = match frozen {
            Ok(frozen) => frozen,
            Err(error) => {
                self.go_on_or_say(host);
                return Err((self, guest_failed(error)));
            }
        };
        about.spec = self.guest.saved_spec().or(about.spec);
        about.put_into(&mut blobs);
        self.end_serving();
        let committed = self.guest.volumes(self.epoch()).and_then(|volumes| {
            Ok(host.engine.commit_pause(permit, PausedGuest { id, volumes, blobs, alongside })?)
        });
        match committed {
            Ok(snapshot) => {
                let process = self.process();
                begin_end(&process);
                let (guest, has) = (self.id, self.claim.exclusive());
                let ending = Ending::Guest { guest, has, process, epoch: self.take_epoch() };
                Ok(Paused { snapshot, frozen: frozen_at.elapsed(), ending })
            }
            Err(error) => {
                if let Some(CommitError::Unsettled(_)) = error.downcast_ref() {
                    // Before the guest goes on: until then the next start is right with either outcome in the catalog.
                    self.unsettled = Some(UnsettledPause { snapshot: id.uuid(), before: Box::new(before) });
                    self.note_unsettled(host, id);
                }
                let problem = guest_failed(error);
                self.go_on_or_say(host);
                Err((self, problem))
            }
        }
    }

    /// The right to pause it, in the domain of its snapshots.
    fn permit(
        &self,
        host: &Host,
        about: &About,
        record: &SandboxRecord,
        asker: &Asker,
    ) -> Answer<PausePermit> {
        let domain = host.engine.domain(record.domain.as_ref())?;
        let base = self.base.as_ref().map_or(Base::Domain(&domain), |base| Base::Snapshot(base.snapshot()));
        Ok(host.engine.permit_pause_while(base, self.capture_bytes(about), &asker.still_waits())?)
    }

    /// RAM that a capture of it can take.
    fn capture_bytes(&self, about: &About) -> u64 {
        about.spec.as_ref().map_or(0, GuestSpec::memory_bytes) + self.guest.disk_bytes_held()
    }

    /// Tells the keeper what is about to happen, while the guest runs.
    fn announce_pause(&mut self, host: &Host, id: SnapshotId) -> anyhow::Result<()> {
        self.serve_again(host)?;
        Ok(host.keeping.note(self.id, &self.note(Some(id)))?)
    }

    /// The keeper's note on it while it is being paused into a snapshot, or is not.
    pub(super) fn note(&self, pausing: Option<SnapshotId>) -> GuestNote {
        let of = |pause: &UnsettledPause| UnsettledChange::Pause { snapshot: pause.snapshot };
        GuestNote { pausing: pausing.map(|id| id.uuid()), unsettled: self.unsettled.as_ref().map(of) }
    }

    /// Tells the keeper of its unsettled pause, while it is being paused into a snapshot.
    fn note_unsettled(&self, host: &Host, id: SnapshotId) {
        let before = self.unsettled.as_ref().map(|pause| &*pause.before);
        if let Err(error) = host.keeping.note_unsettled(self.id, &self.note(Some(id)), before) {
            let error = format!("{error:#}");
            tracing::error!(guest = %self.id, error, "a pause that failed may be found made at the next start");
        }
    }

    /// Takes the device state, and stops every thread that could write memory.
    fn freeze(&mut self) -> anyhow::Result<Blobs> {
        let blobs = self.guest.suspend()?;
        self.guest.process().freeze()?;
        Ok(blobs)
    }
}

/// Tells a paused guest to end, behind all others: tearing a GiB down takes 23 ms of a core.
fn begin_end(process: &ProcessHandle) {
    if let Err(error) = placement::lower_priority(process.pid()) {
        tracing::debug!(%error, "a paused guest is torn down at normal priority");
    }
    if let Err(error) = process.signal(Signal::Kill) {
        tracing::debug!(%error, "a paused guest has ended already");
    }
}
