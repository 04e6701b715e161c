//! The pages that are brought ahead of a resumed guest, as the request or the setting says.

use rekindle_api::types::{ForkSandbox, Prefault, ResumeSandbox, SnapshotState};

use crate::support::{Node, resume_as};

/// Most pages of a guest of these tests: a guest that is brought up touches some itself.
const MOST: u64 = 3000;

/// Pages that were installed ahead of guests because they were expected to want them.
fn ahead(node: &Node) -> u64 {
    let metrics = node.client.metrics().expect("it is measured");
    let of = "rekindle_served_ahead_pages_total{reason=\"prefetch\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(of)).expect("it is there from the start");
    line.parse().expect("a number")
}

#[test]
fn a_resume_and_a_fork_bring_the_pages_ahead_that_they_are_asked_for() {
    let node = Node::start();
    node.filled("a", 1);
    node.pause("a", "s");
    node.wait("s", SnapshotState::Published);
    let none = ResumeSandbox { prefault: Some(Prefault::None), ..Default::default() };
    node.client.resume_sandbox("a", &none).expect("it is resumed");
    node.assert_verified("a");
    assert_eq!(ahead(&node), 0, "each page came when it was touched");
    let mut all = resume_as("b", 1);
    all.prefault = Some(Prefault::All);
    node.client.resume_snapshot("s", None, &all).expect("it is resumed");
    node.eventually("all pages ahead of a resume", || ahead(&node) >= MOST);
    let before = ahead(&node);
    let forks = ForkSandbox {
        count: 2_u32.try_into().expect("a few"),
        prefault: Some(Prefault::All),
        ..Default::default()
    };
    node.client.fork_sandbox("b", None, &forks).expect("it is forked");
    node.eventually("all pages ahead of two forks", || ahead(&node) >= before + 2 * MOST);
    node.assert_verified("b");
}
