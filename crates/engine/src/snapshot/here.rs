//! How much of a snapshot is on this node, from counts in memory alone.

use std::sync::Arc;

use super::Snapshot;
use super::progress::{Captured, Standing};
use crate::geometry::bytes_of_pages;
use crate::named::Named;
use crate::sync::lock;

/// Bytes that a resume of a snapshot may read, and those of them that are on this node. Captured pages are in RAM, and count
/// in neither.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BytesHere {
    /// Bytes of the layers' pages, or of the volumes if another node has the pages.
    pub bytes: u64,
    /// Those on this node.
    pub local_bytes: u64,
}

/// The next place where a snapshot's pages are.
enum Beneath {
    Layers(Named),
    OtherNode,
    Ancestor(Option<Arc<Snapshot>>),
    Nothing,
}

impl Snapshot {
    /// The bytes of its layers and those of them that are here: before it has a manifest, of the layers of its nearest
    /// ancestor that has one. None if its pages are lost. Never waits, neither for a seal nor for the disk.
    pub fn bytes_here(&self) -> Option<BytesHere> {
        let mut ancestor: Option<Arc<Self>> = None;
        loop {
            let this = ancestor.as_deref().unwrap_or(self);
            match this.beneath() {
                Beneath::Layers(named) => return Some(of_layers(&named)),
                Beneath::OtherNode => return Some(this.bytes_came()),
                Beneath::Ancestor(None) => return Some(BytesHere::default()),
                Beneath::Nothing => return None,
                Beneath::Ancestor(next) => ancestor = next,
            }
        }
    }

    fn beneath(&self) -> Beneath {
        match &lock(&self.progress).standing {
            Standing::Captured(Captured { parent, .. }) => Beneath::Ancestor(parent.clone()),
            Standing::Named { named, .. } => Beneath::Layers(named.clone()),
            Standing::Remote(_) => Beneath::OtherNode,
            Standing::Lost(_) => Beneath::Nothing,
        }
    }

    /// The bytes of its volumes, and those that have come from the other node.
    fn bytes_came(&self) -> BytesHere {
        let bytes = self.volumes.iter().map(|volume| bytes_of_pages(volume.view.pages())).sum();
        let missing: u64 = self.remote_pages().iter().map(|pages| pages.missing_bytes()).sum();
        BytesHere { bytes, local_bytes: bytes.saturating_sub(missing) }
    }
}

fn of_layers(named: &Named) -> BytesHere {
    named.layers().iter().fold(BytesHere::default(), |sum, layer| BytesHere {
        bytes: sum.bytes + bytes_of_pages(layer.pages()),
        local_bytes: sum.local_bytes + layer.local_page_bytes(),
    })
}
