//! Start and end of a keeper, and how its clients notice.

use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Instant;

use rekindle_keeper::{Found, KeeperClient, KeeperError, Refusal};
use rekindle_kernel::{ProcessHandle, Signal};
use serde_json::json;

use super::support::{LIMIT, TestKeeper, eventually, file_of, program, status_of};

fn keeper_by_hand(socket: &Path) -> Command {
    let mut command = Command::new(program());
    command.args(["keeper", "--socket"]).arg(socket).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn ended(mut child: Child) -> Option<i32> {
    child.wait().expect("it is a child").code()
}

#[test]
fn a_keeper_that_is_stopped_is_named_with_what_lets_it_go_on_and_is_asked_again_when_it_does() {
    let keeper = TestKeeper::start();
    let pid = keeper.client.identity().pid;
    let process = ProcessHandle::open(pid).expect("it runs");
    process.signal(Signal::Stop).expect("it can be stopped");
    let named = |error: &KeeperError| {
        assert!(error.to_string().contains(&format!("`kill -CONT {pid}`")), "{error}");
    };
    // All of them wait for one deadline, and whoever comes later for none.
    std::thread::scope(|scope| {
        for number in 0..8 {
            let client = &keeper.client;
            scope.spawn(move || {
                named(&client.note(&format!("key-{number}"), &json!(1)).expect_err("it stands"))
            });
        }
    });
    named(&keeper.client.silence().expect("it owes an answer"));
    let started = Instant::now();
    for number in 0..200 {
        named(&keeper.client.note(&format!("key-{number}"), &json!(2)).expect_err("it stands"));
    }
    assert!(started.elapsed() < LIMIT, "each of them waited");
    named(&KeeperClient::connect(&keeper.socket()).expect_err("it stands"));
    process.signal(Signal::Continue).expect("it can go on");
    while keeper.client.silence().is_some() {
        std::thread::yield_now();
    }
    keeper.client.put("key", &json!(3), &[]).expect("it answers");
    assert_eq!(keeper.client.get("key").expect("it answers").expect("it is held").note, json!(3));
}

#[test]
fn the_keeper_is_found_by_others_and_is_the_only_one_at_its_socket() {
    let keeper = TestKeeper::start();
    assert_eq!(keeper.another_client().identity(), keeper.client.identity());
    let second = keeper_by_hand(&keeper.socket()).spawn().expect("the program runs");
    assert_eq!(ended(second), Some(4));
    assert_eq!(keeper.another_client().identity(), keeper.client.identity());
    let mode = std::fs::metadata(keeper.socket()).expect("the socket is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let pid = keeper.client.identity().pid;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("the keeper lives");
    let files: Vec<_> = limits.lines().filter(|line| line.starts_with("Max open files")).collect();
    let words: Vec<_> = files.iter().flat_map(|line| line.split_ascii_whitespace()).collect();
    assert_eq!(words.get(3), words.get(4), "it may open as many files as it ever may");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the keeper lives");
    assert_eq!(stat.split(' ').nth(5), Some(pid.to_string().as_str()), "it leads its session");
}

#[test]
fn many_that_start_a_keeper_at_once_find_the_same_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("run/keeper.sock");
    let start = || KeeperClient::connect_or_start(&socket, &program()).expect("a keeper is there");
    let clients: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a keeper is there")).collect()
    });
    let started = clients.iter().filter(|(_, found)| *found == Found::Started).count();
    assert_eq!(started, 1);
    let identity = clients[0].0.identity();
    assert!(clients.iter().all(|(client, _)| client.identity() == identity));
    clients[0].0.shutdown(false).expect("it holds nothing");
}

#[test]
fn a_killed_keeper_is_told_from_the_one_that_comes_after_it() {
    let keeper = TestKeeper::start();
    keeper.client.put("key", &json!(1), &[("file", file_of(b"").as_fd())]).expect("held");
    let process = keeper.process();
    process.signal(Signal::Kill).expect("it is ours");
    assert!(process.wait_exit(LIMIT));
    let gone = keeper.client.get("key").expect_err("nobody answers");
    assert!(matches!(gone, KeeperError::Unreachable { .. }), "{gone}");

    let (second, found) = KeeperClient::connect_or_start(&keeper.socket(), &program()).expect("one starts");
    assert_eq!(found, Found::Started);
    assert_ne!(second.identity().instance, keeper.client.identity().instance);
    assert!(second.get("key").expect("answers").is_none());
    let replaced = keeper.client.get("key").expect_err("it is another one");
    assert!(matches!(replaced, KeeperError::Replaced { .. }), "{replaced}");
    assert!(matches!(keeper.client.put("key", &json!(2), &[]), Err(KeeperError::Replaced { .. })));
    assert!(second.get("key").expect("answers").is_none());
}

