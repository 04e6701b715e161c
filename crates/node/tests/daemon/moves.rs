//! Sandboxes that move from one node to another, whatever becomes of either on the way.

use std::thread;

use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;
use rekindle_api::types::{Drain, DrainNode, MoveSandbox, MovedSandbox, SandboxState, SnapshotState};

use crate::proxy::Proxy;
use crate::support::{Node, Outage, rewrite};
use crate::two_nodes::Pair;

/// Two nodes, neither of which can publish, and a sandbox at the first; the ways to the first and to the second.
fn running_at_first(of_second: &str) -> (Pair, [Proxy; 2], Outage) {
    let (pair, ways) = Pair::both_ways(of_second);
    let outage = Outage::of_layers(&pair.store.path().join("store"));
    pair.first.filled("box", 1);
    (pair, ways, outage)
}

fn moved(node: &Node, key: Option<&str>, to: &str) -> Result<MovedSandbox, ClientError> {
    node.client.move_sandbox("box", key, &MoveSandbox { to: to.to_owned() })
}

/// Moves the sandbox of the first node while `meanwhile` is done.
fn moved_while(pair: &mut Pair, meanwhile: impl FnOnce(&mut Pair)) -> Result<MovedSandbox, ClientError> {
    let client = pair.first.place.client();
    let moving = thread::spawn(move || {
        client.move_sandbox("box", Some("once"), &MoveSandbox { to: "second".to_owned() })
    });
    meanwhile(pair);
    moving.join().expect("a client does not panic")
}

fn sandboxes(node: &Node) -> Vec<(String, SandboxState)> {
    let all = node.client.all_sandboxes(&[]).expect("it answers");
    all.into_iter().map(|each| (each.name.expect("it has one").to_string(), each.state)).collect()
}

fn at(node: &Node, state: SandboxState) {
    assert_eq!(sandboxes(node), [("box".to_owned(), state)]);
}

/// It runs at the second node and nowhere else, with all that its guest wrote.
fn assert_at_second(pair: &Pair) {
    assert_eq!(sandboxes(&pair.first), []);
    at(&pair.second, SandboxState::Running);
    pair.second.assert_verified("box");
}

#[test]
fn a_sandbox_moves_before_its_pause_is_saved_and_a_repeated_request_starts_no_second_one() {
    let (pair, _ways, outage) = running_at_first("");
    let there = moved(&pair.first, Some("once"), "second").expect("the second takes it");
    assert!(there.stopped_seconds.is_some_and(|seconds| seconds > 0.0), "{there:?}");
    assert_eq!(pair.second.client.sandbox("box").expect("it is there").id, there.sandbox);
    let again = moved(&pair.first, Some("once"), "second").expect("it is answered again");
    assert_eq!(again, MovedSandbox { stopped_seconds: None, ..there.clone() });
    assert_at_second(&pair);
    pair.second.told("box").rewrite(rewrite(2)).expect("it goes on");
    // Back, while neither pause is saved.
    let back = moved(&pair.second, None, "first").expect("the first takes it back");
    assert_ne!(back.snapshot, there.snapshot);
    assert_eq!(sandboxes(&pair.second), []);
    at(&pair.first, SandboxState::Running);
    pair.first.assert_verified("box");
    outage.end();
    pair.first.wait(&there.snapshot.to_string(), SnapshotState::Published);
    pair.second.wait(&back.snapshot.to_string(), SnapshotState::Published);
    pair.first.assert_verified("box");
}

#[test]
fn a_sandbox_that_the_other_node_does_not_take_runs_on_here() {
    let (mut pair, _ways, outage) = running_at_first("capture_bytes_max = \"1MiB\"\n");
    let refused = moved(&pair.first, Some("once"), "second").expect_err("it has no room");
    assert_eq!(refused.code(), Some(Code::PeerFailed), "{refused}");
    let told = refused.to_string();
    assert!(told.contains("runs on here") && told.contains("capture_bytes_max"), "{told}");
    at(&pair.first, SandboxState::Running);
    assert_eq!(sandboxes(&pair.second), []);
    pair.first.assert_verified("box");
    let snapshots = pair.first.client.all_snapshots(&[]).expect("it answers").len();
    let refused = moved(&pair.first, None, "third").expect_err("no node is called so").to_string();
    assert!(refused.contains("peers.static"), "{refused}");
    pair.second.kill();
    let refused = moved(&pair.first, None, "second").expect_err("it is away").to_string();
    assert!(refused.contains("node second cannot be reached"), "{refused}");
    at(&pair.first, SandboxState::Running);
    assert_eq!(
        pair.first.client.all_snapshots(&[]).expect("it answers").len(),
        snapshots,
        "it was not paused"
    );
    outage.end();
}

