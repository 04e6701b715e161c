//! The daemon's log of changes and their callers.

use std::fs;

use rekindle_api::types::ForkSandbox;
use serde_json::Value;

use crate::support::{Node, create};

/// The lines of the log, as JSON, of a target.
fn lines(node: &Node, target: &str) -> Vec<Value> {
    let log = fs::read_to_string(node.place.log_file()).expect("there is a log");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == target).map(|line| line["fields"].clone()).collect()
}

#[test]
fn each_change_has_one_line_with_who_asked_for_what_and_what_came_of_it() {
    let node = Node::start_with("log_format = \"json\"");
    let source = node.filled("a", 1);
    let pause = node.pause("a", "first");
    let refused = node.client.create_sandbox(None, &create("a", Default::default()));
    refused.expect_err("the name is taken");
    node.resume("a");
    let forks = ForkSandbox { count: 2_u32.try_into().expect("a few"), ..Default::default() };
    let forks = node.client.fork_sandbox("a", None, &forks).expect("it is forked");
    node.client.remove_sandbox("a").expect("it is removed");
    node.client.delete_snapshot("first").expect("it is deleted");
    node.client.request(hyper::Method::POST, "/v1/sandboxes", Some(&Value::from(1))).expect_err("no object");
    node.client.all_sandboxes(&[]).expect("a list, which is no change");
    let mut changes = Vec::new();
    node.eventually("the lines of the changes", || {
        changes = lines(&node, "audit");
        changes.len() >= 9
    });
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told: Vec<_> = changes
        .iter()
        .map(|line| (text(&line["method"]), text(&line["path"]), text(&line["outcome"])))
        .collect();
    let line = |method: &str, path: &str, outcome: &str| {
        (method.to_owned(), format!("/v1/{path}"), outcome.to_owned())
    };
    assert_eq!(
        told,
        [
            line("POST", "sandboxes", "done"),
            line("POST", "sandboxes/a/guest", "done"),
            line("POST", "sandboxes/a/pause", "done"),
            line("POST", "sandboxes", "name_taken"),
            line("POST", "sandboxes/a/resume", "done"),
            line("POST", "sandboxes/a/fork", "done"),
            line("DELETE", "sandboxes/a", "done"),
            line("DELETE", "snapshots/first", "done"),
            line("POST", "sandboxes", "invalid_request"),
        ]
    );
    let own = u64::from(rustix::process::geteuid().as_raw());
    for line in &changes {
        assert_eq!(
            (line["uid"].as_u64(), line["pid"].as_u64()),
            (Some(own), Some(std::process::id().into()))
        );
    }
    assert_eq!(changes[0]["sandboxes"], source.id.to_string());
    assert_eq!(changes[2]["snapshots"], pause.id.to_string());
    assert_eq!(changes[3]["sandboxes"], source.id.to_string());
    assert!(text(&changes[3]["detail"]).contains("there is a sandbox called"));
    assert_eq!(changes[5]["sandboxes"], format!("{},{}", forks[0].id, forks[1].id));
    assert_eq!(changes[6]["sandboxes"], source.id.to_string());
    assert_eq!(changes[7]["snapshots"], pause.id.to_string());
}

#[test]
fn events_are_logged_with_their_ids_as_the_api_has_them() {
    let node = Node::start_with("log_format = \"json\"");
    let sandbox = node.filled("a", 1).id.to_string();
    let snapshot = node.pause("a", "first").id.to_string();
    let mut events = Vec::new();
    node.eventually("the snapshot's events", || {
        events = lines(&node, "rekindle::daemon::events");
        events.iter().any(|event| event["kind"] == "snapshot.sealed")
    });
    for kind in ["sandbox.created", "sandbox.paused", "snapshot.captured", "snapshot.sealed"] {
        let event = events.iter().find(|event| event["kind"] == kind).expect("it happened");
        assert_eq!(event["sandbox"], sandbox, "{event}");
        let is_of_snapshot = kind != "sandbox.created";
        assert_eq!(event["snapshot"].as_str(), is_of_snapshot.then_some(snapshot.as_str()), "{event}");
    }
    let log = fs::read_to_string(node.place.log_file()).expect("there is a log");
    assert!(!log.contains("Some(") && !log.contains("\"None\""), "{log}");
}
