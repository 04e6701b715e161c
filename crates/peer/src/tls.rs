//! Certificates of a fleet's own authority, which both ends of a connection show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rekindle_input::regular_file::{read_secret, read_text};
use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name that every node's certificate has, besides others: the authority may have given certificates to others too.
pub(crate) const NODE: &str = "rekindle-peer";

/// The files of a node. They are read for each new connection, so a renewed certificate needs no restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those between it and the authority, PEM.
    pub certificate: PathBuf,
    /// The certificate's key, PEM.
    pub key: PathBuf,
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
}

/// Reason that a file of these cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("peers.{setting}: {} {reason}", path.display())]
pub struct TlsError {
    setting: &'static str,
    path: PathBuf,
    reason: String,
}

struct Read {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    authority: RootCertStore,
}

impl TlsFiles {
    /// Checks that they can be used.
    pub fn check(&self) -> Result<(), TlsError> {
        self.server()?;
        self.client().map(drop)
    }

    /// The listener's end.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let Read { chain, key, authority } = self.read()?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authority), Arc::clone(&provider));
        let clients =
            clients.build().map_err(|error| wrong("authority", &self.authority, error.to_string()))?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has every version it comes with")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .map_err(|error| wrong("key", &self.key, format!("does not go with the certificate: {error}")))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(tls))
    }

    /// The reader's end.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let Read { chain, key, authority } = self.read()?;
        let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has every version it comes with")
            .with_root_certificates(authority)
            .with_client_auth_cert(chain, key)
            .map_err(|error| wrong("key", &self.key, format!("does not go with the certificate: {error}")))?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(tls))
    }

    fn read(&self) -> Result<Read, TlsError> {
        let chain = self.certificates("certificate", &self.certificate)?;
        let text = read_secret(&self.key).map_err(|reason| wrong("key", &self.key, reason))?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|error| wrong("key", &self.key, format!("cannot be read as a key in PEM: {error}")))?;
        let mut authority = RootCertStore::empty();
        for certificate in self.certificates("authority", &self.authority)? {
            let added = authority.add(certificate);
            added
                .map_err(|error| wrong("authority", &self.authority, format!("is no authority: {error}")))?;
        }
        Ok(Read { chain, key, authority })
    }

    fn certificates(
        &self,
        setting: &'static str,
        path: &Path,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let text =
            read_text(path).map_err(|error| wrong(setting, path, format!("cannot be read: {error}")))?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let found = found.map_err(|error| wrong(setting, path, format!("cannot be read as PEM: {error}")))?;
        if found.is_empty() {
            return Err(wrong(setting, path, "holds no certificate"));
        }
        Ok(found)
    }
}

fn wrong(setting: &'static str, path: &Path, reason: impl Into<String>) -> TlsError {
    TlsError { setting, path: path.to_owned(), reason: reason.into() }
}

/// The name that is asked of the other end.
pub(crate) fn node_name() -> ServerName<'static> {
    ServerName::try_from(NODE).expect("a legal name")
}

/// True if a certificate, which the authority gave, is a node's.
pub(crate) fn is_node(certificates: Option<&[CertificateDer<'_>]>) -> bool {
    let certificate =
        certificates.and_then(<[_]>::first).and_then(|der| ParsedCertificate::try_from(der).ok());
    certificate.is_some_and(|certificate| verify_server_name(&certificate, &node_name()).is_ok())
}