#[test]
fn a_node_that_dies_before_it_has_answered_leaves_the_sandbox_paused_and_takes_it_when_it_is_asked_again() {
    let (mut pair, [to_first, _], outage) = running_at_first("");
    to_first.hold();
    let unknown = moved_while(&mut pair, |pair| {
        to_first.wait_until_held();
        pair.second.kill();
    });
    let told = unknown.expect_err("nobody answers").to_string();
    assert!(told.contains("paused here") && told.contains("node second has not said"), "{told}");
    at(&pair.first, SandboxState::Paused);
    to_first.cut();
    pair.second.start_again();
    assert_eq!(sandboxes(&pair.second), []);
    let there = moved(&pair.first, None, "second").expect("it takes it now");
    assert_eq!(there.stopped_seconds, None);
    assert_at_second(&pair);
    outage.end();
}

#[test]
fn an_answer_that_is_lost_is_given_again_and_the_sandbox_runs_once() {
    let (mut pair, [to_first, to_second], outage) = running_at_first("");
    to_first.hold();
    let there = moved_while(&mut pair, |pair| {
        to_first.wait_until_held();
        to_second.mute();
        to_first.open();
        pair.second.eventually("the sandbox there", || !sandboxes(&pair.second).is_empty());
        to_second.cut();
    });
    let there = there.expect("it is asked again");
    assert_eq!(pair.second.client.sandbox("box").expect("it is there").id, there.sandbox);
    assert_at_second(&pair);
    outage.end();
}

/// Kills the first node between its question and the answer of the second, and starts it again.
fn kill_the_first_while_it_asks(pair: &mut Pair, to_first: &Proxy) {
    to_first.hold();
    let cut_short = moved_while(pair, |pair| {
        to_first.wait_until_held();
        pair.first.kill();
    });
    cut_short.expect_err("its daemon is gone");
    to_first.cut();
    pair.first.start_again();
}

#[test]
fn a_first_node_that_is_killed_while_it_asks_has_the_sandbox_paused_and_moves_it_when_it_is_told_again() {
    let (mut pair, [to_first, _], outage) = running_at_first("");
    kill_the_first_while_it_asks(&mut pair, &to_first);
    at(&pair.first, SandboxState::Paused);
    pair.first.eventually("the second node taking it", || moved(&pair.first, None, "second").is_ok());
    assert_at_second(&pair);
    outage.end();
}

/// Drains the first node over the second, which is killed before it answers.
fn drained_unheard(pair: &mut Pair, to_first: &Proxy) -> Drain {
    to_first.hold();
    let client = pair.first.place.client();
    let how = DrainNode { to: vec!["second".to_owned()], ..DrainNode::default() };
    let draining = thread::spawn(move || client.drain(&how));
    to_first.wait_until_held();
    pair.second.kill();
    draining.join().expect("a client does not panic").expect("it is drained")
}

#[test]
fn a_drain_whose_question_has_no_answer_leaves_that_sandbox_paused_and_no_undo_resumes_it() {
    let (mut pair, [to_first, _], outage) = running_at_first("");
    let drained = drained_unheard(&mut pair, &to_first);
    let [unheard] = &drained.sandboxes[..] else { unreachable!("there is one: {drained:?}") };
    let problem = unheard.problem.as_ref().expect("it is told").detail.as_str();
    assert!(problem.contains("paused here") && problem.contains("node second has not said"), "{problem}");
    assert_eq!(pair.first.client.undo_drain().expect("it is undone").sandboxes, Vec::new());
    at(&pair.first, SandboxState::Paused);
    to_first.cut();
    pair.second.start_again();
    moved(&pair.first, None, "second").expect("it takes it now");
    assert_at_second(&pair);
    outage.end();
}

#[test]
fn a_drained_sandbox_that_another_node_may_run_is_not_resumed_by_the_next_start() {
    let (mut pair, [to_first, _], outage) = running_at_first("");
    pair.first.client.drain(&DrainNode::default()).expect("it is drained");
    kill_the_first_while_it_asks(&mut pair, &to_first);
    let shown = pair.first.client.sandbox("box").expect("it is listed");
    assert_eq!((shown.state, shown.reason), (SandboxState::Paused, None));
    pair.first.eventually("the second node taking it", || moved(&pair.first, None, "second").is_ok());
    assert_at_second(&pair);
    outage.end();
}

#[test]
fn a_drained_sandbox_that_is_not_taken_is_resumed_by_the_undoing_all_the_same() {
    let (mut pair, _ways, outage) = running_at_first("");
    pair.first.client.drain(&DrainNode::default()).expect("it is drained");
    pair.second.kill();
    moved(&pair.first, None, "second").expect_err("it is away");
    let undone = pair.first.client.undo_drain().expect("it is undone");
    assert_eq!(undone.sandboxes.len(), 1, "{undone:?}");
    at(&pair.first, SandboxState::Running);
    pair.first.assert_verified("box");
    outage.end();
}
