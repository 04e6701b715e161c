//! A guest of several volumes: its memory and its disks are paused together.

use std::collections::BTreeMap;
use std::sync::Arc;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::run_roots::RunsFrom;
use rekindle_engine::snapshot::Snapshot;

use crate::guest::{EndingVmm, Guest, Tracking};
use crate::model::ModelMemory;

/// A running guest, with its mark at the engine if it runs from a snapshot.
#[derive(Debug)]
pub(super) struct Machine(Vec<Guest>, Option<RunsFrom>);

/// A paused machine.
pub(super) struct PausedMachine {
    pub(super) snapshot: Arc<Snapshot>,
    /// Expected content of every page of each volume.
    pub(super) contents: Vec<ModelMemory>,
    pub(super) vmms: Vec<EndingVmm>,
}

impl Machine {
    /// A machine with volumes of these sizes in pages, all zero.
    pub(super) fn fresh(shape: &[u32]) -> Self {
        Self(shape.iter().map(|pages| Guest::fresh(*pages)).collect(), None)
    }

    /// A machine resumed from `snapshot`, whose volumes have the expected content `contents`.
    pub(super) fn resume(engine: &Engine, snapshot: &Arc<Snapshot>, contents: &[ModelMemory]) -> Self {
        let volume = |(position, content): (usize, &ModelMemory)| {
            Guest::resume_volume(snapshot, position, content.clone())
        };
        Self(contents.iter().enumerate().map(volume).collect(), Some(engine.runs_from(snapshot)))
    }

    pub(super) fn volume(&mut self, position: usize) -> &mut Guest {
        &mut self.0[position]
    }

    /// Continues with another handle of its snapshot.
    pub(super) fn stand_on(&mut self, engine: &Engine, snapshot: &Arc<Snapshot>) {
        self.0.iter_mut().for_each(|volume| volume.stand_on(snapshot));
        self.1 = Some(engine.runs_from(snapshot));
    }

    /// Drops the handles of its parent, as the end of the node's process does; returns the snapshot's id.
    pub(super) fn let_go_of_parent(&mut self) -> Option<SnapshotId> {
        self.1 = None;
        self.0.iter_mut().filter_map(Guest::let_go_of_parent).last()
    }

    /// Pauses it; on failure returns the unchanged machine, with the reason.
    pub(super) fn pause(self, engine: &Engine, tracking: Tracking) -> Result<PausedMachine, (Self, String)> {
        let parent = self.0.first().and_then(Guest::parent).cloned();
        let volumes = self
            .0
            .iter()
            .enumerate()
            .map(|(position, volume)| volume.paused_volume(volume_name(position), tracking));
        match commit(engine, parent.as_ref(), volumes.collect()) {
            Ok(snapshot) => {
                let (contents, vmms) = self.0.into_iter().map(Guest::into_ending).unzip();
                Ok(PausedMachine { snapshot, contents, vmms })
            }
            Err(why) => Err((self, why)),
        }
    }

    /// Takes a snapshot of it, from which it goes on; on failure it is unchanged.
    pub(super) fn checkpoint(
        &mut self,
        engine: &Engine,
        tracking: Tracking,
    ) -> Result<(Arc<Snapshot>, Vec<ModelMemory>), String> {
        let parent = self.0.first().and_then(Guest::parent).cloned();
        let copied =
            |(position, volume): (usize, &Guest)| volume.copied_volume(volume_name(position), tracking);
        let volumes = self.0.iter().enumerate().map(copied).collect();
        let snapshot = commit(engine, parent.as_ref(), volumes)?;
        for (position, volume) in self.0.iter_mut().enumerate() {
            volume.go_on_from(&snapshot, position);
        }
        self.1 = Some(engine.runs_from(&snapshot));
        Ok((snapshot, self.0.iter().map(|volume| volume.expected().clone()).collect()))
    }
}

/// The name of the volume at a position.
pub(super) fn volume_name(position: usize) -> VolumeName {
    match position {
        0 => VolumeName::memory(),
        disk => format!("disk-{disk}").parse().expect("a legal name"),
    }
}

/// Makes a snapshot of volumes, if the engine permits it now.
pub(super) fn commit(
    engine: &Engine,
    parent: Option<&Arc<Snapshot>>,
    volumes: Vec<PausedVolume>,
) -> Result<Arc<Snapshot>, String> {
    let pages: u32 = volumes.iter().map(|volume| volume.pages.kept.pages()).sum();
    let permit = engine.permit_pause(parent, bytes_of_pages(pages)).map_err(|error| error.to_string())?;
    let (id, blobs) = (SnapshotId::new(), BTreeMap::new());
    let guest = PausedGuest { id, volumes, blobs, alongside: Vec::new() };
    engine.commit_pause(permit, guest).map_err(|error| error.to_string())
}
