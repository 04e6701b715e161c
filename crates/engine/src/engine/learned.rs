//! The pages that guests touch first after their resumes.

use std::sync::Arc;

use super::Engine;
use crate::learning::Prefaulter;
use crate::snapshot::Snapshot;
use crate::sources::Class;
use crate::working_set::WorkingSet;

impl Engine {
    /// Brings pages ahead of each resume, and records its working set.
    pub fn prefaulter(&self) -> Prefaulter {
        let (fetcher, sets) = (self.fetcher.of_class(Class::Ahead), Arc::clone(&self.background.sets));
        Prefaulter { fetcher, sets, runtime: self.runtime.handle().clone() }
    }

    /// Keeps a working set of a published snapshot that was not recorded here, and puts it into the store with its pages.
    pub fn keep_working_set(&self, snapshot: &Snapshot, set: WorkingSet) {
        let known = snapshot.working_set();
        known.replace(known.now().as_ref(), Arc::new(set));
        self.runtime.block_on(self.background.sets.publish(snapshot));
    }

    /// The pages that guests of a snapshot touch first, if they were recorded.
    pub fn working_set(&self, snapshot: &Snapshot) -> Option<Arc<WorkingSet>> {
        snapshot.working_set().now()
    }
}
