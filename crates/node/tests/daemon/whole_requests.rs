//! Requests that are refused or fail: none of them is half done.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use rekindle_api::client::ClientError;
use rekindle_api::problem::Code;
use rekindle_api::types::{ForkSandbox, ResumeSandbox, Sandbox, SandboxState, SnapshotState};
use rekindle_testkit::black_box::Role;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::peers::Peers;
use crate::support::{Node, Outage, resume_as};

fn forks(name: &str, count: u32) -> ForkSandbox {
    ForkSandbox {
        count: count.try_into().expect("a few"),
        name: Some(name.parse().expect("it is a name")),
        ..Default::default()
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<Code> {
    answer.expect_err("it is refused").code()
}

impl Node {
    fn names(&self) -> Vec<String> {
        let sandboxes = self.client.all_sandboxes(&[]).expect("a list");
        sandboxes.into_iter().filter_map(|sandbox| sandbox.name).map(String::from).collect()
    }

    fn snapshots(&self) -> usize {
        self.client.all_snapshots(&[]).expect("a list").len()
    }

    /// Lets the daemon have `more` descriptors beside those it has; gives what it could have before.
    fn allow_descriptors(&self, more: u64) -> (Pid, Rlimit) {
        let processes = self.place.processes().expect("a list");
        let daemon =
            processes.iter().find(|process| process.role == Role::Daemon).expect("a daemon runs").pid;
        let open = std::fs::read_dir(format!("/proc/{daemon}/fd")).expect("it runs").count();
        let pid = Pid::from_raw(i32::try_from(daemon).expect("a pid")).expect("not zero");
        let few = u64::try_from(open).expect("a few") + more;
        let limits = Rlimit { current: Some(few), ..getrlimit(Resource::Nofile) };
        (pid, prlimit(Some(pid), Resource::Nofile, limits).expect("it is ours"))
    }
}

fn assert_untouched(node: &Node, before: &Sandbox) {
    let after = node.client.sandbox(&before.id.to_string()).expect("it is there");
    assert_eq!(
        (after.state, after.pid, after.snapshot),
        (SandboxState::Running, before.pid, before.snapshot)
    );
    assert_eq!(node.snapshots(), 0);
}

#[test]
fn a_fork_that_is_refused_leaves_its_source_running_and_no_snapshot() {
    let node = Node::start();
    let source = node.filled("a", 1);
    node.filled("f-2", 2);
    assert_eq!(code(node.client.fork_sandbox("a", None, &forks("f", 3))), Some(Code::NameTaken));
    assert_untouched(&node, &source);
    assert_eq!(code(node.client.fork_sandbox("a", None, &forks("f-2", 1))), Some(Code::NameTaken));
    assert_untouched(&node, &source);
    assert_eq!(node.names(), ["a", "f-2"]);
    assert_eq!(node.client.fork_sandbox("a", None, &forks("f", 1)).expect("the name is free").len(), 1);
}

#[test]
fn a_resume_of_several_that_is_refused_makes_none() {
    let node = Node::start();
    node.filled("f-2", 1);
    node.pause("f-2", "base");
    let refused = node.client.resume_snapshot("base", None, &resume_as("f", 2));
    assert_eq!(code(refused), Some(Code::NameTaken));
    assert_eq!(node.names(), ["f-2"]);
    assert_eq!(
        node.client.resume_snapshot("base", None, &resume_as("g", 2)).expect("they are free").len(),
        2
    );
}

#[test]
fn a_fork_that_fails_half_way_leaves_no_fork_no_snapshot_and_its_source_running() {
    let node = Node::start();
    node.filled("a", 1);
    let written = node.told("a").state().expect("answers");
    // Each fork takes about seven.
    let (daemon, before) = node.allow_descriptors(40);
    code(node.client.fork_sandbox("a", Some("key"), &forks("f", 40)));
    prlimit(Some(daemon), Resource::Nofile, before).expect("it is ours");
    assert_eq!((node.names(), node.snapshots()), (vec!["a".to_owned()], 0));
    let source = node.client.sandbox("a").expect("it is there");
    assert_eq!((source.state, source.snapshot), (SandboxState::Running, None));
    assert_eq!(node.told("a").state().expect("answers"), written);
    node.eventually("the guests of the forks ending", || node.kept("guest/").len() == 1);
    // Under the same key it is another request now, and done.
    assert_eq!(node.client.fork_sandbox("a", Some("key"), &forks("f", 40)).expect("is done").len(), 40);
    node.assert_verified("f-40");
    node.assert_verified("a");
}

#[test]
fn a_fork_whose_client_goes_away_is_undone() {
    let node = Node::start();
    node.filled("a", 1);
    let body = r#"{"count":256,"name":"f"}"#;
    let request = format!(
        "POST /v1/sandboxes/a/fork HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = UnixStream::connect(node.place.run_directory().join("api.sock")).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it is taken");
    node.eventually("the pause for the forks", || node.snapshots() > 0);
    drop(stream);
    node.eventually("the fork being undone", || node.snapshots() == 0);
    assert_eq!(node.names(), ["a"]);
    let metrics = node.client.metrics().expect("they are given");
    assert!(metrics.contains(r#"rekindle_requests_refused_total{code="abandoned"} 1"#), "{metrics}");
    node.assert_verified("a");
}

#[test]
fn a_stopped_sandbox_goes_on_from_its_last_snapshot_where_that_is_asked_for_and_the_refusal_says_how() {
    let node = Node::start();
    node.filled("a", 1);
    let refused = |how: &ResumeSandbox| {
        let refused = node.client.resume_sandbox("a", how).expect_err("it is refused");
        let problem = refused.problem().expect("the daemon refused it");
        (refused.code(), problem.detail.clone())
    };
    let last = ResumeSandbox { from_last_snapshot: true, ..Default::default() };
    let (code, detail) = refused(&last);
    assert_eq!(code, Some(Code::WrongState));
    assert!(detail.contains("is running: there is nothing to resume"), "{detail}");
    node.pause("a", "first");
    let written = node.resume("a");
    node.client.stop_sandbox("a").expect("it is stopped");
    let (code, detail) = refused(&ResumeSandbox::default());
    assert_eq!(code, Some(Code::WrongState));
    assert!(detail.contains("is stopped"), "{detail}");
    assert!(detail.contains("`rekindle resume a --from-last-snapshot`"), "{detail}");
    let resumed = node.client.resume_sandbox("a", &last).expect("it goes on");
    assert_eq!(
        (resumed.id, resumed.state, resumed.origin),
        (written.id, SandboxState::Running, written.origin)
    );
    node.assert_verified("a");
    node.filled("b", 2);
    node.client.stop_sandbox("b").expect("it is stopped");
    let refused = node.client.resume_sandbox("b", &last).expect_err("there is nothing to go on from");
    assert!(refused.to_string().contains("was never paused"), "{refused}");
}

#[test]
fn the_images_of_a_machine_go_when_nothing_runs_from_them() {
    let mut peers = Peers::start();
    peers.filled("vm");
    peers.write_disk("vm", 5, 6);
    let images = peers.node.client.all_snapshots(&[]).expect("a list");
    assert_eq!(images.iter().map(|one| one.labels.len()).collect::<Vec<_>>(), [1], "its disk's image");
    peers.node.crash();
    assert_eq!(peers.node.client.all_snapshots(&[]).expect("a list").len(), 1, "it runs from it");
    let first = peers.node.pause("vm", "first");
    let left = peers.node.client.all_snapshots(&[]).expect("a list");
    assert_eq!(left.iter().map(|one| one.id).collect::<Vec<_>>(), [first.id]);
    peers.node.crash();
    peers.node.resume("vm");
    peers.assert_verified("vm");
    peers.assert_disk("vm", 5, 6);
}

#[test]
fn why_a_snapshot_does_not_get_on_is_told_by_readiness_and_to_whoever_waits() {
    let node = Node::start();
    node.filled("a", 1);
    let outage = Outage::of(&node.place.store_directory());
    node.pause("a", "base");
    node.eventually("the first try to publish failing", || {
        node.client.snapshot("base").expect("it is there").reason.is_some()
    });
    let readiness = node.client.readiness().expect("it answers");
    assert!(readiness.ready, "it can do what it is asked");
    let reason = readiness.reasons.join("; ");
    assert!(
        reason.starts_with("1 snapshots cannot be published now; the oldest is snapshot base"),
        "{reason}"
    );
    let waited = node.place.command(["wait", "base", "--timeout", "3s"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&waited.stderr);
    assert!(!waited.status.success());
    assert!(said.starts_with("it is not published yet: "), "{said}");
    outage.end();
    node.wait("base", SnapshotState::Published);
    assert_eq!(node.client.readiness().expect("it answers").reasons, Vec::<String>::new());
}
