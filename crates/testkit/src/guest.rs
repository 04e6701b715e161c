//! A guest in this process: memory of its own, mapped as by a VMM, and a model that checks every page it reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use rekindle_engine::capture::CapturedPages;
use rekindle_engine::catalog::Change;
use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{CommitError, PauseError, PausePermit, PausedGuest, PausedVolume};
use rekindle_engine::read_plan::ReadError;
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::{Backing, Discard, GuestMemory, Memfd, PAGE_BYTES, PageKind};
use rekindle_vmm::copied_memory::copy_volume;

use crate::model::{ModelMemory, WrongPage};
use crate::random::Random;

/// A running guest of one volume, or one volume of a guest.
#[derive(Debug)]
pub struct Guest {
    /// Number of the volume in its parent.
    volume: usize,
    memfd: Memfd,
    vmm: EndingVmm,
    expected: ModelMemory,
    parent: Option<Arc<Snapshot>>,
    /// Pages in its memory.
    installed: PageSet,
    /// Pages written in this epoch.
    written: PageSet,
    /// Pages given back in this epoch, including those installed again since.
    removed: PageSet,
}

/// The writable mapping of a paused guest: its snapshot is not sealed before this is dropped.
#[derive(Debug)]
pub struct EndingVmm(GuestMemory);

/// The set of pages that a pause captures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracking {
    /// The written and the removed pages.
    Exact,
    /// All pages in the guest's memory, and the removed ones.
    Resident,
}

/// A paused guest.
#[derive(Debug)]
pub struct Paused {
    /// Its snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Expected content of every page of it.
    pub memory: ModelMemory,
    /// Its VMM, which has not ended yet.
    pub vmm: EndingVmm,
}

/// A guest that could not be paused, and runs on.
#[derive(Debug, thiserror::Error)]
#[error("the guest was not paused: {error}")]
pub struct NotPaused {
    /// The unchanged guest.
    pub guest: Box<Guest>,
    /// The reason.
    pub error: PauseError,
}

