//! Takes a snapshot of a guest, which stands still; a pause is one after which the guest is told to end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::catalog::Change;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::pause::{Base, CommitError, PausePermit, PausedGuest, PausedVolume};
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

/// A snapshot that is to be made of a guest.
pub(in crate::daemon) struct Wanted<'a> {
    pub(in crate::daemon) id: SnapshotId,
    pub(in crate::daemon) about: About,
    /// Further changes of the catalog, in the same instant; the sandbox's new record is among them.
    pub(in crate::daemon) alongside: Vec<Change>,
    /// The sandbox's record before it.
    pub(in crate::daemon) before: SandboxRecord,
    pub(in crate::daemon) asker: &'a Asker,
}

/// A snapshot of a guest, which stands still.
pub(super) struct Taken {
    pub(super) snapshot: Arc<Snapshot>,
    /// Of each volume, memory first.
    pub(super) pages: Vec<CapturedPages>,
    pub(super) frozen_at: Instant,
}

/// Memory that a snapshot gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Captured {
    /// That of the guest, which ends.
    Adopted,
    /// A copy: the guest goes on.
    Copied,
}

impl Live {
    /// Pauses the guest into a snapshot, which answers at once; the guest is told to end. If that fails the guest goes on
    /// as if nothing had been asked, unless it is none any more.
    pub(in crate::daemon) fn pause(
        mut self: Box<Self>,
        host: &Host,
        wanted: Wanted<'_>,
    ) -> Result<Paused, (Box<Self>, Problem)> {
        let change = UnsettledChange::Pause { snapshot: wanted.id.uuid() };
        let Taken { snapshot, frozen_at, .. } = match self.take(host, wanted, (Captured::Adopted, change)) {
            Ok(taken) => taken,
            Err(problem) => return Err((self, problem)),
        };
        let process = self.process();
        begin_end(&process);
        let (guest, has) = (self.id, self.claim.exclusive());
        let ending = Ending::Guest { guest, has, process, epoch: self.take_epoch() };
        Ok(Paused { snapshot, frozen: frozen_at.elapsed(), ending })
    }

    /// Makes a snapshot of the guest, which stands still from then on. If that fails the guest goes on as if nothing had
    /// been asked, unless it is none any more.
    pub(super) fn take(
        &mut self,
        host: &Host,
        wanted: Wanted<'_>,
        (captured, change): (Captured, UnsettledChange),
    ) -> Answer<Taken> {
        let Wanted { id, mut about, alongside, before, asker } = wanted;
        self.check_it_can_stand(host)?;
        let permit = self.permit(host, &about, &before, asker)?;
        let frozen = self.announce_pause(host, id).and_then(|()| Ok((Instant::now(), self.freeze()?)));
        let (frozen_at, mut blobs) = match frozen {
            Ok(frozen) => frozen,
            Err(error) => {
                self.go_on_or_say(host);
                return Err(guest_failed(error));
            }
        };
        about.spec = self.guest.saved_spec().or(about.spec);
        about.put_into(&mut blobs);
        self.end_serving();
        let committed = self.volumes(captured).and_then(|volumes| {
            let pages = volumes.iter().map(|volume| volume.pages.clone()).collect();
            let guest = PausedGuest { id, volumes, blobs, alongside };
            Ok((host.engine.commit_pause(permit, guest)?, pages))
        });
        match committed {
            Ok((snapshot, pages)) => Ok(Taken { snapshot, pages, frozen_at }),
            Err(error) => {
                if let Some(CommitError::Unsettled(_)) = error.downcast_ref() {
                    // Before the guest goes on: until then the next start is right with either outcome in the catalog.
                    self.unsettled = Some(UnsettledPause { change, before: Box::new(before) });
                    self.note_unsettled(host, id);
                }
                let problem = guest_failed(error);
                self.go_on_or_say(host);
                Err(problem)
            }
        }
    }

    /// Refuses a guest whose vCPUs and devices cannot come to stand now.
    fn check_it_can_stand(&mut self, host: &Host) -> Answer<()> {
        self.go_on_if_stuck(host)?;
        if let Some(why) = stopped_by_signal(&self.process()) {
            return Err(Problem::new(Code::WrongState, format!("{why}, and it can be paused then")));
        }
        if let Some(why) = self.watch().stopped() {
            let why =
                format!("{why}: it cannot be paused in this state; end it, and resume its last snapshot");
            return Err(Problem::new(Code::WrongState, why));
        }
        // Neither vCPUs nor devices stand before they have what they wait for.
        if let Some(page) = self.watch().stalled() {
            let why =
                format!("the guest waits for {page}; it goes on once that is there, and can be paused then");
            return Err(Problem::new(Code::StoreFailed, why));
        }
        Ok(())
    }

    /// The volumes of the guest, which stands still.
    fn volumes(&self, captured: Captured) -> anyhow::Result<Vec<PausedVolume>> {
        let mut volumes = match captured {
            Captured::Adopted => self.guest.volumes(self.epoch()),
            Captured::Copied => self.guest.copied_volumes(self.epoch()),
        }?;
        let began_empty = self.epoch().is_none();
        if began_empty
            && self.base.is_some()
            && self.guest.shows_all_memory()
            && let Some(memory) = volumes.first_mut()
        {
            memory.pages = memory.pages.clone().whole();
        }
        Ok(volumes)
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
        let unsettled = self.unsettled.as_ref().map(|pause| pause.change);
        GuestNote { pausing: pausing.map(|id| id.uuid()), unsettled }
    }

    /// Tells the keeper of its unsettled change, while it is being taken into a snapshot.
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
