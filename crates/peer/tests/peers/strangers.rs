//! Ends of a connection that are no nodes of the fleet, or speak otherwise.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rekindle_engine::geometry::PAGE_BYTES;
use rekindle_engine::identity::SnapshotId;
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::{PeerError, Peers, WantedPages};
use rekindle_engine::sources::Class;
use rekindle_peer::message::{VERSION_FIELD, encode_pages, encode_wanted};
use rekindle_peer::{KnownNodes, PeerClients, TakeError, Taken, Taking, TlsFiles};
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use crate::fleet::{Fleet, any_port, run};
use crate::window::sites;

fn asked(files: TlsFiles, at: SocketAddr) -> PeerError {
    let peers = PeerClients::new(files, KnownNodes::default());
    let peer = peers.at(&at.to_string()).expect("certificates and directories of a test");
    Runtime::new()
        .expect("certificates and directories of a test")
        .block_on(peer.describe(SnapshotId::new()))
        .expect_err("no snapshot has this id")
}

#[test]
fn only_a_node_with_a_certificate_of_the_fleet_for_the_name_of_nodes_is_answered() {
    let (fleet, other) = (Fleet::new(), Fleet::new());
    let (site, ..) = sites();
    let engine = fleet.engine(&site, "a");
    let (at, _serves) = fleet.listen(&engine, "a", any_port());
    let of_fleet = asked(fleet.files("b"), at);
    assert!(matches!(of_fleet, PeerError::Unknown { .. }), "{of_fleet}");
    let of_other = asked(other.files("b"), at);
    assert!(matches!(of_other, PeerError::Untrusted { .. }), "{of_other}");
    // It trusts the fleet, and is not trusted by it.
    let mixed = TlsFiles { authority: fleet.files("c").authority, ..other.files("c") };
    let refused = asked(mixed, at);
    assert!(matches!(refused, PeerError::Untrusted { .. } | PeerError::Away { .. }), "{refused}");
    let no_node = asked(fleet.files_for("d", "build-server"), at);
    assert!(matches!(no_node, PeerError::Away { .. }), "{no_node}");
    let named = fleet.files_for("e", "build-server");
    let engine = fleet.engine(&site.beside().expect("certificates and directories of a test"), "f");
    let listener =
        rekindle_peer::Listener::bind(any_port(), named).expect("certificates and directories of a test");
    let (at, runtime) = (listener.address(), Runtime::new().expect("certificates and directories of a test"));
    runtime.spawn(rekindle_peer::serve(engine, listener, std::future::pending()));
    let impostor = asked(fleet.files("g"), at);
    assert!(matches!(impostor, PeerError::Untrusted { .. }), "{impostor}");
    runtime.shutdown_background();
}

/// The end of a connection that has certificates of the fleet.
fn acceptor(fleet: &Fleet) -> TlsAcceptor {
    let files = fleet.files("stranger");
    let certificates = |path| {
        CertificateDer::pem_file_iter(path)
            .expect("certificates and directories of a test")
            .map(|read| read.expect("a certificate"))
    };
    let mut authority = RootCertStore::empty();
    certificates(&files.authority)
        .for_each(|certificate| authority.add(certificate).expect("certificates and directories of a test"));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authority), Arc::clone(&provider));
    let mut tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("certificates and directories of a test")
        .with_client_cert_verifier(clients.build().expect("certificates and directories of a test"))
        .with_single_cert(
            certificates(&files.certificate).collect(),
            PrivateKeyDer::from_pem_file(&files.key).expect("certificates and directories of a test"),
        )
        .expect("certificates and directories of a test");
    tls.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}

/// A listener with certificates of the fleet that gives every request this answer.
fn answering(
    fleet: &Fleet,
    version: u32,
    answer: impl Fn(Bytes) -> Vec<u8> + Clone + Send + Sync + 'static,
) -> (SocketAddr, Runtime) {
    let acceptor = acceptor(fleet);
    let runtime = Runtime::new().expect("threads");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(any_port()))
        .expect("certificates and directories of a test");
    let address = listener.local_addr().expect("certificates and directories of a test");
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let body = request
                        .into_body()
                        .collect()
                        .await
                        .expect("certificates and directories of a test")
                        .to_bytes();
                    let mut response = Response::new(Full::new(Bytes::from(answer(body))));
                    response.headers_mut().insert(VERSION_FIELD, version.into());
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, runtime)
}

fn wanted(snapshot: SnapshotId) -> WantedPages {
    WantedPages { snapshot, volume: 0, runs: vec![run(64, 64)] }
}

/// The error that pages asked of a listener end with.
fn pages_of(fleet: &Fleet, stranger: (SocketAddr, Runtime)) -> PeerError {
    pages_at(&fleet.peers("reader"), stranger)
}

fn pages_at(peers: &Arc<dyn Peers>, (at, stranger): (SocketAddr, Runtime)) -> PeerError {
    let peer = peers.at(&at.to_string()).expect("certificates and directories of a test");
    let runtime = Runtime::new().expect("certificates and directories of a test");
    let failed = runtime.block_on(peer.pages(wanted(SnapshotId::new()), Class::Fault));
    stranger.shutdown_background();
    failed.map(drop).expect_err("no answer that can be used")
}

#[test]
fn a_peer_of_another_version_is_named_with_both_versions() {
    let fleet = Fleet::new();
    let failed = pages_of(&fleet, answering(&fleet, 7, |_| b"?".to_vec()));
    assert!(matches!(failed, PeerError::Version { theirs: 7, ours: 1, .. }), "{failed}");
}

