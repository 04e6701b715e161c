//! Trust in a daemon on another machine: its certificate must be one of those given, or signed by one.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, VerifierBuilderError};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Looks at the certificate that a daemon shows.
#[derive(Debug)]
pub(super) struct Trust {
    authorities: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Trusts what `given`, all of which are in `roots`, vouch for.
    pub(super) fn new(
        roots: RootCertStore,
        given: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { authorities, given })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_given = || self.given.iter().any(|given| given.as_ref() == shown.as_ref());
        match self.authorities.verify_server_cert(shown, between, name, ocsp_response, now) {
            // `openssl req -x509` marks what it makes as an authority, which may not be shown as one's own. Its dates
            // were looked at before that mark.
            Err(Error::InvalidCertificate(CertificateError::Other(_))) if is_given() => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            answer => answer,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// The fault in the certificate of the daemon at `host`, and the remedy; `None` for other errors.
pub(super) fn complaint(error: &Error, host: &str) -> Option<String> {
    let Error::InvalidCertificate(reason) = error else { return None };
    let kind = if host.parse::<std::net::IpAddr>().is_ok() { "IP" } else { "DNS" };
    let (about_name, about_end, about_start) = (
        matches!(reason, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
        matches!(reason, CertificateError::Expired | CertificateError::ExpiredContext { .. }),
        matches!(reason, CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }),
    );
    Some(if about_name {
        format!(
            "its certificate is not for {host}: write a name into --url that it has, or make it with `openssl req -x509 \
             -addext subjectAltName={kind}:{host}`"
        )
    } else if about_end {
        "its certificate has expired: make a new one, and send the daemon SIGHUP".to_owned()
    } else if about_start {
        "its certificate is not valid yet: compare the clocks of both machines".to_owned()
    } else {
        format!(
            "its certificate is not trusted ({reason}): give the file that api.tcp.certificate names there as --ca-file"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_refused_is_told_in_words_that_say_what_to_do() {
        let said = |reason| complaint(&Error::InvalidCertificate(reason), "127.0.0.1").expect("it is one");
        assert!(said(CertificateError::NotValidForName).contains("subjectAltName=IP:127.0.0.1"));
        assert!(said(CertificateError::Expired).contains("make a new one"));
        assert!(said(CertificateError::UnknownIssuer).contains("--ca-file"));
        assert_eq!(complaint(&Error::DecryptError, "host"), None);
    }
}
