//! Two nodes of one fleet in this process, which publish into the same store, and bare TLS beside them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rekindle_engine::engine::Engine;
use rekindle_engine::peer::Peer;
use rekindle_peer::{HasEngine, KnownNodes, Listener, PeerClients, Taken, Taking, TlsFiles, serve};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::node::Node;

/// The name that nodes' certificates are for.
const NAME: &str = "rekindle-peer";
/// Bytes that a copy passes on at once.
const COPIED_BYTES: usize = 64 << 10;

/// The certificates of a fleet, all of whose nodes have the same one.
pub(crate) struct Certificates {
    pub(crate) files: TlsFiles,
    _directory: TempDir,
}

/// Two nodes: the first serves, the second reads.
pub(crate) struct Pair {
    /// It ends first: what it runs must not be the last to hold a node.
    pub(crate) runtime: Runtime,
    pub(crate) first: Arc<Node>,
    pub(crate) second: Node,
    /// The address at which the second asks the first.
    pub(crate) at: SocketAddr,
    /// The first, as the second asks it; the connection is warm as long as this lives.
    pub(crate) peer: Arc<dyn Peer>,
    pub(crate) certificates: Certificates,
}

impl HasEngine for Node {
    fn engine(&self) -> &Engine {
        &self.engine
    }

    fn take(&self, _taking: &Taking) -> Result<Taken, String> {
        Ok(Taken::Refused("it runs no sandboxes".to_owned()))
    }
}

impl Certificates {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for certificates")?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let node = CertificateParams::new(vec![NAME.to_owned()])?.signed_by(&key, &issuer)?;
        let put = |name: &str, text: String| -> anyhow::Result<PathBuf> {
            let path = directory.path().join(name);
            std::fs::write(&path, text)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            Ok(path)
        };
        let files = TlsFiles {
            certificate: put("node.pem", node.pem())?,
            key: put("key.pem", key.serialize_pem())?,
            authority: put("authority.pem", issuer.pem())?,
        };
        Ok(Self { files, _directory: directory })
    }
}

impl Pair {
    /// Both, with a way between them that takes so long in each direction.
    pub(crate) fn new(delay: Duration) -> anyhow::Result<Self> {
        let certificates = Certificates::new()?;
        let clients = || Arc::new(PeerClients::new(certificates.files.clone(), KnownNodes::default()));
        let first = Arc::new(Node::new()?);
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), certificates.files.clone())?;
        let at = match delay {
            Duration::ZERO => listener.address(),
            delay => delayed(listener.address(), delay)?,
        };
        let runtime = Runtime::new()?;
        runtime.spawn(serve(Arc::clone(&first), listener, std::future::pending()));
        let peers = clients();
        let second = Node::beside(&first, peers.clone())?;
        let peer = runtime.block_on(peers.reach(&at.to_string()))?;
        Ok(Self { runtime, first, second, at, peer, certificates })
    }
}

/// The address of a way to `to` that each byte takes so long on.
fn delayed(to: SocketAddr, delay: Duration) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(to) else { continue };
            for stream in [&client, &server] {
                stream.set_nodelay(true).ok();
            }
            let (Ok(from), Ok(into)) = (client.try_clone(), server.try_clone()) else { continue };
            pass_on(from, into, delay);
            pass_on(server, client, delay);
        }
    });
    Ok(address)
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        let mut bytes = vec![0; COPIED_BYTES];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if sender.send((Instant::now() + delay, bytes[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (at, bytes) in on_the_way {
            thread::park_timeout(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
    });
}

/// A TLS connection, over which nothing but bytes goes: as many as are asked for.
pub(crate) struct BareTls(StreamOwned<ClientConnection, TcpStream>);

impl BareTls {
    /// Connects to a thread of its own.
    pub(crate) fn start(certificates: &Certificates) -> anyhow::Result<Self> {
        let TlsFiles { certificate, key, authority } = &certificates.files;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_file(certificate)?];
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority)?)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let at = listener.local_addr()?;
        thread::spawn(move || answer(&listener, Arc::new(server)));
        let stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        let connection = ClientConnection::new(Arc::new(client), ServerName::try_from(NAME)?)?;
        Ok(Self(StreamOwned::new(connection, stream)))
    }

    /// Seconds until as many bytes have come as were asked for.
    pub(crate) fn seconds_for(&mut self, bytes: usize) -> anyhow::Result<f64> {
        let begun = Instant::now();
        self.0.write_all(&u64::try_from(bytes)?.to_le_bytes())?;
        self.0.flush()?;
        let (mut left, mut into) = (bytes, vec![0; 1 << 20]);
        while left > 0 {
            let room = left.min(into.len());
            match self.0.read(&mut into[..room])? {
                0 => return Err(std::io::Error::from(ErrorKind::UnexpectedEof).into()),
                count => left -= count,
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    }
}

fn answer(listener: &TcpListener, config: Arc<ServerConfig>) -> anyhow::Result<()> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    let content = vec![7; 1 << 20];
    let mut asked = [0; 8];
    while stream.read_exact(&mut asked).is_ok() {
        let mut left = usize::try_from(u64::from_le_bytes(asked))?;
        while left > 0 {
            let count = left.min(content.len());
            stream.write_all(&content[..count])?;
            left -= count;
        }
        stream.flush()?;
    }
    Ok(())
}
