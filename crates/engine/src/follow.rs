//! Follows a snapshot that another node has: brings its pages, and finds its names once that node has published it.

use std::sync::Arc;

use futures_util::future::{Either, select};
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use rekindle_kernel::PAGE_BYTES;

use crate::cache::Cache;
use crate::catalog::CatalogError;
use crate::fetch::{FetchError, Fetcher};
use crate::geometry::{GuestPages, usize_of};
use crate::limits;
use crate::open::{Found, OpenError, find};
use crate::peer::PeerError;
use crate::read_plan::ReadPlan;
use crate::remote_pages::{NamedPages, RemotePages};
use crate::snapshot::Snapshot;
use crate::sources::SourceError;
use crate::view::LiveView;

/// The means to follow snapshots.
#[derive(Debug)]
pub(crate) struct Follower {
    /// Fetches in the background.
    pub(crate) fetcher: Fetcher,
    pub(crate) cache: Arc<Cache>,
}

/// Reason that a snapshot has no names yet; nothing is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error("{source}; {missing_bytes} bytes of the snapshot are not here")]
    Peer { source: PeerError, missing_bytes: u64 },
    #[error(transparent)]
    Pages(#[from] FetchError),
    #[error(transparent)]
    Names(#[from] OpenError),
    #[error("checking the pages that came from node {node}: {reason}")]
    Check { node: String, reason: String },
    #[error(
        "node {node} says that the snapshot is in the store, and the store of this node does not have it: both need the \
             same setting store"
    )]
    NotInStore { node: String },
    #[error("recording: {0}")]
    Catalog(#[from] CatalogError),
}

/// Result of comparing the pages that came without names with the named ones.
#[derive(Debug)]
pub(crate) enum Checked {
    /// They are the same; from here on all pages are read by name.
    Same,
    /// Some differ, with the words for that.
    Differs(String),
}

/// Advice for a snapshot that is refuted.
const AFTERWARDS: &str = "sandboxes that run from it here may have used that: stop them, forget the snapshot here and resume it \
                          anew, and look into that node";

/// The pages of a view, all of which have names.
struct ByName {
    view: Arc<LiveView>,
    fetcher: Fetcher,
}

impl Follower {
    /// Brings every page, and waits until the snapshot can be found in the store; an error if its node fails before.
    pub(crate) async fn names_of(&self, snapshot: &Arc<Snapshot>) -> Result<Found, FollowError> {
        let failed = {
            let all = std::pin::pin!(self.bring_all(snapshot.remote_pages()));
            let names = std::pin::pin!(self.wait_for_names(snapshot));
            match select(all, names).await {
                Either::Left((Ok(()), names)) => return names.await,
                Either::Left((Err(error), _)) => error,
                Either::Right((found, _)) => return found,
            }
        };
        // Both are dropped by now: the second may have held the turn to open the store.
        self.find(snapshot).await.ok().flatten().ok_or(failed)
    }

    async fn bring_all(&self, volumes: Vec<Arc<RemotePages>>) -> Result<(), FollowError> {
        let frames = volumes.into_iter().flat_map(|pages| {
            let frames = pages.frames();
            frames.map(move |frame| (Arc::clone(&pages), frame))
        });
        let bring = async |(pages, frame)| self.fetcher.bring_remote(&pages, frame).await;
        iter(frames.map(bring)).buffer_unordered(limits::REMOTE_FRAMES_AT_ONCE).try_collect::<()>().await?;
        Ok(())
    }

    async fn wait_for_names(&self, snapshot: &Snapshot) -> Result<Found, FollowError> {
        loop {
            let peer = snapshot.peer().expect("only this gives it names");
            let said = peer.published(snapshot.id()).await;
            if said == Ok(false) {
                // A node that does not wait before it says so is not asked without a pause.
                tokio::time::sleep(limits::REMOTE_ASK_AGAIN_AFTER).await;
                continue;
            }
            match (self.find(snapshot).await, said) {
                (Ok(Some(found)), _) => return Ok(found),
                (_, Err(source)) => {
                    let missing = snapshot.remote_pages().iter().map(|pages| pages.missing_bytes()).sum();
                    return Err(FollowError::Peer { source, missing_bytes: missing });
                }
                (Err(error), Ok(_)) => return Err(error.into()),
                // Another store, or one that lags: it is looked for again after a while.
                (Ok(None), Ok(_)) => return Err(FollowError::NotInStore { node: peer.node().to_owned() }),
            }
        }
    }

