//! Snapshots that hold only the first images of a machine's disks: they go when no machine runs from them.

use rekindle_engine::identity::SnapshotId;
use uuid::Uuid;

use super::known::Known;
use super::record::RecordedLife;
use super::sandboxes::Sandboxes;

impl Sandboxes {
    /// Deletes the images of a sandbox whose guest does not run from them any more. Its snapshots keep what they need.
    pub(super) fn let_go_of_images(&self, sandbox: Uuid) {
        let Some(images) = self.snapshots.listed().images_of(sandbox) else { return };
        let runs_from_them = self.registry.get(sandbox).is_some_and(|entry| match entry.record().life {
            RecordedLife::Running(guest) => guest.base.map(SnapshotId::from) == Some(images.snapshot.id()),
            RecordedLife::Paused
            | RecordedLife::Forked
            | RecordedLife::Drained { .. }
            | RecordedLife::Stopped { .. }
            | RecordedLife::Lost { .. } => false,
            // It cannot be said yet if its guest runs from them.
            RecordedLife::Undecided { .. } => true,
        });
        if !runs_from_them {
            self.delete_images(&images);
        }
    }

    /// The same for all sandboxes that were before the start.
    pub(super) fn let_go_of_all_images(&self) {
        self.snapshots.listed().all_images().into_iter().for_each(|sandbox| self.let_go_of_images(sandbox));
    }

    fn delete_images(&self, images: &Known) {
        if let Err(error) = self.delete_known(images) {
            tracing::warn!(snapshot = %images.snapshot.id(), %error, "the images of a machine stay until the next start");
        }
    }
}
