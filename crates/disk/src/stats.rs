//! Counts of what a disk's clients did.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of a disk since its server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Bytes read by clients.
    pub bytes_read: u64,
    /// Bytes written by clients.
    pub bytes_written: u64,
    /// Bytes made zero or discarded by clients.
    pub bytes_zeroed: u64,
    /// Requests answered.
    pub requests: u64,
    /// Of those, answered with an error.
    pub failed_requests: u64,
    /// Requests that had to wait for pages that were not in memory.
    pub cold_requests: u64,
}

/// The cells that a disk's threads count in.
#[derive(Debug, Default)]
pub(super) struct DiskCounters {
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) bytes_zeroed: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) failed_requests: AtomicU64,
    pub(super) cold_requests: AtomicU64,
}

impl DiskStats {
    /// Adds what another disk did.
    pub fn add(&mut self, other: &Self) {
        let Self { bytes_read, bytes_written, bytes_zeroed, requests, failed_requests, cold_requests } =
            other;
        self.bytes_read += bytes_read;
        self.bytes_written += bytes_written;
        self.bytes_zeroed += bytes_zeroed;
        self.requests += requests;
        self.failed_requests += failed_requests;
        self.cold_requests += cold_requests;
    }
}

impl DiskCounters {
    /// The counts so far.
    pub(super) fn snapshot(&self) -> DiskStats {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        DiskStats {
            bytes_read: of(&self.bytes_read),
            bytes_written: of(&self.bytes_written),
            bytes_zeroed: of(&self.bytes_zeroed),
            requests: of(&self.requests),
            failed_requests: of(&self.failed_requests),
            cold_requests: of(&self.cold_requests),
        }
    }
}
