//! Two daemons that read from each other: a sandbox goes on at the second one before the first has saved it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;
use rekindle_api::types::{Collect, DrainNode, ForkSandbox, ResumeSnapshot, SandboxState, SnapshotState};
use rekindle_testkit::black_box::BlackBox;
use tempfile::TempDir;

use crate::proxy::Proxy;
use crate::support::{Node, Outage, program, resume_as, rewrite};

/// Two nodes of a fleet that publish into the same directory, and the certificates of both.
pub(crate) struct Pair {
    pub(crate) first: Node,
    pub(crate) second: Node,
    pub(crate) store: TempDir,
    /// The address at which the first one serves others.
    pub(crate) address: String,
    _certificates: TempDir,
}

impl Pair {
    pub(crate) fn start() -> Self {
        Self::start_with(|address| format!("static = [\"first={address}\"]\n"))
    }

    /// Both serve each other. The first reaches the second by a proxy of the test, and so the other way round.
    pub(crate) fn both_ways(of_second: &str) -> (Self, [Proxy; 2]) {
        let (store, certificates) = (
            tempfile::tempdir().expect("certificates and directories of a test"),
            tempfile::tempdir().expect("certificates and directories of a test"),
        );
        let settings = settings_of(certificates.path());
        let at = [free_address(), free_address()];
        let ways = [Proxy::to(&at[0]), Proxy::to(&at[1])];
        let node = |this: usize, other: &str, more: &str| {
            let (listen, address) = (&at[this], ways[this].address());
            let other = format!("{other}={}", ways[1 - this].address());
            let peers = format!("listen = {listen:?}\naddress = {address:?}\nstatic = [{other:?}]\n");
            place(&format!("{more}{settings}{peers}"), store.path())
        };
        let first = Node::start_in(node(0, "second", ""));
        let second = node(1, "first", of_second);
        second.copy_key_ring(&first.place).expect("the other has keys");
        let (second, address) = (Node::start_in(second), at[0].clone());
        (Self { first, second, store, address, _certificates: certificates }, ways)
    }

    /// The second node has more settings of its peers, which may have the first one's address.
    pub(crate) fn start_with(of_second: impl FnOnce(&str) -> String) -> Self {
        let (store, certificates) = (
            tempfile::tempdir().expect("certificates and directories of a test"),
            tempfile::tempdir().expect("certificates and directories of a test"),
        );
        let settings = settings_of(certificates.path());
        let address = free_address();
        let first = place(&format!("{settings}listen = {address:?}\n"), store.path());
        let first = Node::start_in(first);
        let second = place(&format!("{settings}{}", of_second(&address)), store.path());
        second.copy_key_ring(&first.place).expect("the other has keys");
        Self { first, second: Node::start_in(second), store, address, _certificates: certificates }
    }

    /// Resumes a snapshot at the second node.
    fn resume_at_second(&self, snapshot: &str, name: &str) -> Result<(), ClientError> {
        let how = ResumeSnapshot { from: Some("first".to_owned()), ..resume_as(name, 1) };
        self.second.client.resume_snapshot(snapshot, None, &how).map(drop)
    }
}

/// An address that nothing listens at.
pub(crate) fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    free.expect("there is a port").to_string()
}

/// The directories of a daemon whose store is that of both nodes.
pub(crate) fn place(settings: &str, store: &Path) -> BlackBox {
    let mut place = BlackBox::with_settings(&program(), settings).expect("directories");
    let store = store.join("store").display().to_string();
    place.serve_with(&["--store", &store]);
    place
}

/// An authority and a node's certificate, in settings.
pub(crate) fn settings_of(directory: &Path) -> String {
    let mut authority = CertificateParams::new(Vec::new()).expect("certificates and directories of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(
        authority,
        KeyPair::generate().expect("certificates and directories of a test"),
    )
    .expect("certificates and directories of a test");
    let key = KeyPair::generate().expect("certificates and directories of a test");
    let node = CertificateParams::new(vec!["rekindle-peer".to_owned()])
        .expect("certificates and directories of a test");
    let node = node.signed_by(&key, &issuer).expect("certificates and directories of a test");
    let put = |name: &str, text: String| {
        let path = directory.join(name);
        fs::write(&path, text).expect("certificates and directories of a test");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .expect("certificates and directories of a test");
        path
    };
    format!(
        "[peers]\ncertificate = {:?}\nkey = {:?}\nauthority = {:?}\n",
        put("node.pem", node.pem()),
        put("key.pem", key.serialize_pem()),
        put("authority.pem", issuer.pem())
    )
}

