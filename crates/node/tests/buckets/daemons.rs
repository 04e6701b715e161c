//! Daemons whose store is a bucket, also one that they share.

use std::fs;
use std::path::PathBuf;

use rekindle_api::client::Client;
use rekindle_api::problem::Code;
use rekindle_api::types::{
    CreateSandbox, MemoryBacking, PauseSandbox, PlacementQuery, ResumeHint, ResumeSandbox, ResumeSnapshot,
    SnapshotState,
};
use rekindle_testkit::black_box::{BlackBox, PATIENCE, RunningDaemon, Told, ask_until};
use rekindle_testkit::s3::{Misbehaviour, Rule, S3Server};
use rekindle_testkit::stores::Operation;
use uuid::Uuid;

use crate::bucket::Bucket;

/// A daemon that publishes to a bucket.
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) place: BlackBox,
    _daemon: RunningDaemon,
}

fn place() -> BlackBox {
    BlackBox::new(&PathBuf::from(env!("CARGO_BIN_EXE_rekindle"))).expect("directories")
}

impl Node {
    pub(crate) fn start(bucket: &Bucket) -> Self {
        Self::start_in(place(), bucket, &[])
    }

    /// Starts one with these words besides those that name the bucket.
    pub(crate) fn start_with(bucket: &Bucket, more: &[&str]) -> Self {
        Self::start_in(place(), bucket, more)
    }

    /// A second node of a bucket, with a copy of the keys of the first.
    fn start_beside(other: &Self, bucket: &Bucket) -> Self {
        let place = place();
        place.copy_key_ring(&other.place).expect("the first node has keys");
        Self::start_in(place, bucket, &[])
    }

    fn start_in(mut place: BlackBox, bucket: &Bucket, more: &[&str]) -> Self {
        let words = bucket.words(&keys_file(&place));
        place.serve_with(&words.iter().map(String::as_str).chain(more.iter().copied()).collect::<Vec<_>>());
        let daemon = place.start().expect("a daemon starts");
        Self { client: place.client(), place, _daemon: daemon }
    }

    /// The file with the bucket's credentials.
    pub(crate) fn keys_file(&self) -> PathBuf {
        keys_file(&self.place)
    }

    pub(crate) fn filled(&self, name: &str) {
        let wanted = CreateSandbox {
            domain: None,
            name: Some(name.parse().expect("it is legal")),
            labels: Default::default(),
            vmm: Default::default(),
            memory_bytes: 8 << 20,
            backing: MemoryBacking::Shared,
            machine: None,
            checkpoints: None,
        };
        self.client.create_sandbox(None, &wanted).expect("a sandbox is made");
        Told::new(&self.client, name).fill(1).expect("its guest fills its memory");
    }

    /// Pauses a sandbox, and waits until the snapshot is in the store. Its id.
    fn published(&self, sandbox: &str) -> String {
        let snapshot =
            self.client.pause_sandbox(sandbox, None, &PauseSandbox::default()).expect("it is paused");
        let id = snapshot.id.to_string();
        self.client.wait_snapshot(&id, SnapshotState::Published, PATIENCE).expect("it is published");
        id
    }

    fn resumed(&self, snapshot: &str, name: &str) {
        let wanted = ResumeSnapshot { name: Some(name.parse().expect("it is legal")), ..Default::default() };
        let resumed = self.client.resume_snapshot(snapshot, None, &wanted);
        assert!(resumed.is_ok(), "{resumed:?}; the log ends with:\n{}", self.place.log_end());
    }

    fn assert_verified(&self, sandbox: &str) {
        let verified = Told::new(&self.client, sandbox).verify().expect("its guest verifies");
        assert!(verified.pages > 0 && verified.mismatches == 0, "{sandbox}: {verified:?}");
    }
}

fn keys_file(place: &BlackBox) -> PathBuf {
    place.home_directory().join("keys")
}

/// Lets two nodes publish to a bucket, and each resume what the other published.
pub(crate) fn pass_snapshots_to_each_other(bucket: &Bucket) {
    let one = Node::start(bucket);
    let two = Node::start_beside(&one, bucket);
    one.filled("a");
    let first = one.published("a");
    two.resumed(&first, "b");
    two.assert_verified("b");
    let second = two.published("b");
    one.resumed(&second, "c");
    one.assert_verified("c");
    assert!(one.client.metrics().expect("metrics").contains("rekindle_store_failed_requests_total{"));
}

#[test]
fn two_nodes_pass_snapshots_to_each_other_through_one_bucket() {
    let server = S3Server::start().expect("a server");
    pass_snapshots_to_each_other(&Bucket::of(&server, "fleet"));
}

#[test]
fn a_snapshot_that_only_the_bucket_knows_is_listed_and_resumed_by_a_part_of_its_id() {
    let server = S3Server::start().expect("a server");
    let bucket = Bucket::of(&server, "");
    let one = Node::start(&bucket);
    let two = Node::start_beside(&one, &bucket);
    one.filled("a");
    let snapshot = one.published("a");
    let stored = two.client.stored_snapshots().expect("it is listed");
    let listed: Vec<_> = stored.iter().map(|stored| (stored.id.to_string(), stored.is_known)).collect();
    assert_eq!(listed, [(snapshot.clone(), false)]);
    let failing = server.misbehave(Rule::next(u32::MAX, Operation::List, "manifests", Misbehaviour::Fail));
    assert!(two.client.stored_snapshots().is_err(), "a list that fails is no empty list");
    drop(failing);
    assert!(two.client.snapshot("abcdef0123").is_err(), "it is no part of an id");
    let end = &snapshot[snapshot.len() - 8..];
    two.resumed(end, "b");
    two.assert_verified("b");
    assert!(two.client.stored_snapshots().expect("it is listed").iter().all(|stored| stored.is_known));
}