#[test]
fn case_44_pages_of_another_snapshot_of_another_range_fewer_and_more_are_refused() {
    let fleet = Fleet::new();
    let pages = |count: usize| vec![3; count * PAGE_BYTES];
    let other =
        move |_: Bytes| encode_pages(&encode_wanted(&wanted(SnapshotId::new()), Class::Fault), &pages(64));
    let shifted = move |body: Bytes| {
        let mut request = body.to_vec();
        let last = request.len() - 2;
        request[last] -= 1;
        encode_pages(&request, &pages(64))
    };
    let short = move |body: Bytes| encode_pages(&body, &pages(63));
    let long = move |body: Bytes| encode_pages(&body, &pages(65));
    let nothing = |_: Bytes| Vec::new();
    let endless = |_: Bytes| vec![0; 64 << 20];
    let failures = [
        pages_of(&fleet, answering(&fleet, 1, other)),
        pages_of(&fleet, answering(&fleet, 1, shifted)),
        pages_of(&fleet, answering(&fleet, 1, short)),
        pages_of(&fleet, answering(&fleet, 1, long)),
        pages_of(&fleet, answering(&fleet, 1, nothing)),
        pages_of(&fleet, answering(&fleet, 1, endless)),
    ];
    for failed in failures {
        assert!(matches!(failed, PeerError::Wrong { .. }), "{failed}");
    }
}

/// A listener that gives every connection these bytes, over TLS if it has an acceptor, and then says nothing.
fn saying(bytes: &'static [u8], acceptor: Option<TlsAcceptor>) -> (SocketAddr, Runtime) {
    let runtime = Runtime::new().expect("threads");
    let listener = runtime.block_on(tokio::net::TcpListener::bind(any_port())).expect("a free port");
    let address = listener.local_addr().expect("it has an address");
    runtime.spawn(async move {
        let mut held: Vec<Box<dyn Send>> = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            match &acceptor {
                None => {
                    stream.write_all(bytes).await.ok();
                    held.push(Box::new(stream));
                }
                Some(acceptor) => {
                    let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                    stream.write_all(bytes).await.ok();
                    stream.flush().await.ok();
                    held.push(Box::new(stream));
                }
            }
        }
    });
    (address, runtime)
}

#[test]
fn ends_that_speak_no_protocol_or_nothing_at_all_are_told_by_their_address() {
    let fleet = Fleet::new();
    let no_frame: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc";
    // A SETTINGS frame (RFC 9113, section 6.5) of 16 MiB.
    let long_frame: &[u8] = &[0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0];
    std::thread::scope(|scope| {
        for (bytes, acceptor) in [
            (no_frame, None),
            (b"".as_slice(), None),
            (no_frame, Some(acceptor(&fleet))),
            (long_frame, Some(acceptor(&fleet))),
            (b"".as_slice(), Some(acceptor(&fleet))),
        ] {
            let fleet = &fleet;
            scope.spawn(move || {
                let reader = format!("reader-{}-{}", bytes.len(), acceptor.is_some());
                let failed = pages_at(&fleet.peers(&reader), saying(bytes, acceptor));
                assert!(matches!(failed, PeerError::Away { .. } | PeerError::Untrusted { .. }), "{failed}");
                assert!(failed.to_string().contains("node 127.0.0.1:"), "{failed}");
            });
        }
    });
}

/// The answer of a listener that is asked to take a sandbox.
fn taken_by(fleet: &Fleet, (at, stranger): (SocketAddr, Runtime)) -> Result<Taken, TakeError> {
    let taking = Taking {
        snapshot: SnapshotId::new(),
        sandbox: Uuid::from_u128(7),
        origin: Origin { node: "a".to_owned(), address: "a:1".to_owned() },
        name: None,
        labels: Default::default(),
    };
    let peers = PeerClients::new(fleet.files("mover"), KnownNodes::default());
    let taken = Runtime::new().expect("threads").block_on(peers.take(&at.to_string(), &taking));
    stranger.shutdown_background();
    taken
}

#[test]
fn an_answer_to_a_move_that_is_none_leaves_it_unknown_if_the_sandbox_runs_there() {
    let fleet = Fleet::new();
    let of_another = |_: Bytes| Taken::Refused("no".to_owned()).encode(SnapshotId::new());
    let strange = |body: Bytes| [&body[..16], &[2]].concat();
    for answering in [
        answering(&fleet, 1, |_| Vec::new()),
        answering(&fleet, 1, |_| b"garbage".to_vec()),
        answering(&fleet, 1, |_| vec![0; 64 << 20]),
        answering(&fleet, 1, of_another),
        answering(&fleet, 1, strange),
    ] {
        let taken = taken_by(&fleet, answering);
        assert!(matches!(taken, Err(TakeError::Unanswered(PeerError::Wrong { .. }))), "{taken:?}");
    }
    let of_another_version = taken_by(&fleet, answering(&fleet, 7, |_| b"?".to_vec()));
    assert!(matches!(of_another_version, Err(TakeError::NotAsked(_))), "{of_another_version:?}");
    let away = (any_port(), Runtime::new().expect("threads"));
    assert!(matches!(taken_by(&fleet, away), Err(TakeError::NotAsked(_))));
    let (site, ..) = sites();
    let (at, _serves) = fleet.listen(&fleet.engine(&site, "a"), "a", any_port());
    let none = taken_by(&fleet, (at, Runtime::new().expect("threads")));
    assert!(matches!(none, Ok(Taken::Refused(_))), "{none:?}");
}
