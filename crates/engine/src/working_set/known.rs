//! This node's knowledge of a snapshot's working set while it has the snapshot.

use std::sync::Arc;
use std::time::Instant;

use object_store::path::Path as ObjectPath;
use tokio_util::task::AbortOnDropHandle;

use super::WorkingSet;
use crate::limits;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, lock};

/// The present recording of a snapshot, as far as it is known.
#[derive(Debug)]
pub(crate) struct Known {
    found: Mutex<Found>,
    /// Resumes of the snapshot here so far.
    resumes: AtomicU32,
    /// The search for the recording's place in the store that opening the snapshot began.
    search: Mutex<Option<Search>>,
    /// Locked while a recording is looked for or written, so that each is done once.
    turn: tokio::sync::Mutex<()>,
}

/// A working set in the store, as a list tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSetObject {
    /// Its key.
    pub path: ObjectPath,
    /// Its bytes.
    pub bytes: u64,
}

/// The place of a recording in the store, which is being looked for; none if there is no recording.
type Place = AbortOnDropHandle<Option<WorkingSetObject>>;

/// A search for the place of a recording in the store.
#[derive(Debug)]
struct Search {
    begun: Instant,
    place: Place,
}

#[derive(Debug)]
enum Found {
    /// It was not looked for yet.
    Unasked,
    /// The snapshot has none.
    Absent,
    /// The snapshot has this one.
    Present {
        set: Arc<WorkingSet>,
        /// It is in the store.
        stored: bool,
        /// Number of resumes with it.
        uses: u32,
    },
}

/// Use of the working set by a resume.
#[derive(Clone, Debug)]
pub(crate) enum Use {
    /// Look for a recording first.
    Ask,
    /// Install nothing ahead, and record what the guest touches in place of this recording.
    Record(Option<Arc<WorkingSet>>),
    /// Install this one ahead.
    Ahead(Arc<WorkingSet>),
    /// Install nothing ahead, and record nothing.
    Not,
}

