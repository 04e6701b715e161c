//! A process guest's work on its memory: writes it, gives it back, and checks it against its history.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread;
use std::time::Instant;

use rekindle_kernel::PAGE_BYTES;

use super::content::{self, Content, mix};
use super::history::{Operation, Rewrite, Share};
use super::memory::{GuestSpace, index};
use super::protocol::{DeviceState, DiscardHow, Discarded, Mismatch, Ticked, Verified, Written};

/// The guest's memory and its device state.
pub(super) struct Workload {
    memory: GuestSpace,
    state: DeviceState,
    threads: NonZeroUsize,
}

impl Workload {
    /// A guest that has run no operation yet; long operations run on `threads` threads.
    pub(super) fn new(memory: GuestSpace, threads: NonZeroUsize) -> Self {
        Self { memory, state: DeviceState::default(), threads }
    }

    /// The guest's memory.
    pub(super) fn memory(&self) -> &GuestSpace {
        &self.memory
    }

    /// The guest's state besides its memory.
    pub(super) fn state(&self) -> &DeviceState {
        &self.state
    }

    /// Continues from the device state of the guest whose memory this one has taken over.
    pub(super) fn restore(&mut self, state: DeviceState) {
        self.state = state;
    }

    /// Writes every page.
    pub(super) fn fill(&mut self, seed: u64) -> Written {
        let written = self.in_parallel(|pages| {
            let started = Instant::now();
            let count = pages.end - pages.start;
            pages.for_each(|page| self.write(page, Content::Written { seed, page }));
            Written { new_pages: count, nanoseconds: nanoseconds_since(started), ..Written::default() }
        });
        self.state.history.push(Operation::Fill { seed });
        written.into_iter().fold(Written::default(), Written::join)
    }

    /// Writes a share of the pages.
    pub(super) fn rewrite(&mut self, rewrite: &Rewrite) -> Written {
        let written = self.in_parallel(|pages| {
            let started = Instant::now();
            let mut written = pages
                .fold(Written::default(), |written, page| written.join(self.rewrite_page(rewrite, page)));
            written.nanoseconds = nanoseconds_since(started);
            written
        });
        self.state.history.push(Operation::Rewrite(*rewrite));
        written.into_iter().fold(Written::default(), Written::join)
    }

    /// Gives a share of the pages back, in whole pages of the installed size. Pages of shared memory that keep their
    /// content are read first: a handler cannot tell an unmapped page that was never installed from a removed one.
    pub(super) fn discard(&mut self, share: &Share, how: DiscardHow) -> io::Result<Discarded> {
        let started = Instant::now();
        let share = Share { run_pages: self.whole_pages(share.run_pages), ..*share };
        let keeps = how == DiscardHow::DontNeed && self.memory.kind().is_shared();
        let mut pages = 0;
        for run in self.chosen_runs(&share) {
            if keeps {
                run.clone().for_each(|page| self.memory.touch(page));
            }
            pages += run.end - run.start;
            self.memory.discard(run.start, run.end - run.start, how.into())?;
        }
        if !keeps {
            self.state.history.push(Operation::Clear(share));
        }
        Ok(Discarded { pages, nanoseconds: nanoseconds_since(started) })
    }

    /// Compares every page with its expected content; writes nothing.
    pub(super) fn verify(&self) -> Verified {
        let verified = self.in_parallel(|pages| self.verify_pages(pages));
        verified.into_iter().fold(Verified::default(), Verified::join)
    }

    /// The checksum of each page of `first..first + pages`, up to the end of memory; `None` for lost bytes.
    pub(super) fn checksums(&self, first: u32, pages: u32) -> Vec<Option<u64>> {
        let end = first.saturating_add(pages).min(self.pages());
        let checksum = |page| self.memory.read(page).map(|bytes| content::checksum(&bytes));
        (first..end).map(checksum).collect()
    }

    /// Compares `pages` pages of its own choice, then counts a step of progress, like a timer tick.
    pub(super) fn tick(&mut self, pages: u32) -> Ticked {
        let base = mix(self.state.count);
        let all = u64::from(self.pages());
        let choose = |step| u32::try_from(mix(base ^ u64::from(step)) % all).expect("below a page count");
        let verified = self.verify_pages((0..pages).map(choose));
        self.state.count += 1;
        Ticked { count: self.state.count, verified }
    }

    fn pages(&self) -> u32 {
        self.memory.pages()
    }

    fn write(&self, page: u32, content: Content) {
        self.memory.write(page, &content.bytes());
    }

    fn rewrite_page(&self, rewrite: &Rewrite, page: u32) -> Written {
        let before = &self.state.history;
        let Some(content) = rewrite.writes(page, before) else { return Written::default() };
        self.write(page, content);
        if content == before.expected(page) {
            Written { same_pages: 1, ..Written::default() }
        } else if content == Content::Zero {
            Written { zero_pages: 1, ..Written::default() }
        } else {
            Written { new_pages: 1, ..Written::default() }
        }
    }