/// Reason that a guest could not go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A page is unavailable: the guest is stalled, and can try again.
    #[error("stalled: {0}")]
    Stalled(#[from] ReadError),
    /// A page differs from the model.
    #[error(transparent)]
    Wrong(#[from] WrongPage),
}

impl Guest {
    /// A guest that starts with this many pages of zeroes and no parent.
    pub fn fresh(pages: u32) -> Self {
        let mut guest = Self::with_empty_memory(ModelMemory::zeroes(pages), 0, None);
        guest.installed = PageSet::full(pages);
        guest
    }

    /// A guest resumed from `snapshot`, whose expected content is `expected`.
    pub fn resume(snapshot: &Arc<Snapshot>, expected: ModelMemory) -> Self {
        Self::resume_volume(snapshot, 0, expected)
    }

    /// One volume of a guest resumed from `snapshot`, by its position there.
    pub fn resume_volume(snapshot: &Arc<Snapshot>, volume: usize, expected: ModelMemory) -> Self {
        Self::with_empty_memory(expected, volume, Some(Arc::clone(snapshot)))
    }

    fn with_empty_memory(expected: ModelMemory, volume: usize, parent: Option<Arc<Snapshot>>) -> Self {
        let pages = expected.pages();
        let memfd =
            Memfd::create("guest", bytes_of_pages(pages), PageKind::Small).expect("memory for a guest");
        let bytes = usize::try_from(memfd.bytes()).expect("64 bits");
        let memory = GuestMemory::map(Backing::Shared(&memfd, 0), bytes, 0).expect("addresses for a guest");
        let none = PageSet::new(pages);
        Self {
            volume,
            memfd,
            vmm: EndingVmm(memory),
            expected,
            parent,
            installed: none.clone(),
            written: none.clone(),
            removed: none,
        }
    }

    /// Pages of its memory.
    pub fn pages(&self) -> u32 {
        self.expected.pages()
    }

    /// The snapshot it runs from.
    pub fn parent(&self) -> Option<&Arc<Snapshot>> {
        self.parent.as_ref()
    }

    /// Expected content of every page of it.
    pub fn expected(&self) -> &ModelMemory {
        &self.expected
    }

    /// Continues with another handle of its snapshot: the node was restarted.
    pub fn stand_on(&mut self, snapshot: &Arc<Snapshot>) {
        self.parent = Some(Arc::clone(snapshot));
    }

    /// Drops the handle of its parent, like the end of the node's process; returns the snapshot's id.
    pub fn let_go_of_parent(&mut self) -> Option<SnapshotId> {
        self.parent.take().map(|parent| parent.id())
    }

    /// Reads pages, after serving missing ones, and compares them with the model.
    pub fn read(&mut self, engine: &Engine, pages: GuestPages) -> Result<(), GuestError> {
        self.have_served(engine, pages)?;
        let mut found = vec![0; PAGE_BYTES];
        for page in pages.iter() {
            self.vmm.0.read(page.offset(), &mut found).expect("a guest's own memory can be read");
            self.expected.check(GuestPages::new(page, 1), &found)?;
        }
        Ok(())
    }

    /// Reads all pages and compares them with the model.
    pub fn verify(&mut self, engine: &Engine) -> Result<(), GuestError> {
        self.read(engine, GuestPages::new(GuestPage::new(0), self.pages()))
    }

    /// Writes within one page, after serving it as a fault does.
    pub fn write(
        &mut self,
        engine: &Engine,
        page: GuestPage,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), GuestError> {
        self.have_served(engine, GuestPages::new(page, 1))?;
        self.vmm.0.write(page.offset() + offset, bytes);
        self.expected.write(page, offset, bytes);
        self.written.insert(page);
        Ok(())
    }

    /// Writes whole pages with unique content.
    pub fn write_random(
        &mut self,
        engine: &Engine,
        run: GuestPages,
        random: &mut Random,
    ) -> Result<(), GuestError> {
        let mut bytes = vec![0; PAGE_BYTES];
        run.iter().try_for_each(|page| {
            random.fill(&mut bytes);
            self.write(engine, page, 0, &bytes)
        })
    }

    /// Gives pages back: they are zero from now on.
    pub fn remove(&mut self, run: GuestPages) {
        let bytes = usize::try_from(run.bytes()).expect("64 bits");
        self.vmm.0.discard(run.start().offset(), bytes, Discard::Remove).expect("a memfd takes holes");
        self.installed.remove_run(run);
        self.removed.insert_run(run);
        self.expected.remove(run);
    }

    /// Pauses it, if the engine permits it now.
    pub fn pause(self, engine: &Engine, tracking: Tracking) -> Result<Paused, NotPaused> {
        self.pause_as(SnapshotId::new(), engine, tracking)
    }

    /// Pauses it as the snapshot with this id.
    pub fn pause_as(self, id: SnapshotId, engine: &Engine, tracking: Tracking) -> Result<Paused, NotPaused> {
        let permit = match engine.permit_pause(self.parent.as_ref(), bytes_of_pages(self.pages())) {
            Ok(permit) => permit,
            Err(error) => return Err(NotPaused { guest: Box::new(self), error }),
        };
        let paused = self.commit_as(id, engine, permit, (tracking, Vec::new()));
        Ok(paused.map_err(|(_, error)| error).expect("a guest of its parent's shape is taken over"))
    }

    /// Takes it over as the snapshot with this id, with further changes in the same catalog transaction. After a
    /// failure it is unchanged, and can go on once the error is dropped.
    pub fn commit_as(
        self,
        id: SnapshotId,
        engine: &Engine,
        permit: PausePermit,
        (tracking, alongside): (Tracking, Vec<Change>),
    ) -> Result<Paused, (Box<Self>, CommitError)> {
        let volumes = vec![self.paused_volume(VolumeName::memory(), tracking)];
        let guest = PausedGuest { id, volumes, blobs: BTreeMap::new(), alongside };
        match engine.commit_pause(permit, guest) {
            Ok(snapshot) => Ok(Paused { snapshot, memory: self.expected, vmm: self.vmm }),
            Err(error) => Err((Box::new(self), error)),
        }
    }

    /// Its volume in a pause, with this name. The guest can go on if the pause fails.
    pub fn paused_volume(&self, name: VolumeName, tracking: Tracking) -> PausedVolume {
        let memfd = self.memfd.try_clone().expect("a descriptor for a guest's memory");
        PausedVolume { name, page_kind: PageKind::Small, memfd, pages: self.captured_pages(tracking) }
    }

    /// Its volume in a checkpoint, in a memory file of its own.
    pub fn copied_volume(&self, name: VolumeName, tracking: Tracking) -> PausedVolume {
        copy_volume(self.paused_volume(name, tracking)).expect("memory for a copy")
    }

    /// Goes on from a snapshot whose volume at `position` has all that it wrote so far.
    pub fn go_on_from(&mut self, snapshot: &Arc<Snapshot>, position: usize) {
        (self.parent, self.volume) = (Some(Arc::clone(snapshot)), position);
        self.written = PageSet::new(self.pages());
        self.removed = PageSet::new(self.pages());
    }

    /// A paused guest's content, and its VMM, which has not ended yet.
    pub fn into_ending(self) -> (ModelMemory, EndingVmm) {
        (self.expected, self.vmm)
    }

    fn captured_pages(&self, tracking: Tracking) -> CapturedPages {
        let mut zero = self.removed.clone();
        zero.subtract(&self.installed);
        let mut kept = match tracking {
            Tracking::Exact => self.written.clone(),
            Tracking::Resident => self.installed.clone(),
        };
        kept.union_with(&self.removed);
        kept.intersect_with(&self.installed);
        CapturedPages { kept, zero }
    }

    fn have_served(&mut self, engine: &Engine, pages: GuestPages) -> Result<(), GuestError> {
        let mut next = pages.start();
        while next < pages.end() {
            let left = pages.end().pages_since(next);
            let (present, run) = self.installed.run_at(next, left);
            if present {
                next = next.plus(run);
                continue;
            }
            let (removed, run) = self.removed.run_at(next, run);
            let run = GuestPages::new(next, run);
            match &self.parent {
                Some(parent) if !removed => {
                    let mut bytes = vec![0; usize::try_from(run.bytes()).expect("64 bits")];
                    engine.read(&parent.volumes()[self.volume].view, run, &mut bytes)?;
                    self.vmm.0.write(run.start().offset(), &bytes);
                }
                Some(_) | None => {}
            }
            self.installed.insert_run(run);
            next = run.end();
        }
        Ok(())
    }
}

/// Reads every page of a snapshot and compares it with the model.
pub fn judge(engine: &Engine, snapshot: &Snapshot, memory: &ModelMemory) -> Result<(), GuestError> {
    let all = GuestPages::new(GuestPage::new(0), memory.pages());
    let mut found = vec![0; usize::try_from(all.bytes()).expect("64 bits")];
    engine.read(snapshot.memory(), all, &mut found)?;
    Ok(memory.check(all, &found)?)
}

impl Paused {
    /// Ends the VMM; the snapshot can then be sealed.
    pub fn end_vmm(self) -> (Arc<Snapshot>, ModelMemory) {
        (self.snapshot, self.memory)
    }
}
