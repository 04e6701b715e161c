//! A guest that runs under the keeper: started, served, frozen, found again, ended.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_engine::catalog::Change;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::pause::{CommitError, PausedGuest};
use rekindle_engine::serve::{Epoch, EpochFacts, FaultServer, NotServed, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::{ProcessHandle, Signal, placement};
use uuid::Uuid;

use super::about::About;
use super::claims::{Birth, Claim};
use super::endings::{Ending, Exclusive};
use super::entry::stopped_by_signal;
use super::epochs::{keep_epoch, kept_epoch, put_epoch};
use super::guest_watch::GuestWatch;
use super::guests::{Blobs, Guest, GuestSpec, HANDOVER_LIMIT};
use super::host::Host;
use super::keeping::{GuestNote, Keeping, UnsettledChange, guest_key};
use super::record::{RecordedGuest, SandboxRecord};
use crate::api::problem::{Code, Problem};
use crate::asker::Asker;
use crate::keeper::{Held, KeeperIdentity};
use crate::vmm::process::GuestControl;
use crate::vmm::serial_line::SerialLine;

/// A running guest and, if it came from a snapshot, the server of its faults. Dropped, it runs on under the keeper.
#[derive(Debug)]
pub(super) struct Live {
    /// Its id, which is its key at the keeper.
    pub(super) id: Uuid,
    guest: Box<dyn Guest>,
    /// The snapshot that its volumes are changes of.
    base: Option<Arc<Snapshot>>,
    memory: Memory,
    /// A pause of it that the catalog may have although it was not acknowledged.
    unsettled: Option<UnsettledPause>,
    /// The keeper that was given everything a later daemon needs of it.
    kept_by: KeeperIdentity,
    /// Reason that it cannot go on, if it stands still although no operation has it.
    stuck: Option<String>,
    claim: Claim,
}

/// A pause that the catalog may have although it was not acknowledged.
#[derive(Debug)]
struct UnsettledPause {
    snapshot: Uuid,
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

/// A pause that was answered.
pub(super) struct Paused {
    pub(super) snapshot: Arc<Snapshot>,
    /// Time that the guest stood still until then.
    pub(super) frozen: Duration,
    pub(super) ending: Ending,
}

impl Live {
    /// Starts a guest on empty memory, with its disks as they are in `base`.
    pub(super) fn start(
        host: &Host,
        Birth { id, spec, claim }: Birth<'_>,
        base: Option<Arc<Snapshot>>,
    ) -> anyhow::Result<Self> {
        let kept_by = host.keeping.client().identity();
        let guest = spec.start(host, id, base.as_ref())?;
        let claim = claim.held_by(spec, guest.process().id());
        Ok(Self { id, guest, base, memory: Memory::Own, kept_by, unsettled: None, stuck: None, claim })
    }

    /// Starts a guest on a snapshot's memory and device state; pages come as it touches them.
    pub(super) fn resume(
        host: &Host,
        Birth { id, spec, claim }: Birth<'_>,
        snapshot: &Arc<Snapshot>,
    ) -> anyhow::Result<Self> {
        let kept_by = host.keeping.client().identity();
        let socket = spec.handover(host, id)?;
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let started = spec.start_served(host, id, snapshot, &socket).map(|guest| Unborn(Some(guest)));
        let accepted = started.and_then(|mut unborn| {
            let accepted = unborn.guest().handed_over(&listener)?;
            Ok((unborn, accepted))
        });
        match std::fs::remove_file(&socket) {
            // One in a jail goes with the jail, where a start has failed.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", socket.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let (mut unborn, accepted) = accepted?;
        let guest = unborn.guest();
        let Some(stream) = accepted else {
            guest.load(snapshot.blobs())?;
            anyhow::bail!("the guest's VMM loaded its state without its memory");
        };
        let pages = snapshot.memory().pages();
        let handover = Handover::receive(stream, pages, HANDOVER_LIMIT)?;
        let options = guest.serve_options();
        let epoch = Epoch::begin(handover, options.tracking).context("beginning to serve the guest")?;
        let facts = keep_epoch(&host.keeping, id, &epoch)?;
        let server = serve(host, snapshot, epoch, options)?;
        host.engine.learner().learn(snapshot, &server);
        let memory = Memory::Served { server, facts };
        guest.load(snapshot.blobs())?;
        let guest = unborn.born();
        let (base, claim) = (Some(Arc::clone(snapshot)), claim.held_by(spec, guest.process().id()));
        Ok(Self { id, guest, base, memory, kept_by, unsettled: None, stuck: None, claim })
    }

    /// Finds a guest again that an earlier daemon left with the keeper, and serves it on.
    pub(super) fn recover(
        host: &Host,
        recorded: &RecordedGuest,
        mut held: Held,
        spec: &GuestSpec,
    ) -> anyhow::Result<Self> {
        let find = |base: Uuid| {
            let snapshot = host.engine.origin(SnapshotId::from(base));
            snapshot.with_context(|| format!("there is no snapshot {base} any more"))
        };
        let kept_by = host.keeping.client().identity();
        let base = recorded.base.map(find).transpose()?;
        let epoch = match &recorded.served {
            Some(facts) => Some(Epoch::recover(kept_epoch(&mut held, facts.clone())?)?),
            None => None,
        };
        let guest = spec.attach(host, recorded, &mut held, base.as_ref())?;
        let memory = match (epoch, &base) {
            (Some(epoch), Some(_)) => Memory::Unserved { epoch: Box::new(epoch) },
            (Some(_), None) => anyhow::bail!("nothing says which snapshot it is served from"),
            (None, _) => Memory::Own,
        };
        let (id, claim) = (recorded.id, Claim::renew(host, spec, guest.process().id()));
        let mut found = Self { id, guest, base, memory, kept_by, unsettled: None, stuck: None, claim };
        found.stuck = found.serve_again(host).err().map(|error| format!("{error:#}"));
        Ok(found)
    }

    /// Its record for the catalog.
    pub(super) fn recorded(&self) -> RecordedGuest {
        let served = match &self.memory {
            Memory::Own => None,
            Memory::Served { facts, .. } => Some(facts.clone()),
            Memory::Unserved { epoch } => Some(epoch.facts()),
        };
        let base = self.base.as_ref().map(|base| base.id().uuid());
        RecordedGuest { id: self.id, vmm: self.guest.recorded(), base, served }
    }

    /// Shows how its faults are served, from anywhere.
    pub(super) fn watch(&self) -> GuestWatch {
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

    /// The snapshot that its pages come from, if they come from one.
    pub(super) fn base(&self) -> Option<Arc<Snapshot>> {
        self.base.clone()
    }

    /// The keeper that has everything of it.
    pub(super) fn kept_by(&self) -> KeeperIdentity {
        self.kept_by
    }

    /// Its process, to be asked and ended from anywhere.
    pub(super) fn process(&self) -> Arc<ProcessHandle> {
        self.guest.process().handle()
    }

    /// The account that its VMM, which has ended, gave of its end.
    pub(super) fn told_end(&self) -> Option<String> {
        self.guest.machine_watch().and_then(|watch| watch.ending())
    }

    /// The parts for a snapshot of it, if they are more than those it was started with.
    pub(super) fn saved_spec(&self) -> Option<GuestSpec> {
        self.guest.saved_spec()
    }

    /// Our ends of its serial line, once more, where it has one.
    pub(super) fn serial(&self) -> std::io::Result<Option<SerialLine>> {
        self.guest.serial()
    }

    /// The control socket of a process guest.
    pub(super) fn control(&mut self) -> Option<&mut GuestControl> {
        self.guest.control()
    }

    /// Hands everything to the keeper that a new daemon needs, after the one that had it died.
    pub(super) fn keep_again(&mut self, keeping: &Keeping) -> anyhow::Result<()> {
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
    pub(super) fn end(mut self) -> Ending {
        let process = self.process();
        // An error says that it has ended already.
        process.signal(Signal::Kill).ok();
        self.end_serving();
        let (guest, has) = (self.id, self.claim.exclusive());
        Ending::Guest { guest, has, process, epoch: self.take_epoch() }
    }

    /// Closes the memory of a guest whose process has ended: the kernel may be about to end another guest for want of it.
    pub(super) fn free_memory_if_ended(&mut self) {
        if !self.guest.process().handle().is_alive() {
            self.memory = Memory::Own;
            self.guest.close_memory();
        }
    }

    /// Lets go of a guest whose process has ended by itself.
    pub(super) fn ended(self) -> Ending {
        let (guest, process) = (self.id, self.process());
        drop(self);
        Ending::Guest { guest, has: Exclusive::default(), process, epoch: None }
    }

    /// Pauses the guest into snapshot `id`, which answers at once, with `alongside` in the catalog in the place of the
    /// sandbox's record `before`; the guest is told to end. If that fails the guest goes on as if nothing had been asked,
    /// unless it is none any more.
    pub(super) fn pause(
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
        let (base, bytes) = (self.base.as_ref(), self.capture_bytes(&about));
        let permit = match host.engine.permit_pause_while(base, bytes, &asker.still_waits()) {
            Ok(permit) => permit,
            Err(error) => return Err((self, error.into())),
        };
        let frozen = self.announce_pause(host, id).and_then(|()| Ok((Instant::now(), self.freeze()?)));
        let (frozen_at, mut blobs) = match frozen {
            Ok(frozen) => frozen,
            Err(error) => {
                self.go_on_or_say(host);
                return Err((self, super::problems::guest_failed(error)));
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
                let problem = super::problems::guest_failed(error);
                self.go_on_or_say(host);
                Err((self, problem))
            }
        }
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
    fn note(&self, pausing: Option<SnapshotId>) -> GuestNote {
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

    /// Lets a guest go on, frozen or not, whose pause failed. A guest that cannot go on notes the reason.
    pub(super) fn go_on(&mut self, host: &Host) -> anyhow::Result<()> {
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

    fn go_on_or_say(&mut self, host: &Host) {
        if let Err(error) = self.go_on(host) {
            let error = format!("{error:#}");
            tracing::error!(guest = %self.id, error, "a guest cannot go on after a failed pause; it is tried again");
        }
    }

    /// Tries again to let a guest go on that could not; the error says why it still stands.
    pub(super) fn go_on_if_stuck(&mut self, host: &Host) -> Result<(), Problem> {
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
    fn serve_again(&mut self, host: &Host) -> anyhow::Result<()> {
        if self.is_served_in_vain() {
            self.end_serving();
        }
        let Some(base) = &self.base else { return Ok(()) };
        match std::mem::replace(&mut self.memory, Memory::Own) {
            Memory::Unserved { epoch } => {
                let facts = epoch.facts();
                match serve(host, base, *epoch, self.guest.serve_options()) {
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
    fn end_serving(&mut self) {
        self.memory = match std::mem::replace(&mut self.memory, Memory::Own) {
            Memory::Served { server, .. } => Memory::Unserved { epoch: Box::new(server.end_epoch()) },
            memory @ (Memory::Own | Memory::Unserved { .. }) => memory,
        };
    }

    fn epoch(&self) -> Option<&Epoch> {
        match &self.memory {
            Memory::Unserved { epoch } => Some(epoch),
            Memory::Own | Memory::Served { .. } => None,
        }
    }

    /// Takes the epoch out of a guest that ends.
    fn take_epoch(&mut self) -> Option<Box<Epoch>> {
        match std::mem::replace(&mut self.memory, Memory::Own) {
            Memory::Unserved { epoch } => Some(epoch),
            Memory::Own | Memory::Served { .. } => None,
        }
    }
}

/// A guest that is being brought up; killed on drop, as its keeper may be gone and can then be asked for it no more.
struct Unborn(Option<Box<dyn Guest>>);

impl Unborn {
    fn guest(&mut self) -> &mut dyn Guest {
        &mut **self.0.as_mut().expect("it is there until it is born")
    }

    fn born(mut self) -> Box<dyn Guest> {
        self.0.take().expect("it is there until it is born")
    }
}

impl Drop for Unborn {
    fn drop(&mut self) {
        if let Some(guest) = &self.0 {
            // An error says that it has ended.
            guest.process().begin_kill().ok();
        }
    }
}

fn serve(
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

/// Tells a paused guest to end, behind all others: tearing a GiB down takes 23 ms of a core.
fn begin_end(process: &ProcessHandle) {
    if let Err(error) = placement::lower_priority(process.pid()) {
        tracing::debug!(%error, "a paused guest is torn down at normal priority");
    }
    if let Err(error) = process.signal(Signal::Kill) {
        tracing::debug!(%error, "a paused guest has ended already");
    }
}
