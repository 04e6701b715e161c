//! Installs pages into a guest, and translates the kernel's answers into pages.

use std::io;
use std::sync::Arc;

use rekindle_kernel::{EventBuffer, GuestRange, Install, Protect, RegisterMode, Source, Userfaultfd};

use super::epoch_facts::digest_of;
use super::epoch_pages::EpochPages;
use super::journal::{Head, Journal};
use crate::geometry::{GuestPages, PAGE_BYTES, bytes_of_pages, usize_of};
use crate::image::{Brought, Image};
use crate::page_set::PageSet;
use crate::regions::Regions;
use crate::tracking::Tracking;
use crate::view::Piece;

/// A guest's memory, for its handler thread: every call that changes it also updates the epoch's page sets.
#[derive(Debug)]
pub(super) struct Installer {
    pub(super) userfaultfd: Userfaultfd,
    pub(super) regions: Regions,
    pub(super) tracking: Tracking,
    /// True for private small pages: their zero pages take no memory.
    pub(super) shares_zeroes: bool,
    /// The image of the snapshot that the guest runs from, of which its memory is a private mapping.
    pub(super) image: Option<Arc<Image>>,
    pub(super) pages: EpochPages,
}

/// Pages that an install reached, and its end.
#[derive(Debug)]
pub(super) struct InstallOutcome {
    /// Number of pages that are there now, from the first on.
    pub(super) pages: u32,
    pub(super) end: End,
}

/// Reason for the end of an install.
#[derive(Debug)]
pub(super) enum End {
    /// All pages are there.
    Complete,
    /// The next page was there already.
    Present,
    /// The address space is changing; the next page may work later.
    Interrupted,
    /// The process and its memory are gone.
    Gone,
    /// The pages are no longer in one registered mapping.
    Unmapped,
    /// The bytes to install could not be read.
    SourceLost,
    /// The next page failed.
    Failed(String),
}

impl InstallOutcome {
    /// Makes a layer that could not be read be verified again, or fetched, before the next try.
    pub(super) fn distrust_if_lost(&self, piece: &Piece) {
        if matches!(self.end, End::SourceLost) {
            piece.source_failed();
        }
    }
}

impl Installer {
    /// Registers the regions of process `pid` as `tracking` needs it, and begins its journal; `shared` if they are a
    /// memory file.
    pub(super) fn register(
        pid: u32,
        userfaultfd: Userfaultfd,
        regions: Regions,
        tracking: Tracking,
        shared: bool,
    ) -> io::Result<(Self, EventBuffer)> {
        let mode = match tracking {
            Tracking::Scan | Tracking::Events => RegisterMode::MissingAndWriteProtect,
            Tracking::Resident => RegisterMode::Missing,
            Tracking::Diverged => RegisterMode::MissingAndMinor,
        };
        let mut shares_zeroes = !shared;
        for region in regions.iter() {
            shares_zeroes &= userfaultfd.register(region.range(), mode)?.zeropage();
        }
        let facts = digest_of(pid, &regions, tracking);
        let (journal, events) = Journal::create(&Head { pages: regions.pages(), shares_zeroes, facts })?;
        let pages = EpochPages::new(journal);
        Ok((Self { userfaultfd, regions, tracking, shares_zeroes, image: None, pages }, events))
    }

    /// The way in which writes are tracked.
    pub(super) fn tracking(&self) -> Tracking {
        self.tracking
    }

    /// The protection of a page that is not known to be written.
    pub(super) fn unwritten(&self) -> Protect {
        match self.tracking.protects() || self.image.is_some() {
            true => Protect::Protected,
            false => Protect::Writable,
        }
    }

    /// Installs unwritten `pages` from `source`, which has their length: by the image, if there is one.
    pub(super) fn install(
        &mut self,
        pages: GuestPages,
        source: Source<'_>,
        protect: Protect,
    ) -> InstallOutcome {
        let Some(image) = self.image.as_ref().filter(|_| protect == Protect::Protected) else {
            return self.copy(pages, source, protect);
        };
        match image.bring(pages, source) {
            // It may have been given back since.
            Brought::All => {
                self.map_shared(pages).unwrap_or(InstallOutcome { pages: 0, end: End::Interrupted })
            }
            Brought::NoRoom => self.copy(pages, source, Protect::Writable),
            Brought::SourceLost => InstallOutcome { pages: 0, end: End::SourceLost },
        }
    }

