//! The edition of a snapshot's manifest that this node has put or seen last: the next one follows it, and none is ever put
//! with two contents.

use crate::manifest::{Edition, StoredLayer};
use crate::sync::{Mutex, lock};

/// The last known edition of one snapshot's manifest.
#[derive(Debug)]
pub(crate) struct Editions(Mutex<Option<Last>>);

#[derive(Debug, Clone, Copy)]
struct Last {
    edition: Edition,
    /// Digest of the places of the layers in it: all else of a snapshot's manifest never changes.
    places: [u8; 32],
}

impl Editions {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The last edition that was put, or perhaps put, or seen.
    pub(crate) fn last(&self) -> Option<Edition> {
        lock(&self.0).map(|last| last.edition)
    }

    /// Notes that an edition with these places is in the store, or perhaps is.
    pub(crate) fn note<'a>(&self, edition: Edition, stored: impl IntoIterator<Item = &'a StoredLayer>) {
        *lock(&self.0) = Some(Last { edition, places: digest_of(stored) });
    }

    /// The edition to put a manifest as whose layers are stored there: the last one if it has these places, which may
    /// have been put and is put again; otherwise the one after it.
    pub(crate) fn for_places(&self, stored: &[StoredLayer]) -> Edition {
        let (places, mut last) = (digest_of(stored), lock(&self.0));
        let edition = match *last {
            None => Edition::FIRST,
            Some(known) if known.places == places => known.edition,
            Some(known) => known.edition.next(),
        };
        *last = Some(Last { edition, places });
        edition
    }

    /// Takes over what another handle of the same snapshot knows.
    pub(crate) fn replace_by(&self, other: &Self) {
        let known = *lock(&other.0);
        *lock(&self.0) = known;
    }
}

fn digest_of<'a>(stored: impl IntoIterator<Item = &'a StoredLayer>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for StoredLayer { object, table_digest, table_bytes, object_bytes } in stored {
        hasher.update(object.publisher.as_bytes()).update(object.upload.as_bytes()).update(table_digest);
        hasher.update(&table_bytes.to_le_bytes()).update(&object_bytes.to_le_bytes());
    }
    hasher.finalize().into()
}

#[cfg(all(test, not(shuttle)))]
mod tests;
