//! What a fault server did so far.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counts since the server started; every page is counted once, under its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeStats {
    /// Pages the guest waited for, missing or protected.
    pub faults: u64,
    /// Pages installed from a capture.
    pub pages_from_capture: u64,
    /// Pages installed from a layer.
    pub pages_from_layer: u64,
    /// Pages installed as zeroes.
    pub pages_zero: u64,
    /// Of all those, pages installed beside a faulting one.
    pub pages_neighbour: u64,
    /// Of all those, pages installed ahead by request.
    pub pages_prefetched: u64,
    /// Pages the guest gave back.
    pub pages_removed: u64,
    /// Faults that had to wait for a frame.
    pub misses: u64,
    /// Installs that were tried again.
    pub retries: u64,
    /// First writes to protected pages.
    pub write_protect_faults: u64,
    /// When the first fault was served.
    pub first_fault_at: Option<Instant>,
}

/// The cells the handler thread counts in. It is their only writer, so relaxed loads and stores lose nothing.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) faults: Counter,
    pub(super) pages_from_capture: Counter,
    pub(super) pages_from_layer: Counter,
    pub(super) pages_zero: Counter,
    pub(super) pages_neighbour: Counter,
    pub(super) pages_prefetched: Counter,
    pub(super) pages_removed: Counter,
    pub(super) misses: Counter,
    pub(super) retries: Counter,
    pub(super) write_protect_faults: Counter,
    pub(super) first_fault_at: OnceLock<Instant>,
}

/// A count with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u32) {
        self.0.store(self.get() + u64::from(count), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn snapshot(&self) -> ServeStats {
        ServeStats {
            faults: self.faults.get(),
            pages_from_capture: self.pages_from_capture.get(),
            pages_from_layer: self.pages_from_layer.get(),
            pages_zero: self.pages_zero.get(),
            pages_neighbour: self.pages_neighbour.get(),
            pages_prefetched: self.pages_prefetched.get(),
            pages_removed: self.pages_removed.get(),
            misses: self.misses.get(),
            retries: self.retries.get(),
            write_protect_faults: self.write_protect_faults.get(),
            first_fault_at: self.first_fault_at.get().copied(),
        }
    }
}
