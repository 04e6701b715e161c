//! The node as its guests need it: directories, settings, keeper, engine, and the things of this machine that guests
//! share. Drivers of guests take it, and know nothing of names, records and requests.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_engine::engine::Engine;
use rekindle_engine::origin::Origin;
use rekindle_kernel::{Features, Pagemap, Userfaultfd};
use rekindle_metrics::Metrics;
use rekindle_peer::PeerClients;
use rekindle_settings::Settings;
use rekindle_vmm::firecracker::FileDigests;

use super::endings::Endings;
use super::exclusive::Exclusive;
use super::host_qemu::HostQemu;
use super::huge_pages::{HugePages, HugePromise};
use super::keeping::Keeping;
use super::origins::origin_of;

/// The node as its guests need it.
#[derive(Debug)]
pub(super) struct Host {
    settings: RwLock<Arc<Settings>>,
    /// Directory of things that stay over a reboot.
    pub(super) state_directory: PathBuf,
    /// Directory of sockets and logs.
    pub(super) run_directory: PathBuf,
    /// The keeper of the guests' descriptors, and the parent of their processes.
    pub(super) keeping: Arc<Keeping>,
    /// This node, as others reach it, if they do.
    pub(super) origin: Option<Origin>,
    /// The nodes that this one asks, if it asks any.
    pub(super) peers: Option<Arc<PeerClients>>,
    /// Receives measurements of the guests' faults and disks.
    pub(super) metrics: Arc<Metrics>,
    /// The QEMU of this machine.
    pub(super) qemu: Arc<HostQemu>,
    /// Digests of Firecracker's boot files, each computed once.
    pub(super) file_digests: Arc<FileDigests>,
    /// Huge pages that guests were promised.
    pub(super) huge_pages: Arc<HugePages>,
    /// Guests that are ending.
    pub(super) endings: Endings,
    /// The snapshots that guests run on and become.
    pub(super) engine: Engine,
}

impl Host {
    /// The host of `engine`, with no guest yet.
    pub(super) fn new(
        settings: &Settings,
        (keeping, metrics): (Arc<Keeping>, Arc<Metrics>),
        (engine, peers): (Engine, Option<Arc<PeerClients>>),
    ) -> anyhow::Result<Self> {
        let (state_directory, run_directory) =
            (settings.state_directory.clone(), settings.run_directory.clone());
        let directories = (state_directory.clone(), run_directory.clone());
        Ok(Self {
            settings: RwLock::new(Arc::new(settings.clone())),
            state_directory,
            run_directory,
            endings: Endings::start(Arc::clone(&keeping), directories)?,
            keeping,
            origin: origin_of(settings),
            peers,
            metrics,
            qemu: Arc::default(),
            file_digests: Arc::default(),
            huge_pages: Arc::default(),
            engine,
        })
    }

    /// The settings as they are now.
    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// True if this kernel lets guests share pages: it reports faults on pages that are in a file and not mapped, and tells
    /// the pages that a guest has of its own.
    pub(super) fn kernel_shares(&self) -> bool {
        static SHARES: OnceLock<bool> = OnceLock::new();
        *SHARES.get_or_init(|| {
            let needed = Features::MINOR_SHMEM | Features::MISSING_SHMEM;
            Userfaultfd::offered().is_ok_and(|offered| offered.contains(needed))
                && Pagemap::of_self().is_ok_and(|pagemap| pagemap.offers_scan())
        })
    }

    /// Takes over the settings that can change at run time.
    pub(super) fn reload(&self, settings: &Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings.clone());
    }

    /// Promises guests their huge pages; where too few are left, those of guests that are ending are waited for.
    pub(super) fn promise_huge_pages(&self, needed: &[u64]) -> Answer<Vec<HugePromise>> {
        let promises = self.huge_pages.promise(needed).or_else(|_too_few| {
            self.endings.make_way(&Exclusive { huge_pages: true, ..Exclusive::default() });
            self.huge_pages.promise(needed)
        });
        promises.map_err(|error| Problem::new(Code::Misfit, error.to_string()))
    }
}
