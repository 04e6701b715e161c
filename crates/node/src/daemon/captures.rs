//! Captures of memory that others manage: of a VMM served at a fault socket, of a memory file, of a process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use rekindle_api::control::{Answer, Asked};
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::{CaptureMemory, CaptureSource, MemoryRegion, Snapshot};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::{DomainName, SnapshotId, VolumeName};
use rekindle_engine::pause::{Base, PausePermit, PausedGuest, PausedVolume};
use rekindle_engine::regions::{Region, Regions};
use rekindle_engine::serve::Epoch;
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use rekindle_engine::tracking::{StoppedMemory, file_pages, present_pages};
use rekindle_input::asker::Asker;
use rekindle_kernel::{Memfd, PageKind, Pagemap, ProcessHandle};
use rekindle_vmm::copied_memory::copy_pages;

use super::about::About;
use super::fault_sockets::FaultSockets;
use super::host::Host;
use super::known::Known;
use super::problems::guest_failed;
use super::snapshots::Snapshots;

/// Bytes of a page of a volume.
const PAGE: u64 = 4096;

/// Captures memory of processes that others manage.
#[derive(Debug)]
pub(super) struct Captures {
    host: Arc<Host>,
    snapshots: Arc<Snapshots>,
    fault_sockets: Arc<FaultSockets>,
}

impl Captures {
    /// Captures into `snapshots`, also of the VMMs at `fault_sockets`.
    pub(super) fn new(host: Arc<Host>, snapshots: Arc<Snapshots>, fault_sockets: Arc<FaultSockets>) -> Self {
        Self { host, snapshots, fault_sockets }
    }

    /// Captures memory that others manage, as they ask for it.
    pub(super) fn capture(&self, asked: &Asked, wanted: CaptureMemory) -> Answer<Snapshot> {
        let began = Instant::now();
        let CaptureMemory { source, name, labels, domain, blobs } = wanted;
        let domain = self.host.engine.domain(domain.as_ref())?;
        let reserved = self.snapshots.reserve(name.as_ref())?;
        let mut blobs = decoded(blobs)?;
        About { name, labels, ..About::default() }.put_into(&mut blobs);
        let snapshot = match source {
            CaptureSource::FaultSocket { id } => self.capture_served(id, blobs, &asked.asker)?,
            CaptureSource::Memfd { pid, fd } => {
                self.capture_file((pid, fd), &domain, blobs, &asked.asker).map_err(guest_failed)?
            }
            CaptureSource::Process { pid, regions } => {
                self.capture_process((pid, &regions), &domain, blobs, &asked.asker).map_err(guest_failed)?
            }
        };
        drop(reserved);
        self.host.metrics.pause_answered(began.elapsed(), began.elapsed());
        self.host.metrics.snapshot_answered(snapshot.id());
        Ok(Known::of(snapshot).show(self.host.origin.as_ref()))
    }

    fn capture_served(
        &self,
        id: uuid::Uuid,
        blobs: BTreeMap<String, Bytes>,
        asker: &Asker,
    ) -> Answer<Arc<EngineSnapshot>> {
        let socket = self.fault_sockets.find(id)?;
        let parent = Arc::clone(socket.runs_from.snapshot());
        // The wait for room is before the end of the VMM's epoch: from there on it stands still.
        let bytes = u64::from(parent.memory().pages()) * PAGE;
        let room =
            self.host.engine.permit_pause_while(Base::Snapshot(&parent), bytes, &asker.still_waits())?;
        socket.take_epoch(self.host.engine.fetcher(), |epoch| {
            let page_kind = parent.volumes()[0].page_kind;
            self.commit_volume(room, served_volume(epoch, page_kind)?, blobs)
        })
    }

