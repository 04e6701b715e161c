//! Records the working set of a resume, the pages that its guest touches first, and installs it ahead of the next
//! guest.

use std::sync::Arc;

use tokio::runtime::Handle;

use crate::limits;
use crate::serve::{FaultServer, Recorded};
use crate::snapshot::Snapshot;
use crate::sources::Sources;
use crate::working_set::{Use, WorkingSet};
use crate::working_sets;

/// Records the working set of each resume.
#[derive(Debug, Clone)]
pub struct Learner {
    pub(crate) sources: Sources,
    pub(crate) runtime: Handle,
}

impl Learner {
    /// Makes `server` install the pages ahead that earlier guests of `snapshot` touched first, and record those of this
    /// guest for later ones. For a server that has just started, of a resumed guest that does not run yet; not for one
    /// that serves a running guest again. Never waits; the recording is kept in the background.
    pub fn learn(&self, snapshot: &Arc<Snapshot>, server: &FaultServer) {
        let (lesson, sources) = (Lesson::begin(snapshot, server), self.sources.clone());
        drop(self.runtime.spawn(async move { lesson.learn(&sources).await }));
    }
}

/// One resume of a snapshot, while it is recorded.
#[derive(Debug)]
pub(crate) struct Lesson {
    snapshot: Arc<Snapshot>,
    recorded: Recorded,
    /// The decision made before the guest ran.
    first: Use,
}

impl Lesson {
    /// Begins with a server whose guest does not run yet. From now on the snapshot's known working set is installed.
    pub(crate) fn begin(snapshot: &Arc<Snapshot>, server: &FaultServer) -> Self {
        let recorded = server.record();
        let first = snapshot.working_set().begin_use();
        if let Use::Ahead(set) = &first {
            recorded.install_ahead(set);
        }
        Self { snapshot: Arc::clone(snapshot), recorded, first }
    }

    /// Finishes it: keeps the recording if there was none before, or no useful one.
    pub(crate) async fn learn(self, sources: &Sources) {
        let Self { snapshot, recorded, first } = self;
        let known = snapshot.working_set();
        let decided = match first {
            Use::Ask => {
                working_sets::find(&snapshot, sources).await;
                let decided = known.begin_use();
                if let Use::Ahead(set) = &decided {
                    recorded.install_ahead(set);
                }
                decided
            }
            decided @ (Use::Record(_) | Use::Ahead(_)) => decided,
        };
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
