//! Admission of clients, and the API's refusals to start.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rekindle_api::client::{Client, ClientError, Endpoint, RemoteOptions};
use rekindle_api::problem::Code;
use rekindle_api::{ListenError, ListenOptions, Listeners, TcpOptions};
use rekindle_settings::CONNECTIONS_DEFAULT;
use rekindle_testkit::skip::skipped;
use tempfile::TempDir;

use crate::served::{Served, socket_in};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A user who is neither root nor us.
const STRANGER: u32 = 65534;

/// The socket another user's process is to ask at.
const ASK_AT: &str = "REKINDLE_TEST_ASK_AT";

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory with a certificate for this machine, its key and a token.
fn secrets() -> (TempDir, TcpOptions) {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let [certificate, key, token] =
        ["certificate.pem", "key.pem", "token"].map(|name| directory.path().join(name));
    write(&certificate, &made.cert.pem(), 0o644);
    write(&key, &made.signing_key.serialize_pem(), 0o600);
    write(&token, &format!("{TOKEN}\n"), 0o600);
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options =
        TcpOptions { listen, certificate: Some(certificate), key: Some(key), token_file: Some(token) };
    (directory, options)
}

fn bind(directory: &Path, allowed_uids: &[u32], tcp: Option<TcpOptions>) -> Result<Listeners, ListenError> {
    let allowed_uids = allowed_uids.to_vec();
    Listeners::bind(&ListenOptions {
        socket: socket_in(directory),
        allowed_uids,
        connections_max: CONNECTIONS_DEFAULT,
        tcp,
    })
}

/// The API on TCP, its address and its secrets.
fn over_tcp() -> (Served, SocketAddr, TempDir, TcpOptions) {
    let (directory, options) = secrets();
    let run = tempfile::tempdir().unwrap();
    let listeners = bind(run.path(), &[], Some(options.clone())).unwrap();
    let address = listeners.tcp_address().unwrap();
    (Served::on(run, listeners), address, directory, options)
}

fn remote(address: SocketAddr, token_file: &Path, authorities: &Path) -> Client {
    let options = RemoteOptions {
        url: format!("https://localhost:{}", address.port()),
        token_file: token_file.to_owned(),
        authorities: authorities.to_owned(),
    };
    Client::new(Endpoint::remote(&options).unwrap())
}

#[test]
fn over_tcp_the_token_lets_in_and_nothing_else_does() {
    let (served, address, directory, options) = over_tcp();
    let certificate = options.certificate.unwrap();
    let client = remote(address, &options.token_file.unwrap(), &certificate);
    assert!(client.health().unwrap().healthy);
    assert!(client.events(Some(0)).is_ok());
    let wrong = directory.path().join("wrong");
    for token in [&TOKEN[1..], &TOKEN.replace('0', "1"), &TOKEN.to_uppercase(), &format!("{TOKEN}0"), "x"] {
        write(&wrong, token, 0o600);
        let refused = remote(address, &wrong, &certificate).health().unwrap_err();
        assert_eq!(refused.code(), Some(Code::Unauthorized), "{token}");
    }
    assert!(served.client().health().is_ok());
}

#[test]
fn a_daemon_nobody_vouches_for_is_not_talked_to() {
    let (_served, address, _directory, options) = over_tcp();
    let (_other, others) = secrets();
    let client = remote(address, &options.token_file.unwrap(), &others.certificate.unwrap());
    assert!(client.health().unwrap_err().is_unreachable());
}