    /// Captures all that a memory file of another process has; it takes no more RAM than that has already.
    fn capture_file(
        &self,
        (pid, fd): (u32, i32),
        domain: &DomainName,
        blobs: BTreeMap<String, Bytes>,
        asker: &Asker,
    ) -> anyhow::Result<Arc<EngineSnapshot>> {
        let process = ProcessHandle::open(pid).with_context(|| format!("process {pid}"))?;
        let file = process.duplicate_fd(fd).with_context(|| format!("descriptor {fd} of process {pid}"))?;
        let memfd = Memfd::adopt(file).with_context(|| format!("descriptor {fd} of process {pid}"))?;
        let room =
            self.host.engine.permit_pause_while(Base::Domain(domain), memfd.bytes(), &asker.still_waits());
        let room = room.map_err(Problem::from)?;
        let pages =
            pages_covering(memfd.bytes()).context("the file is more memory than a volume can have")?;
        let pages = file_pages(&memfd, pages).context("finding the file's pages")?;
        let page_kind = memfd.page_kind();
        let volume = PausedVolume { name: VolumeName::memory(), page_kind, memfd, pages };
        self.commit_volume(room, volume, blobs)
    }

    /// Captures all that is there of a process's private memory, copied once there is room for it.
    fn capture_process(
        &self,
        (pid, regions): (u32, &[MemoryRegion]),
        domain: &DomainName,
        blobs: BTreeMap<String, Bytes>,
        asker: &Asker,
    ) -> anyhow::Result<Arc<EngineSnapshot>> {
        let regions = regions_of(regions)?;
        let memory = StoppedMemory { regions: &regions, memfd: None, pagemap: Pagemap::of(pid)? };
        let pages: CapturedPages =
            present_pages(&memory).with_context(|| format!("finding the pages of process {pid}"))?;
        let bytes = u64::from(pages.kept.len()) * PAGE;
        let room = self.host.engine.permit_pause_while(Base::Domain(domain), bytes, &asker.still_waits());
        let room = room.map_err(Problem::from)?;
        let memfd =
            copy_pages(pid, &regions, &pages.kept).with_context(|| format!("copying from process {pid}"))?;
        let volume = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
        self.commit_volume(room, volume, blobs)
    }

    fn commit_volume(
        &self,
        room: PausePermit,
        volume: PausedVolume,
        blobs: BTreeMap<String, Bytes>,
    ) -> anyhow::Result<Arc<EngineSnapshot>> {
        let guest =
            PausedGuest { id: SnapshotId::new(), volumes: vec![volume], blobs, alongside: Vec::new() };
        Ok(self.host.engine.commit_pause(room, guest)?)
    }
}

/// Pages that a VMM changed since it was served.
fn served_volume(epoch: &Epoch, page_kind: PageKind) -> anyhow::Result<PausedVolume> {
    let pages = epoch.changed_pages().context("finding the written pages")?;
    let memfd = match epoch.memfd() {
        Some(memfd) => memfd.try_clone()?,
        None => copy_pages(epoch.pid(), epoch.regions(), &pages.kept).context("copying the written pages")?,
    };
    Ok(PausedVolume { name: VolumeName::memory(), page_kind, memfd, pages })
}

fn regions_of(regions: &[MemoryRegion]) -> anyhow::Result<Regions> {
    let bytes = regions.iter().try_fold(0_u64, |sum, region| sum.checked_add(region.bytes));
    let pages =
        bytes.and_then(pages_covering).context("the regions are more memory than a volume can have")?;
    let region = |region: &MemoryRegion| Region {
        start: region.start,
        bytes: region.bytes,
        offset: region.offset,
        page: PageKind::Small,
    };
    Ok(Regions::new(regions.iter().map(region).collect(), pages)?)
}

fn decoded(blobs: BTreeMap<String, String>) -> Answer<BTreeMap<String, Bytes>> {
    let decode = |(name, text): (String, String)| match BASE64_STANDARD.decode(text) {
        Ok(bytes) => Ok((name, Bytes::from(bytes))),
        Err(error) => {
            Err(Problem::new(Code::InvalidRequest, format!("the blob {name:?} is not base64: {error}")))
        }
    };
    blobs.into_iter().map(decode).collect()
}
