//! A guest that runs under the keeper: started, served, frozen, found again, ended.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_engine::catalog::Change;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::pause::{PausePermit, PausedGuest};
use rekindle_engine::serve::{Epoch, EpochFacts, FaultServer, KeptEpoch, ServeStatus, ServerWatch};
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::{ProcessHandle, Signal, placement};
use uuid::Uuid;

use super::Daemon;
use super::about::About;
use super::endings::Ending;
use super::keeping::{GuestNote, Keeping, guest_key, take_fd};
use super::record::{RecordedGuest, RecordedServing};
use crate::api::problem::Problem;
use crate::keeper::Held;
use crate::sandbox::{DEVICE_STATE, SandboxShape, StoppedGuest};
use crate::vmm::process::{KeptParts, MEMORY, ProcessGuest};

/// How long a guest may take from its start to its hand-over message.
const HANDOVER_LIMIT: Duration = Duration::from_secs(30);

/// The names of descriptors under a guest's key.
const USERFAULTFD: &str = "userfaultfd";
const STREAM: &str = "stream";
const JOURNAL: &str = "journal";

/// A running guest and, if it came from a snapshot, the server of its faults. Dropped, it runs on under the keeper.
#[derive(Debug)]
pub(super) struct Live {
    /// Which guest it is: its key at the keeper.
    pub(super) id: Uuid,
    pub(super) guest: ProcessGuest,
    pub(super) shape: SandboxShape,
    serving: Option<Serving>,
}

/// Where a guest's pages come from.
#[derive(Debug)]
struct Serving {
    snapshot: Arc<Snapshot>,
    server: FaultServer,
    facts: EpochFacts,
}

/// A pause that was answered.
pub(super) struct Paused {
    pub(super) snapshot: Arc<Snapshot>,
    /// How long the guest stood still until then.
    pub(super) frozen: Duration,
    pub(super) ending: Ending,
}

/// A guest between the end of its serving and what comes next.
struct Between {
    snapshot: Arc<Snapshot>,
    epoch: Epoch,
    facts: EpochFacts,
}

impl Live {
    /// Starts a guest on empty memory.
    pub(super) fn start(keeping: &Keeping, id: Uuid, shape: SandboxShape) -> anyhow::Result<Self> {
        let guest = ProcessGuest::spawn_under(&keeping.client(), &guest_key(id), &shape.guest(None))?;
        Ok(Self { id, guest, shape, serving: None })
    }

    /// Starts a guest on a snapshot's memory and device state; pages come as it touches them.
    pub(super) fn resume(
        daemon: &Daemon,
        id: Uuid,
        snapshot: &Arc<Snapshot>,
        shape: SandboxShape,
    ) -> anyhow::Result<Self> {
        let state = snapshot.blobs().get(DEVICE_STATE).context("the snapshot has no device state")?;
        let state = serde_json::from_slice(state).context("the snapshot's device state")?;
        let socket = daemon.run_directory.join(format!("handover-{id}.sock"));
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let spawned = ProcessGuest::spawn_under(
            &daemon.keeping.client(),
            &guest_key(id),
            &shape.guest(Some(socket.clone())),
        );
        let accepted = spawned.map_err(anyhow::Error::from).and_then(|guest| {
            let (stream, _) = listener.accept().context("the guest's hand-over connection")?;
            Ok((guest, stream))
        });
        std::fs::remove_file(&socket).with_context(|| format!("removing {}", socket.display()))?;
        let (guest, stream) = accepted?;
        let handover = Handover::receive(stream, shape.volume_pages()?, HANDOVER_LIMIT)?;
        let epoch = Epoch::begin(handover, shape.tracking).context("beginning to serve the guest")?;
        let facts = keep_epoch(&daemon.keeping, id, &epoch)?;
        let serving = serve(daemon, snapshot, epoch, facts, &shape)?;
        let mut live = Self { id, guest, shape, serving: Some(serving) };
        live.guest.control.restore(state)?;
        Ok(live)
    }

