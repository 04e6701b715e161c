//! Secrets of a bucket stay with its client: nothing that a person or a program is told has them.

use std::fs;

use rekindle_api::types::{PauseSandbox, SnapshotState};
use rekindle_testkit::black_box::{PATIENCE, ask_until};
use rekindle_testkit::s3::{S3Server, SECRET};

use crate::bucket::Bucket;
use crate::daemons::Node;

/// A secret that the service does not take, and a token that comes with it.
const WRONG: &str = "a-wrong-secret-of-tests";
const TOKEN: &str = "a-wrong-token-of-tests";

/// All that a node tells: the log of its daemon, the answers of its commands, and its metrics.
fn told(node: &Node, bucket: &Bucket, snapshot: &str) -> String {
    let words = bucket.words(&node.keys_file());
    let commands: [&[&str]; 9] = [
        &["settings"],
        &["settings", "--json"],
        &["doctor", "--json"],
        &["events", "-n", "1000", "--json"],
        &["list", "--json"],
        &["list", "snapshots", "--store"],
        &["show", snapshot, "--json"],
        &["verify", snapshot],
        &["resume", "0123abcd"],
    ];
    let mut all = fs::read_to_string(node.place.log_file()).expect("a log");
    for command in commands {
        let takes_settings = ["settings", "doctor"].contains(&command[0]);
        let words = words.iter().map(String::as_str).filter(|_| takes_settings);
        let said = node.place.command(command.iter().copied().chain(words)).output();
        let said = said.expect("the program runs");
        all += &String::from_utf8_lossy(&said.stdout);
        all += &String::from_utf8_lossy(&said.stderr);
    }
    all + &node.client.metrics().expect("metrics")
}

#[test]
fn no_log_setting_event_or_problem_has_a_secret_whether_the_service_takes_it_or_not() {
    let server = S3Server::start().expect("a server");
    let taken = Bucket::of(&server, "");
    let mut refused = taken.clone();
    for (name, value) in [("AWS_SECRET_ACCESS_KEY", WRONG), ("AWS_SESSION_TOKEN", TOKEN)] {
        refused.environment.insert(name.to_owned(), value.to_owned());
    }
    let node = Node::start_with(&refused, &["--log-level", "trace"]);
    node.filled("a");
    let paused = node.client.pause_sandbox("a", None, &PauseSandbox::default()).expect("it is paused");
    let id = paused.id.to_string();
    let away = ask_until(PATIENCE, || node.client.snapshot(&id).ok()?.reason);
    assert!(away.is_some_and(|reason| reason.contains("SignatureDoesNotMatch")));
    let said = told(&node, &refused, &id);
    assert!(said.contains("SignatureDoesNotMatch") && said.contains("bucket.credentials_file"), "{said}");
    // The key is read anew when the store is opened again.
    taken.words(&node.keys_file());
    node.client.wait_snapshot(&id, SnapshotState::Published, PATIENCE).expect("it is published");
    let said = said + &told(&node, &taken, &id);
    for secret in [WRONG, TOKEN, SECRET, "X-Amz-Signature", "Signature="] {
        let lines = said.lines().filter(|line| line.contains(secret));
        assert_eq!(lines.collect::<Vec<_>>(), [""; 0], "{secret}");
    }
}
