//! The places of a layer outside this disk: a value that is replaced when a publish adds one or a read finds one gone.

use std::sync::Arc;

use crate::manifest::{ObjectName, StoredLayer};
use crate::object::StoredObject;

/// Another node that may have frames of a layer, by its number among the sources. It is advice: a copy there keeps nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(pub usize);

/// Copies of a layer outside this disk, at least one. A layer without a placement is the only copy.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Its object that is read.
    object: Arc<StoredObject>,
    /// Those that are read once that one is gone, in this order.
    others: Vec<Arc<StoredObject>>,
}

impl Placement {
    /// One object of the store.
    pub fn at(place: StoredLayer) -> Self {
        Self { object: Arc::new(StoredObject::at(place)), others: Vec::new() }
    }

    /// The object that is read.
    pub fn object(&self) -> &Arc<StoredObject> {
        &self.object
    }

    /// The same with one more object; the one that is read stays. None if it is known already.
    pub fn with(&self, place: StoredLayer) -> Option<Self> {
        let mut objects = std::iter::once(&self.object).chain(&self.others);
        if objects.any(|known| known.place().object == place.object) {
            return None;
        }
        let mut more = self.clone();
        more.others.push(Arc::new(StoredObject::at(place)));
        Some(more)
    }

    /// The same with one more object, which is read from now on.
    pub fn preferring(&self, place: StoredLayer) -> Self {
        let others = std::iter::once(&self.object).chain(&self.others);
        let others = others.filter(|known| known.place().object != place.object).cloned().collect();
        Self { object: Arc::new(StoredObject::at(place)), others }
    }

    /// The same without an object that is gone. None if nothing changes: the last one stays, as the layer is known to be
    /// nowhere else, and its store may have it again.
    pub fn without(&self, gone: ObjectName) -> Option<Self> {
        if self.object.place().object == gone {
            let (next, others) = self.others.split_first()?;
            return Some(Self { object: Arc::clone(next), others: others.to_vec() });
        }
        let mut fewer = self.clone();
        fewer.others.retain(|known| known.place().object != gone);
        (fewer.others.len() < self.others.len()).then_some(fewer)
    }
}