#[test]
fn tcp_without_tls_is_not_answered() {
    let (served, address, _directory, _options) = over_tcp();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(format!("GET /v1/health HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = Vec::new();
    drop(std::io::Read::read_to_end(&mut stream, &mut answer));
    assert!(!String::from_utf8_lossy(&answer).contains("healthy"));
    assert!(served.client().health().is_ok());
}

#[test]
fn tcp_is_not_listened_on_without_certificate_key_and_token() {
    let run = tempfile::tempdir().unwrap();
    let (_directory, whole) = secrets();
    let without = [
        ("certificate", TcpOptions { certificate: None, ..whole.clone() }),
        ("key", TcpOptions { key: None, ..whole.clone() }),
        ("token_file", TcpOptions { token_file: None, ..whole.clone() }),
    ];
    for (missing, options) in without {
        let refused = bind(run.path(), &[], Some(options)).unwrap_err();
        assert!(matches!(refused, ListenError::Unsafe { setting } if setting == missing), "{refused}");
        assert!(!socket_in(run.path()).exists());
    }
    assert!(bind(run.path(), &[], Some(whole)).is_ok());
}

#[test]
fn secrets_that_are_none_are_refused() {
    let run = tempfile::tempdir().unwrap();
    let (directory, whole) = secrets();
    let refused = |options: TcpOptions, word: &str| {
        let error = bind(run.path(), &[], Some(options)).unwrap_err();
        assert!(matches!(error, ListenError::Secret { .. }) && error.to_string().contains(word), "{error}");
    };
    let other = |name: &str, text: &str, mode: u32| -> Option<PathBuf> {
        let path = directory.path().join(name);
        write(&path, text, mode);
        Some(path)
    };
    refused(TcpOptions { token_file: other("open", TOKEN, 0o644), ..whole.clone() }, "chmod o=");
    refused(TcpOptions { token_file: other("short", "secret", 0o600), ..whole.clone() }, "visible ASCII");
    refused(
        TcpOptions { token_file: other("two", &format!("{TOKEN} x"), 0o600), ..whole.clone() },
        "visible ASCII",
    );
    refused(TcpOptions { token_file: other("empty", "\n", 0o600), ..whole.clone() }, "visible ASCII");
    refused(TcpOptions { token_file: Some("/nowhere/token".into()), ..whole.clone() }, "cannot be read");
    refused(TcpOptions { certificate: other("none", "text", 0o644), ..whole.clone() }, "certificate");
    refused(TcpOptions { key: other("no-key", "text", 0o600), ..whole.clone() }, "as a key");
    let key = fs::read_to_string(whole.key.as_ref().unwrap()).unwrap();
    refused(TcpOptions { key: other("open-key", &key, 0o604), ..whole.clone() }, "chmod o=");
    let (_others, stranger) = secrets();
    refused(TcpOptions { key: stranger.key, ..whole }, "does not go with");
}

#[test]
fn secrets_are_replaced_while_it_serves_and_stay_where_their_files_cannot_be_used() {
    let run = tempfile::tempdir().unwrap();
    let (directory, options) = secrets();
    let listeners = bind(run.path(), &[], Some(options.clone())).unwrap();
    let (address, held) = (listeners.tcp_address().unwrap(), listeners.secrets().unwrap());
    let _served = Served::on(run, listeners);
    let [certificate, key, token] =
        [options.certificate, options.key, options.token_file].map(Option::unwrap);
    let [old_certificate, old_token] = ["old.pem", "old-token"].map(|name| directory.path().join(name));
    fs::copy(&certificate, &old_certificate).unwrap();
    fs::copy(&token, &old_token).unwrap();

    let (_others, newer) = secrets();
    fs::copy(newer.certificate.unwrap(), &certificate).unwrap();
    fs::copy(newer.key.unwrap(), &key).unwrap();
    write(&token, "short", 0o600);
    let refused = held.read_again().unwrap_err();
    assert!(matches!(refused, ListenError::Secret { setting: "token_file", .. }), "{refused}");
    assert!(remote(address, &old_token, &old_certificate).health().is_ok(), "all stays as it was");

    write(&token, &format!("new-{TOKEN}"), 0o600);
    held.read_again().unwrap();
    assert!(remote(address, &token, &certificate).health().is_ok());
    assert!(remote(address, &token, &old_certificate).health().is_err(), "it has another certificate now");
    let refused = remote(address, &old_token, &certificate).health().unwrap_err();
    assert_eq!(refused.code(), Some(Code::Unauthorized));
}

#[test]
fn the_socket_is_for_its_user_alone() {
    let served = Served::new();
    assert_eq!(fs::metadata(served.socket()).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The answer that a stranger's process says it got.
fn asked_by_a_stranger(allowed_uids: &[u32]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        skipped("sockets and other users", "only root can ask as another user");
        return None;
    }
    let run = tempfile::tempdir().unwrap();
    fs::set_permissions(run.path(), Permissions::from_mode(0o755)).unwrap();
    let listeners = bind(run.path(), allowed_uids, None).unwrap();
    let served = Served::on(run, listeners);
    // This program, also where its path is not for everybody.
    let mut stranger = Command::new("/proc/self/exe");
    stranger.args(["--exact", "admission::asks_as_another_user", "--nocapture"]);
    stranger.env(ASK_AT, served.socket()).current_dir("/").uid(STRANGER).gid(STRANGER);
    let output = stranger.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    Some(said.lines().find_map(|line| line.split_once("answer: ")).unwrap().1.to_owned())
}

/// Work of the stranger's process; nothing among the other tests.
#[test]
fn asks_as_another_user() {
    let Some(socket) = std::env::var_os(ASK_AT) else { return };
    match Client::of_socket(socket).health() {
        Ok(_) => println!("\nanswer: let in"),
        Err(error) => println!("\nanswer: {error}"),
    }
}

#[test]
fn another_user_cannot_connect_where_none_is_listed() {
    let Some(answer) = asked_by_a_stranger(&[]) else { return };
    assert!(answer.contains("api.allowed_uids") && answer.contains("denied"), "{answer}");
}

#[test]
fn another_user_who_is_not_listed_is_told_so() {
    let Some(answer) = asked_by_a_stranger(&[4_000_000]) else { return };
    assert!(answer.contains("user 65534 may not control this daemon"), "{answer}");
}

#[test]
fn a_user_who_is_listed_is_let_in() {
    let Some(answer) = asked_by_a_stranger(&[STRANGER]) else { return };
    assert_eq!(answer, "let in");
}

#[test]
fn addresses_that_are_none_are_refused_in_words() {
    let (_directory, options) = secrets();
    for url in
        ["http://localhost:1", "localhost:1", "https://", "https://localhost/v1", "ftp://localhost", ""]
    {
        let options = RemoteOptions {
            url: url.to_owned(),
            token_file: options.token_file.clone().unwrap(),
            authorities: options.certificate.clone().unwrap(),
        };
        let error = Endpoint::remote(&options).unwrap_err();
        assert!(matches!(error, ClientError::Address { .. }), "{url}: {error}");
    }
}
