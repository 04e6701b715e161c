//! A server's notes on its guest's pages that the kernel does not have, in a memory file that outlives the server.
//!
//! A server may be killed before any of its instructions, and its successor has lost no remove and no written page:
//!
//! 1. A remove goes on when a read takes its event, and a read that has begun ends with the event in the event buffer,
//!    killed or not: the buffer is in RAM, and a kill takes a thread only on its way out of a system call.
//! 2. The removes of a batch are in the removed set before the next read puts other events in their place.
//! 3. A page is in the written set before the call that lets the guest write it unseen.
//! 4. Sets only grow until a snapshot has what they tell of, and are too large at no harm after that: so to note again
//!    what the event buffer still has changes nothing.
//! 5. Recovery has the lock that the server held, so each thread of the server is out of its last system call.
//!
//! The server enforces 2 by noting a batch before anything else is done with it, the installer 3 by noting inside the
//! calls that open pages, the file's lock 5. The stores are released in their order ([`SharedBuffer::set_bits`]).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rekindle_kernel::event_buffer::EVENT_BYTES;
use rekindle_kernel::{EventBuffer, Memfd, PageKind, SharedBuffer, memfd};

use crate::deadline::Deadline;
use crate::geometry::{GuestPages, PAGE_BYTES, u64_of, usize_of};
use crate::limits;
use crate::page_set::PageSet;
use crate::wire::{Reader, UnknownVersion, WireError};

/// The two sets of a guest's journal; the event buffer beside them belongs to who reads events.
#[derive(Debug)]
pub(super) struct Journal {
    sets: SharedBuffer,
    pages: u32,
}

/// The first page of a journal: whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Pages of the volume.
    pub(super) pages: u32,
    /// True if zero pages of the guest are the kernel's shared one.
    pub(super) shares_zeroes: bool,
    /// Digest of all that is known of the guest from elsewhere.
    pub(super) facts: [u8; 32],
}

/// A journal as another process has left it.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) head: Head,
    pub(super) journal: Journal,
    /// Has the events that were read last, whether they were noted or not.
    pub(super) events: EventBuffer,
    pub(super) removed: PageSet,
    pub(super) written: PageSet,
}

