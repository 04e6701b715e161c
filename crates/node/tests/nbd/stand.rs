//! Shared parts of these tests: an engine with snapshots of one disk, and disks over them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use rekindle_disk::{Access, Disk, DiskSource, Overlay};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::view::LiveView;
use rekindle_kernel::{Memfd, PageKind};
use rekindle_testkit::random::Random;
use rekindle_testkit::site::{PATIENCE, Site};
use tempfile::TempDir;

pub(crate) const PAGE: usize = 4096;

/// An engine and a directory for sockets.
pub(crate) struct Stand {
    pub(crate) engine: Engine,
    pub(crate) site: Site,
    directory: TempDir,
}

impl Stand {
    pub(crate) fn new() -> Self {
        Self::at(Site::new().unwrap())
    }

    /// Another node over the same store.
    pub(crate) fn elsewhere(&self) -> Self {
        Self::at(self.site.elsewhere().unwrap())
    }

    fn at(site: Site) -> Self {
        Self { engine: site.engine().unwrap(), site, directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("disk.sock")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn disk(&self, bytes: usize, base: Option<&Snapshot>) -> Disk {
        self.serve(bytes, base.map(disk_of), Overlay::create(word(bytes)).unwrap())
    }

    pub(crate) fn serve(&self, bytes: usize, base: Option<Arc<LiveView>>, overlay: Overlay) -> Disk {
        self.serve_as(bytes, base, overlay, Access::ReadWrite)
    }

    pub(crate) fn serve_as(
        &self,
        bytes: usize,
        base: Option<Arc<LiveView>>,
        overlay: Overlay,
        access: Access,
    ) -> Disk {
        let fetcher = self.engine.fetcher().clone();
        Disk::serve(&self.socket(), DiskSource { base, fetcher, overlay, bytes: word(bytes), access })
            .unwrap()
    }

    /// A snapshot whose disk is `volume`, with a page of memory.
    pub(crate) fn commit(&self, parent: Option<&Arc<Snapshot>>, volume: PausedVolume) -> Arc<Snapshot> {
        let held = volume.memfd.allocated_bytes().unwrap() + 4096;
        let permit = self.engine.permit_pause(parent, held).unwrap();
        let memory = PausedVolume {
            name: VolumeName::memory(),
            page_kind: PageKind::Small,
            memfd: Memfd::create("memory", 4096, PageKind::Small).unwrap(),
            pages: CapturedPages { kept: PageSet::new(1), zero: PageSet::new(1) },
        };
        let guest = PausedGuest {
            id: SnapshotId::new(),
            volumes: vec![memory, volume],
            blobs: BTreeMap::new(),
            alongside: Vec::new(),
        };
        self.engine.commit_pause(permit, guest).unwrap()
    }

    /// A snapshot whose disk has these bytes, which need not be whole pages.
    pub(crate) fn snapshot(&self, bytes: &[u8]) -> Arc<Snapshot> {
        let pages = u32::try_from(bytes.len().div_ceil(PAGE)).unwrap();
        let memfd = Memfd::create("disk", u64::from(pages) * 4096, PageKind::Small).unwrap();
        let mut kept = PageSet::new(pages);
        for (page, content) in (0..).zip(bytes.chunks(PAGE)) {
            if content.iter().any(|byte| *byte != 0) {
                memfd.write_at(content, u64::from(page) * 4096).unwrap();
                kept.insert(GuestPage::new(page));
            }
        }
        let pages = CapturedPages { kept, zero: PageSet::new(pages) };
        self.commit(None, PausedVolume { name: disk_name(), page_kind: PageKind::Small, memfd, pages })
    }

    /// Reads a snapshot's disk through the engine.
    pub(crate) fn read(&self, snapshot: &Snapshot, bytes: usize) -> Vec<u8> {
        let view = disk_of(snapshot);
        let mut content = vec![0; usize::try_from(view.pages()).unwrap() * PAGE];
        let pages = GuestPages::new(GuestPage::FIRST, view.pages());
        self.engine.read(&view, pages, &mut content).unwrap();
        assert!(content[bytes..].iter().all(|byte| *byte == 0), "nothing lies behind the disk's end");
        content.truncate(bytes);
        content
    }

    /// The snapshot as another node has it, from the store alone; this one has to have published it.
    pub(crate) fn cold(&self, snapshot: &Snapshot) -> (Self, Arc<Snapshot>) {
        assert!(snapshot.wait_state(SnapshotState::Published, PATIENCE), "published in time");
        let cold = self.elsewhere();
        let opened = cold.engine.open(snapshot.id()).unwrap();
        (cold, opened)
    }
}

pub(crate) fn disk_name() -> VolumeName {
    "disk-0".parse().unwrap()
}

/// The view of a snapshot's disk.
pub(crate) fn disk_of(snapshot: &Snapshot) -> Arc<LiveView> {
    Arc::clone(&snapshot.volumes()[1].view)
}

/// Bytes of which some pages are zero.
pub(crate) fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut content = vec![0; bytes];
    for page in content.chunks_mut(PAGE) {
        if !random.percent(25) {
            random.fill(page);
        }
    }
    content
}

pub(crate) fn word(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap()
}
