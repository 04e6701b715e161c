//! The ways to a bucket besides an endpoint without TLS that has it in the path: TLS with an authority of one's own, and
//! the bucket in the name of the host.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStoreExt as _};
use rekindle_bucket::BucketAccess;
use rekindle_testkit::s3::S3Server;
use rekindle_testkit::stores::Operation;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::bucket::Bucket;
use crate::doctor::Report;
use crate::runtime;

/// A directory with authorities, and certificates that they signed, made by `openssl`.
struct Authorities(TempDir);

impl Authorities {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        let said = command.args(words.split(' ')).current_dir(self.0.path()).output();
        let said = said.expect("`.ci/run` installs openssl");
        assert!(said.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&said.stderr));
    }

    /// The file with the certificate of a new authority.
    fn authority(&self, name: &str) -> PathBuf {
        self.openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -subj /CN={name} -days 2 -keyout {name}.key -out {name}.pem"
        ));
        self.file(&format!("{name}.pem"))
    }

    /// Files with a certificate for 127.0.0.1 that an authority signed, and its key.
    fn signed_by(&self, authority: &str) -> (PathBuf, PathBuf) {
        std::fs::write(self.file("names"), "subjectAltName = IP:127.0.0.1\n").expect("there is room");
        self.openssl("req -new -newkey rsa:2048 -nodes -subj /CN=store -keyout store.key -out store.csr");
        self.openssl(&format!(
            "x509 -req -in store.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile names \
             -out store.pem"
        ));
        (self.file("store.pem"), self.file("store.key"))
    }
}

/// The TLS before a server that has none; it ends with this.
struct TlsFront {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl TlsFront {
    fn of(server: &S3Server, certificate: &Path, key: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificate).expect("openssl wrote it");
        let chain: Vec<_> = chain.collect::<Result<_, _>>().expect("it is PEM");
        let key = PrivateKeyDer::from_pem_file(key).expect("openssl wrote it");
        let settings = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(settings.expect("they belong together")));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("there is a port");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(pass_on(listener, acceptor, server.address()));
        Self { address, runtime: Some(runtime) }
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn pass_on(listener: TcpListener, acceptor: TlsAcceptor, server: SocketAddr) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        // A client that does not trust the certificate ends the connection.
        tokio::spawn(async move {
            let mut client = acceptor.accept(stream).await?;
            let mut server = TcpStream::connect(server).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

#[test]
fn a_service_is_reached_over_tls_if_a_named_authority_signed_its_certificate() {
    let (server, files) = (S3Server::start().expect("a server"), Authorities::new());
    let (own, other) = (files.authority("own"), files.authority("other"));
    let (certificate, key) = files.signed_by("own");
    let front = TlsFront::of(&server, &certificate, &key);
    let asked = |authorities_file: Option<&PathBuf>| {
        let endpoint = Some(format!("https://{}", front.address));
        let authorities_file = authorities_file.cloned();
        let access = BucketAccess { endpoint, authorities_file, ..BucketAccess::default() };
        let (objects, _) = Bucket { access, ..Bucket::of(&server, "") }.opened();
        runtime().block_on(objects.head(&ObjectPath::from("nothing")))
    };
    let answered = asked(Some(&own));
    assert!(matches!(answered, Err(Error::NotFound { .. })), "{answered:?}");
    let refused = asked(Some(&other)).expect_err("another authority vouches for nothing").to_string();
    assert!(refused.contains("bucket.authorities_file"), "{refused}");
    let refused = asked(None).expect_err("nor does the system").to_string();
    assert!(refused.contains("bucket.authorities_file"), "{refused}");
}

#[test]
fn a_bucket_in_the_name_of_the_host_is_reached() {
    let server = S3Server::start_in_domain("s3.example.org").expect("a server");
    let endpoint = Some("http://s3.example.org".to_owned());
    let access = BucketAccess { endpoint, path_style: Some(false), ..server.access() };
    let bucket = Bucket { access, ..Bucket::of(&server, "fleet") };
    // A client with a proxy looks no names up.
    let report = Report::with(&bucket, &[("http_proxy", &server.endpoint())]);
    report.assert_all_well("obeyed");
    assert!(server.requests(Operation::Put, "fleet/rekindle-doctor") > 0, "it is the bucket in the name");
}
