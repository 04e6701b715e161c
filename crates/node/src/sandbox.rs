//! A sandbox of the process guest: started fresh or from a snapshot, served, and paused into a snapshot.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::regions::{Region, Regions};
use rekindle_engine::serve::{Epoch, FaultServer, Neighbours, NotServed, Placement, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::{StoppedMemory, Tracking, present_pages};
use rekindle_guest::process::arguments::{GuestArguments, MemoryKind, TrackingKind};
use rekindle_guest::process::protocol::{DeviceState, Hello};
use rekindle_kernel::{Memfd, Pagemap, placement};

use crate::copied_memory::copy_pages;
use crate::vmm::process::{GuestControl, GuestOptions, ProcessGuest};

/// The blob that holds a process guest's device state.
pub(crate) const DEVICE_STATE: &str = "device-state";

/// Longest time from a guest's start to its hand-over message.
const HANDOVER_LIMIT: Duration = Duration::from_secs(30);

/// The parts of a sandbox's guest; the same for the guest it is resumed as.
#[derive(Clone, Debug)]
pub struct SandboxShape {
    /// The program that can be a guest.
    pub program: PathBuf,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Kind of guest memory; decides if a pause adopts it or copies the written pages.
    pub kind: MemoryKind,
    /// Regions guest memory is cut into.
    pub regions: usize,
    /// Way in which written pages are found.
    pub tracking: Tracking,
    /// Processor of the fault thread.
    pub placement: Placement,
    /// Decides if a fault installs the pages beside it.
    pub neighbours: Neighbours,
    /// Decides if a resume learns from the ones before it.
    pub working_sets: WorkingSets,
}

/// Decides if the first touches of a snapshot's earlier guests are installed ahead of a resumed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkingSets {
    /// It is, and what this one touches is noted for later ones.
    Used,
    /// Each resume is like the first.
    Ignored,
}

/// A running guest with its memory served, if it came from a snapshot.
#[derive(Debug)]
pub struct Sandbox {
    /// The guest.
    pub guest: ProcessGuest,
    shape: SandboxShape,
    origin: Option<Origin>,
}

/// Origin of a resumed guest's pages.
#[derive(Debug)]
struct Origin {
    snapshot: Arc<Snapshot>,
    serving: Serving,
}

/// State of serving a resumed guest's faults.
#[derive(Debug)]
enum Serving {
    Served(FaultServer),
    /// Its faults are not answered, since a pause and then the way back from it failed: the guest stands still.
    Unserved(Box<Epoch>),
}

/// A pause that was answered: the snapshot, and the guest that is still to end.
#[derive(Debug)]
pub struct Paused {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// From the request to the answer.
    pub answer_time: Duration,
    /// Of that, the time in which the guest stood still.
    pub frozen_time: Duration,
    /// Ends the guest.
    pub ending: Ending,
}

/// A pause that did not come to pass; the guest goes on.
#[derive(Debug, thiserror::Error)]
#[error("not paused: {error:#}")]
pub struct NotPaused {
    /// The sandbox, as it was.
    pub sandbox: Box<Sandbox>,
    /// The reason.
    pub error: anyhow::Error,
}

/// A guest whose pause was answered. It is told to end; dropping this waits until it has.
#[derive(Debug)]
pub struct Ending {
    guest: ProcessGuest,
    /// Held until the guest has ended: without any userfaultfd its faults would read zeroes.
    _origin: Option<Origin>,
}

impl SandboxShape {
    /// One region of shared memory, scanned for writes, its fault thread beside the guest.
    pub fn new(program: PathBuf, memory_bytes: u64) -> Self {
        Self {
            program,
            memory_bytes,
            kind: MemoryKind::Shared,
            regions: 1,
            tracking: Tracking::Scan,
            placement: Placement::FollowFaults,
            neighbours: Neighbours::Adaptive,
            working_sets: WorkingSets::Ignored,
        }
    }

    /// Arguments of the guest, handed over at `handover` if it is to be served.
    pub(crate) fn guest(&self, handover: Option<PathBuf>) -> GuestOptions {
        let mut arguments = GuestArguments::fresh(self.memory_bytes);
        arguments.kind = self.kind;
        arguments.regions = self.regions;
        arguments.send_memfd = handover.is_some() && self.kind.is_shared();
        arguments.handover = handover;
        arguments.tracking = match self.tracking {
            Tracking::Scan => TrackingKind::Scan,
            Tracking::Events => TrackingKind::Events,
            Tracking::Resident => TrackingKind::Resident,
        };
        GuestOptions::program(self.program.clone(), arguments)
    }

    /// Options of serving it.
    pub(crate) fn serve_options(&self) -> ServeOptions {
        let Self { tracking, placement, neighbours, .. } = *self;
        ServeOptions { tracking, placement, neighbours }
    }

