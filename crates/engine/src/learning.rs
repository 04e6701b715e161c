//! Brings pages ahead of a resumed guest, and records its working set, the pages that it touches first, for the next one.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::ahead::missing_frames;
use crate::fetch::{Fetcher, WantedFrames};
use crate::frame::frames_of;
use crate::geometry::{GuestPage, GuestPages};
use crate::limits;
use crate::packed_reads::PackedReads;
use crate::serve::{FaultServer, Recorded};
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::working_set::{Use, WorkingSet};
use crate::working_sets::{self, WorkingSets};

/// Pages that are brought ahead of a resumed guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Prefault {
    /// None: each page comes when the guest touches it.
    Nothing,
    /// Those that earlier guests of the snapshot touched first. If none was recorded, the pages that the snapshot's own
    /// pause kept are fetched from the store, and installed when the guest touches them.
    #[default]
    WorkingSet,
    /// All, those of the working set first.
    All,
}

/// Brings pages ahead of each resume, and records it.
#[derive(Debug, Clone)]
pub struct Prefaulter {
    /// Fetches what guests may want soon.
    pub(crate) fetcher: Fetcher,
    pub(crate) sets: Arc<WorkingSets>,
    pub(crate) runtime: Handle,
}

impl Prefaulter {
    /// Makes `server` install the pages ahead that `prefault` says, and record those that this guest touches first for later
    /// ones. For a server that has just started, of a resumed guest that does not run yet; not for one that serves a
    /// running guest again. Never waits; the recording is kept in the background.
    pub fn begin(&self, snapshot: &Arc<Snapshot>, server: &FaultServer, prefault: Prefault) {
        let lesson = Lesson::begin(snapshot, server, prefault);
        let (fetcher, sets) = (self.fetcher.clone(), Arc::clone(&self.sets));
        drop(self.runtime.spawn(async move { lesson.learn(&fetcher, &sets).await }));
    }
}

/// One resume of a snapshot, while it is recorded.
#[derive(Debug)]
pub(crate) struct Lesson {
    snapshot: Arc<Snapshot>,
    recorded: Recorded,
    prefault: Prefault,
    /// The decision made before the guest ran.
    first: Use,
    /// The server was told of the working set then.
    is_told: bool,
}

impl Lesson {
    /// Begins with a server whose guest does not run yet. From now on the snapshot's known working set is installed, unless
    /// parts of it are to be fetched first.
    pub(crate) fn begin(snapshot: &Arc<Snapshot>, server: &FaultServer, prefault: Prefault) -> Self {
        let recorded = server.record();
        let first = begin_use(snapshot, prefault);
        let view = snapshot.memory().load();
        let is_here = view.layers().iter().all(|layer| layer.local().is_all_verified());
        let told = if let Use::Ahead(set) = &first
            && is_here
        {
            Some(set)
        } else {
            None
        };
        told.inspect(|set| recorded.install_ahead(set));
        let is_told = told.is_some();
        Self { snapshot: Arc::clone(snapshot), recorded, prefault, first, is_told }
    }

    /// Finishes it: keeps the recording if there was none before, or no useful one.
    pub(crate) async fn learn(self, fetcher: &Fetcher, sets: &WorkingSets) {
        let (decided, packed) = self.decide(fetcher.sources()).await;
        self.bring_ahead((&decided, packed), fetcher);
        let Self { snapshot, recorded, prefault, .. } = self;
        if snapshot.working_set().unstored().is_some() && snapshot.is_published() {
            // An earlier upload failed or was cut short, or its pages left the store.
            sets.publish(&snapshot).await;
        }
        let Some(touches) = recorded.after(limits::WORKING_SET_TIME).await else { return };
        let pages = snapshot.memory().pages();
        let (expected, set) = match decided {
            Use::Ahead(set) if set.is_poor(&touches) => (Some(Arc::clone(&set)), set.grown_by(touches)),
            // Of a guest whose pages were all installed ahead, the touches say nothing.
            Use::Record(expected) if prefault != Prefault::All => {
                (expected, WorkingSet::new(snapshot.id(), pages, touches))
            }
            Use::Ahead(_) | Use::Ask | Use::Record(_) | Use::Not => return,
        };
        if !set.is_empty() {
            sets.keep(&snapshot, expected.as_ref(), Arc::new(set)).await;
        }
    }

    /// The use of the working set, once it was looked for, and the reads of its pages, if they have begun.
    async fn decide(&self, sources: &Sources) -> (Use, Option<PackedReads>) {
        let (snapshot, pages) = (&self.snapshot, self.prefault != Prefault::Nothing);
        match &self.first {
            Use::Ask => {
                let found = working_sets::find(snapshot, sources, pages).await;
                (begin_use(snapshot, self.prefault), found.and_then(|found| found.packed))
            }
            // Its frames may have left this node since it was found.
            Use::Ahead(set) if !self.is_told && snapshot.working_set().unstored().is_none() => {
                (Use::Ahead(Arc::clone(set)), working_sets::packed_pages(snapshot, sources).await)
            }
            Use::Ahead(_) | Use::Record(_) | Use::Not => (self.first.clone(), None),
        }
    }

    /// Begins to fetch pages, and then tells the server of them. In this order: frames for which the server asks first
    /// come one by one.
    fn bring_ahead(&self, (decided, packed): (&Use, Option<PackedReads>), fetcher: &Fetcher) {
        let (view, pages) = (self.snapshot.memory(), self.snapshot.memory().pages());
        let bring = |wanted| drop(tokio::spawn(fetcher.bring_all(wanted)));
        match decided {
            Use::Ahead(set) if !self.is_told => {
                let missing = missing_frames(view, set.runs_within(pages));
                match packed {
                    Some(packed) => drop(tokio::spawn(fetcher.bring_packed(packed, missing))),
                    None => bring(missing),
                }
                self.recorded.install_ahead(set);
            }
            Use::Record(None) if self.prefault == Prefault::WorkingSet => bring(own_frames(&self.snapshot)),
            Use::Ahead(_) | Use::Record(_) | Use::Ask | Use::Not => {}
        }
        if self.prefault == Prefault::All {
            bring(missing_frames(view, [GuestPages::new(GuestPage::FIRST, pages)]));
            self.recorded.install_all(pages);
        }
    }
}

fn begin_use(snapshot: &Snapshot, prefault: Prefault) -> Use {
    match prefault {
        Prefault::Nothing => snapshot.working_set().begin_without(),
        Prefault::WorkingSet | Prefault::All => snapshot.working_set().begin_use(),
    }
}

/// The missing frames of the pages that a snapshot's own pause kept, as many as a working set may have: the guess where
/// no guest was recorded. All pages of a first snapshot are its own, so it has no guess.
fn own_frames(snapshot: &Snapshot) -> Vec<WantedFrames> {
    if snapshot.parent_id().is_none() {
        return Vec::new();
    }
    let view = snapshot.memory();
    let is_own = |wanted: &WantedFrames| {
        let stored = wanted.file.layer().stored_at();
        stored.is_some_and(|stored| stored.object.publisher == snapshot.id())
    };
    let mut own = missing_frames(view, [GuestPages::new(GuestPage::FIRST, view.pages())]);
    own.retain(is_own);
    let mut left = frames_of(limits::WORKING_SET_PAGES_MAX);
    for WantedFrames { frames, .. } in &mut own {
        frames.truncate(left);
        left -= frames.len();
    }
    own
}
