//! The sandboxes by id.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rekindle_api::control::Answer;
use rekindle_api::types::{ListQuery, Name, Reference};
use uuid::Uuid;

use super::entry::Entry;
use super::index::Index;
use super::names::{Names, Reserved};
use super::paging::page;
use super::references::Named;

/// All sandboxes of this node.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: Mutex<Index<Arc<Entry>>>,
    names: Names,
}

impl Registry {
    /// Takes a name for a new sandbox.
    pub(super) fn reserve(&self, name: Option<&Name>) -> Answer<Reserved<'_>> {
        let holder = |name: &Name| self.lock().named(name).map(Named::id);
        self.names.reserve("sandbox", name, holder).map_err(|(problem, holder)| match holder {
            Some(id) => problem.sandbox(id),
            None => problem,
        })
    }

    pub(super) fn insert(&self, entry: Arc<Entry>) {
        self.lock().insert(entry);
    }

    pub(super) fn remove(&self, id: Uuid) {
        self.lock().remove(id);
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Arc<Entry>> {
        self.lock().get(id).cloned()
    }

    /// The sandbox that `reference` means.
    pub(super) fn find(&self, reference: &Reference) -> Answer<Arc<Entry>> {
        self.lock().find("sandbox", reference).cloned()
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().after(None).cloned().collect()
    }

    /// The page that `query` asks for, and what comes after it.
    pub(super) fn page(&self, query: &ListQuery) -> (Vec<Arc<Entry>>, Option<Uuid>) {
        page(self.lock().after(query.after), query)
    }

    fn lock(&self) -> MutexGuard<'_, Index<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