    /// Finds a guest again that an earlier daemon left with the keeper, and serves it on.
    pub(super) fn recover(
        daemon: &Daemon,
        recorded: &RecordedGuest,
        mut held: Held,
        shape: SandboxShape,
    ) -> anyhow::Result<Self> {
        let serving = match &recorded.served {
            None => None,
            Some(RecordedServing { origin, facts }) => {
                let snapshot = daemon.engine.origin(SnapshotId::from(*origin));
                let snapshot = snapshot.with_context(|| format!("there is no snapshot {origin} any more"))?;
                let epoch = Epoch::recover(kept_epoch(&mut held, facts.clone())?)?;
                Some(serve(daemon, &snapshot, epoch, facts.clone(), &shape)?)
            }
        };
        let parts = KeptParts::take(&mut held, recorded.hello.clone());
        let guest = ProcessGuest::attach(parts.context("the keeper holds only a part of the guest")?)?;
        Ok(Self { id: recorded.id, guest, shape, serving })
    }

    /// What the catalog is to know of it.
    pub(super) fn recorded(&self) -> RecordedGuest {
        let served = self.serving.as_ref().map(|serving| RecordedServing {
            origin: serving.snapshot.id().uuid(),
            facts: serving.facts.clone(),
        });
        RecordedGuest { id: self.id, hello: self.guest.hello().clone(), served }
    }

    /// How its faults are served, to be asked from anywhere.
    pub(super) fn watch(&self) -> Option<ServerWatch> {
        self.serving.as_ref().map(|serving| serving.server.watch())
    }

    /// Its process, to be asked and ended from anywhere.
    pub(super) fn process(&self) -> Arc<ProcessHandle> {
        self.guest.process.handle()
    }

    /// Hands everything to the keeper that a new daemon needs, after the one that had it died.
    pub(super) fn keep_again(&self, keeping: &Keeping) -> anyhow::Result<()> {
        let key = guest_key(self.id);
        self.guest.keep_under(&keeping.client(), &key)?;
        let served = self.serving.as_ref();
        served.map_or(Ok(()), |serving| put_epoch(keeping, &key, serving.server.kept()))
    }

    /// Tells the guest to end; its end is to be waited for.
    pub(super) fn end(self) -> Ending {
        let process = self.process();
        // An error says that it has ended already.
        process.signal(Signal::Kill).ok();
        let epoch = self.serving.map(|serving| Box::new(serving.server.end_epoch()));
        Ending::Guest { guest: self.id, process, epoch }
    }

    /// Pauses the guest into snapshot `id`, which answers at once, with `alongside` in the catalog; the guest is told to
    /// end. If that fails the guest goes on as if nothing had been asked, unless it is none any more.
    pub(super) fn pause(
        mut self: Box<Self>,
        daemon: &Daemon,
        id: SnapshotId,
        about: &About,
        alongside: Vec<Change>,
    ) -> Result<Paused, (Box<Self>, Problem)> {
        let parent = self.serving.as_ref().map(|serving| &serving.snapshot);
        let permit = match daemon.engine.permit_pause(parent, self.shape.memory_bytes) {
            Ok(permit) => permit,
            Err(error) => return Err((self, error.into())),
        };
        let mut blobs = match self.prepare(daemon, id) {
            Ok(blobs) => blobs,
            Err(error) => {
                let problem = super::problems::guest_failed(error);
                return Err((self.go_on(daemon, None), problem));
            }
        };
        about.put_into(&mut blobs);
        let frozen_at = Instant::now();
        if let Err(error) = self.guest.process.freeze() {
            return Err((self.go_on(daemon, None), error.into()));
        }
        let between = self.serving.take().map(Serving::end);
        match self.commit(daemon, permit, id, between.as_ref(), blobs, alongside) {
            Ok(snapshot) => {
                let process = self.process();
                begin_end(&process);
                let epoch = between.map(|between| Box::new(between.epoch));
                let ending = Ending::Guest { guest: self.id, process, epoch };
                Ok(Paused { snapshot, frozen: frozen_at.elapsed(), ending })
            }
            Err(error) => {
                let problem = super::problems::guest_failed(error);
                Err((self.go_on(daemon, between), problem))
            }
        }
    }

    /// Asks for the device state, and tells the keeper what is about to happen.
    fn prepare(&mut self, daemon: &Daemon, id: SnapshotId) -> anyhow::Result<BTreeMap<String, bytes::Bytes>> {
        let state = self.guest.control.state()?;
        daemon.keeping.note(self.id, GuestNote { pausing: Some(id.uuid()) })?;
        let state = serde_json::to_vec(&state).expect("device state is plain data");
        Ok(BTreeMap::from([(DEVICE_STATE.to_owned(), state.into())]))
    }