    /// Maps the first of `pages`, which are in one region, as far as the image has them; none if it lacks the first.
    pub(super) fn map_shared(&mut self, pages: GuestPages) -> Option<InstallOutcome> {
        // The kernel maps a private mapping's page read-only, and gives the guest its own when it writes.
        let map = |here| self.userfaultfd.continue_shared(self.range(here), Protect::Writable);
        let (here, install) = self.image.as_ref()?.map(pages, map)?;
        Some(self.landed(install, here))
    }

    /// The number of the first pages of `run` that the image has.
    pub(super) fn shared_of(&self, run: GuestPages) -> u32 {
        self.image.as_ref().map_or(0, |image| image.has_of(run))
    }

    /// Installs `pages`, which are in one region, from `source`, which has their length.
    pub(super) fn copy(&mut self, pages: GuestPages, source: Source<'_>, protect: Protect) -> InstallOutcome {
        if protect == Protect::Writable {
            self.open(pages);
        }
        let install = self.userfaultfd.copy(self.range(pages).start, source, protect);
        self.landed(install, pages)
    }

    /// Installs zeroes; they may become writable even if they were asked for protected.
    pub(super) fn zero(&mut self, pages: GuestPages, protect: Protect) -> InstallOutcome {
        if self.shares_zeroes {
            self.open(pages);
            let install = self.userfaultfd.zero(self.range(pages));
            // A marker of protection prevents shared zeroes although no page is there; a copy replaces it.
            if !matches!(install, Install::Present { installed_bytes: 0 }) {
                return self.landed(install, pages);
            }
        }
        self.copy(pages, Source::zeroes(usize_of(pages.count()) * PAGE_BYTES), protect)
    }

    /// Lets the guest write `pages`, and wakes the waiters.
    pub(super) fn unprotect(&mut self, pages: GuestPages) -> End {
        self.open(pages);
        match self.userfaultfd.write_protect(self.range(pages), Protect::Writable) {
            Ok(()) => End::Complete,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => End::Interrupted,
            // The pages are gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => End::Unmapped,
            Err(error) => End::Failed(error.to_string()),
        }
    }

    /// Protects pages that are there again, so that their next write is seen. The guest stands still.
    pub(super) fn protect(&self, pages: &PageSet) -> io::Result<()> {
        for run in pages.runs() {
            let mut left = run;
            while !left.is_empty() {
                let here = self.regions.clip(left, left.start());
                self.userfaultfd.write_protect(self.range(here), Protect::Protected)?;
                left = left.after(here.count());
            }
        }
        Ok(())
    }

    /// Maps pages that the memory file has.
    pub(super) fn map_present(&mut self, pages: GuestPages) -> InstallOutcome {
        self.open(pages);
        let install = self.userfaultfd.continue_shared(self.range(pages), Protect::Writable);
        self.landed(install, pages)
    }

    /// Notes pages as written before the next call opens them to untracked writes, so that after a kill in between too
    /// many pages are noted, never too few.
    fn open(&mut self, pages: GuestPages) {
        if self.tracking.protects() {
            self.pages.write(pages);
        }
    }

    fn landed(&mut self, install: Install, pages: GuestPages) -> InstallOutcome {
        let installed = installed(install, pages);
        self.pages.install(pages.first_pages(installed.pages));
        installed
    }

    /// Wakes the waiters for `pages`.
    pub(super) fn wake(&self, pages: GuestPages) {
        self.wake_range(self.range(pages));
    }

    /// Wakes all waiters.
    pub(super) fn wake_all(&self) {
        self.regions.iter().for_each(|region| self.wake_range(region.range()));
    }

    fn wake_range(&self, range: GuestRange) {
        if let Err(error) = self.userfaultfd.wake(range) {
            tracing::debug!(start = range.start, bytes = range.bytes, %error, "nobody to wake");
        }
    }

    fn range(&self, pages: GuestPages) -> GuestRange {
        self.regions.range_of(pages)
    }
}

fn installed(install: Install, pages: GuestPages) -> InstallOutcome {
    let landed = |pages: u32, end: End| InstallOutcome { pages, end };
    match install {
        Install::Installed => landed(pages.count(), End::Complete),
        Install::Present { installed_bytes } => landed(whole_pages(installed_bytes, pages), End::Present),
        Install::Interrupted { installed_bytes } => {
            landed(whole_pages(installed_bytes, pages), End::Interrupted)
        }
        Install::Gone => landed(0, End::Gone),
        Install::Unmapped => landed(0, End::Unmapped),
        Install::SourceLost => landed(0, End::SourceLost),
        Install::Failed(error) => landed(0, End::Failed(error.to_string())),
    }
}

fn whole_pages(bytes: u64, of: GuestPages) -> u32 {
    u32::try_from(bytes / bytes_of_pages(1)).unwrap_or(u32::MAX).min(of.count())
}

