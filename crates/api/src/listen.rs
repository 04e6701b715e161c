//! The listeners of the API: a socket of the local machine and, only when asked, TCP with TLS and a token.

mod secrets;
mod socket_file;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;

use super::admission::{AllowedUsers, Token};
use super::limits;
pub(super) use socket_file::SocketFile;

/// Addresses to listen at, and the users allowed.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// The path of the socket. A socket that a dead daemon left there is replaced.
    pub socket: PathBuf,
    /// Users who may ask on the socket, beside root and the daemon's own. With any, everybody may connect to the
    /// socket, and those who are not listed get an answer that says so.
    pub allowed_uids: Vec<u32>,
    /// Connections to each listener, at most.
    pub connections_max: usize,
    /// TCP address for other machines, if any.
    pub tcp: Option<TcpOptions>,
}

/// Options of listening on TCP.
#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// The address.
    pub listen: SocketAddr,
    /// The file with the certificate and those between it and an authority, as PEM. There must be one.
    pub certificate: Option<PathBuf>,
    /// The file with the certificate's key, as PEM. There must be one.
    pub key: Option<PathBuf>,
    /// The file with the token on its only line. There must be one.
    pub token_file: Option<PathBuf>,
}

/// Reason that the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon answers there.
    #[error("another daemon listens on {}: end it first, or set another api.socket", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{} is there and no socket: remove it, or set another api.socket", path.display())]
    NoSocket {
        /// Path of the file there.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("the socket {} cannot be made: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The address cannot be had.
    #[error("api.tcp.listen: {address} cannot be listened on: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// TCP was asked for without TLS or a token.
    #[error(
        "api.tcp.listen is set without api.tcp.{setting}: the API listens on TCP only with TLS and a token"
    )]
    Unsafe {
        /// The setting that is missing.
        setting: &'static str,
    },
    /// A file that a setting names cannot be used.
    #[error("api.tcp.{setting}: {} {reason}", path.display())]
    Secret {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// The fault in it, with its verb.
        reason: String,
    },
}

/// Sockets that listen already; [`serve`](super::serve()) answers on them.
#[derive(Debug)]
pub struct Listeners {
    pub(super) socket: LocalListener,
    pub(super) tcp: Option<SecuredListener>,
    pub(super) connections_max: usize,
}

/// The local socket.
#[derive(Debug)]
pub(super) struct LocalListener {
    pub(super) listener: UnixListener,
    pub(super) allowed: AllowedUsers,
    pub(super) file: SocketFile,
}

/// TCP with what makes it safe.
#[derive(Debug)]
pub(super) struct SecuredListener {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) secrets: Secrets,
}

/// Certificate, key and token of TCP, as their files last had them: each new connection is checked by the ones in force
/// when it comes.
#[derive(Clone, Debug)]
pub struct Secrets {
    files: Arc<SecretFiles>,
    read: Arc<RwLock<ReadSecrets>>,
}

/// Paths of the certificate, its key and the token.
#[derive(Debug)]
struct SecretFiles {
    certificate: PathBuf,
    key: PathBuf,
    token: PathBuf,
}

/// Content of the files.
#[derive(Clone, Debug)]
pub(super) struct ReadSecrets {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) token: Arc<Token>,
}

impl Listeners {
    /// Listens, so that a client that connects from now on is answered once [`serve`](super::serve()) runs.
    pub fn bind(options: &ListenOptions) -> Result<Self, ListenError> {
        // A fault of TCP is found before the socket replaces one.
        let tcp = options.tcp.as_ref().map(SecuredListener::bind).transpose()?;
        let socket = LocalListener::bind(&options.socket, &options.allowed_uids)?;
        Ok(Self { socket, tcp, connections_max: options.connections_max })
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        self.socket.file.path()
    }

    /// Certificate, key and token, to be read again when their files have changed; none without TCP.
    pub fn secrets(&self) -> Option<Secrets> {
        self.tcp.as_ref().map(|tcp| tcp.secrets.clone())
    }

    /// The address listened on, with the port the kernel chose where 0 was asked for.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|tcp| tcp.address)
    }
}

impl LocalListener {
    fn bind(path: &Path, allowed_uids: &[u32]) -> Result<Self, ListenError> {
        let everybody_connects = !allowed_uids.is_empty();
        let mode = if everybody_connects { 0o666 } else { 0o600 };
        let (listener, file) = socket_file::listen(path, mode)?;
        Ok(Self { listener, allowed: AllowedUsers::new(allowed_uids.to_vec()), file })
    }
}

impl TcpOptions {
    /// Checks that the files for TCP can be used.
    pub fn check(&self) -> Result<(), ListenError> {
        self.secrets().map(drop)
    }

    fn secrets(&self) -> Result<Secrets, ListenError> {
        let named = |setting: &'static str, path: &Option<PathBuf>| {
            path.clone().ok_or(ListenError::Unsafe { setting })
        };
        let certificate = named("certificate", &self.certificate)?;
        let key = named("key", &self.key)?;
        let token = named("token_file", &self.token_file)?;
        Secrets::read(SecretFiles { certificate, key, token })
    }
}

impl SecuredListener {
    fn bind(options: &TcpOptions) -> Result<Self, ListenError> {
        let secrets = options.secrets()?;
        let address = options.listen;
        let refused = |source| ListenError::Address { address, source };
        let listener = TcpListener::bind(address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self { listener, address, secrets })
    }
}

impl Secrets {
    fn read(files: SecretFiles) -> Result<Self, ListenError> {
        let read = RwLock::new(files.read()?);
        Ok(Self { files: Arc::new(files), read: Arc::new(read) })
    }

    /// Reads the files again; where one of them cannot be used, everything stays as it was.
    pub fn read_again(&self) -> Result<(), ListenError> {
        let read = self.files.read()?;
        *self.read.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(())
    }

    /// Their present content.
    pub(super) fn now(&self) -> ReadSecrets {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl SecretFiles {
    fn read(&self) -> Result<ReadSecrets, ListenError> {
        let tls = secrets::tls(&self.certificate, &self.key)?;
        Ok(ReadSecrets { tls: Arc::new(tls), token: Arc::new(secrets::token(&self.token)?) })
    }
}
