//! The address of a daemon, and the connection to it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rekindle_input::regular_file::read_text;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::ClientError;
use super::trust::{Trust, complaint};

/// Longest time to make a connection.
const CONNECTED_WITHIN: Duration = Duration::from_secs(15);

/// Address of a daemon.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// At a socket of this machine.
    Socket(PathBuf),
    /// Elsewhere, over TLS.
    Remote(Arc<Remote>),
}

/// Options of reaching a daemon on another machine.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// `https://host:port`.
    pub url: String,
    /// The file with the token.
    pub token_file: PathBuf,
    /// The file with the certificates of the authorities that vouch for the daemon, as PEM; its own, where it vouches
    /// for itself.
    pub authorities: PathBuf,
}

/// A daemon elsewhere, with what it takes to be let in and to know that it is the right one.
pub struct Remote {
    host: String,
    port: u16,
    name: ServerName<'static>,
    token: String,
    tls: Arc<ClientConfig>,
}

/// The options that name files.
const TOKEN_FILE: &str = "--token-file";
const CA_FILE: &str = "--ca-file";

/// A connection to a daemon.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin> Connection for C {}

impl Endpoint {
    /// The daemon at `https://host:port`.
    pub fn remote(options: &RemoteOptions) -> Result<Self, ClientError> {
        let (url, name) = address(&options.url)?;
        let token = read(TOKEN_FILE, &options.token_file)?.trim().to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong(TOKEN_FILE, &options.token_file, "does not hold a token"));
        }
        Ok(Self::Remote(Arc::new(Remote {
            host: name.clone(),
            port: url.port_u16().unwrap_or(443),
            name: server_name(&options.url, name)?,
            token,
            tls: Arc::new(trusting(&options.authorities)?),
        })))
    }

    /// Checks that `url` can be the address of a daemon.
    pub fn check_url(url: &str) -> Result<(), ClientError> {
        address(url).map(drop)
    }

    /// The host as HTTP wants it named.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Socket(_) => "localhost".to_owned(),
            Self::Remote(remote) => format!("{}:{}", bracketed(&remote.host), remote.port),
        }
    }

    /// The token that lets in, where one is needed.
    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Self::Socket(_) => None,
            Self::Remote(remote) => Some(&remote.token),
        }
    }

    /// Connects; an error says that nothing was sent.
    pub(super) async fn connect(&self) -> Result<Box<dyn Connection>, ClientError> {
        let connected = timeout(CONNECTED_WITHIN, self.open()).await.unwrap_or_else(|_elapsed| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECTED_WITHIN:?}")))
        });
        connected.map_err(|source| ClientError::Unreachable { endpoint: self.to_string(), source })
    }

    async fn open(&self) -> io::Result<Box<dyn Connection>> {
        match self {
            Self::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Remote(remote) => {
                let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await?;
                stream.set_nodelay(true)?;
                let connector = TlsConnector::from(Arc::clone(&remote.tls));
                let connected = connector.connect(remote.name.clone(), stream).await;
                Ok(Box::new(connected.map_err(|error| in_words(error, &remote.host))?))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(formatter, "{}", path.display()),
            Self::Remote(_) => write!(formatter, "https://{}", self.host()),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Remote")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The parts of `https://host:port`; the host without its brackets.
fn address(given: &str) -> Result<(Uri, String), ClientError> {
    let wrong = || ClientError::Address { given: given.to_owned() };
    let url: Uri = given.parse().map_err(|_not_a_url| wrong())?;
    let is_root = matches!(url.path_and_query().map(|rest| rest.as_str()), None | Some("/"));
    let (Some("https"), Some(host), true) = (url.scheme_str(), url.host(), is_root) else {
        return Err(wrong());
    };
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((url, name))
}

fn server_name(url: &str, name: String) -> Result<ServerName<'static>, ClientError> {
    ServerName::try_from(name).map_err(|_not_a_name| ClientError::Address { given: url.to_owned() })
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The error of a handshake; an error of the certificate says what to do.
fn in_words(error: io::Error, host: &str) -> io::Error {
    let refused = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match refused.and_then(|refused| complaint(refused, host)) {
        Some(complaint) => io::Error::new(io::ErrorKind::InvalidData, complaint),
        None => error,
    }
}

fn trusting(authorities: &Path) -> Result<ClientConfig, ClientError> {
    let (mut roots, mut given) = (RootCertStore::empty(), Vec::new());
    let text = read(CA_FILE, authorities)?;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| {
                given.push(certificate.clone());
                roots.add(certificate).map_err(|error| error.to_string())
            })
            .map_err(|error| {
                wrong(CA_FILE, authorities, format!("holds no certificate that can be used: {error}"))
            })?;
    }
    if roots.is_empty() {
        return Err(wrong(CA_FILE, authorities, "holds no certificate"));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let trust = Trust::new(roots, given, Arc::clone(&provider)).map_err(|error| {
        wrong(CA_FILE, authorities, format!("holds no certificate that can be used: {error}"))
    })?;
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has every version it comes with")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn read(option: &'static str, path: &Path) -> Result<String, ClientError> {
    read_text(path).map_err(|error| wrong(option, path, format!("cannot be read: {error}")))
}

fn wrong(option: &'static str, path: &Path, reason: impl Into<String>) -> ClientError {
    ClientError::Secret { option, path: path.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_option_that_names_it() {
        let place = tempfile::tempdir().expect("a directory");
        let (token, missing) = (place.path().join("token"), place.path().join("missing"));
        std::fs::write(&token, "0123456789abcdefghijkl").expect("there is room");
        let refused = |token_file: &Path, authorities: &Path| {
            let options = RemoteOptions {
                url: "https://127.0.0.1:7443".to_owned(),
                token_file: token_file.to_owned(),
                authorities: authorities.to_owned(),
            };
            Endpoint::remote(&options).expect_err("a file is missing").to_string()
        };
        for (said, option) in [(refused(&missing, &token), TOKEN_FILE), (refused(&token, &missing), CA_FILE)]
        {
            let names = [option, missing.to_str().expect("plain")];
            assert!(names.iter().all(|name| said.contains(name)), "{said}");
        }
    }
}
