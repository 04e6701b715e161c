//! The files that make TCP safe: certificate, key and token.

use std::path::Path;
use std::sync::Arc;

use rekindle_input::regular_file::{read_secret, read_text};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{ListenError, limits};
use crate::admission::Token;

/// The token in a file that not everybody may read.
pub(super) fn token(path: &Path) -> Result<Token, ListenError> {
    let wrong = |reason: String| wrong("token_file", path, reason);
    let text = read_secret(path).map_err(&wrong)?;
    let secret = text.trim();
    let fits = (limits::TOKEN_BYTES_MIN..=limits::TOKEN_BYTES_MAX).contains(&secret.len());
    match fits && secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Token::new(secret)),
        false => Err(wrong(format!(
            "must hold one word of {} to {} visible ASCII characters, such as `openssl rand -hex 32` gives",
            limits::TOKEN_BYTES_MIN,
            limits::TOKEN_BYTES_MAX
        ))),
    }
}

/// TLS with a certificate and its key.
pub(super) fn tls(certificate: &Path, key: &Path) -> Result<ServerConfig, ListenError> {
    let wrong_certificate = |reason: String| wrong("certificate", certificate, reason);
    let text =
        read_text(certificate).map_err(|error| wrong_certificate(format!("cannot be read: {error}")))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| wrong_certificate(format!("cannot be read as PEM: {error}")))?;
    if chain.is_empty() {
        return Err(wrong_certificate("holds no certificate".to_owned()));
    }
    let wrong_key = |reason: String| wrong("key", key, reason);
    let text = read_secret(key).map_err(wrong_key)?;
    let own = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|error| wrong_key(format!("cannot be read as a key in PEM: {error}")))?;
    let mut tls = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has every version it comes with")
        .with_no_client_auth()
        .with_single_cert(chain, own)
        .map_err(|error| wrong_key(format!("does not go with the certificate: {error}")))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}

fn wrong(setting: &'static str, path: &Path, reason: String) -> ListenError {
    ListenError::Secret { setting, path: path.to_owned(), reason }
}
