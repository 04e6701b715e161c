//! A root: what a node relies on in the store without a manifest of its own that says so.
//!
//! Object `roots/<node>/<snapshot>-<id>`, as JSON. It is put before the first object that it covers is relied on, and it
//! goes after the snapshot's manifest or tombstone is in the store. No root is written twice with other content.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::collectable::{Collectable, LayerCopy};
use crate::identity::SnapshotId;
use crate::wire::{UnknownVersion, Versioned};

/// The objects that one snapshot relies on while it is published or runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Root {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The reason that it is there.
    pub cause: Cause,
    /// The copies of layers that it names.
    pub named: BTreeSet<LayerCopy>,
}

/// The reason for a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The snapshot is being published: all that it has uploaded is covered too.
    Publishes,
    /// Sandboxes run from the snapshot.
    Runs,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    snapshot: String,
    cause: Cause,
    layers: Vec<String>,
}

/// The version of a root that is written, and the newest one that is read.
const VERSION: u32 = 1;

impl Root {
    /// Its stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let layers = self.named.iter().map(LayerCopy::to_string).collect();
        let stored =
            Stored { version: VERSION, snapshot: self.snapshot.to_string(), cause: self.cause, layers };
        serde_json::to_vec(&stored).expect("it is plain data")
    }

    /// The root that this is the stored form of. The error is for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let not_understood = |error: serde_json::Error| format!("it cannot be understood: {error}");
        let Versioned { version } = serde_json::from_slice(bytes).map_err(not_understood)?;
        UnknownVersion::check(version, VERSION).map_err(|unknown| unknown.to_string())?;
        let Stored { snapshot, cause, layers, version: _ } =
            serde_json::from_slice(bytes).map_err(not_understood)?;
        let named = layers.iter().map(|name| match name.parse() {
            Ok(Collectable::Layer(copy)) => Ok(copy),
            Ok(_) | Err(_) => Err(format!("{name} is no object of a layer")),
        });
        let snapshot = snapshot.parse().map_err(|_| format!("{snapshot} is no snapshot"))?;
        Ok(Self { snapshot, cause, named: named.collect::<Result<_, _>>()? })
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::identity::LayerId;
    use crate::manifest::ObjectName;

    fn copy(publisher: SnapshotId) -> LayerCopy {
        let object = ObjectName { publisher, upload: Uuid::from_u128(9) };
        LayerCopy { layer: LayerId::from_bytes([0xab; 32]), object }
    }

    #[test]
    fn a_root_is_read_in_every_version_and_an_unknown_one_is_refused_by_name() {
        let first = br#"{"version":1,"snapshot":"07070707-0707-0707-0707-070707070707","cause":"publishes","layers":["layers/abababababababababababababababababababababababababababababababab/07070707-0707-0707-0707-070707070707-00000000-0000-0000-0000-000000000009"]}"#;
        let snapshot = SnapshotId::from_bytes([7; 16]);
        let root = Root { snapshot, cause: Cause::Publishes, named: BTreeSet::from([copy(snapshot)]) };
        assert_eq!(Root::decode(first), Ok(root.clone()));
        assert_eq!(root.encode(), first);
        let newer = Root::decode(br#"{"version":2}"#).expect_err("it is newer");
        assert!(newer.contains("version 2 is unknown"), "{newer}");
        let strange = Root::decode(br#"{"version":1,"snapshot":"x","cause":"runs","layers":["store"]}"#);
        assert!(strange.is_err());
    }
}
