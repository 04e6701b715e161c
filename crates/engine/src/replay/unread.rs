//! Snapshots without their bytes: their volumes are listed, and every read of them fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use rekindle_kernel::PageKind;

use super::obstacle::Obstacle;
use crate::identity::{DomainName, SnapshotId, VolumeName};
use crate::layer::Layer;
use crate::manifest::{Manifest, VolumeShape};
use crate::recorded::RecordedCaptured;
use crate::records::Records;
use crate::snapshot::{Lost, Snapshot, SnapshotParts, Volume};
use crate::view::{LiveView, View};

/// A snapshot whose record cannot be read: its memory is one lost page.
pub(super) fn unknown_parts_of(id: SnapshotId, domain: DomainName, records: &Records) -> SnapshotParts {
    let shape = VolumeShape { name: VolumeName::memory(), page_kind: PageKind::Small, pages: 1 };
    SnapshotParts {
        id,
        parent_id: None,
        domain,
        generation: 0,
        created_unix_ms: 0,
        volumes: vec![unread_volume(shape)],
        blobs: BTreeMap::new(),
        records: Some(records.clone()),
    }
}

/// A captured snapshot without its bytes.
pub(super) fn unread_parts_of(recorded: RecordedCaptured, records: &Records) -> SnapshotParts {
    let RecordedCaptured { id, domain, facts } = recorded;
    SnapshotParts {
        id,
        parent_id: facts.parent,
        domain,
        generation: facts.generation,
        created_unix_ms: facts.created_unix_ms,
        volumes: facts.volumes.into_iter().map(unread_volume).collect(),
        blobs: facts.blobs,
        records: Some(records.clone()),
    }
}

/// A sealed snapshot without its layers.
pub(super) fn unnamed_parts_of(manifest: &Manifest, domain: DomainName, records: &Records) -> SnapshotParts {
    let shapes = manifest.volumes().iter().map(|volume| VolumeShape {
        name: volume.name.clone(),
        page_kind: volume.page_kind,
        pages: volume.map.pages(),
    });
    SnapshotParts {
        id: manifest.snapshot(),
        parent_id: manifest.parent(),
        domain,
        generation: manifest.generation(),
        created_unix_ms: manifest.created_unix_ms(),
        volumes: shapes.map(unread_volume).collect(),
        blobs: manifest.blobs().clone(),
        records: Some(records.clone()),
    }
}

fn unread_volume(VolumeShape { name, page_kind, pages }: VolumeShape) -> Volume {
    Volume { name, page_kind, view: Arc::new(LiveView::new(View::lost(pages))) }
}

/// A snapshot without its bytes: its volumes are listed, and every read of them fails. It holds the layers that could
/// be opened.
pub(super) fn unread(parts: SnapshotParts, obstacle: Obstacle, layers: Vec<Arc<Layer>>) -> Snapshot {
    let snapshot = parts.id;
    let is_refuted = matches!(obstacle, Obstacle::Refuted(_));
    let (reason, is_undecided) = match obstacle {
        Obstacle::Lost(reason) | Obstacle::Refuted(reason) => {
            tracing::error!(%snapshot, %reason, "a snapshot is lost");
            (reason, false)
        }
        Obstacle::Unknown(reason) => {
            tracing::error!(%snapshot, %reason, "a snapshot cannot be read now; it is tried again");
            (reason, true)
        }
    };
    let needed_here = layers.iter().map(|layer| layer.need_here()).collect();
    let lost = Lost { reason, is_undecided, is_refuted, _layers: layers, _needed_here: needed_here };
    Snapshot::lost(parts, lost)
}