    /// The snapshot, if its manifest is in the store.
    async fn find(&self, snapshot: &Snapshot) -> Result<Option<Found>, OpenError> {
        match find(snapshot.id(), self.fetcher.sources(), &self.cache, snapshot.records()).await {
            Ok(found) => {
                // Its node has all of it.
                if let Some(named) = found.snapshot.named_now() {
                    let look = self.fetcher.sources().look_at_peers(named.layers(), snapshot.peer());
                    drop(tokio::spawn(look));
                }
                Ok(Some(found))
            }
            Err(OpenError::Store { source: SourceError::Gone(_), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Compares what came without names, until nothing more has come, and lets all later reads go by name.
    pub(crate) async fn check(&self, snapshot: &Snapshot, found: &Found) -> Result<Checked, FollowError> {
        let node = snapshot.peer().map(|peer| peer.node().to_owned()).unwrap_or_default();
        if let Some(part) = difference(snapshot, &found.snapshot) {
            return Ok(Checked::Differs(format!(
                "node {node} described it with another {part} than its manifest has; {AFTERWARDS}"
            )));
        }
        for (volume, named) in snapshot.volumes().iter().zip(found.snapshot.volumes()) {
            let Some(pages) = volume.view.load().remote_pages().cloned() else { continue };
            let by_name = ByName { view: Arc::clone(&named.view), fetcher: self.fetcher.clone() };
            let compared = tokio::task::spawn_blocking(move || compare(&pages, &Arc::new(by_name)));
            let cut_short = |_| Err("the node ends".to_owned());
            let differs = compared.await.unwrap_or_else(cut_short);
            let failed = |reason| FollowError::Check { node: node.clone(), reason };
            if let Some(wrong) = differs.map_err(failed)? {
                return Ok(Checked::Differs(format!(
                    "node {node} sent other bytes for guest page {} of volume {} than the snapshot has; {AFTERWARDS}",
                    wrong.start(),
                    volume.name
                )));
            }
        }
        Ok(Checked::Same)
    }
}

/// The part of a description that is not that of the manifest.
fn difference(described: &Snapshot, named: &Snapshot) -> Option<&'static str> {
    let (facts, of_names) = (described.facts(), named.facts());
    let parts = [
        ("domain", described.domain() == named.domain()),
        ("parent", facts.parent == of_names.parent),
        ("generation", facts.generation == of_names.generation),
        ("time of pause", facts.created_unix_ms == of_names.created_unix_ms),
        ("shape of volumes", facts.volumes == of_names.volumes),
        ("device state", facts.blobs == of_names.blobs),
    ];
    parts.into_iter().find_map(|(part, is_same)| (!is_same).then_some(part))
}

/// Compares the frames that came with the named ones, until all are compared; the pages of the first that differs.
pub(crate) fn compare<Named: NamedPages + 'static>(
    pages: &RemotePages,
    named: &Arc<Named>,
) -> Result<Option<GuestPages>, String> {
    let (mut checked, mut bytes) = (0, Vec::new());
    loop {
        for frame in pages.arrived_after(checked) {
            let run = pages.pages_of(frame);
            bytes.resize(usize_of(run.count()) * PAGE_BYTES, 0);
            named.read(run, &mut bytes)?;
            if let Some(page) = run.iter().zip(bytes.chunks_exact(PAGE_BYTES)).find_map(|(page, bytes)| {
                let same = pages.mapping().equals_slice(page.offset(), bytes);
                (!same.unwrap_or(false)).then_some(page)
            }) {
                return Ok(Some(GuestPages::new(page, 1)));
            }
            checked += 1;
        }
        let by_name: Arc<dyn NamedPages> = Arc::<Named>::clone(named);
        if pages.settle(checked, by_name) {
            return Ok(None);
        }
    }
}

impl NamedPages for ByName {
    fn read(&self, pages: GuestPages, into: &mut [u8]) -> Result<(), String> {
        ReadPlan::new(&self.view, pages).read(&self.fetcher, into).map_err(|error| error.to_string())
    }
}
