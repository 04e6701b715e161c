//! Frames from another node that has them, with the store beside it when it is late, and after it when it fails.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::{StreamExt as _, iter};
use tokio::time::timeout;

use super::{Attempts, FetchError, blocking};
use crate::frame::FrameNumber;
use crate::geometry::u64_of;
use crate::limits;
use crate::local_file::{LayerError, LocalFile};
use crate::peer_sources::PeerSource;
use crate::urgency::Urgency;

/// Result of one source: the frame is there, or the error if that source told one.
type Tried = Result<(), Option<FetchError>>;

impl Attempts {
    /// Brings a frame from the store, or from a node that has it: the faster one is asked first, the other one when it fails or
    /// is late.
    pub(super) async fn frame_of_either(
        &self,
        file: &Arc<LocalFile>,
        frame: FrameNumber,
        urgency: &Arc<Urgency>,
        of_store: impl Future<Output = Result<(), FetchError>>,
    ) -> Result<(), FetchError> {
        let Some(peer) = self.sources.peers().best_for(file.layer()) else { return of_store.await };
        let of_peer = async {
            let came = self.frame_of_peer(&peer, file, frame, urgency).await;
            came.then_some(()).ok_or(None)
        };
        let of_store = async { of_store.await.map_err(Some) };
        let tried = if self.sources.is_before_store(&peer) {
            let late = || self.sources.peers().note_late(&peer);
            first_or_both(of_peer, of_store, peer.patience(), late).await
        } else {
            first_or_both(of_store, of_peer, self.sources.patience_with_store(), || {}).await
        };
        tried.map_err(|error| error.expect("the store was asked, and told its error"))
    }

    /// True if the frame came and is right.
    async fn frame_of_peer(
        &self,
        peer: &PeerSource,
        file: &Arc<LocalFile>,
        frame: FrameNumber,
        urgency: &Urgency,
    ) -> bool {
        let wanted = frame.index()..frame.index() + 1;
        match self.sources.frames_of_peer(peer, (file.layer(), wanted), urgency).await {
            Ok(came) => self.take_in(peer, file, frame, &came.bodies, |_| {}).await == 1,
            Err(_) => false,
        }
    }

    /// Brings frames that lie one after the other from a node that is faster than the store; those that are left for the store.
    pub(super) async fn run_of_peer(
        &self,
        file: &Arc<LocalFile>,
        frames: Range<usize>,
        urgency: &Arc<Urgency>,
        came: &Arc<impl Fn(FrameNumber) + Send + Sync + 'static>,
    ) -> Range<usize> {
        let layer = file.layer();
        let peer = self.sources.peers().best_for(layer).filter(|peer| self.sources.is_before_store(peer));
        let Some(peer) = peer else { return frames };
        let pieces = frames.clone().step_by(limits::PEER_FRAMES_MAX);
        let reads = pieces.map(|start| {
            let piece = start..frames.end.min(start + limits::PEER_FRAMES_MAX);
            let read = self.sources.frames_of_peer(&peer, (layer, piece.clone()), urgency);
            async move { (piece, timeout(limits::PEER_MESSAGE_WITHIN, read).await) }
        });
        let mut reads = pin!(iter(reads).buffered(limits::PEER_MESSAGES_AT_ONCE));
        let mut left = frames.clone();
        while let Some((piece, read)) = reads.next().await {
            let arrived = match read {
                Ok(Ok(arrived)) => arrived,
                Ok(Err(_)) => break,
                Err(_elapsed) => {
                    self.sources.peers().note_late(&peer);
                    break;
                }
            };
            let first = FrameNumber::new(piece.start);
            let came = Arc::clone(came);
            let right = self.take_in(&peer, file, first, &arrived.bodies, move |frame| came(frame)).await;
            left.start = piece.start + right;
            if left.start < piece.end {
                break;
            }
        }
        left
    }

    /// Takes frames from `first` on into a local file, up to the first that is not right; their number.
    async fn take_in(
        &self,
        peer: &PeerSource,
        file: &Arc<LocalFile>,
        first: FrameNumber,
        bodies: &[Bytes],
        came: impl Fn(FrameNumber) + Send + 'static,
    ) -> usize {
        let (into, bodies) = (Arc::clone(file), bodies.to_vec());
        let peers = Arc::clone(self.sources.peers());
        let taken = blocking(file.layer().id(), move || {
            let mut right = 0;
            for body in bodies {
                let frame = FrameNumber::new(first.index() + right);
                match into.accept_frame(frame, &body) {
                    Ok(()) => {
                        peers.note_right(u64_of(body.len()));
                        came(frame);
                        right += 1;
                    }
                    Err(LayerError::Digest { .. }) => return Ok((right, true)),
                    // The store's frame meets the same disk, and tells it.
                    Err(LayerError::Io { .. }) => return Ok((right, false)),
                }
            }
            Ok((right, false))
        });
        let (right, is_wrong) = taken.await.unwrap_or((0, false));
        if is_wrong {
            self.sources.peers().note_wrong(peer, file.layer());
        }
        right
    }
}

/// Asks one source, and a second one when the first fails, or beside it when it is late; the first success counts.
async fn first_or_both(
    first: impl Future<Output = Tried>,
    second: impl Future<Output = Tried>,
    patience: Duration,
    late: impl FnOnce(),
) -> Tried {
    let (mut first, second) = (pin!(first), pin!(second));
    match timeout(patience, first.as_mut()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => return second.await.map_err(|later| later.or(error)),
        Err(_elapsed) => late(),
    }
    match select(first, second).await {
        Either::Left((Ok(()), _)) | Either::Right((Ok(()), _)) => Ok(()),
        Either::Left((Err(error), second)) => second.await.map_err(|later| later.or(error)),
        Either::Right((Err(error), first)) => first.await.map_err(|later| later.or(error)),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn ended<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime on this thread").block_on(work)
    }

    fn failed() -> Tried {
        let layer = crate::identity::LayerId::from_bytes([7; 32]);
        Err(Some(FetchError::OnlyCopy { layer, frame: FrameNumber::new(3) }))
    }

    #[test]
    fn a_second_source_is_asked_when_the_first_fails_or_is_late_and_an_error_of_both_is_that_of_the_store() {
        let at_once = Duration::ZERO;
        let done = ended(first_or_both(ready(Ok(())), pending(), Duration::MAX / 4, || unreachable!()));
        assert!(done.is_ok());
        assert!(ended(first_or_both(ready(failed()), ready(Ok(())), Duration::MAX / 4, || {})).is_ok());
        let mut told = false;
        assert!(ended(first_or_both(pending(), ready(Ok(())), at_once, || told = true)).is_ok());
        assert!(told, "it was late");
        let (of_peer, of_store) = (ready(Err(None)), ready(failed()));
        let both = ended(first_or_both(of_peer, of_store, Duration::MAX / 4, || {}));
        assert!(matches!(both, Err(Some(FetchError::OnlyCopy { .. }))), "{both:?}");
        let (of_store, of_peer) = (ready(failed()), ready(Err(None)));
        let both = ended(first_or_both(of_store, of_peer, Duration::MAX / 4, || {}));
        assert!(matches!(both, Err(Some(FetchError::OnlyCopy { .. }))), "{both:?}");
    }
}