    /// Pages of its memory.
    pub(crate) fn volume_pages(&self) -> anyhow::Result<u32> {
        pages_covering(self.memory_bytes)
            .with_context(|| format!("{} bytes of memory are too many", self.memory_bytes))
    }
}

impl Sandbox {
    /// Starts a guest on empty memory.
    pub fn start(shape: SandboxShape) -> anyhow::Result<Self> {
        let guest = ProcessGuest::spawn(&shape.guest(None))?;
        Ok(Self { guest, shape, origin: None })
    }

    /// Starts a guest on a snapshot's memory and device state; pages come as it touches them.
    pub fn resume(engine: &Engine, snapshot: &Arc<Snapshot>, shape: SandboxShape) -> anyhow::Result<Self> {
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
        // From here on, after any failure too, the guest ends before its server does.
        match shape.working_sets {
            WorkingSets::Used => engine.learner().learn(snapshot, &server),
            WorkingSets::Ignored => {}
        }
        let origin = Some(Origin { snapshot: Arc::clone(snapshot), serving: Serving::Served(server) });
        let mut sandbox = Self { guest, shape, origin };
        sandbox.guest.control.restore(state)?;
        Ok(sandbox)
    }

    /// The server of its faults, if it came from a snapshot.
    pub fn server(&self) -> Option<&FaultServer> {
        self.origin.as_ref().and_then(Origin::server)
    }

    /// The guest's control, and how many bytes of its memory have been served so far.
    pub fn control_and_progress(&mut self) -> (&mut GuestControl, impl Fn() -> u64 + Sync + '_) {
        let Self { guest, origin, shape } = self;
        let server = origin.as_ref().and_then(Origin::server);
        let all = shape.memory_bytes;
        let served = move || {
            server.map_or(all, |server| {
                let stats = server.stats();
                (stats.pages_from_capture + stats.pages_from_layer + stats.pages_zero) * 4096
            })
        };
        (&mut guest.control, served)
    }

    /// Pauses the guest into a snapshot, which answers at once; the guest is then told to end. If that fails, the guest
    /// goes on as if nothing had been asked.
    pub fn pause(mut self, engine: &Engine) -> Result<Paused, NotPaused> {
        let asked = Instant::now();
        if let Err(error) = self.serve_again(engine) {
            return Err(NotPaused { sandbox: Box::new(self), error });
        }
        let parent = self.origin.as_ref().map(|origin| &origin.snapshot);
        let permit = match engine.permit_pause(parent, self.shape.memory_bytes) {
            Ok(permit) => permit,
            Err(error) => return Err(NotPaused { sandbox: Box::new(self), error: error.into() }),
        };
        let frozen = match self.freeze() {
            Ok(state) => (Instant::now(), state),
            Err(error) => return Err(self.go_on(engine, error)),
        };
        let (frozen_at, state) = frozen;
        self.end_epoch();
        let stopped =
            StoppedGuest { pid: self.guest.id(), hello: self.guest.hello(), memfd: self.guest.memfd() };
        let taken = stopped.memory(&self.shape, self.epoch());
        let committed = taken.and_then(|memory| {
            let guest = PausedGuest {
                id: SnapshotId::new(),
                volumes: vec![memory],
                blobs: blobs(&state),
                alongside: Vec::new(),
            };
            Ok(engine.commit_pause(permit, guest)?)
        });
        match committed {
            Ok(snapshot) => {
                let (answer_time, frozen_time) = (asked.elapsed(), frozen_at.elapsed());
                let ending = Ending::begin(self.guest, self.origin);
                Ok(Paused { snapshot, answer_time, frozen_time, ending })
            }
            Err(error) => Err(self.go_on(engine, error)),
        }
    }

    /// Asks for the device state and stops every thread of the guest.
    fn freeze(&mut self) -> anyhow::Result<DeviceState> {
        let state = self.guest.control.state()?;
        self.guest.freeze()?;
        Ok(state)
    }

    /// Serves the guest again and lets it go on, after a pause that did not come to pass. If that fails too it stands
    /// still, nothing of it is lost, and the next pause begins with another try.
    fn go_on(mut self, engine: &Engine, error: anyhow::Error) -> NotPaused {
        let gone_on = self.serve_again(engine).and_then(|()| Ok(self.guest.thaw()?));
        let error = match gone_on {
            Ok(()) => error,
            Err(second) => error.context(format!("and the guest could not go on: {second:#}")),
        };
        NotPaused { sandbox: Box::new(self), error }
    }

