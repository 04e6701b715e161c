//! Process guests under the keeper: they go on without their driver, and another one takes over.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rekindle_guest::process::arguments::{GuestArguments, MemoryKind};
use rekindle_guest::process::history::{Rewrite, Share};
use rekindle_guest::process::protocol::{self, Hello};
use rekindle_keeper::{KeeperClient, PROCESS, ProcessNow};
use rekindle_kernel::{ProcessHandle, Signal};
use rekindle_vmm::process::{CONTROL, GuestError, GuestOptions, KeptParts, ProcessGuest};
use rekindle_vmm::vmm_process::ProcessError;
use serde_json::json;

use super::support::{LIMIT, TestKeeper, program, status_of};

const MIB: u64 = 1 << 20;
const KEY: &str = "sandbox/1";
const SOCKET: &str = "KEEPER_TEST_GUESTS_SOCKET";

fn options(guest: GuestArguments) -> GuestOptions {
    GuestOptions::program(program(), guest)
}

fn guest_under(keeper: &KeeperClient) -> ProcessGuest {
    ProcessGuest::spawn_under(keeper, KEY, &options(GuestArguments::fresh(16 * MIB)), None)
        .expect("a guest starts")
}

fn attached(keeper: &KeeperClient, hello: &Hello) -> ProcessGuest {
    let mut held = keeper.get(KEY).expect("answers").expect("it is held");
    let parts = KeptParts::take(&mut held, hello.clone()).expect("all of a guest is held");
    ProcessGuest::attach(parts).expect("it lives")
}

fn rewrite(seed: u64) -> Rewrite {
    Rewrite { share: Share { seed, percent: 40, run_pages: 1 }, zero_percent: 20, same_percent: 20 }
}

fn assert_verified(guest: &mut ProcessGuest) {
    let verified = guest.control.verify().expect("the guest verifies");
    assert_eq!((verified.pages > 0, verified.mismatches), (true, 0), "{verified:?}");
}

#[test]
fn a_guest_goes_on_without_its_driver_and_the_next_one_drives_it() {
    let keeper = TestKeeper::start();
    let mut guest = guest_under(&keeper.client);
    let (pid, hello) = (guest.id(), guest.hello().clone());
    let catalogued = serde_json::to_string(&hello).expect("plain data");
    assert_eq!(status_of(pid, "PPid"), keeper.client.identity().pid.to_string());
    guest.control.fill(1).expect("fills");
    assert_eq!(guest.control.tick(4).expect("ticks").count, 1);
    drop(guest);

    let hello: Hello = serde_json::from_str(&catalogued).expect("what was written");
    let mut guest = attached(&keeper.another_client(), &hello);
    assert_eq!((guest.id(), guest.hello().regions.len()), (pid, 1));
    assert_eq!(guest.control.tick(4).expect("ticks").count, 2);
    guest.control.rewrite(rewrite(2)).expect("rewrites");
    assert_verified(&mut guest);
    let told = guest
        .control
        .begin_tell(&protocol::Command::Tick { pages: 1 })
        .and_then(rekindle_vmm::process::Awaited::wait)
        .expect("ticks");
    assert_eq!(told["count"], 3);
    let memfd = guest.memfd().expect("shared memory has a memfd").try_clone().expect("a descriptor is free");
    assert!(!memfd.seal_writes().expect("asking is allowed"), "a living guest can write");

    assert!(guest.exit().expect("exits").is_none(), "its end is told by the keeper");
    let held = keeper.client.get(KEY).expect("answers").expect("it is held");
    assert_eq!(held.process, Some(ProcessNow { pid, exited: Some(0) }));
    assert_eq!(held.fds.keys().collect::<Vec<_>>(), [CONTROL, PROCESS], "its memory has gone with it");
    assert!(memfd.seal_writes().expect("asking is allowed"), "an ended guest cannot write");
}

#[test]
fn a_guest_of_another_parent_is_frozen_thawed_and_killed() {
    let keeper = TestKeeper::start();
    let mut arguments = GuestArguments::fresh(64 * MIB);
    arguments.threads = std::num::NonZeroUsize::new(4).expect("not zero");
    let mut guest =
        ProcessGuest::spawn_under(&keeper.client, KEY, &options(arguments), None).expect("a guest starts");
    for seed in 0..20 {
        let filling = guest.control.begin_fill(seed).expect("told");
        guest.process.freeze().expect("freezes in the middle of work");
        let state = status_of(guest.process.id(), "State");
        assert!(state.starts_with('T'), "{state}");
        guest.process.thaw().expect("thaws");
        filling.wait().expect("fills");
    }
    assert_verified(&mut guest);
    guest.freeze().expect("freezes");
    guest.freeze().expect("a frozen guest is frozen already");
    let mut guest = attached(&keeper.client, &guest.hello().clone());
    assert!(guest.kill().expect("a frozen guest can be killed").is_none());
    assert!(guest.kill().expect("an ended guest is not killed again").is_none());
    assert!(matches!(guest.freeze(), Err(GuestError::Vmm(ProcessError::Gone { .. }))));
    let held = keeper.client.get(KEY).expect("answers").expect("it is held");
    assert_eq!(held.process.and_then(|process| process.exited), Some(9));
    let mut held = keeper.client.get(KEY).expect("answers").expect("it is held");
    let parts = KeptParts::take(&mut held, guest.hello().clone()).expect("all of a guest is held");
    assert!(matches!(ProcessGuest::attach(parts), Err(GuestError::Vmm(ProcessError::Gone { .. }))));
}

