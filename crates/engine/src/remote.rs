//! Makes a snapshot whose pages another node has.

use std::io;
use std::sync::Arc;

use crate::budget::Lease;
use crate::geometry::bytes_of_pages;
use crate::keep::{KeptError, KeptVolume};
use crate::peer::Peer;
use crate::reaper::ReaperHandle;
use crate::remote_pages::{Memory, RemotePages, RemoteVolume};
use crate::snapshot::{Snapshot, SnapshotParts};
use crate::view::{LiveView, View};

/// A snapshot of these parts, whose volumes get new views: of pages that come from `peer`, into new memory or into that
/// which a keeper had. The lease is of all of them.
pub(crate) fn remote_snapshot(
    mut parts: SnapshotParts,
    peer: Arc<dyn Peer>,
    mut kept: Option<Vec<KeptVolume>>,
    mut lease: Lease,
    reaper: &ReaperHandle,
) -> Result<Snapshot, KeptError> {
    for (position, volume) in (0..).zip(&mut parts.volumes) {
        let of = RemoteVolume { snapshot: parts.id, volume: position };
        let pages = volume.view.pages();
        let lease = lease.split_off(bytes_of_pages(pages));
        let memory = match &mut kept {
            Some(kept) => {
                let at = kept.iter().position(|kept| kept.name == volume.name);
                let missing =
                    || io::Error::new(io::ErrorKind::NotFound, format!("volume {} is missing", volume.name));
                Memory::of_kept(kept.swap_remove(at.ok_or_else(missing)?), pages, lease)?
            }
            None => Memory::new(pages, lease)?,
        };
        let pages = RemotePages::new(of, pages, Arc::clone(&peer), memory, reaper.clone())?;
        volume.view = Arc::new(LiveView::new(View::remote(Arc::new(pages))));
    }
    Ok(Snapshot::remote(parts, peer))
}
