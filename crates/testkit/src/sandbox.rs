//! A process guest on an engine of the test's own: started fresh or from a snapshot, served, and paused, with no
//! daemon. A pause that fails ends the guest.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rekindle_engine::engine::Engine;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::learning::Prefault;
use rekindle_engine::pause::PausedGuest;
use rekindle_engine::serve::{Epoch, FaultServer};
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::placement;
use rekindle_vmm::DEVICE_STATE;
use rekindle_vmm::process::{GuestShape, ProcessGuest};

/// Longest time from a guest's start to its hand-over message.
const HANDOVER_LIMIT: Duration = Duration::from_secs(30);

/// A running guest with its memory served, if it came from a snapshot.
#[derive(Debug)]
pub struct Sandbox {
    /// The guest. It ends before its server does: without any userfaultfd its faults would read zeroes.
    pub guest: ProcessGuest,
    shape: GuestShape,
    origin: Option<(Arc<Snapshot>, FaultServer)>,
}

/// A pause that was answered: the snapshot, and the guest that is still to end.
#[derive(Debug)]
pub struct Paused {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// From the request to the answer.
    pub answer_time: Duration,
    /// Ends the guest.
    pub ending: Ending,
}

/// A guest whose pause was answered. It is told to end; dropping this waits until it has.
#[derive(Debug)]
pub struct Ending {
    guest: ProcessGuest,
    /// Held until the guest has ended.
    _epoch: Option<Epoch>,
}

impl Sandbox {
    /// Starts a guest on empty memory.
    pub fn start(shape: GuestShape) -> anyhow::Result<Self> {
        let guest = ProcessGuest::spawn(&shape.guest(None))?;
        Ok(Self { guest, shape, origin: None })
    }

    /// Starts a guest on a snapshot's memory and device state; pages come as it touches them, and each resume is like
    /// the first.
    pub fn resume(engine: &Engine, snapshot: &Arc<Snapshot>, shape: GuestShape) -> anyhow::Result<Self> {
        Self::resume_with(engine, snapshot, shape, |_| {})
    }

    /// The same, with the pages installed ahead that earlier guests of the snapshot touched first; the first touches of
    /// this one are noted for later ones.
    pub fn resume_learning(
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        shape: GuestShape,
    ) -> anyhow::Result<Self> {
        Self::resume_with(engine, snapshot, shape, |server| {
            engine.prefaulter().begin(snapshot, server, Prefault::default())
        })
    }

    fn resume_with(
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        shape: GuestShape,
        learn: impl FnOnce(&FaultServer),
    ) -> anyhow::Result<Self> {
        let _first = engine.precedence().bring_up();
        let directory = tempfile::tempdir().context("a directory for the hand-over socket")?;
        let socket = directory.path().join("handover");
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let guest = ProcessGuest::spawn(&shape.guest(Some(socket)))?;
        let (stream, _) = listener.accept().context("the guest's hand-over connection")?;
        let handover = Handover::receive(stream, shape.volume_pages()?, HANDOVER_LIMIT)?;
        let state = snapshot.blobs().get(DEVICE_STATE).context("the snapshot has no device state")?;
        let state = serde_json::from_slice(state).context("the snapshot's device state")?;
        let view = Arc::clone(snapshot.memory());
        let server = FaultServer::start(view, handover, engine.fetcher().clone(), shape.serve_options())
            .context("starting the fault server")?;
        learn(&server);
        let mut sandbox = Self { guest, shape, origin: Some((Arc::clone(snapshot), server)) };
        sandbox.guest.control.restore(state)?;
        Ok(sandbox)
    }

    /// The server of its faults, if it came from a snapshot.
    pub fn server(&self) -> Option<&FaultServer> {
        self.origin.as_ref().map(|(_, server)| server)
    }

    /// Pauses the guest into a snapshot, which answers at once; the guest is then told to end.
    pub fn pause(self, engine: &Engine) -> anyhow::Result<Paused> {
        let asked = Instant::now();
        let Self { mut guest, shape, origin } = self;
        let (parent, server) = origin.unzip();
        let permit = engine.permit_pause(parent.as_ref(), shape.memory_bytes)?;
        let state = guest.control.state()?;
        guest.freeze()?;
        let epoch = server.map(FaultServer::end_epoch);
        let memory = shape.stopped_memory(&guest, epoch.as_ref())?;
        let state = serde_json::to_vec(&state).expect("device state is plain data");
        let paused = PausedGuest {
            id: SnapshotId::new(),
            volumes: vec![memory],
            blobs: BTreeMap::from([(DEVICE_STATE.to_owned(), state.into())]),
            alongside: Vec::new(),
        };
        let snapshot = engine.commit_pause(permit, paused)?;
        let answer_time = asked.elapsed();
        Ok(Paused { snapshot, answer_time, ending: Ending::begin(guest, epoch) })
    }
}

impl Ending {
    fn begin(guest: ProcessGuest, epoch: Option<Epoch>) -> Self {
        // Tearing a GiB down takes 23 ms of a core, which the guests that run want more. An error of either call says
        // that the guest has ended.
        placement::lower_priority(guest.id()).ok();
        guest.process.begin_kill().ok();
        Self { guest, _epoch: epoch }
    }

    /// The ended guest's process id.
    pub fn id(&self) -> u32 {
        self.guest.id()
    }
}
