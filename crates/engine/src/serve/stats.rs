//! Counts of a fault server's work so far.

use std::sync::OnceLock;
use std::time::Instant;

use super::counter::Counter;
use super::latency::{Latencies, LatencyCounters};
use crate::view::ViewPhase;

/// Counts since the server started; each page is counted once, by its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServeStats {
    /// Pages the guest waited for, missing or protected.
    pub faults: u64,
    /// Pages installed from a capture.
    pub pages_from_capture: u64,
    /// Pages installed from a layer.
    pub pages_from_layer: u64,
    /// Pages installed from memory that another node's pages came into.
    pub pages_from_peer: u64,
    /// Pages installed as zeroes.
    pub pages_zero: u64,
    /// Pages mapped from the image that other guests of the snapshot share, which had them.
    pub pages_shared: u64,
    /// The pages from captures, by the phase of their snapshot's view.
    pub capture_by_phase: PagesByPhase,
    /// The pages from layers, by the phase of their snapshot's view.
    pub layer_by_phase: PagesByPhase,
    /// The pages of another node, by the phase of their snapshot's view.
    pub peer_by_phase: PagesByPhase,
    /// The zero pages, by the phase of their snapshot's view.
    pub zero_by_phase: PagesByPhase,
    /// Of all these, pages installed beside a faulting one.
    pub pages_neighbour: u64,
    /// Of all these, pages installed ahead by request.
    pub pages_prefetched: u64,
    /// Pages the guest gave back.
    pub pages_removed: u64,
    /// Faults that had to wait for a frame.
    pub misses: u64,
    /// Installs that were tried again.
    pub retries: u64,
    /// First writes to protected pages.
    pub write_protect_faults: u64,
    /// Times of faults that could be answered at once: one in sixteen of them.
    pub at_once: Latencies,
    /// Times of faults that had to wait for a frame: all of them.
    pub after_fetch: Latencies,
    /// Time of the first served fault.
    pub first_fault_at: Option<Instant>,
}

/// Counts of pages by the phase of the view that they were served from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesByPhase {
    /// Captured over its parent.
    pub captured: u64,
    /// Packed over its parent.
    pub packed: u64,
    /// Not named yet: another node has it.
    pub remote: u64,
    /// Sealed: a map over layers.
    pub flat: u64,
}

impl PagesByPhase {
    /// The sum of all phases.
    pub fn sum(self) -> u64 {
        self.captured + self.packed + self.remote + self.flat
    }

    fn add(&mut self, other: Self) {
        self.captured += other.captured;
        self.packed += other.packed;
        self.remote += other.remote;
        self.flat += other.flat;
    }
}

impl ServeStats {
    /// Adds the counts of another server; the earlier first fault stays.
    pub fn add(&mut self, other: &Self) {
        self.faults += other.faults;
        self.pages_from_capture += other.pages_from_capture;
        self.pages_from_layer += other.pages_from_layer;
        self.pages_from_peer += other.pages_from_peer;
        self.pages_zero += other.pages_zero;
        self.pages_shared += other.pages_shared;
        self.capture_by_phase.add(other.capture_by_phase);
        self.layer_by_phase.add(other.layer_by_phase);
        self.peer_by_phase.add(other.peer_by_phase);
        self.zero_by_phase.add(other.zero_by_phase);
        self.pages_neighbour += other.pages_neighbour;
        self.pages_prefetched += other.pages_prefetched;
        self.pages_removed += other.pages_removed;
        self.misses += other.misses;
        self.retries += other.retries;
        self.write_protect_faults += other.write_protect_faults;
        self.at_once.add(&other.at_once);
        self.after_fetch.add(&other.after_fetch);
        self.first_fault_at = self.first_fault_at.into_iter().chain(other.first_fault_at).min();
    }
}

/// The cells the handler thread counts in. It is their only writer, so relaxed loads and stores lose nothing.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) faults: Counter,
    pub(super) capture: PhaseCounters,
    pub(super) layer: PhaseCounters,
    pub(super) remote: PhaseCounters,
    pub(super) zero: PhaseCounters,
    pub(super) pages_shared: Counter,
    pub(super) pages_neighbour: Counter,
    pub(super) pages_prefetched: Counter,
    pub(super) pages_removed: Counter,
    pub(super) misses: Counter,
    pub(super) retries: Counter,
    pub(super) write_protect_faults: Counter,
    pub(super) at_once: LatencyCounters,
    pub(super) after_fetch: LatencyCounters,
    pub(super) first_fault_at: OnceLock<Instant>,
}

/// Cells that count pages by the phase of a view.
#[derive(Debug, Default)]
pub(super) struct PhaseCounters {
    captured: Counter,
    packed: Counter,
    remote: Counter,
    flat: Counter,
}

impl PhaseCounters {
    pub(super) fn add(&self, phase: ViewPhase, pages: u32) {
        match phase {
            ViewPhase::Captured => self.captured.add(pages),
            ViewPhase::Packed => self.packed.add(pages),
            ViewPhase::Remote => self.remote.add(pages),
            ViewPhase::Flat => self.flat.add(pages),
        }
    }

    fn snapshot(&self) -> PagesByPhase {
        PagesByPhase {
            captured: self.captured.get(),
            packed: self.packed.get(),
            remote: self.remote.get(),
            flat: self.flat.get(),
        }
    }
}

impl Counters {
    pub(super) fn snapshot(&self) -> ServeStats {
        let (capture, layer) = (self.capture.snapshot(), self.layer.snapshot());
        let (peer, zero) = (self.remote.snapshot(), self.zero.snapshot());
        ServeStats {
            faults: self.faults.get(),
            pages_from_capture: capture.sum(),
            pages_from_layer: layer.sum(),
            pages_from_peer: peer.sum(),
            pages_zero: zero.sum(),
            pages_shared: self.pages_shared.get(),
            capture_by_phase: capture,
            layer_by_phase: layer,
            peer_by_phase: peer,
            zero_by_phase: zero,
            pages_neighbour: self.pages_neighbour.get(),
            pages_prefetched: self.pages_prefetched.get(),
            pages_removed: self.pages_removed.get(),
            misses: self.misses.get(),
            retries: self.retries.get(),
            write_protect_faults: self.write_protect_faults.get(),
            at_once: self.at_once.snapshot(),
            after_fetch: self.after_fetch.snapshot(),
            first_fault_at: self.first_fault_at.get().copied(),
        }
    }
}
