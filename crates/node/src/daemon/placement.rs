//! Placement data for schedulers, from what is in memory: neither the store nor the disk is asked.

use std::sync::Arc;

use rekindle_api::limits;
use rekindle_api::types::{
    NodePlacement, PlacedSnapshot, PlacementQuery, ResumeHint, SandboxState, SnapshotState,
};
use rekindle_engine::snapshot::BytesHere;
use uuid::Uuid;

use super::events::EventLog;
use super::guest_owners::GuestOwners;
use super::known::{Known, can_be_gone_on_from};
use super::origins::node_name;
use super::references::Named as _;
use super::snapshots::Snapshots;

/// The content of this node, as schedulers ask for it.
#[derive(Debug)]
pub(super) struct Placements {
    snapshots: Arc<Snapshots>,
    guests: Arc<GuestOwners>,
    events: Arc<EventLog>,
    layer_bytes_max: Option<u64>,
}

impl Placements {
    pub(super) fn new(
        snapshots: Arc<Snapshots>,
        guests: Arc<GuestOwners>,
        events: Arc<EventLog>,
        layer_bytes_max: Option<u64>,
    ) -> Self {
        Self { snapshots, guests, events, layer_bytes_max }
    }

    /// The node, with the snapshots that are asked about, or the newest ones of the store that it has bytes of.
    pub(super) fn of_node(&self, query: &PlacementQuery) -> NodePlacement {
        // Before all that it may be compared with.
        let event = self.events.last();
        let asked = query.snapshots.iter().map(|id| self.of_snapshot(*id));
        let placed = if query.snapshots.is_empty() { self.newest_here() } else { asked.collect() };
        let host = self.guests.host();
        let sandboxes = self.guests.sandboxes.registry.all();
        let running = sandboxes.iter().filter(|entry| entry.show().state == SandboxState::Running).count();
        NodePlacement {
            node: node_name(),
            address: host.origin.as_ref().map(|here| here.address.clone()),
            open: !self.guests.sandboxes.room.is_closed(),
            running: number(running),
            snapshots: number(self.snapshots.listed().count()),
            layer_bytes: host.engine.layer_bytes_here(),
            layer_bytes_max: self.layer_bytes_max,
            capture_bytes: host.engine.capture_bytes_held(),
            capture_bytes_max: host.settings().capture_bytes_max,
            event,
            placed,
        }
    }

    /// The last event and the bytes of layers: unless one of them changes, no hint does but that on a remote snapshot.
    pub(super) fn moment(&self) -> (u64, u64) {
        (self.events.last(), self.guests.host().engine.layer_bytes_here())
    }

    /// Each snapshot of this node, with its place.
    pub(super) fn all(&self) -> Vec<(Known, PlacedSnapshot)> {
        let with_place = |known: Known| {
            let placed = placed(&known);
            (known, placed)
        };
        self.snapshots.all().into_iter().map(with_place).collect()
    }

    fn of_snapshot(&self, id: Uuid) -> PlacedSnapshot {
        self.snapshots.listed().get(id).as_ref().map_or_else(|| unknown(id), placed)
    }

    /// The newest snapshots of the store that this node has bytes of, the newest first. Those that are not in the store are
    /// answered about when they are asked for, and not named to others.
    fn newest_here(&self) -> Vec<PlacedSnapshot> {
        let published = |placed: &PlacedSnapshot| placed.state == Some(SnapshotState::Published);
        let is_here = |placed: &PlacedSnapshot| placed.resume.is_some_and(|hint| hint != ResumeHint::Remote);
        let newest = self.snapshots.all().into_iter().rev().map(|known| placed(&known));
        newest
            .filter(|placed| published(placed) && is_here(placed))
            .take(limits::SNAPSHOTS_HERE_MAX)
            .collect()
    }
}

/// A snapshot as this node has it.
fn placed(known: &Known) -> PlacedSnapshot {
    let (state, here) = (known.state(), known.snapshot.bytes_here());
    let BytesHere { bytes, local_bytes } = here.unwrap_or_default();
    let is_in_ram = matches!(state, SnapshotState::Captured | SnapshotState::Sealed);
    let resume = (here.is_some() && can_be_gone_on_from(known)).then_some(match local_bytes {
        local_bytes if local_bytes >= bytes => ResumeHint::Local,
        0 if !is_in_ram => ResumeHint::Remote,
        _ => ResumeHint::Warm,
    });
    PlacedSnapshot {
        snapshot: known.id(),
        state: Some(state),
        resume,
        bytes: here.map(|here| here.bytes),
        local_bytes,
    }
}

/// A snapshot that this node does not know.
fn unknown(snapshot: Uuid) -> PlacedSnapshot {
    PlacedSnapshot { snapshot, state: None, resume: Some(ResumeHint::Remote), bytes: None, local_bytes: 0 }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).expect("they are in memory")
}
