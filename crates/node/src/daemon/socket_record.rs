//! A fault socket's record in the catalog.

use std::path::PathBuf;

use rekindle_api::types::WriteTracking;
use rekindle_engine::serve::EpochFacts;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Prefix of a socket's record in the catalog.
pub(super) const RECORD: &str = "fault-socket/";

/// A socket's record in the catalog.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SocketRecord {
    pub(super) id: Uuid,
    pub(super) path: PathBuf,
    pub(super) snapshot: Uuid,
    #[serde(default)]
    pub(super) tracking: WriteTracking,
    /// The memory of its VMM, once one has handed it over.
    pub(super) facts: Option<EpochFacts>,
}

/// The socket whose record is under a key of the catalog, if it is the key of such a record.
pub(super) fn id_in(key: &[u8]) -> Option<Uuid> {
    Uuid::try_parse_ascii(key.strip_prefix(RECORD.as_bytes())?).ok()
}