/// Reason that a journal cannot be continued.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It is no memory file.
    #[error(transparent)]
    NotMemory(#[from] memfd::AdoptError),
    /// It is some other file.
    #[error("it does not begin as a journal does")]
    NotJournal,
    /// Another version of rekindle wrote it.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// It is too short or too long for the pages that it says it has.
    #[error("it has {found} bytes, and {expected} for its {pages} pages are expected")]
    Size {
        /// Pages of its volume.
        pages: u32,
        /// Size of a journal of this many pages.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A set has pages that the volume has not.
    #[error("it has pages beyond the {pages} of its volume")]
    Pages {
        /// Pages of its volume.
        pages: u32,
    },
    /// Its server has not ended.
    #[error("its guest is still served by another process; end that one first")]
    Served,
    /// It cannot be read or mapped.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Begins every journal.
const MAGIC: [u8; 8] = *b"rkepoch\n";
/// The layout described by [`places`] and [`Head`]; any change of it is another version.
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 8 + 4 + 4 + 1 + 32;

/// Offset of the event buffer: behind the page of the head.
const EVENTS: usize = PAGE_BYTES;
const EVENTS_BYTES: usize = (limits::FAULT_EVENTS_MAX * EVENT_BYTES).next_multiple_of(PAGE_BYTES);
/// Offset of the removed set, and behind it the written one: words of 64 pages, the lowest page in the lowest bit.
const SETS: usize = EVENTS + EVENTS_BYTES;

/// Bytes of one set, and of the whole file.
fn places(pages: u32) -> (usize, usize) {
    let set = usize_of(pages.div_ceil(u64::BITS)) * 8;
    (set, (SETS + 2 * set).next_multiple_of(PAGE_BYTES))
}

impl Journal {
    /// An empty journal, and the buffer in it that events are to be read into.
    pub(super) fn create(head: &Head) -> io::Result<(Self, EventBuffer)> {
        let (_, bytes) = places(head.pages);
        let memfd = Memfd::create("rekindle-epoch", u64_of(bytes), PageKind::Small)?;
        memfd.write_at(&head.encode(), 0)?;
        assert!(memfd.try_lock()?, "a file that nobody else has seen is not locked");
        Self::of(&memfd, head.pages)
    }

    /// The journal in `fd`, from when the process that wrote it is gone; waits for its end, for a bounded time.
    pub(super) fn recover(fd: OwnedFd) -> Result<Recovered, JournalError> {
        let memfd = Memfd::adopt(fd)?.reopen()?;
        lock(&memfd, limits::SERVER_END_WAIT)?;
        let head = Head::of(&memfd)?;
        let (journal, events) = Self::of(&memfd, head.pages)?;
        let (set, _) = places(head.pages);
        let (removed, written) = (journal.read_set(0)?, journal.read_set(set)?);
        Ok(Recovered { head, journal, events, removed, written })
    }

    fn of(memfd: &Memfd, pages: u32) -> io::Result<(Self, EventBuffer)> {
        let (set, _) = places(pages);
        let events = SharedBuffer::of_memfd(memfd, u64_of(EVENTS), EVENTS_BYTES)?;
        if let Err(error) = events.lock_in_ram() {
            tracing::debug!(%error, "the event buffer may leave RAM");
        }
        let sets = SharedBuffer::of_memfd(memfd, u64_of(SETS), 2 * set)?;
        Ok((Self { sets, pages }, EventBuffer::shared(events)))
    }

    /// Pages of the volume.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Adds pages to the removed set.
    pub(super) fn remove(&self, run: GuestPages) {
        self.note(0, run);
    }

    /// Adds pages to the written set.
    pub(super) fn write(&self, run: GuestPages) {
        self.note(places(self.pages).0, run);
    }

    /// The journal's file, to be held by another process; holding it does not take the lock.
    pub(super) fn kept(&self) -> io::Result<OwnedFd> {
        Ok(self.sets.memfd().reopen()?.into())
    }

    /// The removed and the written pages in the file of a journal, whose server may note more meanwhile.
    pub(super) fn peek(kept: BorrowedFd<'_>, pages: u32) -> io::Result<(PageSet, PageSet)> {
        let memfd = Memfd::adopt(kept.try_clone_to_owned()?).map_err(io::Error::other)?;
        let (set, _) = places(pages);
        let read = |at: usize| {
            let mut bytes = vec![0; set];
            memfd.read_at(&mut bytes, u64_of(SETS + at))?;
            set_of(&bytes, pages).ok_or_else(|| io::Error::other(JournalError::Pages { pages }))
        };
        Ok((read(0)?, read(set)?))
    }

    /// Replaces both sets by smaller ones, word by word: a kill in between leaves each page as it was or as it is to be.
    pub(super) fn shrink(&self, removed: &PageSet, written: &PageSet) {
        for (set, pages) in [(0, removed), (places(self.pages).0, written)] {
            pages.words().iter().enumerate().for_each(|(at, word)| self.sets.set_word(set + at * 8, *word));
        }
    }

    #[inline]
    fn note(&self, set: usize, run: GuestPages) {
        assert!(run.end().number() <= self.pages, "run {run} is outside a volume of {} pages", self.pages);
        let mut rest = run;
        while !rest.is_empty() {
            let (word, bit) = (rest.start().index() / 64, rest.start().number() % 64);
            let count = rest.count().min(64 - bit);
            self.sets.set_bits(set + word * 8, (u64::MAX >> (64 - count)) << bit);
            rest = rest.after(count);
        }
    }

    fn read_set(&self, set: usize) -> Result<PageSet, JournalError> {
        let mut bytes = vec![0; places(self.pages).0];
        self.sets.read(set, &mut bytes);
        set_of(&bytes, self.pages).ok_or(JournalError::Pages { pages: self.pages })
    }
}

fn set_of(bytes: &[u8], pages: u32) -> Option<PageSet> {
    let (words, _) = bytes.as_chunks::<8>();
    PageSet::from_words(pages, words.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// A killed process holds its lock until its last thread is out of the kernel, which may take it a moment.
fn lock(memfd: &Memfd, limit: Duration) -> Result<(), JournalError> {
    let deadline = Deadline::after(limit);
    while !memfd.try_lock()? {
        if deadline.is_over() {
            return Err(JournalError::Served);
        }
        std::thread::park_timeout(limits::SERVER_END_ASK);
    }
    Ok(())
}

impl Head {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.pages.to_le_bytes());
        bytes.push(u8::from(self.shares_zeroes));
        bytes.extend(self.facts);
        bytes
    }

    fn of(memfd: &Memfd) -> Result<Self, JournalError> {
        let mut bytes = [0; HEAD_BYTES];
        if memfd.bytes() < u64_of(SETS) {
            return Err(JournalError::NotJournal);
        }
        memfd.read_at(&mut bytes, 0)?;
        let (magic, version, head) = Self::decode(&bytes).map_err(|_| JournalError::NotJournal)?;
        if magic != MAGIC {
            return Err(JournalError::NotJournal);
        }
        UnknownVersion::check(version, VERSION)?;
        let (expected, found) = (u64_of(places(head.pages).1), memfd.bytes());
        if expected != found {
            return Err(JournalError::Size { pages: head.pages, expected, found });
        }
        Ok(head)
    }

    fn decode(bytes: &[u8]) -> Result<([u8; 8], u32, Self), WireError> {
        let mut reader = Reader::new(bytes);
        let (magic, version) = (reader.array("magic")?, reader.u32("version")?);
        let pages = reader.u32("pages")?;
        let shares_zeroes = reader.u8("shared zeroes")? != 0;
        let facts = reader.array("facts")?;
        Ok((magic, version, Self { pages, shares_zeroes, facts }))
    }
}

#[cfg(test)]
impl Journal {
    /// A journal of `pages` that will never be recovered.
    pub(super) fn of_pages(pages: u32) -> Self {
        Self::create(&Head { pages, shares_zeroes: false, facts: [0; 32] }).unwrap().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::GuestPage;
    use proptest::prelude::*;
    use rekindle_kernel::{Event, GuestRange};

    fn head(pages: u32) -> Head {
        Head { pages, shares_zeroes: true, facts: [7; 32] }
    }

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    /// The file of an empty journal whose server is gone.
    fn left_file(pages: u32) -> Memfd {
        let (journal, events) = Journal::create(&head(pages)).unwrap();
        let kept = Memfd::adopt(journal.kept().unwrap()).unwrap();
        drop((journal, events));
        kept
    }

    fn recover(memfd: &Memfd) -> Result<Recovered, JournalError> {
        Journal::recover(memfd.try_clone().unwrap().into())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_noted_is_recovered(
            pages in 1_u32..300,
            notes in prop::collection::vec((any::<bool>(), 0.0..1.0, 0.0..1.0), 0..12),
        ) {
            let (journal, _events) = Journal::create(&head(pages)).unwrap();
            let kept = journal.kept().unwrap();
            let (mut removed, mut written) = (PageSet::new(pages), PageSet::new(pages));
            let share = |of: u32, share: f64| (0..=of).find(|n| f64::from(*n) >= f64::from(of) * share).unwrap_or(of);
            for (is_remove, start, count) in notes {
                let start = share(pages, start);
                let run = run(start, share(pages - start, count));
                if is_remove {
                    journal.remove(run);
                    removed.insert_run(run);
                } else {
                    journal.write(run);
                    written.insert_run(run);
                }
            }
            drop((journal, _events));
            let recovered = Journal::recover(kept).unwrap();
            prop_assert_eq!(recovered.head, head(pages));
            prop_assert_eq!((recovered.removed, recovered.written), (removed, written));
        }
    }

    #[test]
    fn events_that_were_read_and_not_noted_are_recovered() {
        let (journal, events) = Journal::create(&head(100)).unwrap();
        let remove = [0x15_u64, 0x1000, 0x3000, 0].map(u64::to_le_bytes).concat();
        events.shared_buffer().unwrap().write(EVENT_BYTES * 5, &remove);
        let kept = journal.kept().unwrap();
        drop((journal, events));
        let events = Journal::recover(kept).unwrap().events;
        assert_eq!(events.events_max(), limits::FAULT_EVENTS_MAX);
        let found: Vec<_> =
            events.events(events.events_max()).filter(|event| *event != Event::Other(0)).collect();
        assert_eq!(found, [Event::Remove(GuestRange::new(0x1000, 0x2000))]);
    }

    #[test]
    fn a_journal_that_shrank_is_recovered_as_it_is_then() {
        let (journal, events) = Journal::create(&head(200)).unwrap();
        journal.remove(run(3, 150));
        journal.write(run(60, 140));
        let (removed, mut written) = (PageSet::new(200), PageSet::new(200));
        written.insert_run(run(190, 10));
        journal.shrink(&removed, &written);
        let kept = journal.kept().unwrap();
        drop((journal, events));
        let recovered = Journal::recover(kept).unwrap();
        assert_eq!((recovered.removed, recovered.written), (removed, written));
    }

    #[test]
    fn a_journal_can_be_recovered_from_again_and_again() {
        let kept = left_file(1000);
        for page in 0..5 {
            let recovered = recover(&kept).unwrap();
            assert_eq!(recovered.removed.len(), page);
            recovered.journal.remove(run(page * 100, 1));
        }
    }

    #[test]
    fn a_journal_that_version_1_wrote_is_recovered() {
        // Head, a page of events, and the sets of 1,000 pages: 16 words each.
        let left = Memfd::create("left-by-version-1", 12_288, PageKind::Small).unwrap();
        let head_bytes = [&b"rkepoch\n"[..], &[1, 0, 0, 0], &[0xe8, 3, 0, 0], &[1], &[7; 32]].concat();
        left.write_at(&head_bytes, 0).unwrap();
        left.write_at(&[0b1000], 8192).unwrap();
        left.write_at(&[0x80], 8192 + 128 + 124).unwrap();
        let Recovered { head: found, removed, written, .. } = recover(&left).unwrap();
        assert_eq!(found, head(1000));
        assert_eq!(removed.iter().map(GuestPage::number).collect::<Vec<_>>(), [3]);
        assert_eq!(written.iter().map(GuestPage::number).collect::<Vec<_>>(), [999]);
        assert_eq!(head(1000).encode(), head_bytes);
    }

    #[test]
    fn what_is_not_a_journal_of_this_version_and_size_is_refused() {
        let written = |at: u64, bytes: &[u8]| {
            let kept = left_file(1000);
            kept.write_at(bytes, at).unwrap();
            recover(&kept).unwrap_err()
        };
        assert!(matches!(written(0, b"R"), JournalError::NotJournal));
        assert!(matches!(written(8, &[2]), JournalError::Version(UnknownVersion { found: 2, newest: 1 })));
        assert!(matches!(written(14, &[1]), JournalError::Size { pages: 66_536, .. }));
        let last_word = u64_of(SETS + places(1000).0 - 8);
        assert!(matches!(written(last_word, &[0xff; 8]), JournalError::Pages { pages: 1000 }));
        for bytes in [0, 4096, u64_of(SETS), 64 << 10] {
            let other = Memfd::create("other", bytes, PageKind::Small).unwrap();
            assert!(matches!(recover(&other), Err(JournalError::NotJournal)), "{bytes} zeroes");
        }
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(Journal::recover(file.into()), Err(JournalError::NotMemory(_))));
    }

    #[test]
    fn a_journal_of_a_server_that_lives_is_waited_for() {
        let (journal, events) = Journal::create(&head(1000)).unwrap();
        let kept = Memfd::adopt(journal.kept().unwrap()).unwrap();
        let refused = lock(&kept.reopen().unwrap(), Duration::ZERO);
        assert!(matches!(refused, Err(JournalError::Served)), "{refused:?}");
        let (told, is_told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let recovering = scope.spawn(|| {
                told.send(()).unwrap();
                recover(&kept).map(|recovered| recovered.removed.len())
            });
            is_told.recv().unwrap();
            journal.remove(run(3, 4));
            // The mapping alone still holds the lock.
            drop(journal);
            drop(events);
            assert_eq!(recovering.join().unwrap().unwrap(), 4);
        });
    }
}