#[test]
fn a_sandbox_goes_on_at_another_node_before_its_pause_is_saved_and_is_paused_there() {
    let pair = Pair::start();
    let Pair { first, second, .. } = &pair;
    let outage = Outage::of(&pair.store.path().join("store"));
    first.filled("box", 1);
    let snapshot = first.pause("box", "base").id.to_string();
    pair.resume_at_second(&snapshot, "moved").expect("its node has it");
    second.assert_verified("moved");
    let shown = second.client.snapshot(&snapshot).expect("it is listed");
    assert_eq!((shown.state, shown.name.as_deref()), (SnapshotState::Remote, Some("base")));
    let placement = second.client.placement(&snapshot).expect("it is known");
    assert_eq!(placement.origin.as_deref(), Some("first"));
    second.told("moved").rewrite(rewrite(2)).expect("rewrites");
    second.pause("moved", "next");
    second.resume("moved");
    second.assert_verified("moved");
    outage.end();
    second.wait("next", SnapshotState::Published);
    assert_eq!(second.client.snapshot(&snapshot).expect("it is listed").state, SnapshotState::Published);
    second.assert_verified("moved");
}

#[test]
fn a_first_node_that_is_killed_before_it_published_stalls_the_guest_with_its_name_until_it_returns() {
    let mut pair = Pair::start();
    let outage = Outage::of(&pair.store.path().join("store"));
    pair.first.filled("box", 1);
    let snapshot = pair.first.pause("box", "base").id.to_string();
    pair.resume_at_second(&snapshot, "moved").expect("its node has it");
    pair.first.kill();
    // It runs on what it has, or waits: never on anything else.
    let shown = pair.second.client.snapshot(&snapshot).expect("it is listed");
    assert_eq!(shown.state, SnapshotState::Remote);
    if shown.missing_bytes > Some(0) {
        pair.second.eventually("the node being named", || {
            let shown = pair.second.client.snapshot(&snapshot).expect("it is listed");
            shown.reason.is_some_and(|reason| reason.contains("node first") && reason.contains("bytes of"))
        });
    }
    // The daemon of the second node may go as well.
    pair.second.crash();
    assert_eq!(pair.second.client.snapshot(&snapshot).expect("it is listed").state, SnapshotState::Remote);
    pair.first.start_again();
    pair.second.assert_verified("moved");
    let state = pair.second.client.sandbox("moved").expect("it is listed").state;
    assert_eq!(state, SandboxState::Running);
    outage.end();
    pair.second.wait(&snapshot, SnapshotState::Published);
    pair.second.assert_verified("moved");
}

#[test]
fn a_first_node_that_is_killed_after_it_published_is_not_missed() {
    let mut pair = Pair::start();
    pair.first.filled("box", 1);
    let snapshot = pair.first.pause("box", "base").id.to_string();
    pair.resume_at_second(&snapshot, "early").expect("its node has it");
    pair.first.wait("base", SnapshotState::Published);
    pair.first.kill();
    pair.second.wait(&snapshot, SnapshotState::Published);
    pair.second.assert_verified("early");
    pair.resume_at_second(&snapshot, "late").expect("the store has it");
    pair.second.assert_verified("late");
}

#[test]
fn a_resume_from_a_node_that_is_away_or_unknown_says_so() {
    let mut pair = Pair::start();
    pair.first.kill();
    let id = "0198c0de-0000-7000-8000-000000000000";
    let failed = pair.resume_at_second(id, "moved").expect_err("it is away").to_string();
    assert!(failed.contains("node first cannot be reached"), "{failed}");
    let how = ResumeSnapshot { from: Some("third".to_owned()), ..resume_as("moved", 1) };
    let failed = pair.second.client.resume_snapshot(id, None, &how).expect_err("nobody is called so");
    assert!(failed.to_string().contains("peers.static"), "{failed}");
}

/// The words of an answer that refuses.
fn refused<T>(answer: Result<T, ClientError>) -> String {
    let error = answer.map(drop).expect_err("it is refused");
    assert_eq!(error.code(), Some(Code::WrongState), "{error}");
    error.to_string()
}