#[test]
fn a_keeper_that_holds_something_ends_by_force_alone() {
    let keeper = TestKeeper::start();
    let file = std::fs::File::open("/dev/null").expect("it is there");
    keeper.client.put("key", &json!(1), &[("file", file.as_fd())]).expect("held");
    let process = keeper.process();
    let pid = i32::try_from(process.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    for signal in [
        rustix::process::Signal::TERM,
        rustix::process::Signal::INT,
        rustix::process::Signal::HUP,
        rustix::process::Signal::QUIT,
        rustix::process::Signal::USR1,
        rustix::process::Signal::PIPE,
        rustix::process::Signal::ALARM,
    ] {
        rustix::process::kill_process(pid, signal).expect("it is ours");
    }
    eventually("the signals are taken", || {
        status_of(process.pid(), "ShdPnd").bytes().all(|byte| byte == b'0')
    });
    let refused = keeper.client.shutdown(false).expect_err("it holds a key");
    assert_eq!(refused.refusal(), Some(&Refusal::Holding { keys: 1, processes: 0 }));
    assert_eq!(keeper.client.list().expect("answers").len(), 1);
    let log = std::fs::read_to_string(keeper.socket().with_extension("log")).expect("it logs");
    assert!(log.contains("told to end, but stays: 1 keys are held"), "{log}");

    keeper.client.shutdown(true).expect("forced");
    assert!(process.wait_exit(LIMIT));
    assert!(!keeper.socket().exists());
}

#[test]
fn a_keeper_that_holds_nothing_ends_when_it_is_told() {
    let keeper = TestKeeper::start();
    let process = keeper.process();
    process.signal(Signal::Terminate).expect("it is ours");
    assert!(process.wait_exit(LIMIT));
    assert!(!keeper.socket().exists());

    let keeper = TestKeeper::start();
    let process = keeper.process();
    keeper.client.note("key", &json!(1)).expect("noted");
    keeper.client.shutdown(false).expect("it holds nothing but a note");
    assert!(process.wait_exit(LIMIT));
}

#[test]
fn the_socket_of_a_keeper_that_was_killed_is_taken_over() {
    let keeper = TestKeeper::start();
    let process = keeper.process();
    process.signal(Signal::Kill).expect("it is ours");
    assert!(process.wait_exit(LIMIT));
    assert!(keeper.socket().exists());
    let by_hand = keeper_by_hand(&keeper.socket()).process_group(0).spawn().expect("the program runs");
    eventually("it listens", || KeeperClient::connect(&keeper.socket()).is_ok());
    let client = KeeperClient::connect(&keeper.socket()).expect("it listens");
    assert_eq!(client.identity().pid, by_hand.id());
    client.shutdown(false).expect("it holds nothing");
    assert_eq!(ended(by_hand), Some(0));
}

#[test]
fn a_program_that_is_no_keeper_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("keeper.sock");
    for no_keeper in ["/bin/false", "/no such program"] {
        let error = KeeperClient::connect_or_start(&socket, Path::new(no_keeper)).expect_err("no keeper");
        assert!(matches!(&error, KeeperError::NotStarted { .. }), "{error}");
        assert!(error.to_string().contains(no_keeper), "{error}");
    }
}

#[test]
fn whoever_supervises_the_keeper_is_told_that_it_is_ready_and_then_that_it_lives() {
    let directory = tempfile::tempdir().expect("a directory");
    let notify = UnixDatagram::bind(directory.path().join("notify")).expect("the socket is new");
    notify.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
    let socket = directory.path().join("keeper.sock");
    let mut command = keeper_by_hand(&socket);
    command.env("NOTIFY_SOCKET", directory.path().join("notify")).env("WATCHDOG_USEC", "20000");
    let child = command.spawn().expect("the program runs");
    let hear = || {
        let mut message = [0; 256];
        let bytes = notify.recv(&mut message).expect("it tells");
        String::from_utf8_lossy(&message[..bytes]).trim().to_owned()
    };
    assert_eq!(hear(), "READY=1");
    assert_eq!([hear(), hear(), hear()], ["WATCHDOG=1"; 3]);
    KeeperClient::connect(&socket).and_then(|client| client.shutdown(false)).expect("it holds nothing");
    assert_eq!(ended(child), Some(0));
}

#[test]
fn a_keeper_whose_directory_is_removed_can_be_found_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("run/keeper.sock");
    let (client, _) = KeeperClient::connect_or_start(&socket, &program()).expect("a keeper starts");
    client.note("key", &json!(1)).expect("held");
    for removed in [socket.clone(), directory.path().join("run")] {
        match removed.is_dir() {
            true => std::fs::remove_dir_all(&removed).expect("it is removed"),
            false => std::fs::remove_file(&removed).expect("it is removed"),
        }
        eventually("the keeper listening again", || {
            KeeperClient::connect(&socket).is_ok_and(|again| again.identity() == client.identity())
        });
    }
    assert_eq!(client.list().expect("answers").len(), 1);
    client.shutdown(true).expect("it ends");
}
