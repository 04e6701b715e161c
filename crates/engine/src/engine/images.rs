//! The images by which guests of one snapshot share its memory.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rekindle_kernel::memfd::AdoptError;

use super::Engine;
use crate::image::Image;
use crate::snapshot::Snapshot;

impl Engine {
    /// The image of a snapshot's memory, for a guest that maps it privately: the one that others share, or a new one.
    pub fn image(&self, snapshot: &Snapshot) -> io::Result<Arc<Image>> {
        self.rules.images.of(snapshot.id(), snapshot.memory())
    }

    /// The image of a snapshot's memory in the file that a guest maps, which an earlier process served.
    pub fn adopt_image(&self, snapshot: &Snapshot, file: OwnedFd) -> Result<Arc<Image>, AdoptError> {
        self.rules.images.adopt(snapshot.id(), snapshot.memory(), file)
    }

    /// True if guests share an image of the snapshot.
    pub fn has_image(&self, snapshot: &Snapshot) -> bool {
        self.rules.images.has(snapshot.id())
    }

    /// Gives the RAM of all images back. Their guests go on: pages that they have not written come again when they are
    /// touched.
    pub fn give_images_back(&self) {
        self.rules.images.give_back();
    }

    /// Bytes of RAM that images hold now.
    pub fn image_bytes_held(&self) -> u64 {
        self.rules.images.bytes_held()
    }
}
