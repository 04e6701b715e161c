//! The list of snapshots: by id, by name, and by the sandbox whose images they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rekindle_api::control::Answer;
use rekindle_api::types::{ListQuery, Reference, SnapshotState};
use rekindle_engine::snapshot::Snapshot as EngineSnapshot;
use uuid::Uuid;

use super::about::{About, images_of};
use super::index::Index;
use super::known::{Known, shown};
use super::paging::page;
use super::references::Named as _;

/// The snapshots that are listed, each with what it says of itself: that is read once.
#[derive(Debug, Default)]
pub(super) struct ListedSnapshots(Mutex<Listings>);

#[derive(Debug, Default)]
struct Listings {
    index: Index<Known>,
    /// The snapshots that are images, by their sandboxes.
    images: HashMap<Uuid, Uuid>,
}

impl ListedSnapshots {
    /// Lists a snapshot, unless it was deleted; then it is listed no longer. Gives what it says of itself.
    pub(super) fn changed(&self, snapshot: &Arc<EngineSnapshot>) -> Arc<About> {
        let Listings { index, images } = &mut *self.lock();
        let known = match index.get(snapshot.id().uuid()) {
            Some(known) => known.clone(),
            None => Known::of(Arc::clone(snapshot)),
        };
        // Asked under the lock: a deletion is noted first, and takes it out after that.
        if shown(snapshot.state()) == SnapshotState::Discarded {
            index.remove(known.id());
            images.retain(|_, snapshot| *snapshot != known.id());
        } else if index.get(known.id()).is_none() {
            index.insert(known.clone());
            images.extend(images_of(&known.about).map(|sandbox| (sandbox, known.id())));
        }
        known.about
    }

    /// Lists one no longer that the node is about to forget.
    pub(super) fn remove(&self, id: Uuid) {
        let Listings { index, images } = &mut *self.lock();
        index.remove(id);
        images.retain(|_, snapshot| *snapshot != id);
    }

    /// The one that `reference` means.
    pub(super) fn find(&self, reference: &Reference) -> Answer<Known> {
        self.lock().index.find("snapshot", reference).cloned()
    }

    /// The one with an id.
    pub(super) fn get(&self, id: Uuid) -> Option<Known> {
        self.lock().index.get(id).cloned()
    }

    /// The number of them.
    pub(super) fn count(&self) -> usize {
        self.lock().index.count()
    }

    /// The id of the one with this name.
    pub(super) fn holder(&self, name: &str) -> Option<Uuid> {
        self.lock().index.named(name).map(Known::id)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Known> {
        self.lock().index.after(None).cloned().collect()
    }

    /// The page that `query` asks for, and what comes after it.
    pub(super) fn page(&self, query: &ListQuery) -> (Vec<Known>, Option<Uuid>) {
        page(self.lock().index.after(query.after), query)
    }

    /// The snapshot that is the images of a sandbox, if there is one.
    pub(super) fn images_of(&self, sandbox: Uuid) -> Option<Known> {
        let listings = self.lock();
        listings.index.get(*listings.images.get(&sandbox)?).cloned()
    }

    /// The sandboxes whose images are snapshots.
    pub(super) fn all_images(&self) -> Vec<Uuid> {
        self.lock().images.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Listings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
