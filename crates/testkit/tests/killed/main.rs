//! The node's process is killed, again and again, between any two of its steps, and the next one must have all that was
//! acknowledged. The test's own program is both: the node, with an engine over directories that stay, and the processes
//! that outlive it, the keeper and the receiver of acknowledgements. `REKINDLE_SEED` replays the choices of a run.

mod keeper;
mod ledger;
mod node;

use std::os::unix::net::UnixListener;
use std::process::{Child, Command};

use rekindle_testkit::random::Random;
use tempfile::TempDir;

use keeper::{End, Outliving};

/// The variable with the place of the node's directories and its keeper's socket; only a node has it.
const NODE: &str = "REKINDLE_TEST_NODE";
/// Number of nodes to kill.
const KILLS: u32 = 40;

#[test]
fn a_node_that_is_killed_between_any_two_steps_loses_nothing_that_it_acknowledged() {
    if let Ok(directory) = std::env::var(NODE) {
        node::run(directory.as_ref());
        return;
    }
    let seed = std::env::var("REKINDLE_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    println!("replay with REKINDLE_SEED={seed}");
    let mut random = Random::new(seed);
    let directory = TempDir::new().expect("a directory can be made");
    let listener = UnixListener::bind(directory.path().join("keeper")).expect("a new socket");
    let mut outliving = Outliving::default();
    for kill in 0..KILLS {
        // Short lives die while they start, long ones in the middle of their work.
        let messages = if random.percent(30) { 1 + random.below(12) } else { 1 + random.below(150) };
        let mut node = spawn(&directory);
        let (stream, _) = listener.accept().expect("the node connects");
        let end = outliving.serve(&stream, random.number(), Some(messages));
        assert_eq!(end, End::Enough, "node {kill} ended by itself: {:?}", node.wait());
        node.kill().expect("it lives");
        node.wait().expect("it is a child");
    }
    let mut node = spawn(&directory);
    let (stream, _) = listener.accept().expect("the node connects");
    assert_eq!(outliving.serve(&stream, random.number(), None), End::Closed);
    assert!(node.wait().expect("it is a child").success(), "the last node found something wrong");
    assert_eq!(outliving.held(), 0, "memory of published snapshots is kept");
    println!("{} snapshots were acknowledged", outliving.acknowledged());
    assert!(outliving.acknowledged() > KILLS / 2, "the nodes did not get far enough to lose anything");
}

fn spawn(directory: &TempDir) -> Child {
    let test = "a_node_that_is_killed_between_any_two_steps_loses_nothing_that_it_acknowledged";
    let program = std::env::current_exe().expect("it runs");
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env(NODE, directory.path());
    command.spawn().expect("it can be started again")
}
