//! The sandboxes by id.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::entry::Entry;
use super::names::{Names, Reserved};
use super::references::{Named, check_labels, find};
use crate::api::control::Answer;
use crate::api::types::Labels;

/// All sandboxes of this node.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: Mutex<BTreeMap<Uuid, Arc<Entry>>>,
    names: Names,
}

impl Registry {
    /// Checks a name and labels for a new sandbox, and takes the name.
    pub(super) fn reserve(&self, name: Option<&str>, labels: &Labels) -> Answer<Reserved<'_>> {
        check_labels(labels)?;
        let holder = |name: &str| {
            self.lock().values().find(|entry| entry.name() == Some(name)).map(|entry| entry.id())
        };
        self.names.reserve("sandbox", name, holder).map_err(|(problem, holder)| match holder {
            Some(id) => problem.sandbox(id),
            None => problem,
        })
    }

    pub(super) fn insert(&self, entry: Arc<Entry>) {
        self.lock().insert(entry.id(), entry);
    }

    pub(super) fn remove(&self, id: Uuid) {
        self.lock().remove(&id);
    }

    pub(super) fn get(&self, id: Uuid) -> Option<Arc<Entry>> {
        self.lock().get(&id).cloned()
    }

    /// The sandbox that `reference` means.
    pub(super) fn find(&self, reference: &str) -> Answer<Arc<Entry>> {
        find("sandbox", reference, self.lock().values()).cloned()
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
