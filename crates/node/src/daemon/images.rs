//! Snapshots that hold only the first images of a machine's disks: they go when no machine runs from them.

use rekindle_engine::identity::SnapshotId;
use uuid::Uuid;

use super::Daemon;
use super::about::About;
use super::machines::IMAGES_LABEL;
use super::record::RecordedLife;
use super::snapshots::Known;

/// The sandbox whose images a snapshot is, if it is nothing else.
pub(super) fn images_of(about: &About) -> Option<Uuid> {
    let About { labels, sandbox: None, spec: None, .. } = about else { return None };
    labels.get(IMAGES_LABEL).and_then(|id| id.parse().ok())
}

impl Daemon {
    /// Deletes the images of a sandbox whose guest does not run from them any more. Its snapshots keep what they need.
    pub(super) fn let_go_of_images(&self, sandbox: Uuid) {
        let Some(images) = self.snapshots.images_of(sandbox) else { return };
        let runs_from_them = self.sandboxes.get(sandbox).is_some_and(|entry| match entry.record().life {
            RecordedLife::Running(guest) => guest.base.map(SnapshotId::from) == Some(images.snapshot.id()),
            RecordedLife::Paused
            | RecordedLife::Forked
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
        self.snapshots.all_images().into_iter().for_each(|sandbox| self.let_go_of_images(sandbox));
    }

    fn delete_images(&self, images: &Known) {
        if let Err(error) = self.delete_known(images) {
            tracing::warn!(snapshot = %images.snapshot.id(), %error, "the images of a machine stay until the next start");
        }
    }
}
