//! A condemned list: the objects that a collector is about to delete.
//!
//! Object `condemned/<collector>/<id>`, as JSON. It is there from before the collector looks a second time until all that
//! it deletes is gone. Publishers do not rely on an object on any list.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::collectable::Collectable;
use crate::wire::{UnknownVersion, Versioned};

/// The objects on one list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Condemned(pub BTreeSet<Collectable>);

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    objects: Vec<String>,
}

/// The newest version of a list that is read. Lists without deletions that can be undone are written in the first one.
const VERSION: u32 = 2;

impl Condemned {
    /// Its stored form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let is_sign =
            |object: &Collectable| matches!(object, Collectable::Withdrawal(..) | Collectable::Undone(..));
        let version = if self.0.iter().any(is_sign) { VERSION } else { 1 };
        let objects = self.0.iter().map(Collectable::to_string).collect();
        serde_json::to_vec(&Stored { version, objects }).expect("it is plain data")
    }

    /// The list that this is the stored form of. The error is for people.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let not_understood = |error: serde_json::Error| format!("it cannot be understood: {error}");
        let Versioned { version } = serde_json::from_slice(bytes).map_err(not_understood)?;
        UnknownVersion::check(version, VERSION).map_err(|unknown| unknown.to_string())?;
        let Stored { objects, version: _ } = serde_json::from_slice(bytes).map_err(not_understood)?;
        let named = objects.iter().map(|name| name.parse().map_err(|error| format!("{name}: {error}")));
        named.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::identity::SnapshotId;

    #[test]
    fn a_list_is_read_in_every_version_and_an_unknown_one_is_refused_by_name() {
        let first = br#"{"version":1,"objects":["manifests/07070707-0707-0707-0707-070707070707"]}"#;
        let manifest = Collectable::Manifest(SnapshotId::from_bytes([7; 16]), None);
        let list = Condemned(BTreeSet::from([manifest]));
        assert_eq!(Condemned::decode(first), Ok(list.clone()));
        assert_eq!(list.encode(), first);
        let second = br#"{"version":2,"objects":["manifests/07070707-0707-0707-0707-070707070707/undone-08080808-0808-0808-0808-080808080808"]}"#;
        let undone = Collectable::Undone(SnapshotId::from_bytes([7; 16]), Uuid::from_bytes([8; 16]));
        let list = Condemned(BTreeSet::from([undone]));
        assert_eq!(Condemned::decode(second), Ok(list.clone()));
        assert_eq!(list.encode(), second);
        let newer = Condemned::decode(br#"{"version":3}"#).expect_err("it is newer");
        assert!(newer.contains("version 3 is unknown"), "{newer}");
        assert!(Condemned::decode(br#"{"version":1,"objects":["store"]}"#).is_err());
    }
}