    fn commit(
        &self,
        daemon: &Daemon,
        permit: PausePermit,
        id: SnapshotId,
        between: Option<&Between>,
        blobs: BTreeMap<String, bytes::Bytes>,
        alongside: Vec<Change>,
    ) -> anyhow::Result<Arc<Snapshot>> {
        let stopped =
            StoppedGuest { pid: self.guest.id(), hello: self.guest.hello(), memfd: self.guest.memfd() };
        let epoch = between.map(|between| &between.epoch);
        let volumes = vec![stopped.memory(&self.shape, epoch)?];
        Ok(daemon.engine.commit_pause(permit, PausedGuest { id, volumes, blobs, alongside })?)
    }

    /// Serves the guest again and lets it go on, after a pause that did not come to pass.
    fn go_on(mut self: Box<Self>, daemon: &Daemon, between: Option<Between>) -> Box<Self> {
        let served = between.map(|between| {
            let Between { snapshot, epoch, facts } = between;
            serve(daemon, &snapshot, epoch, facts, &self.shape)
        });
        let gone_on = served.transpose().and_then(|serving| {
            self.serving = serving.or(self.serving.take());
            self.guest.process.thaw()?;
            Ok(daemon.keeping.note(self.id, GuestNote::default())?)
        });
        if let Err(error) = gone_on {
            tracing::error!(guest = %self.id, error = format!("{error:#}"), "a guest cannot go on after a failed pause");
        }
        self
    }
}

impl Serving {
    fn end(self) -> Between {
        let Self { snapshot, server, facts } = self;
        Between { snapshot, epoch: server.end_epoch(), facts }
    }
}

/// Why a guest is stalled, if it is.
pub(super) fn stalled_for(watch: &ServerWatch) -> Option<String> {
    match watch.status() {
        ServeStatus::Stalled { page, reason } => Some(format!("page {page}: {reason}")),
        ServeStatus::Running | ServeStatus::Ended { .. } => None,
    }
}

fn serve(
    daemon: &Daemon,
    snapshot: &Arc<Snapshot>,
    epoch: Epoch,
    facts: EpochFacts,
    shape: &SandboxShape,
) -> anyhow::Result<Serving> {
    let view = Arc::clone(snapshot.memory());
    let server = FaultServer::resume(view, epoch, daemon.engine.fetcher().clone(), shape.serve_options())
        .context("starting the fault server")?;
    daemon.metrics.serving(snapshot.id(), server.watch());
    Ok(Serving { snapshot: Arc::clone(snapshot), server, facts })
}

/// Hands to the keeper what the guest's faults reach us by, before the first of them is answered.
fn keep_epoch(keeping: &Keeping, guest: Uuid, epoch: &Epoch) -> anyhow::Result<EpochFacts> {
    let kept = epoch.kept().context("duplicating the guest's descriptors")?;
    put_epoch(keeping, &guest_key(guest), &kept)?;
    Ok(kept.facts)
}

/// Hands to the keeper what a guest's faults reach us by.
pub(super) fn put_epoch(keeping: &Keeping, key: &str, kept: &KeptEpoch) -> anyhow::Result<()> {
    let mut fds = vec![
        (USERFAULTFD, kept.userfaultfd.as_fd()),
        (STREAM, kept.stream.as_fd()),
        (JOURNAL, kept.journal.as_fd()),
    ];
    fds.extend(kept.memfd.as_ref().map(|memfd| (MEMORY, memfd.as_fd())));
    Ok(keeping.client().add(key, &fds)?)
}

/// What the keeper holds of a guest that is served.
pub(super) fn kept_epoch(held: &mut Held, facts: EpochFacts) -> std::io::Result<KeptEpoch> {
    Ok(KeptEpoch {
        facts,
        userfaultfd: take_fd(held, USERFAULTFD)?,
        memfd: held.fds.remove(MEMORY),
        stream: take_fd(held, STREAM)?,
        journal: take_fd(held, JOURNAL)?,
    })
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