#[cfg(test)]
impl Installer {
    /// An installer of this many private pages, in regions of that many, with the memory; or `None` after a line with
    /// the reason.
    pub(super) fn of_private_pages(
        tracking: Tracking,
        pages: u32,
        region_pages: u32,
    ) -> Option<(rekindle_kernel::GuestMemory, Self)> {
        use rekindle_kernel::{Backing, Features, GuestMemory, PageKind};

        let userfaultfd = match Userfaultfd::open(Features::PAGEFAULT_FLAG_WP | Features::EVENT_REMOVE) {
            Ok(userfaultfd) => userfaultfd,
            Err(error) => {
                eprintln!("skipped: engine: installer: {error}");
                return None;
            }
        };
        let page = PageKind::Small;
        let memory = GuestMemory::map(Backing::Private(page), usize_of(pages) * PAGE_BYTES, 0).unwrap();
        let region = |first: u32| {
            let (offset, bytes) = (bytes_of_pages(first), bytes_of_pages(region_pages));
            crate::regions::Region { start: memory.range().start + offset, bytes, offset, page }
        };
        let regions = (0..pages).step_by(usize_of(region_pages)).map(region).collect();
        let regions = Regions::new(regions, pages).unwrap();
        let (installer, _) = Self::register(1, userfaultfd, regions, tracking, false).unwrap();
        Some((memory, installer))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    /// A call that opens pages to untracked writes.
    type Open = fn(&mut Installer, GuestPages);

    fn set(members: &[u32]) -> PageSet {
        let mut set = PageSet::new(8);
        members.iter().for_each(|&page| set.insert_run(run(page, 1)));
        set
    }

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(crate::geometry::GuestPage::new(start), count)
    }

    #[test]
    fn a_page_is_noted_as_written_before_it_is_opened_whatever_comes_of_that() {
        let Some((memory, mut installer)) = Installer::of_private_pages(Tracking::Events, 8, 8) else {
            return;
        };
        // Nothing can be installed there any more, so a page that is noted was noted before the call.
        installer.userfaultfd.unregister(memory.range()).unwrap();
        let zeroes = || Source::zeroes(PAGE_BYTES);
        for installed in [
            installer.copy(run(0, 1), zeroes(), Protect::Writable),
            installer.copy(run(1, 1), zeroes(), Protect::Protected),
            installer.zero(run(2, 1), Protect::Protected),
            installer.zero(run(3, 2), Protect::Writable),
            installer.map_present(run(5, 1)),
        ] {
            assert_eq!(installed.pages, 0, "{installed:?}");
        }
        assert!(!matches!(installer.unprotect(run(7, 1)), End::Complete));
        assert_eq!(*installer.pages.written(), set(&[0, 2, 3, 4, 5, 7]));
        assert!(installer.pages.installed().is_empty());
    }

    #[test]
    fn a_page_is_noted_as_written_before_the_call_that_opens_it_is_made() {
        // Pages of two regions are a bug of the caller and lead to no call, but the note is made before that.
        let two_regions = run(3, 2);
        let opens: [(&str, Open); 4] = [
            ("copy", |installer, pages| {
                installer.copy(pages, Source::zeroes(2 * PAGE_BYTES), Protect::Writable);
            }),
            ("zero", |installer, pages| {
                installer.zero(pages, Protect::Protected);
            }),
            ("unprotect", |installer, pages| {
                installer.unprotect(pages);
            }),
            ("map", |installer, pages| {
                installer.map_present(pages);
            }),
        ];
        for (what, open) in opens {
            let Some((_memory, mut installer)) = Installer::of_private_pages(Tracking::Events, 8, 4) else {
                return;
            };
            let refused = catch_unwind(AssertUnwindSafe(|| open(&mut installer, two_regions)));
            assert!(refused.is_err(), "{what}");
            assert_eq!(*installer.pages.written(), set(&[3, 4]), "{what}");
        }
    }

    #[test]
    fn nothing_is_noted_as_written_where_every_page_counts_as_written() {
        let Some((memory, mut installer)) = Installer::of_private_pages(Tracking::Resident, 8, 8) else {
            return;
        };
        installer.copy(run(0, 2), Source::zeroes(2 * PAGE_BYTES), Protect::Writable);
        installer.zero(run(2, 1), Protect::Writable);
        assert_eq!(memory.touch(2 * PAGE_BYTES), 0);
        assert!(installer.pages.written().is_empty());
        assert_eq!(*installer.pages.installed(), set(&[0, 1, 2]));
    }
}