#[test]
fn placement_is_told_while_the_bucket_answers_nothing() {
    let server = S3Server::start().expect("a server");
    let node = Node::start(&Bucket::of(&server, ""));
    node.filled("a");
    let _silent = [Operation::Get, Operation::List, Operation::Put]
        .map(|on| server.misbehave(Rule::next(u32::MAX, on, "", Misbehaviour::Lose)));
    let paused = node.client.pause_sandbox("a", None, &PauseSandbox::default()).expect("it is paused").id;
    let unknown = Uuid::now_v7();
    let told = node.client.node_placement(&PlacementQuery { snapshots: vec![paused, unknown] });
    let hints: Vec<_> = told.expect("it is told").placed.iter().map(|placed| placed.resume).collect();
    assert_eq!(hints, [Some(ResumeHint::Local), Some(ResumeHint::Remote)]);
    let placed = node.client.placement(&unknown.to_string()).expect_err("it is not looked for in the bucket");
    assert_eq!(placed.code(), Some(Code::NotFound));
}

#[test]
fn wrong_bytes_from_a_bucket_reach_no_guest() {
    let server = S3Server::start().expect("a server");
    let bucket = Bucket::of(&server, "");
    let one = Node::start(&bucket);
    let two = Node::start_beside(&one, &bucket);
    one.filled("a");
    let snapshot = one.published("a");
    let rule = |misbehaviour, times| Rule::next(times, Operation::Get, "layers/", misbehaviour);
    let wrong = server.misbehave(rule(Misbehaviour::Corrupt, 2));
    let cut = server.misbehave(rule(Misbehaviour::Cut, 1));
    two.resumed(&snapshot, "b");
    two.assert_verified("b");
    drop((wrong, cut));
}

#[test]
fn a_publish_that_the_bucket_hinders_is_done_in_the_end() {
    let server = S3Server::start().expect("a server");
    let node = Node::start(&Bucket::of(&server, ""));
    node.filled("a");
    let hinder = |on, misbehaviour| server.misbehave(Rule::next(1, on, "", misbehaviour));
    let hindered = [
        hinder(Operation::Begin, Misbehaviour::SlowDown),
        hinder(Operation::Put, Misbehaviour::FailAfter),
        hinder(Operation::Put, Misbehaviour::Repeat),
        hinder(Operation::List, Misbehaviour::Fail),
    ];
    let snapshot = node.published("a");
    drop(hindered);
    let other = Node::start_beside(&node, &Bucket::of(&server, ""));
    other.resumed(&snapshot, "b");
    other.assert_verified("b");
}

#[test]
fn a_bucket_in_another_ones_place_is_away() {
    let server = S3Server::start().expect("a server");
    let node = Node::start(&Bucket::of(&server, "mine"));
    node.filled("a");
    node.published("a");
    let (mine, aside) = (server.objects().join("mine"), server.objects().join("aside"));
    fs::rename(&mine, &aside).expect("objects are moved");
    node.client.resume_sandbox("a", &ResumeSandbox::default()).expect("it is resumed");
    let paused = node.client.pause_sandbox("a", None, &PauseSandbox::default()).expect("it is paused");
    let away = ask_until(PATIENCE, || {
        let shown = node.client.snapshot(&paused.id.to_string()).ok()?;
        shown.reason.filter(|reason| reason.contains("the store is away"))
    });
    assert!(away.is_some(), "nothing is published to an empty bucket");
    assert!(!mine.join("manifests").exists(), "nothing is written to it");
    fs::remove_dir_all(&mine).ok();
    fs::rename(&aside, &mine).expect("objects are moved");
    let id = paused.id.to_string();
    node.client.wait_snapshot(&id, SnapshotState::Published, PATIENCE).expect("it is published");
}

#[test]
fn a_list_that_lags_hides_snapshots_for_a_while_and_loses_none() {
    let server = S3Server::start().expect("a server");
    let bucket = Bucket::of(&server, "");
    let one = Node::start(&bucket);
    let two = Node::start_beside(&one, &bucket);
    let listed = || two.client.stored_snapshots().expect("it is listed").len();
    assert_eq!(listed(), 0);
    let lagging = server.misbehave(Rule::always(Operation::List, "", Misbehaviour::StaleList));
    one.filled("a");
    let first = one.published("a");
    assert_eq!(listed(), 0, "the list is that of the last time");
    one.client.resume_sandbox("a", &ResumeSandbox::default()).expect("it is resumed");
    let paused = one.client.pause_sandbox("a", None, &PauseSandbox::default()).expect("it is paused");
    let second = paused.id.to_string();
    // Until then the store may seem to be an older one, as the sign is not listed that this node left there.
    drop(lagging);
    one.client.wait_snapshot(&second, SnapshotState::Published, PATIENCE).expect("it is published");
    assert_eq!(listed(), 2);
    for (snapshot, name) in [(first, "b"), (second, "c")] {
        two.resumed(&snapshot, name);
        two.assert_verified(name);
    }
}