impl Known {
    pub(crate) fn new() -> Self {
        Self {
            found: Mutex::new(Found::Unasked),
            resumes: AtomicU32::new(0),
            search: Mutex::new(None),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Remembers a search that has just begun.
    pub(crate) fn searching(&self, place: Place) {
        *lock(&self.search) = Some(Search { begun: Instant::now(), place });
    }

    /// Takes the search that opening the snapshot began, unless that was long ago.
    pub(crate) fn take_search(&self) -> Option<Place> {
        let search = lock(&self.search).take()?;
        (search.begun.elapsed() < limits::WORKING_SET_SEARCH_HOLDS).then_some(search.place)
    }

    /// The recording, if it is known.
    pub(crate) fn now(&self) -> Option<Arc<WorkingSet>> {
        match &*lock(&self.found) {
            Found::Unasked | Found::Absent => None,
            Found::Present { set, .. } => Some(Arc::clone(set)),
        }
    }

    /// The recording, if it is not in the store yet.
    pub(crate) fn unstored(&self) -> Option<Arc<WorkingSet>> {
        match &*lock(&self.found) {
            Found::Present { set, stored: false, .. } => Some(Arc::clone(set)),
            Found::Present { .. } | Found::Unasked | Found::Absent => None,
        }
    }

    /// Begins a resume. Nothing shows which of the pages that were installed ahead a guest reads. So now and then a
    /// guest is resumed without them, and its recording has only the pages that are touched now.
    pub(crate) fn begin_use(&self) -> Use {
        let begun = match &mut *lock(&self.found) {
            Found::Unasked => return Use::Ask,
            Found::Absent => Use::Record(None),
            Found::Present { set, uses, .. } if *uses >= limits::WORKING_SET_USES_MAX => {
                *uses = 0;
                Use::Record(Some(Arc::clone(set)))
            }
            Found::Present { set, uses, .. } => {
                *uses += 1;
                Use::Ahead(Arc::clone(set))
            }
        };
        self.resumes.fetch_add(1, Ordering::Relaxed);
        begun
    }

    /// Begins a resume that installs nothing ahead. It is recorded where there is no recording.
    pub(crate) fn begin_without(&self) -> Use {
        let begun = match &*lock(&self.found) {
            Found::Unasked => return Use::Ask,
            Found::Absent => Use::Record(None),
            Found::Present { .. } => Use::Not,
        };
        self.resumes.fetch_add(1, Ordering::Relaxed);
        begun
    }

    /// The recording for a snapshot that a guest of this one was paused into, with the number of resumes along the line
    /// that used it.
    pub(crate) fn for_child(&self) -> Option<(Arc<WorkingSet>, u32)> {
        match &*lock(&self.found) {
            Found::Unasked | Found::Absent => None,
            Found::Present { set, uses, .. } => Some((Arc::clone(set), *uses)),
        }
    }

    /// Takes the recording of the parent, if there is no other.
    pub(crate) fn inherit(&self, set: WorkingSet, uses: u32) {
        let mut found = lock(&self.found);
        if !matches!(*found, Found::Present { .. }) {
            *found = Found::Present { set: Arc::new(set), stored: false, uses };
        }
    }

    /// True if the snapshot was resumed once here at most: its guest has gone on to the next one.
    pub(crate) fn has_gone_on(&self) -> bool {
        self.resumes.load(Ordering::Relaxed) <= 1
    }

    /// Notes that the pages of this recording are not in the store any more.
    pub(crate) fn lacks_pages(&self, of: &Arc<WorkingSet>) {
        if let Found::Present { set, stored, .. } = &mut *lock(&self.found)
            && Arc::ptr_eq(set, of)
        {
            *stored = false;
        }
    }

    /// Notes the result of a search, unless another was faster.
    pub(crate) fn found(&self, set: Option<(WorkingSet, bool)>) {
        let mut found = lock(&self.found);
        if matches!(*found, Found::Unasked) {
            *found = match set {
                Some((set, stored)) => Found::Present { set: Arc::new(set), stored, uses: 0 },
                None => Found::Absent,
            };
        }
    }

    /// Replaces `expected` by `set`; false if `expected` is no longer the recording.
    pub(crate) fn replace(&self, expected: Option<&Arc<WorkingSet>>, set: Arc<WorkingSet>) -> bool {
        let mut found = lock(&self.found);
        let is_expected = match (&*found, expected) {
            (Found::Present { set, .. }, Some(expected)) => Arc::ptr_eq(set, expected),
            (Found::Unasked | Found::Absent, None) => true,
            (Found::Present { .. }, None) | (Found::Unasked | Found::Absent, Some(_)) => false,
        };
        if is_expected {
            *found = Found::Present { set, stored: false, uses: 0 };
        }
        is_expected
    }

    /// Notes that `of` is in the store; false if it is no longer the recording.
    pub(crate) fn is_stored(&self, of: &Arc<WorkingSet>) -> bool {
        match &mut *lock(&self.found) {
            Found::Present { set, stored, .. } if Arc::ptr_eq(set, of) => {
                *stored = true;
                true
            }
            Found::Present { .. } | Found::Unasked | Found::Absent => false,
        }
    }

    /// The right to look for a recording or to write one.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::identity::SnapshotId;

    fn set(faults: u32) -> Arc<WorkingSet> {
        Arc::new(WorkingSet {
            snapshot: SnapshotId::from_bytes([1; 16]),
            volume_pages: 9,
            faults,
            runs: Vec::new(),
        })
    }

    #[test]
    fn a_recording_is_used_so_often_and_then_made_anew() {
        let known = Known::new();
        assert!(matches!(known.begin_use(), Use::Ask));
        known.found(None);
        assert!(matches!(known.begin_use(), Use::Record(None)));
        let first = set(1);
        assert!(known.replace(None, Arc::clone(&first)));
        assert!(!known.replace(None, set(2)), "the first of several recordings stays");
        for _ in 0..limits::WORKING_SET_USES_MAX {
            assert!(matches!(known.begin_use(), Use::Ahead(set) if Arc::ptr_eq(&set, &first)));
        }
        assert!(matches!(known.begin_use(), Use::Record(Some(set)) if Arc::ptr_eq(&set, &first)));
        assert!(matches!(known.begin_use(), Use::Ahead(_)), "others go on with the old one meanwhile");
        assert!(known.replace(Some(&first), set(3)));
        assert!(!known.replace(Some(&first), set(4)));
        assert_eq!(known.now().map(|set| set.faults()), Some(3));
    }

    #[test]
    fn a_resume_without_pages_ahead_is_recorded_only_where_there_is_no_recording() {
        let known = Known::new();
        assert!(matches!(known.begin_without(), Use::Ask));
        known.found(None);
        assert!(matches!(known.begin_without(), Use::Record(None)));
        known.replace(None, set(1));
        assert!(matches!(known.begin_without(), Use::Not));
    }

    #[test]
    fn a_recording_is_stored_once() {
        let known = Known::new();
        let first = set(1);
        known.replace(None, Arc::clone(&first));
        known.found(None);
        assert!(known.unstored().is_some_and(|set| Arc::ptr_eq(&set, &first)));
        assert!(known.is_stored(&first));
        assert!(known.unstored().is_none());
        known.replace(Some(&first), set(2));
        assert!(!known.is_stored(&first) && known.unstored().is_some());
    }
}
