//! A snapshot's memory that its guests share: one memory file, which each of them maps privately.
//!
//! The file is a cache. It gets each page from the snapshot's view when the first guest wants it, and its RAM can be given
//! back at any time: pages that a guest has not written fault again. The set of pages here, not the file, says which
//! pages may be mapped into a guest, and it is locked while they are: so no page is mapped before all of its bytes are
//! in the file, nor while it goes. The kernel maps none by itself, as a range whose minor faults are reported has no
//! fault-around.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rekindle_kernel::memfd::AdoptError;
use rekindle_kernel::{Install, Memfd, PageKind, Source};

use crate::budget::{Budget, Lease};
use crate::geometry::{GuestPages, PAGE_BYTES, bytes_of_pages, usize_of};
use crate::identity::SnapshotId;
use crate::page_set::PageSet;
use crate::reaper::ReaperHandle;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock, lock};
use crate::view::LiveView;

/// The shared memory of one snapshot.
#[derive(Debug)]
pub struct Image {
    snapshot: SnapshotId,
    view: Arc<LiveView>,
    room: Arc<Room>,
    held: Option<Held>,
}

/// Memory of an image, freed by the reaper.
#[derive(Debug)]
struct Held {
    memfd: Memfd,
    filled: RwLock<Filled>,
}

#[derive(Debug)]
struct Filled {
    pages: PageSet,
    lease: Lease,
}

/// The images of a node. Clones are of the same.
#[derive(Debug, Clone)]
pub struct Images {
    room: Arc<Room>,
    live: Arc<Mutex<Vec<Weak<Image>>>>,
}

/// The RAM that images have besides captures.
#[derive(Debug)]
struct Room {
    budget: Budget,
    reaper: ReaperHandle,
    /// Number of pauses that wait for RAM: images take none meanwhile.
    awaited: AtomicUsize,
}

/// Keeps images from taking RAM for as long as it lives.
#[derive(Debug)]
pub(crate) struct MadeWay(Arc<Room>);

/// Result of bringing pages into an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Brought {
    /// All of them are here, or were a moment ago.
    All,
    /// There is no RAM for them.
    NoRoom,
    /// Their bytes cannot be read.
    SourceLost,
}

impl Images {
    /// No image yet; those to come lend their RAM from `budget`.
    pub(crate) fn new(budget: Budget, reaper: ReaperHandle) -> Self {
        let room = Room { budget, reaper, awaited: AtomicUsize::new(0) };
        Self { room: Arc::new(room), live: Arc::default() }
    }

    /// The image of a snapshot's memory: the present one, or a new one without any page.
    pub(crate) fn of(&self, snapshot: SnapshotId, view: &Arc<LiveView>) -> io::Result<Arc<Image>> {
        let mut live = self.lock_live();
        if let Some(image) = live.iter().filter_map(Weak::upgrade).find(|image| image.snapshot == snapshot)
            && image.is_of(view)
        {
            return Ok(image);
        }
        let memfd = Memfd::create("rekindle-image", bytes_of_pages(view.pages()), PageKind::Small)?;
        let image = Arc::new(Image::new(snapshot, Arc::clone(view), Arc::clone(&self.room), memfd));
        live.push(Arc::downgrade(&image));
        Ok(image)
    }

    /// The image in a file that an earlier process shared among guests. Nothing says which of its pages are whole, so it
    /// begins anew without any.
    pub(crate) fn adopt(
        &self,
        snapshot: SnapshotId,
        view: &Arc<LiveView>,
        file: OwnedFd,
    ) -> Result<Arc<Image>, AdoptError> {
        let memfd = Memfd::adopt(file)?;
        let mut live = self.lock_live();
        for image in live.iter().filter_map(Weak::upgrade) {
            if image.is_of(view) && image.held().memfd.is_same_as(&memfd)? {
                return Ok(image);
            }
        }
        let expected = bytes_of_pages(view.pages());
        if memfd.bytes() != expected {
            let why = format!("an image of {} bytes is not of a snapshot of {expected}", memfd.bytes());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why).into());
        }
        memfd.punch_hole(0, expected)?;
        let image = Arc::new(Image::new(snapshot, Arc::clone(view), Arc::clone(&self.room), memfd));
        live.push(Arc::downgrade(&image));
        Ok(image)
    }

    /// True if guests share an image of this snapshot.
    pub(crate) fn has(&self, snapshot: SnapshotId) -> bool {
        self.lock_live().iter().filter_map(Weak::upgrade).any(|image| image.snapshot == snapshot)
    }

    /// Bytes of RAM that images hold.
    pub(crate) fn bytes_held(&self) -> u64 {
        let live: Vec<_> = self.lock_live().iter().filter_map(Weak::upgrade).collect();
        live.iter().map(|image| image.bytes_held()).sum()
    }

    /// Gives the RAM of all images back: pages that guests have not written fault again.
    pub(crate) fn give_back(&self) {
        let live: Vec<_> = self.lock_live().iter().filter_map(Weak::upgrade).collect();
        live.iter().for_each(|image| image.give_back());
    }

    /// Gives the RAM of all images back, and keeps them from taking any.
    pub(crate) fn make_way(&self) -> MadeWay {
        self.room.awaited.fetch_add(1, Ordering::AcqRel);
        let made = MadeWay(Arc::clone(&self.room));
        self.give_back();
        made
    }

    fn lock_live(&self) -> crate::sync::MutexGuard<'_, Vec<Weak<Image>>> {
        let mut live = lock(&self.live);
        live.retain(|image| image.strong_count() > 0);
        live
    }
}

