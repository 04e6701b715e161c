//! Processes under the keeper: their start, the descriptors they inherit, and the report of their ends.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use rekindle_keeper::{KeeperError, PROCESS, ProcessNow, Refusal, Role, Spawn, Spawned};
use rekindle_kernel::{Memfd, PageKind, ProcessHandle, Signal};
use rustix::process::Resource;

use super::support::{LIMIT, TestKeeper, bytes_of, eventually, file_of, status_of};

fn shell(script: &str) -> Spawn {
    Spawn::new("/bin/sh", vec!["-c".into(), script.into()])
}

/// A process that lives until its standard input, which is returned, is closed.
fn waiting(keeper: &TestKeeper, key: &str) -> (Spawned, std::io::PipeWriter) {
    let (input, its_end) = std::io::pipe().expect("a pipe");
    let spawned = keeper.client.spawn(key, &shell("read line"), &[(Role::Child(0), input.as_fd())]);
    (spawned.expect("it starts"), its_end)
}

fn process_under(keeper: &TestKeeper, key: &str) -> Option<ProcessNow> {
    keeper.client.get(key).expect("answers").expect("it is held").process
}

fn wait_end(spawned: &Spawned) {
    let mut polled = [rustix::event::PollFd::new(&spawned.process, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec::try_from(LIMIT).expect("two minutes");
    assert_eq!(rustix::event::poll(&mut polled, Some(&limit)).expect("poll"), 1, "it ends");
}

#[test]
fn a_process_is_a_child_of_the_keeper_in_a_session_of_its_own_and_its_end_is_told() {
    let keeper = TestKeeper::start();
    let (spawned, input) = waiting(&keeper, "sandbox/1");
    let pid = spawned.pid;
    assert_eq!(status_of(pid, "PPid"), keeper.client.identity().pid.to_string());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    assert_eq!(stat.split(' ').nth(5), Some(pid.to_string().as_str()), "it leads its session");
    assert_eq!(process_under(&keeper, "sandbox/1"), Some(ProcessNow { pid, exited: None }));
    let held = keeper.client.get("sandbox/1").expect("answers").expect("it is held");
    assert!(held.fds.contains_key(PROCESS));

    drop(input);
    wait_end(&spawned);
    let exited = process_under(&keeper, "sandbox/1").expect("it was started").exited.expect("it has ended");
    assert_eq!(ExitStatus::from_raw(exited).code(), Some(1), "read found the end of its input");
    eventually("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn exits_and_signals_are_told_as_wait_tells_them() {
    let keeper = TestKeeper::start();
    let spawned = keeper.client.spawn("exits", &shell("exit 7"), &[]).expect("it starts");
    wait_end(&spawned);
    let exited = process_under(&keeper, "exits").and_then(|process| process.exited).expect("it has ended");
    assert_eq!(ExitStatus::from_raw(exited).code(), Some(7));

    let (spawned, _input) = waiting(&keeper, "killed");
    ProcessHandle::open(spawned.pid).and_then(|process| process.signal(Signal::Kill)).expect("it is killed");
    wait_end(&spawned);
    let listed = keeper.client.list().expect("answers");
    let killed = listed.iter().find(|entry| entry.key == "killed").and_then(|entry| entry.process);
    let exited = killed.and_then(|process| process.exited).expect("it has ended");
    assert_eq!(ExitStatus::from_raw(exited).signal(), Some(9));
}

#[test]
fn a_process_inherits_what_it_is_given_and_nothing_else() {
    let keeper = TestKeeper::start();
    let script = "ls /proc/self/fd | tr '\\n' ' '; cat <&7; env; ulimit -n; \
                  grep -E '^Sig(Blk|Ign)' /proc/self/status; pwd";
    let mut spawn = shell(script);
    spawn.environment = vec![("PATH".into(), "/usr/bin:/bin".into()), ("GIVEN".into(), "a b".into())];
    let log = keeper.directory.path().join("log");
    spawn.log = Some(log.clone());
    std::fs::write(&log, "before\n").expect("there is room");
    let (given, kept) = (file_of(b""), file_of(b"kept"));
    let mut seven = given.try_clone().expect("a descriptor is free");
    std::io::Write::write_all(&mut seven, b"seven\n").expect("there is room");
    std::io::Seek::rewind(&mut seven).expect("a file has a start");
    let fds = [(Role::Child(7), given.as_fd()), (Role::Held("kept"), kept.as_fd())];
    let spawned = keeper.client.spawn("sandbox/1", &spawn, &fds).expect("it starts");
    wait_end(&spawned);

    let printed = std::fs::read_to_string(log).expect("it has a log");
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines[0], "before");
    // 3 is the directory that ls reads.
    assert_eq!(lines[1], "0 1 2 3 7 seven", "{printed}");
    assert!(lines.contains(&"GIVEN=a b"), "{printed}");
    assert!(!printed.contains("CARGO"), "{printed}");
    let open_files = rustix::process::getrlimit(Resource::Nofile).current.expect("there is a limit");
    assert!(lines.contains(&open_files.to_string().as_str()), "{printed}");
    let masks: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("Sig")?.split_once('\t')).collect();
    assert_eq!(masks.len(), 2, "{printed}");
    for (_, mask) in masks {
        let mask = u64::from_str_radix(mask, 16).expect("a mask is hexadecimal");
        // Signals 32 and 33 are the C library's own.
        assert_eq!(mask & !(3 << 31), 0, "{printed}");
    }
    assert_eq!(lines.last(), Some(&"/"));

    let mut held = keeper.client.get("sandbox/1").expect("answers").expect("it is held");
    assert_eq!(bytes_of(held.fds.remove("kept").expect("held")), b"kept");
}

#[test]
fn a_program_that_cannot_be_started_leaves_nothing() {
    let keeper = TestKeeper::start();
    let fds_before = keeper.open_fds();
    let file = file_of(b"");
    let fds = [(Role::Held("kept"), file.as_fd())];
    let absent = keeper.client.spawn("key", &Spawn::new("/no such program", vec![]), &fds);
    let not_found = rustix::io::Errno::NOENT.raw_os_error();
    let refusal = absent.expect_err("there is no such program");
    assert!(
        matches!(refusal.refusal(), Some(Refusal::NotStarted { os_error: Some(error), .. }) if *error == not_found),
        "{refusal}"
    );
    for malformed in [
        keeper.client.spawn("key", &Spawn::new("sh", vec![]), &fds),
        keeper.client.spawn("key", &shell("exit"), &[(Role::Held(PROCESS), file.as_fd())]),
        keeper.client.spawn("key", &shell("exit"), &[(Role::Child(32), file.as_fd())]),
        keeper.client.spawn("key", &shell("exit"), &[(Role::Child(-1), file.as_fd())]),
        keeper.client.spawn(
            "key",
            &shell("exit"),
            &[(Role::Child(5), file.as_fd()), (Role::Child(5), file.as_fd())],
        ),
    ] {
        let refused =
            matches!(malformed, Err(KeeperError::Refused { refusal: Refusal::Malformed { .. }, .. }));
        assert!(refused, "{malformed:?}");
    }
    assert_eq!(keeper.client.list().expect("answers"), []);
    eventually("everything is closed", || keeper.open_fds() == fds_before);
}

#[test]
fn there_is_one_process_under_a_key_until_it_has_ended() {
    let keeper = TestKeeper::start();
    let (first, input) = waiting(&keeper, "key");
    let second = keeper.client.spawn("key", &shell("exit"), &[]).expect_err("there is one");
    let there = Refusal::ProcessThere { key: "key".to_owned(), pid: first.pid };
    assert_eq!(second.refusal(), Some(&there));
    drop(input);
    wait_end(&first);
    let (second, _input) = waiting(&keeper, "key");
    assert_eq!(process_under(&keeper, "key"), Some(ProcessNow { pid: second.pid, exited: None }));
}

#[test]
fn a_forgotten_process_goes_on_and_is_reaped_at_its_end() {
    let keeper = TestKeeper::start();
    let fds_before = keeper.open_fds();
    let (spawned, input) = waiting(&keeper, "key");
    keeper.client.forget("key").expect("forgotten");
    assert!(ProcessHandle::open(spawned.pid).is_ok_and(|process| process.is_alive()));
    let holding = keeper.client.shutdown(false).expect_err("a process runs");
    assert_eq!(holding.refusal(), Some(&Refusal::Holding { keys: 0, processes: 1 }));
    drop(input);
    wait_end(&spawned);
    assert_eq!(keeper.client.list().expect("answers"), []);
    let entry = format!("/proc/{}", spawned.pid);
    eventually("it is reaped", || !Path::new(&entry).exists());
    eventually("its pidfd is closed", || keeper.open_fds() == fds_before);
}

#[test]
fn a_keeper_that_is_forced_to_end_ends_every_process_under_it_first() {
    let keeper = TestKeeper::start();
    let (held, _input) = waiting(&keeper, "held");
    let (forgotten, _other_input) = waiting(&keeper, "forgotten");
    keeper.client.forget("forgotten").expect("forgotten");
    let stopped = keeper.client.spawn("stopped", &shell("kill -STOP $$; read line"), &[]).expect("it starts");
    let process = keeper.process();
    keeper.client.shutdown(true).expect("they can be killed");
    for spawned in [held, forgotten, stopped] {
        let entry = format!("/proc/{}", spawned.pid);
        let state = std::fs::read_to_string(format!("{entry}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "it has ended when the answer comes: {state}");
    }
    assert!(process.wait_exit(LIMIT));
}

#[test]
fn a_pipe_as_a_log_does_not_hold_the_keeper_up() {
    let keeper = TestKeeper::start();
    let pipe = keeper.directory.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there");
    assert!(made.success());
    let mut spawn = shell("exit");
    spawn.log = Some(pipe);
    let refused = keeper.client.spawn("key", &spawn, &[]).expect_err("nobody reads it");
    assert!(matches!(refused.refusal(), Some(Refusal::NotStarted { .. })), "{refused}");
    let (mut end, other_end) = std::io::pipe().expect("a pipe");
    keeper
        .client
        .spawn("key", &shell("echo told"), &[(Role::Child(1), other_end.as_fd())])
        .expect("it starts");
    drop(other_end);
    let mut told = String::new();
    end.read_to_string(&mut told).expect("it prints");
    assert_eq!(told, "told\n");
}

#[test]
fn the_kernel_ends_a_process_before_the_keeper_when_memory_runs_out() {
    let keeper = TestKeeper::start();
    let (spawned, _input) = waiting(&keeper, "sandbox/1");
    let score_of = |pid: u32| {
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it lives");
        score.trim().parse::<i32>().expect("a number")
    };
    let (own, keepers) = (score_of(std::process::id()), score_of(keeper.client.identity().pid));
    assert!(score_of(spawned.pid) > 0, "it is above all processes that set no score");
    assert!(score_of(spawned.pid) > own && keepers <= own, "{keepers} {own}");
}

#[test]
fn the_memory_of_a_process_that_has_ended_is_given_back_and_all_else_stays_under_its_key() {
    let keeper = TestKeeper::start();
    let (spawned, input) = waiting(&keeper, "guest/1");
    let memory = Memfd::create("guest", 1 << 20, PageKind::Small).expect("memory");
    let (other, stays) = (memory.try_clone().expect("a descriptor"), file_of(b"stays"));
    let sealed = Memfd::create("record", 1, PageKind::Small).expect("memory");
    assert!(sealed.seal_writes().expect("nobody has it mapped"), "no process writes it");
    let fds = [("memory", memory.as_fd()), ("sealed", sealed.as_fd()), ("stays", stays.as_fd())];
    keeper.client.add("guest/1", &fds).expect("held");
    keeper.client.add("snapshot/1", &[("root.memory", other.as_fd())]).expect("held");
    keeper.client.note("guest/1", &serde_json::json!("note")).expect("held");
    drop(input);
    wait_end(&spawned);
    let held = keeper.client.get("guest/1").expect("answers").expect("it is held");
    assert_eq!(held.fds.keys().collect::<Vec<_>>(), [PROCESS, "sealed", "stays"]);
    assert_eq!(held.note, serde_json::json!("note"));
    let exited = held.process.and_then(|process| process.exited).expect("it has ended");
    assert_eq!(ExitStatus::from_raw(exited).code(), Some(1));
    let captured = keeper.client.get("snapshot/1").expect("answers").expect("it is held");
    assert_eq!(captured.fds.len(), 1, "what is held under other keys is no memory of the process");
}
