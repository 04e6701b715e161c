//! Clients that are killed: their requests are done whole or not at all, and the holdings stay.

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::{Command, Stdio};

use rekindle_keeper::{KeeperClient, KeeperError, Role, Spawn};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::support::{TestKeeper, eventually, file_of, program};

const SOCKET: &str = "KEEPER_TEST_SOCKET";
/// Number of clients that are killed.
const ROUNDS: u64 = 20;

#[test]
#[ignore = "the child of other tests"]
fn child() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let (client, _) =
        KeeperClient::connect_or_start(Path::new(&socket), &program()).expect("the keeper answers");
    let round = std::process::id();
    for at in 0_u64.. {
        let key = format!("pair/{round}-{at}");
        let file = file_of(key.as_bytes());
        let both = [("one", file.as_fd()), ("two", file.as_fd())];
        client.put(&key, &json!(key), &both).expect("held");
        if at % 3 == 0 {
            client.forget(&key).expect("forgotten");
        }
        if at % 5 == 0 {
            let key = format!("process/{round}-{at}");
            let spawn = Spawn::new("/bin/true", vec![]);
            client.spawn(&key, &spawn, &[(Role::Held("kept"), file.as_fd())]).expect("it starts");
        }
        println!("{at}");
    }
}

/// Kills a client that works when it has done `steps`, in the middle of its next step.
fn kill_a_client_after(keeper: &TestKeeper, steps: u64) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "clients::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(SOCKET, keeper.socket())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program runs");
    let output = child.stdout.take().expect("it is piped");
    let mut done = BufReader::new(output).lines().map_while(Result::ok).filter_map(|line| line.parse().ok());
    assert!(done.any(|at: u64| at >= steps), "the client works until it is killed");
    child.kill().expect("it is a child");
    child.wait().expect("it is a child");
}

#[test]
fn what_a_killed_client_asked_for_is_done_whole_or_not_at_all() {
    let keeper = TestKeeper::start();
    let fds_before = keeper.open_fds();
    for round in 0..ROUNDS {
        kill_a_client_after(&keeper, round * 7 % 23);
    }
    let listed = keeper.client.list().expect("answers");
    let count = u64::try_from(listed.len()).expect("fits");
    assert!(count >= ROUNDS, "{count}");
    for entry in &listed {
        if entry.key.starts_with("pair/") {
            assert_eq!(
                (&entry.note, &entry.names[..]),
                (&json!(entry.key), &["one", "two"].map(str::to_owned)[..])
            );
        } else {
            assert_eq!(entry.names, ["kept", "process"]);
        }
    }
    let held: usize = listed.iter().map(|entry| entry.names.len()).sum();
    eventually("nothing else is open", || keeper.open_fds() == fds_before + held);
    let all_ended = || {
        let processes = keeper.client.list().expect("answers").into_iter().filter_map(|entry| entry.process);
        processes.into_iter().all(|process| process.exited == Some(0))
    };
    eventually("every process is reaped", all_ended);
}

#[test]
fn a_client_with_too_few_descriptors_is_told_so_and_has_all_of_them_once_it_may_open_more() {
    let keeper = TestKeeper::start();
    let file = std::fs::File::open("/dev/null").expect("the system allows it");
    let fds: Vec<_> = ["a", "b", "c", "d"].into_iter().map(|name| (name, file.as_fd())).collect();
    keeper.client.put("guest/1", &json!(null), &fds).expect("the system allows it");
    let child = Command::new(std::env::current_exe().expect("the system allows it"))
        .args(["--exact", "clients::asks_with_few_descriptors", "--ignored", "--nocapture"])
        .env(SOCKET, keeper.socket())
        .output()
        .expect("the system allows it");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
#[ignore = "the child of another test"]
fn asks_with_few_descriptors() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let client = KeeperClient::connect(Path::new(&socket)).expect("the system allows it");
    let before = getrlimit(Resource::Nofile);
    // The next one that is opened is the last.
    let next = u64::try_from(std::fs::File::open("/dev/null").expect("the system allows it").as_raw_fd())
        .expect("the system allows it");
    let few = Rlimit { current: Some(next + 1), ..before };
    setrlimit(Resource::Nofile, few).expect("the system allows it");
    let told = client.get("guest/1").expect_err("there are too few");
    let KeeperError::Unreachable { source, .. } = &told else { unreachable!("{told}") };
    assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::MFILE.raw_os_error()), "{told}");
    setrlimit(Resource::Nofile, before).expect("the system allows it");
    assert_eq!(client.get("guest/1").expect("it answers").expect("it is held").fds.len(), 4);
}