    fn verify_pages(&self, pages: impl Iterator<Item = u32>) -> Verified {
        let started = Instant::now();
        let mut verified = Verified::default();
        for page in pages {
            verified.pages += 1;
            let expected = self.state.history.expected(page);
            if !self.memory.equals(page, &expected.bytes()) {
                verified.mismatches += 1;
                let found = self.memory.read(page).and_then(|bytes| Content::recognise(&bytes));
                verified.first_mismatch.get_or_insert(Mismatch { page, expected, found });
            }
        }
        verified.nanoseconds = nanoseconds_since(started);
        verified
    }

    /// `run_pages` rounded up to whole pages of the kind the kernel installs.
    fn whole_pages(&self, run_pages: u32) -> u32 {
        let installed = self.memory.kind().page_kind().bytes() / PAGE_BYTES;
        run_pages.max(1).next_multiple_of(u32::try_from(installed).expect("512 at most"))
    }

    /// The maximal runs of pages in `share`.
    fn chosen_runs(&self, share: &Share) -> impl Iterator<Item = Range<u32>> {
        let share = *share;
        let end = self.pages();
        let mut page = 0;
        std::iter::from_fn(move || {
            let start = (page..end).find(|&page| share.contains(page))?;
            page = (start..end).find(|&page| !share.contains(page)).unwrap_or(end);
            Some(start..page)
        })
    }

    /// Runs `work` on equal slices of guest memory, in page order, on as many threads as the guest may use.
    fn in_parallel<Answer: Send>(&self, work: impl Fn(Range<u32>) -> Answer + Sync) -> Vec<Answer> {
        if self.threads.get() == 1 {
            return vec![work(0..self.pages())];
        }
        let each = index(self.pages()).div_ceil(self.threads.get());
        let each = u32::try_from(each).expect("at most all pages");
        let starts = (0..self.pages()).step_by(index(each));
        thread::scope(|scope| {
            let slice = |start: u32| start..start.saturating_add(each).min(self.pages());
            let threads: Vec<_> = starts
                .map(|start| {
                    scope.spawn({
                        let (work, pages) = (&work, slice(start));
                        move || work(pages)
                    })
                })
                .collect();
            let finished = threads.into_iter().map(|thread| thread.join());
            finished.map(|answer| answer.expect("guest work does not panic")).collect()
        })
    }
}

/// Nanoseconds since `started`.
pub(super) fn nanoseconds_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).expect("less than 500 years")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::arguments::MemoryKind;

    fn workload(kind: MemoryKind, threads: usize) -> Workload {
        let memory = GuestSpace::map(kind, 4 << 20, 3).expect("4 MiB can be mapped");
        Workload::new(memory, NonZeroUsize::new(threads).expect("not zero"))
    }

    fn share(seed: u64, percent: u8) -> Share {
        Share { seed, percent, run_pages: 1 }
    }

    #[test]
    fn memory_holds_what_the_history_says_after_every_operation() {
        for (kind, how) in [
            (MemoryKind::Shared, DiscardHow::Remove),
            (MemoryKind::Shared, DiscardHow::DontNeed),
            (MemoryKind::Private, DiscardHow::DontNeed),
        ] {
            let mut guest = workload(kind, 2);
            assert_eq!(guest.verify().mismatches, 0);
            assert_eq!(guest.fill(1).pages(), 1024);
            let rewrite = Rewrite { share: share(2, 50), zero_percent: 20, same_percent: 30 };
            let written = guest.rewrite(&rewrite);
            assert!(written.new_pages > 0 && written.zero_pages > 0 && written.same_pages > 0);
            assert!(guest.discard(&share(3, 20), how).expect("discards").pages > 0);
            let verified = guest.verify();
            assert_eq!((verified.pages, verified.mismatches), (1024, 0));
            assert_eq!(guest.tick(8).count, 1);
            let expected = guest.state().history.expected(5).bytes();
            assert_eq!(guest.checksums(5, 1), [Some(content::checksum(&expected))]);
            assert_eq!(guest.checksums(1000, u32::MAX).len(), 24);
        }
    }

    #[test]
    fn an_old_version_of_a_page_is_found_and_named() {
        let mut guest = workload(MemoryKind::Private, 1);
        guest.fill(1);
        guest.fill(2);
        let old = Content::Written { seed: 1, page: 77 };
        guest.write(77, old);
        let verified = guest.verify();
        assert_eq!(verified.mismatches, 1);
        let expected = Content::Written { seed: 2, page: 77 };
        assert_eq!(verified.first_mismatch, Some(Mismatch { page: 77, expected, found: Some(old) }));
    }

    #[test]
    fn private_memory_refuses_removal_and_keeps_its_history() {
        let mut guest = workload(MemoryKind::Private, 1);
        guest.fill(1);
        assert!(guest.discard(&share(3, 20), DiscardHow::Remove).is_err());
        assert_eq!(guest.verify().mismatches, 0);
    }
}
