//! A disk as its connections know it: content, rights, and the gate that a pause closes.

use std::path::PathBuf;
use std::sync::Arc;

use rekindle_engine::fetch::Fetcher;

use super::access::Access;
use super::content::Content;
use super::gate::Gate;
use super::stats::DiskCounters;

/// A disk that is served.
#[derive(Debug)]
pub(super) struct ServedDisk {
    pub(super) content: Content,
    pub(super) fetcher: Fetcher,
    pub(super) access: Access,
    pub(super) gate: Gate,
    pub(super) counters: Arc<DiskCounters>,
    /// Path of its socket, which has the guest's id in it.
    pub(super) socket: PathBuf,
}
