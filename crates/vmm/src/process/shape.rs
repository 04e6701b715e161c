//! The shape of a process guest: its parts, which are the same in each guest that is resumed from its snapshots.

use std::path::PathBuf;

use anyhow::Context as _;
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::pages_covering;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::regions::{Region, Regions};
use rekindle_engine::serve::{Epoch, Neighbours, Placement, ServeOptions};
use rekindle_engine::tracking::{StoppedMemory, Tracking, present_pages};
use rekindle_guest::process::arguments::{GuestArguments, MemoryKind, TrackingKind};
use rekindle_guest::process::protocol::Hello;
use rekindle_kernel::{Memfd, Pagemap};

use super::{GuestOptions, ProcessGuest};
use crate::copied_memory::copy_pages;

/// The parts of a process guest.
#[derive(Clone, Debug)]
pub struct GuestShape {
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
}

impl GuestShape {
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
        }
    }

    /// Options of starting the guest, handed over at `handover` if its faults are to be served.
    pub fn guest(&self, handover: Option<PathBuf>) -> GuestOptions {
        let mut arguments = GuestArguments::fresh(self.memory_bytes);
        arguments.kind = self.kind;
        arguments.regions = self.regions;
        arguments.send_memfd = handover.is_some() && self.kind.is_shared();
        arguments.handover = handover;
        arguments.tracking = match self.tracking {
            Tracking::Scan => TrackingKind::Scan,
            Tracking::Events => TrackingKind::Events,
            Tracking::Resident | Tracking::Diverged => TrackingKind::Resident,
        };
        GuestOptions::program(self.program.clone(), arguments)
    }

    /// Options of serving its faults.
    pub fn serve_options(&self) -> ServeOptions {
        let Self { tracking, placement, neighbours, .. } = *self;
        ServeOptions { tracking, placement, neighbours }
    }

    /// Pages of its memory.
    pub fn volume_pages(&self) -> anyhow::Result<u32> {
        pages_covering(self.memory_bytes)
            .with_context(|| format!("{} bytes of memory are too many", self.memory_bytes))
    }

    /// The memory of `guest`, of which no thread runs, as a volume: the pages changed in `epoch`, or all pages there.
    pub fn stopped_memory(
        &self,
        guest: &ProcessGuest,
        epoch: Option<&Epoch>,
    ) -> anyhow::Result<PausedVolume> {
        let (pid, memfd) = (guest.id(), guest.memfd());
        let Some(epoch) = epoch else {
            let regions = self.regions_of(guest.hello())?;
            let memory = StoppedMemory { regions: &regions, memfd, pagemap: Pagemap::of(pid)? };
            let pages = present_pages(&memory).context("finding the guest's pages")?;
            return self.volume(pid, &regions, memfd, pages);
        };
        let pages = epoch.changed_pages().context("finding the guest's written pages")?;
        self.volume(pid, epoch.regions(), epoch.memfd(), pages)
    }

    /// Adopts the guest's own memfd, or copies the kept pages into one of ours.
    fn volume(
        &self,
        pid: u32,
        regions: &Regions,
        memfd: Option<&Memfd>,
        pages: CapturedPages,
    ) -> anyhow::Result<PausedVolume> {
        let memfd = match memfd {
            Some(memfd) => memfd.try_clone()?,
            None => copy_pages(pid, regions, &pages.kept).context("copying the guest's written pages")?,
        };
        Ok(PausedVolume { name: VolumeName::memory(), page_kind: self.kind.page_kind(), memfd, pages })
    }

    fn regions_of(&self, hello: &Hello) -> anyhow::Result<Regions> {
        let page = self.kind.page_kind();
        let regions = hello
            .regions
            .iter()
            .map(|region| Region { start: region.start, bytes: region.bytes, offset: region.offset, page })
            .collect();
        Ok(Regions::new(regions, self.volume_pages()?)?)
    }
}
