//! Objects of a store that a collector may delete, by their names.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use uuid::Uuid;

use crate::identity::{LayerId, SnapshotId};
use crate::manifest::{Edition, ObjectName};
use crate::withdrawal::{Withdrawal, undone_id, undone_name};

/// One object of a layer in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerCopy {
    /// The layer.
    pub layer: LayerId,
    /// The upload that wrote it.
    pub object: ObjectName,
}

/// An object that a collector may delete once nobody relies on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Collectable {
    /// A copy of a layer.
    Layer(LayerCopy),
    /// An edition of a snapshot's manifest; none if an older program put it, without an edition in its name.
    Manifest(SnapshotId, Option<Edition>),
    /// A working set of a snapshot.
    WorkingSet(SnapshotId, Uuid),
    /// The sign of a deletion that can be undone. Before it goes, the snapshot gets its tombstone.
    Withdrawal(SnapshotId, Withdrawal),
    /// The sign that a deletion was undone.
    Undone(SnapshotId, Uuid),
}

/// Text that is the name of no object that a collector may delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is the name of no layer, manifest, working set or sign of a deletion")]
pub struct NotCollectable;

impl fmt::Display for LayerCopy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "layers/{}/{}", self.layer, self.object)
    }
}

impl fmt::Display for Collectable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layer(copy) => copy.fmt(out),
            Self::Manifest(snapshot, Some(edition)) => {
                write!(out, "manifests/{snapshot}/{}", edition.number())
            }
            Self::Manifest(snapshot, None) => write!(out, "manifests/{snapshot}"),
            Self::Withdrawal(snapshot, withdrawal) => write!(out, "manifests/{snapshot}/{withdrawal}"),
            Self::Undone(snapshot, id) => write!(out, "manifests/{snapshot}/{}", undone_name(*id)),
            Self::WorkingSet(snapshot, id) => write!(out, "working-sets/{snapshot}/{id}"),
        }
    }
}

impl FromStr for Collectable {
    type Err = NotCollectable;

    fn from_str(name: &str) -> Result<Self, NotCollectable> {
        let (place, below) = name.split_once('/').ok_or(NotCollectable)?;
        let read = match (place, below.split_once('/')) {
            ("layers", Some((layer, object))) => layer_copy(layer, object).map(Self::Layer),
            ("manifests", None) => below.parse().ok().map(|snapshot| Self::Manifest(snapshot, None)),
            ("manifests", Some((snapshot, name))) => of_manifest(snapshot, name),
            ("working-sets", Some((snapshot, id))) => working_set(snapshot, id),
            _ => None,
        };
        // An object has one name.
        read.filter(|object| Unwritten::is_all_of(name, object)).ok_or(NotCollectable)
    }
}

/// The end of a name that is yet to be written. Comparing so takes no memory: lists are long.
struct Unwritten<'a>(&'a str);

impl Unwritten<'_> {
    fn is_all_of(name: &str, object: &Collectable) -> bool {
        let mut left = Unwritten(name);
        write!(left, "{object}").is_ok() && left.0.is_empty()
    }
}

impl fmt::Write for Unwritten<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
        Ok(())
    }
}

fn layer_copy(layer: &str, object: &str) -> Option<LayerCopy> {
    let (publisher, upload) = object.split_at_checked(UUID_BYTES)?;
    let object =
        ObjectName { publisher: publisher.parse().ok()?, upload: upload.strip_prefix('-')?.parse().ok()? };
    Some(LayerCopy { layer: layer.parse().ok()?, object })
}

fn of_manifest(snapshot: &str, name: &str) -> Option<Collectable> {
    let snapshot = snapshot.parse().ok()?;
    if let Ok(withdrawal) = name.parse() {
        return Some(Collectable::Withdrawal(snapshot, withdrawal));
    }
    if let Some(id) = undone_id(name) {
        return Some(Collectable::Undone(snapshot, id));
    }
    Some(Collectable::Manifest(snapshot, Some(Edition::of(name.parse().ok()?)?)))
}

fn working_set(snapshot: &str, id: &str) -> Option<Collectable> {
    Some(Collectable::WorkingSet(snapshot.parse().ok()?, id.parse().ok()?))
}

/// Length of a UUID as text.
const UUID_BYTES: usize = 36;

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_object_that_may_be_collected_has_one_name() {
        let snapshot = SnapshotId::from_bytes([7; 16]);
        let copy = LayerCopy {
            layer: LayerId::from_bytes([1; 32]),
            object: ObjectName { publisher: snapshot, upload: Uuid::from_bytes([2; 16]) },
        };
        let objects = [
            Collectable::Layer(copy),
            Collectable::Manifest(snapshot, Some(Edition::FIRST)),
            Collectable::Manifest(snapshot, None),
            Collectable::WorkingSet(snapshot, Uuid::from_bytes([3; 16])),
            Collectable::Withdrawal(
                snapshot,
                Withdrawal { id: Uuid::from_bytes([4; 16]), window_seconds: 60 },
            ),
            Collectable::Undone(snapshot, Uuid::from_bytes([4; 16])),
        ];
        for object in objects {
            let name = object.to_string();
            assert_eq!(name.parse(), Ok(object), "{name}");
            for other in [name.to_uppercase(), format!("{name}/"), format!("{name}x"), format!("/{name}")] {
                assert_eq!(other.parse::<Collectable>(), Err(NotCollectable), "{other}");
            }
        }
        for other in ["store", "nodes/a", "manifests", &format!("manifests/{snapshot}/0")] {
            assert_eq!(other.parse::<Collectable>(), Err(NotCollectable), "{other}");
        }
    }
}