#[test]
fn each_operation_works_with_a_snapshot_of_another_node_or_names_that_node() {
    let pair = Pair::start();
    let second = &pair.second;
    let outage = Outage::of(&pair.store.path().join("store"));
    pair.first.filled("box", 1);
    let snapshot = pair.first.pause("box", "base").id.to_string();
    pair.resume_at_second(&snapshot, "moved").expect("its node has it");

    let deleted = refused(second.client.delete_snapshot(&snapshot));
    assert!(deleted.contains("node first has") && deleted.contains("forget it here"), "{deleted}");
    assert!(refused(second.client.forget_snapshot(&snapshot)).contains("runs from"));
    let verified = second.client.verify_snapshot(&snapshot).expect("its pages come");
    assert!(verified.pages > 0 && verified.wrong_pages == 0, "{verified:?}");
    let state = second.told("moved").state().expect("it answers");
    let during = second.checkpoint("moved", "during");
    second.told("moved").rewrite(rewrite(2)).expect("rewrites");
    let drained = second.client.drain(&DrainNode::default()).expect("it is paused");
    assert!(drained.sandboxes.iter().all(|drained| drained.problem.is_none()), "{drained:?}");
    let reopened = second.client.undo_drain().expect("it is resumed");
    assert!(reopened.sandboxes.iter().all(|resumed| resumed.problem.is_none()), "{reopened:?}");
    assert_eq!(second.client.sandbox("moved").expect("it is listed").state, SandboxState::Running);
    second.assert_verified("moved");
    let forked = second.client.fork_sandbox("moved", None, &ForkSandbox::default());
    forked.expect("it is forked");
    second.assert_verified("moved");
    assert_eq!(second.client.snapshot(&snapshot).expect("it is listed").state, SnapshotState::Remote);

    outage.end();
    for saved in [&snapshot, "during"] {
        second.wait(saved, SnapshotState::Published);
    }
    second.client.collect(&Collect::default()).expect("nothing that is needed is collected");
    assert!(second.client.snapshot_usage(&snapshot).expect("the store is read").stored_bytes > 0);
    second.resumed("during", "checkpointed");
    assert_eq!(second.told("checkpointed").state().expect("it answers"), state);
    second.assert_verified("checkpointed");
    assert_eq!(second.client.snapshot("during").expect("it is listed").id, during.id);
    second.client.delete_snapshot(&snapshot).expect("it is one like any other");
    second.client.undelete_snapshot(&snapshot).expect_err("sandboxes run from it");
    second.assert_verified("moved");
}

#[test]
fn a_snapshot_of_another_node_that_nothing_runs_from_is_forgotten_and_can_be_had_again() {
    let pair = Pair::start();
    let outage = Outage::of(&pair.store.path().join("store"));
    pair.first.filled("box", 1);
    let snapshot = pair.first.pause("box", "base").id.to_string();
    for name in ["early", "late"] {
        pair.resume_at_second(&snapshot, name).expect("its node has it");
        pair.second.assert_verified(name);
        pair.second.client.remove_sandbox(name).expect("it is removed");
        pair.second.client.forget_snapshot(&snapshot).expect("its node has it");
        assert_eq!(pair.second.client.all_snapshots(&[]).expect("it answers"), Vec::new());
    }
    outage.end();
    pair.first.wait("base", SnapshotState::Published);
}

#[test]
fn a_cold_resume_reads_from_the_node_that_has_the_layers_and_from_the_store_once_that_node_is_gone() {
    let mut pair = Pair::start();
    pair.first.filled("box", 1);
    let snapshot = pair.first.pause("box", "base").id.to_string();
    pair.first.wait("base", SnapshotState::Published);
    let outage = Outage::of_layers(&pair.store.path().join("store"));
    pair.second.resumed(&snapshot, "cold");
    pair.second.assert_verified("cold");
    let metrics = pair.second.client.metrics().expect("it answers");
    let came = metrics.lines().find_map(|line| line.strip_prefix("rekindle_peer_frames_total "));
    assert!(came.is_some_and(|frames| frames != "0"), "{came:?}");
    pair.first.kill();
    outage.end();
    pair.second.client.remove_sandbox("cold").expect("it is removed");
    pair.second.client.forget_snapshot(&snapshot).expect("the store has it");
    pair.second.resumed(&snapshot, "late");
    pair.second.assert_verified("late");
}
