//! The registry of layer handles, one a layer: a caller gets the handle that lives, or the right to make the only one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use crate::identity::LayerId;
use crate::sync::{Condvar, Mutex, lock};

/// The handles that live, by name.
#[derive(Debug)]
pub struct Handles<T> {
    /// A name is here from when the right to it is given until that is dropped.
    taken: Mutex<HashMap<LayerId, Weak<T>>>,
    freed_or_made: Condvar,
}

/// The living handle of a layer, or the right to make it.
#[derive(Debug)]
pub enum Found<T> {
    /// Its handle.
    Alive(Arc<T>),
    /// Nothing, and the asking one may make the handle.
    Free(HandleRight),
}

/// The right to be the handle of a layer and to change its file freely: the next right is given when this is dropped,
/// after the file is removed.
#[derive(Debug)]
pub struct HandleRight {
    id: LayerId,
    registry: Arc<dyn Registry>,
}

/// The registry as a right sees it, whatever its handles are.
trait Registry: fmt::Debug + Send + Sync {
    /// Forgets the handle that had the right to `id`, which is free from now on.
    fn free(&self, id: LayerId);
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { taken: Mutex::default(), freed_or_made: Condvar::new() }
    }
}

impl<T: fmt::Debug + Send + Sync + 'static> Handles<T> {
    /// The handle of a layer if it lives.
    pub fn alive(&self, id: LayerId) -> Option<Arc<T>> {
        lock(&self.taken).get(&id).and_then(Weak::upgrade)
    }

    /// The handle of a layer, or the right to make it; waits while another is being made, or goes.
    pub fn find(self: &Arc<Self>, id: LayerId) -> Found<T> {
        let mut taken = lock(&self.taken);
        while let Some(handle) = taken.get(&id) {
            if let Some(handle) = handle.upgrade() {
                return Found::Alive(handle);
            }
            taken = self.freed_or_made.wait(taken).expect("no thread panics while it holds a lock");
        }
        taken.insert(id, Weak::new());
        let registry: Arc<Self> = Arc::clone(self);
        Found::Free(HandleRight { id, registry })
    }

    /// All handles that live.
    pub fn all(&self) -> Vec<Arc<T>> {
        lock(&self.taken).values().filter_map(Weak::upgrade).collect()
    }

    /// Makes a handle, which holds the right to its name, the one that is found.
    pub fn made(&self, id: LayerId, handle: T) -> Arc<T> {
        let handle = Arc::new(handle);
        lock(&self.taken).insert(id, Arc::downgrade(&handle));
        self.freed_or_made.notify_all();
        handle
    }
}

impl<T: fmt::Debug + Send + Sync> Registry for Handles<T> {
    fn free(&self, id: LayerId) {
        let gone = lock(&self.taken).remove(&id);
        self.freed_or_made.notify_all();
        drop(gone);
    }
}

impl Drop for HandleRight {
    fn drop(&mut self) {
        self.registry.free(self.id);
    }
}