#[test]
fn whatever_a_driver_was_about_to_say_or_hear_the_next_one_is_understood() {
    let keeper = TestKeeper::start();
    let mut guest = guest_under(&keeper.client);
    let hello = guest.hello().clone();
    guest.control.fill(1).expect("fills");
    let command = br#"{"number":5,"command":"tick","pages":1}"#;
    let mut ticks = 0;
    for cut in 0..=command.len() {
        let held = keeper.client.get(KEY).expect("answers").expect("it is held");
        let control = held.fds.into_iter().find(|(name, _)| name == CONTROL).expect("it is held").1;
        let mut raw = UnixStream::from(control);
        // An answer that is not taken, and the beginning of a command without an end. A whole one is a command.
        raw.write_all(b"{\"number\":4,\"command\":\"checksums\",\"first\":0,\"pages\":64}\n").expect("told");
        raw.write_all(&command[..cut]).expect("told");
        ticks += u64::from(cut == command.len());
        drop(std::mem::replace(&mut guest, attached(&keeper.client, &hello)));
        ticks += 1;
        assert_eq!(guest.control.tick(1).expect("ticks").count, ticks, "cut at {cut}");
    }
    let waiting = guest.control.begin_verify().expect("told");
    drop(waiting);
    drop(std::mem::replace(&mut guest, attached(&keeper.client, &hello)));
    assert_verified(&mut guest);
}

#[test]
fn a_guest_ends_when_neither_driver_nor_keeper_has_its_control() {
    let keeper = TestKeeper::start();
    let guest = guest_under(&keeper.client);
    let process = ProcessHandle::open(guest.id()).expect("it lives");
    let keepers_process = keeper.process();
    keepers_process.signal(Signal::Kill).expect("it is ours");
    assert!(keepers_process.wait_exit(LIMIT));
    assert!(process.is_alive(), "its driver is still there");
    drop(guest);
    assert!(process.wait_exit(LIMIT), "nobody can drive it any more");
}

#[test]
fn a_guest_that_cannot_be_says_why_and_does_not_stay() {
    let keeper = TestKeeper::start();
    let refused = options(GuestArguments { memory: 4097, ..GuestArguments::fresh(0) });
    let error =
        ProcessGuest::spawn_under(&keeper.client, KEY, &refused, None).expect_err("no such guest can be");
    assert!(
        matches!(&error, GuestError::SetUp { reason, .. } if reason.contains("not whole pages")),
        "{error}"
    );
    let held = keeper.client.get(KEY).expect("answers").expect("it was started");
    let process = ProcessHandle::open(held.process.expect("it was started").pid);
    assert!(process.is_err() || process.is_ok_and(|process| process.wait_exit(LIMIT)));

    let absent = GuestOptions::program("/no such program", GuestArguments::fresh(MIB));
    let error =
        ProcessGuest::spawn_under(&keeper.client, "sandbox/2", &absent, None).expect_err("no such program");
    let is_not_found = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    assert!(matches!(&error, GuestError::Start { source, .. } if is_not_found(source)), "{error}");
    assert!(keeper.client.get("sandbox/2").expect("answers").is_none());
}

#[test]
#[ignore = "the child of other tests"]
fn driver() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let keeper = KeeperClient::connect(&PathBuf::from(socket)).expect("the keeper answers");
    let arguments = GuestArguments { kind: MemoryKind::Private, ..GuestArguments::fresh(16 * MIB) };
    let mut guest =
        ProcessGuest::spawn_under(&keeper, KEY, &options(arguments), None).expect("a guest starts");
    keeper.note(KEY, &json!(guest.hello())).expect("noted");
    guest.control.fill(1).expect("fills");
    println!("filled");
    for seed in 2.. {
        guest.control.rewrite(rewrite(seed)).expect("rewrites");
        guest.control.tick(16).expect("ticks");
        println!("{seed}");
    }
}

#[test]
fn a_guest_whose_driver_is_killed_in_the_middle_is_right_in_every_page() {
    use std::io::{BufRead as _, BufReader};
    for steps in 0..6 {
        let keeper = TestKeeper::start();
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "guests::driver", "--ignored", "--nocapture", "--test-threads=1"])
            .env(SOCKET, keeper.socket())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        let mut done = lines.skip_while(|line| !line.ends_with("filled"));
        assert!(done.nth(steps).is_some(), "the driver works until it is killed");
        let driver = ProcessHandle::open(child.id()).expect("it lives");
        driver.signal(Signal::Kill).expect("it is a child");
        child.wait().expect("it is a child");

        let note = keeper.client.get(KEY).expect("answers").expect("it is held").note;
        let hello: Hello = serde_json::from_value(note).expect("the driver noted it");
        let mut guest = attached(&keeper.client, &hello);
        assert_verified(&mut guest);
        guest.control.rewrite(rewrite(99)).expect("rewrites");
        assert_verified(&mut guest);
    }
}