impl Drop for MadeWay {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Image {
    fn new(snapshot: SnapshotId, view: Arc<LiveView>, room: Arc<Room>, memfd: Memfd) -> Self {
        let filled = Filled { pages: PageSet::new(view.pages()), lease: room.budget.take(0) };
        Self { snapshot, view, room, held: Some(Held { memfd, filled: RwLock::new(filled) }) }
    }

    /// The snapshot.
    pub fn snapshot(&self) -> SnapshotId {
        self.snapshot
    }

    /// The file, which its guests map privately.
    pub fn memfd(&self) -> &Memfd {
        &self.held().memfd
    }

    /// True if its pages are those of `view`.
    pub(crate) fn is_of(&self, view: &Arc<LiveView>) -> bool {
        Arc::ptr_eq(&self.view, view)
    }

    /// Bytes of RAM that it holds.
    pub fn bytes_held(&self) -> u64 {
        self.held().filled.read().expect(NO_PANIC).lease.bytes()
    }

    /// The number of the first pages of `run` that are here.
    pub(crate) fn has_of(&self, run: GuestPages) -> u32 {
        let (is_here, count) =
            self.held().filled.read().expect(NO_PANIC).pages.run_at(run.start(), run.count());
        if is_here { count } else { 0 }
    }

    /// Lets `install` map the first pages of `run`, as far as they are here; none if it lacks the first.
    pub(crate) fn map(
        &self,
        run: GuestPages,
        install: impl FnOnce(GuestPages) -> Install,
    ) -> Option<(GuestPages, Install)> {
        let filled = self.held().filled.read().expect(NO_PANIC);
        let (is_here, count) = filled.pages.run_at(run.start(), run.count());
        if !is_here {
            return None;
        }
        let here = run.first_pages(count);
        let install = install(here);
        drop(filled);
        if matches!(install, Install::SourceLost) {
            // A VMM whose guest gives memory back can make holes in the file.
            self.forget(here);
            return Some((here, Install::Interrupted { installed_bytes: 0 }));
        }
        Some((here, install))
    }

    /// Brings the pages of `run` that are not here, from `source`, which has all of `run`.
    pub(crate) fn bring(&self, run: GuestPages, source: Source<'_>) -> Brought {
        let held = self.held();
        let mut filled = held.filled.write().expect(NO_PANIC);
        let mut rest = run;
        while !rest.is_empty() {
            let (is_here, count) = filled.pages.run_at(rest.start(), rest.count());
            let part = rest.first_pages(count);
            if !is_here {
                if self.room.awaited.load(Ordering::Acquire) > 0 || !filled.lease.grow(part.bytes()) {
                    return Brought::NoRoom;
                }
                let skip = usize_of(part.start().pages_since(run.start())) * PAGE_BYTES;
                let bytes = source.slice(skip, usize_of(count) * PAGE_BYTES);
                if let Err(error) = held.memfd.write_from(bytes, part.start().offset_bytes()) {
                    let left = filled.lease.bytes() - part.bytes();
                    filled.lease.shrink_to(left);
                    return not_brought(&error);
                }
                filled.pages.insert_run(part);
            }
            rest = rest.after(count);
        }
        Brought::All
    }

    /// Gives its RAM back.
    pub(crate) fn give_back(&self) {
        let held = self.held();
        let mut filled = held.filled.write().expect(NO_PANIC);
        match held.memfd.punch_hole(0, held.memfd.bytes()) {
            Ok(()) => {
                filled.pages = PageSet::new(self.view.pages());
                filled.lease.shrink_to(0);
            }
            Err(error) => tracing::warn!(%error, "the memory that guests share cannot be given back"),
        }
    }

    fn forget(&self, run: GuestPages) {
        let mut filled = self.held().filled.write().expect(NO_PANIC);
        let before = filled.pages.len();
        filled.pages.remove_run(run);
        let gone = bytes_of_pages(before - filled.pages.len());
        let left = filled.lease.bytes() - gone;
        filled.lease.shrink_to(left);
    }

    fn held(&self) -> &Held {
        self.held.as_ref().expect("only drop takes the memory")
    }
}

const NO_PANIC: &str = "no thread panics while it holds a lock";

fn not_brought(error: &io::Error) -> Brought {
    if error.raw_os_error() == Some(EFAULT) {
        return Brought::SourceLost;
    }
    tracing::warn!(%error, "a page does not go into the memory that guests share: each gets its own");
    Brought::NoRoom
}

/// The kernel's error where it cannot read a page (errno(3)).
const EFAULT: i32 = 14;

impl Drop for Image {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.room.reaper.discard(held);
        }
    }
}
