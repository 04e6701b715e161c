//! A snapshot's own facts beside its pages: a blob of its manifest, so that they are known wherever it is read.

use std::collections::BTreeMap;

use bytes::Bytes;
use rekindle_api::types::{Labels, Name};
use rekindle_engine::snapshot::Snapshot;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::spec::GuestSpec;

/// The blob's name.
const ABOUT: &str = "rekindle";

/// Facts about a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// Its name.
    #[serde(default)]
    pub(super) name: Option<Name>,
    /// Its labels.
    #[serde(default)]
    pub(super) labels: Labels,
    /// The sandbox that was paused.
    #[serde(default)]
    pub(super) sandbox: Option<Uuid>,
    /// The parts of its guest; `None` for a VMM that others manage.
    #[serde(default)]
    pub(super) spec: Option<GuestSpec>,
}

impl About {
    /// The facts in `snapshot`; empty if its maker left none.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let blob = snapshot.blobs().get(ABOUT);
        blob.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
    }

    /// Puts this among a snapshot's blobs.
    pub(super) fn put_into(&self, blobs: &mut BTreeMap<String, Bytes>) {
        let bytes = serde_json::to_vec(self).expect("it is plain data");
        blobs.insert(ABOUT.to_owned(), bytes.into());
    }
}

/// The sandbox whose images a snapshot is, if it is nothing else.
pub(super) fn images_of(about: &About) -> Option<Uuid> {
    let About { labels, sandbox: None, spec: None, .. } = about else { return None };
    labels.get(Labels::IMAGES).and_then(|id| id.parse().ok())
}
