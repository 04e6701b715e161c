//! Records the working set of a resume, the pages that its guest touches first, and installs it ahead of the next
//! guest.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::ahead::missing_frames;
use crate::fetch::Fetcher;
use crate::limits;
use crate::serve::{FaultServer, Recorded};
use crate::snapshot::Snapshot;
use crate::working_set::{Use, WorkingSet};
use crate::working_sets;

/// Records the working set of each resume.
#[derive(Debug, Clone)]
pub struct Learner {
    /// Fetches what guests may want soon.
    pub(crate) fetcher: Fetcher,
    pub(crate) runtime: Handle,
}

impl Learner {
    /// Makes `server` install the pages ahead that earlier guests of `snapshot` touched first, and record those of this
    /// guest for later ones. For a server that has just started, of a resumed guest that does not run yet; not for one
    /// that serves a running guest again. Never waits; the recording is kept in the background.
    pub fn learn(&self, snapshot: &Arc<Snapshot>, server: &FaultServer) {
        let (lesson, fetcher) = (Lesson::begin(snapshot, server), self.fetcher.clone());
        drop(self.runtime.spawn(async move { lesson.learn(&fetcher).await }));
    }
}

/// One resume of a snapshot, while it is recorded.
#[derive(Debug)]
pub(crate) struct Lesson {
    snapshot: Arc<Snapshot>,
    recorded: Recorded,
    /// The decision made before the guest ran.
    first: Use,
    /// The server was told what to install then.
    is_told: bool,
}

impl Lesson {
    /// Begins with a server whose guest does not run yet. From now on the snapshot's known working set is installed, unless
    /// parts of it are to be fetched first.
    pub(crate) fn begin(snapshot: &Arc<Snapshot>, server: &FaultServer) -> Self {
        let recorded = server.record();
        let first = snapshot.working_set().begin_use();
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
        Self { snapshot: Arc::clone(snapshot), recorded, first, is_told }
    }

    /// Finishes it: keeps the recording if there was none before, or no useful one.
    pub(crate) async fn learn(self, fetcher: &Fetcher) {
        let Self { snapshot, recorded, first, is_told } = self;
        let (known, sources) = (snapshot.working_set(), fetcher.sources());
        let decided = match first {
            Use::Ask => {
                working_sets::find(&snapshot, sources).await;
                known.begin_use()
            }
            decided @ (Use::Record(_) | Use::Ahead(_)) => decided,
        };
        if let Use::Ahead(set) = &decided
            && !is_told
        {
            install_ahead(&snapshot, fetcher, &recorded, set);
        }
        if known.unstored().is_some() && snapshot.is_published() {
            // An earlier upload failed, or was cut short.
            working_sets::publish(&snapshot, sources.store(), sources.keys().own()).await;
        }
        let Some(touches) = recorded.after(limits::WORKING_SET_TIME).await else { return };
        let pages = snapshot.memory().pages();
        let (expected, set) = match decided {
            Use::Ahead(set) if set.is_poor(&touches) => (Some(Arc::clone(&set)), set.grown_by(touches)),
            Use::Ahead(_) | Use::Ask => return,
            Use::Record(expected) => (expected, WorkingSet::new(snapshot.id(), pages, touches)),
        };
        if !set.is_empty() {
            working_sets::keep(&snapshot, sources, expected.as_ref(), Arc::new(set)).await;
        }
    }
}

/// Begins to fetch a working set, and tells the server of it. In this order: frames for which the server asks first come
/// one by one.
fn install_ahead(snapshot: &Snapshot, fetcher: &Fetcher, recorded: &Recorded, set: &Arc<WorkingSet>) {
    let view = snapshot.memory();
    let fetching = fetcher.bring_all(missing_frames(view, set.runs_within(view.pages())));
    recorded.install_ahead(set);
    drop(tokio::spawn(fetching));
}