    /// The frozen guest is not served from here on.
    fn end_epoch(&mut self) {
        self.origin = self.origin.take().map(|Origin { snapshot, serving }| {
            let epoch = match serving {
                Serving::Served(server) => Box::new(server.end_epoch()),
                Serving::Unserved(epoch) => epoch,
            };
            Origin { snapshot, serving: Serving::Unserved(epoch) }
        });
    }

    fn epoch(&self) -> Option<&Epoch> {
        match &self.origin.as_ref()?.serving {
            Serving::Unserved(epoch) => Some(epoch),
            Serving::Served(_) => None,
        }
    }

    /// Serves an unserved guest again, and lets it run.
    fn serve_again(&mut self, engine: &Engine) -> anyhow::Result<()> {
        if self.origin.as_ref().and_then(Origin::server).is_some_and(FaultServer::has_failed) {
            self.end_epoch();
        }
        let Some(Origin { snapshot, serving }) = self.origin.take() else { return Ok(()) };
        let (serving, done) = match serving {
            served @ Serving::Served(_) => (served, Ok(())),
            Serving::Unserved(epoch) => {
                let (view, options) = (Arc::clone(snapshot.memory()), self.shape.serve_options());
                match FaultServer::resume(view, *epoch, engine.fetcher().clone(), options) {
                    Ok(server) => (Serving::Served(server), self.guest.thaw().map_err(Into::into)),
                    Err(NotServed { epoch, error }) => (Serving::Unserved(epoch), Err(error.into())),
                }
            }
        };
        self.origin = Some(Origin { snapshot, serving });
        done
    }
}

impl Origin {
    fn server(&self) -> Option<&FaultServer> {
        match &self.serving {
            Serving::Served(server) => Some(server),
            Serving::Unserved(_) => None,
        }
    }
}

/// A guest of which no thread runs, with its process still there.
pub(crate) struct StoppedGuest<'a> {
    /// Its process.
    pub(crate) pid: u32,
    /// Its own facts from its start.
    pub(crate) hello: &'a Hello,
    /// The file behind its memory, if that is shared and not served.
    pub(crate) memfd: Option<&'a Memfd>,
}

impl StoppedGuest<'_> {
    /// Its memory as a volume: the pages changed in `epoch`, or all pages there.
    pub(crate) fn memory(&self, shape: &SandboxShape, epoch: Option<&Epoch>) -> anyhow::Result<PausedVolume> {
        let Some(epoch) = epoch else {
            let regions = regions_of(self.hello, shape)?;
            let memory =
                StoppedMemory { regions: &regions, memfd: self.memfd, pagemap: Pagemap::of(self.pid)? };
            let pages = present_pages(&memory).context("finding the guest's pages")?;
            return self.volume(shape, &regions, self.memfd, pages);
        };
        let pages = epoch.changed_pages().context("finding the guest's written pages")?;
        self.volume(shape, epoch.regions(), epoch.memfd(), pages)
    }

    /// Adopts the guest's own memfd, or copies what was written into one of ours.
    fn volume(
        &self,
        shape: &SandboxShape,
        regions: &Regions,
        memfd: Option<&Memfd>,
        pages: CapturedPages,
    ) -> anyhow::Result<PausedVolume> {
        let memfd = match memfd {
            Some(memfd) => memfd.try_clone()?,
            None => {
                copy_pages(self.pid, regions, &pages.kept).context("copying the guest's written pages")?
            }
        };
        Ok(PausedVolume { name: VolumeName::memory(), page_kind: shape.kind.page_kind(), memfd, pages })
    }
}

impl Ending {
    fn begin(guest: ProcessGuest, origin: Option<Origin>) -> Self {
        // Tearing a GiB down takes 23 ms of a core, which the guests that run want more.
        if let Err(error) = placement::lower_priority(guest.id()) {
            tracing::debug!(%error, "a paused guest is torn down at normal priority");
        }
        if let Err(error) = guest.process.begin_kill() {
            tracing::warn!(%error, "a paused guest is ended when its process is waited for");
        }
        Self { guest, _origin: origin }
    }

    /// The ended guest's process id.
    pub fn id(&self) -> u32 {
        self.guest.id()
    }
}

fn regions_of(hello: &Hello, shape: &SandboxShape) -> anyhow::Result<Regions> {
    let page = shape.kind.page_kind();
    let regions = hello
        .regions
        .iter()
        .map(|region| Region { start: region.start, bytes: region.bytes, offset: region.offset, page })
        .collect();
    Ok(Regions::new(regions, shape.volume_pages()?)?)
}

fn blobs(state: &DeviceState) -> BTreeMap<String, bytes::Bytes> {
    let state = serde_json::to_vec(state).expect("device state is plain data");
    BTreeMap::from([(DEVICE_STATE.to_owned(), state.into())])
}
