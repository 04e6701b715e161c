//! Placement as the daemon without an engine tells it: half of each sealed snapshot is here.

use rekindle_api::types::{NodePlacement, PlacedSnapshot, ResumeHint, SandboxState, Snapshot, SnapshotState};
use uuid::Uuid;

use super::answers;
use super::kept::Kept;

impl Kept {
    /// The node, and these snapshots, or all.
    pub(super) fn node_placement(&self, snapshots: &[Uuid]) -> NodePlacement {
        let count = |count: usize| u64::try_from(count).expect("they are few");
        let running =
            self.sandboxes.values().filter(|sandbox| sandbox.state == SandboxState::Running).count();
        let here = self.snapshots.values().rev().filter(|of| of.state == SnapshotState::Published);
        let placed = match snapshots {
            [] => here.map(placed).collect(),
            asked => {
                asked.iter().map(|id| self.snapshots.get(id).map_or_else(|| unknown(*id), placed)).collect()
            }
        };
        NodePlacement {
            node: "node-1".to_owned(),
            address: None,
            open: !self.is_drained,
            running: count(running),
            snapshots: count(self.snapshots.len()),
            layer_bytes: 1 << 30,
            layer_bytes_max: Some(4 << 30),
            capture_bytes: 0,
            capture_bytes_max: 8 << 30,
            event: self.first_event + count(self.events.len()) - 1,
            placed,
        }
    }
}

fn placed(snapshot: &Snapshot) -> PlacedSnapshot {
    let layers = answers::layers(snapshot);
    PlacedSnapshot {
        snapshot: snapshot.id,
        state: Some(snapshot.state),
        resume: Some(if layers.is_empty() { ResumeHint::Local } else { ResumeHint::Warm }),
        bytes: Some(layers.iter().map(|layer| layer.bytes).sum()),
        local_bytes: layers.iter().map(|layer| layer.local_bytes).sum(),
    }
}

fn unknown(snapshot: Uuid) -> PlacedSnapshot {
    PlacedSnapshot { snapshot, state: None, resume: Some(ResumeHint::Remote), bytes: None, local_bytes: 0 }
}
