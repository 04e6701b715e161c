//! Makes a snapshot whose pages another node has.

use std::io;
use std::sync::Arc;

use crate::budget::Lease;
use crate::geometry::bytes_of_pages;
use crate::peer::Peer;
use crate::reaper::ReaperHandle;
use crate::remote_pages::{RemotePages, RemoteVolume};
use crate::snapshot::{Snapshot, SnapshotParts};
use crate::view::{LiveView, View};

/// A snapshot of these parts, whose volumes get new views: of pages that come from `peer`. The lease is of all of them.
pub(crate) fn remote_snapshot(
    mut parts: SnapshotParts,
    peer: Arc<dyn Peer>,
    mut lease: Lease,
    reaper: &ReaperHandle,
) -> io::Result<Snapshot> {
    for (position, volume) in (0..).zip(&mut parts.volumes) {
        let of = RemoteVolume { snapshot: parts.id, volume: position };
        let pages = volume.view.pages();
        let lease = lease.split_off(bytes_of_pages(pages));
        let pages = RemotePages::new(of, pages, Arc::clone(&peer), lease, reaper.clone())?;
        volume.view = Arc::new(LiveView::new(View::remote(Arc::new(pages))));
    }
    Ok(Snapshot::remote(parts, peer))
}
