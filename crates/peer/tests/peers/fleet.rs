//! Nodes of one fleet: an authority, and for each node an engine, certificates and a listener.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::peer::Peers;
use rekindle_engine::snapshot::Snapshot;
use rekindle_peer::{KnownNodes, Listener, PeerClients, TlsFiles, serve};
use rekindle_testkit::guest::{Guest, Tracking};
use rekindle_testkit::model::ModelMemory;
use rekindle_testkit::random::Random;
use rekindle_testkit::site::Site;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// An authority, and a directory of certificates.
pub(crate) struct Fleet {
    pub(crate) directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A listener that runs.
pub(crate) struct Listening {
    runtime: Runtime,
    end: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let mut authority =
            CertificateParams::new(Vec::new()).expect("certificates and directories of a test");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(
            authority,
            KeyPair::generate().expect("certificates and directories of a test"),
        )
        .expect("certificates and directories of a test");
        let directory = tempfile::tempdir().expect("certificates and directories of a test");
        std::fs::write(directory.path().join("authority.pem"), issuer.pem())
            .expect("certificates and directories of a test");
        Self { directory, issuer }
    }

    /// Certificates of a node, for this name.
    pub(crate) fn files_for(&self, file: &str, name: &str) -> TlsFiles {
        use std::os::unix::fs::PermissionsExt as _;
        let key = KeyPair::generate().expect("certificates and directories of a test");
        let certificate =
            CertificateParams::new(vec![name.to_owned()]).expect("certificates and directories of a test");
        let certificate =
            certificate.signed_by(&key, &self.issuer).expect("certificates and directories of a test");
        let put = |what: &str, text: String| -> PathBuf {
            let path = self.directory.path().join(format!("{file}-{what}.pem"));
            std::fs::write(&path, text).expect("certificates and directories of a test");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                .expect("certificates and directories of a test");
            path
        };
        TlsFiles {
            certificate: put("certificate", certificate.pem()),
            key: put("key", key.serialize_pem()),
            authority: self.directory.path().join("authority.pem"),
        }
    }

    pub(crate) fn files(&self, node: &str) -> TlsFiles {
        self.files_for(node, "rekindle-peer")
    }

    /// Reads from other nodes with certificates of its own.
    pub(crate) fn peers(&self, node: &str) -> Arc<dyn Peers> {
        Arc::new(PeerClients::new(self.files(node), KnownNodes::default()))
    }

    /// An engine that may read from other nodes.
    pub(crate) fn engine(&self, site: &Site, node: &str) -> Arc<Engine> {
        let options = EngineOptions { peers: self.peers(node), ..site.options() };
        Arc::new(Engine::start(options).expect("threads for an engine"))
    }

    /// Serves an engine's snapshots; an address with port 0 gives a free one.
    pub(crate) fn listen(&self, engine: &Arc<Engine>, node: &str, at: SocketAddr) -> (SocketAddr, Listening) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("certificates and directories of a test");
        let listener = Listener::bind(at, self.files(node)).expect("a free port");
        let address = listener.address();
        let (end, ended) = oneshot::channel::<()>();
        let ended = async move { drop(ended.await) };
        let serving = runtime.spawn(serve(Arc::clone(engine), listener, ended));
        (address, Listening { runtime, end, serving })
    }
}

impl Listening {
    /// Breaks all connections, and takes no more.
    pub(crate) fn stop(self) {
        self.end.send(()).ok();
        self.runtime
            .block_on(self.serving)
            .expect("certificates and directories of a test")
            .expect("certificates and directories of a test");
        self.runtime.shutdown_background();
    }
}

pub(crate) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("certificates and directories of a test")
}

pub(crate) fn run(start: u32, count: u32) -> GuestPages {
    GuestPages::new(GuestPage::new(start), count)
}

/// A snapshot of a guest that has written the first half of its pages.
pub(crate) fn first_pause(engine: &Engine, pages: u32) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::fresh(pages);
    guest.write_random(engine, run(0, pages / 2), &mut Random::new(1)).expect("its own pages");
    guest.pause(engine, Tracking::Exact).expect("certificates and directories of a test").end_vmm()
}

/// A snapshot of a guest that ran from another one, and wrote to some of its pages.
pub(crate) fn next_pause(
    engine: &Engine,
    parent: &Arc<Snapshot>,
    memory: &ModelMemory,
    written: GuestPages,
    seed: u64,
) -> (Arc<Snapshot>, ModelMemory) {
    let mut guest = Guest::resume(parent, memory.clone());
    guest.write_random(engine, written, &mut Random::new(seed)).expect("pages that can be had");
    guest.pause(engine, Tracking::Exact).expect("certificates and directories of a test").end_vmm()
}
