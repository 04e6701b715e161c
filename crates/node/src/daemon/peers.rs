//! Serves this node's snapshots to other nodes, on threads of its own.

use std::io;
use std::sync::Arc;

use anyhow::Context as _;
use rekindle_engine::engine::Engine;
use rekindle_peer::{HasEngine, KnownNodes, Listener, PeerClients, Taken, Taking, TlsFiles, serve};
use rekindle_settings::{PeerSettings, Settings};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::guest_owners::GuestOwners;

/// The listener for other nodes.
#[derive(Debug)]
pub(super) struct PeerListener {
    runtime: Runtime,
    end: oneshot::Sender<()>,
    serving: JoinHandle<io::Result<()>>,
}

impl HasEngine for GuestOwners {
    fn engine(&self) -> &Engine {
        &self.host().engine
    }

    fn take(&self, taking: &Taking) -> Result<Taken, String> {
        self.sandboxes.take(taking)
    }
}

/// The nodes that this one asks, if it asks any.
pub(super) fn peers_of(settings: &Settings) -> Option<Arc<PeerClients>> {
    let PeerSettings { files, named, found, .. } = settings.peers.clone();
    let nodes = KnownNodes { named: named.into_iter().collect(), found };
    Some(Arc::new(PeerClients::new(files?, nodes)))
}

impl PeerListener {
    /// Listens, if the settings say where.
    pub(super) fn start(settings: &Settings, guests: &Arc<GuestOwners>) -> anyhow::Result<Option<Self>> {
        let PeerSettings { listen: Some(address), files: Some(files), .. } = settings.peers.clone() else {
            settings.peers.files.as_ref().map_or(Ok(()), TlsFiles::check)?;
            return Ok(None);
        };
        let runtime =
            Builder::new_multi_thread().worker_threads(2).enable_all().thread_name("peers").build()?;
        let listener = Listener::bind(address, files);
        let listener = listener.with_context(|| format!("listening at {address}, as peers.listen says"))?;
        tracing::info!("other nodes are served at {}", listener.address());
        let (end, ended) = oneshot::channel();
        let ended = async move { drop(ended.await) };
        let serving = runtime.spawn(serve(Arc::clone(guests), listener, ended));
        Ok(Some(Self { runtime, end, serving }))
    }

    /// Serves no longer.
    pub(super) fn finish(self) {
        self.end.send(()).ok();
        let served = self.runtime.block_on(self.serving);
        if let Ok(Err(error)) = served {
            tracing::error!(%error, "other nodes were not served");
        }
        self.runtime.shutdown_background();
    }
}
