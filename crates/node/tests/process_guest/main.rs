//! The process guest as a real process: its work, its freezing, and its memory served by a handler.

mod handler;

use std::num::NonZeroUsize;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, io};

use handler::{Listening, Served};
use rekindle_guest::process::arguments::{GuestArguments, MemoryKind, TrackingKind};
use rekindle_guest::process::content::checksum;
use rekindle_guest::process::history::{History, Operation, Rewrite, Share};
use rekindle_guest::process::protocol::{DeviceState, DiscardHow};
use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace};
use rekindle_kernel::{GuestRange, HugepageReservation, PAGE_BYTES, PageClass, Pagemap, Protect};
use rekindle_testkit::skip::skipped;
use rekindle_vmm::process::{GuestError, GuestOptions, ProcessGuest};

const MIB: u64 = 1 << 20;
const BASE_SEED: u64 = 1;
/// Long enough to see that no answer comes.
const A_MOMENT: Duration = Duration::from_millis(50);

fn options(guest: GuestArguments) -> GuestOptions {
    GuestOptions::program(env!("CARGO_BIN_EXE_rekindle"), guest)
}

fn share(seed: u64, percent: u8) -> Share {
    Share { seed, percent, run_pages: 1 }
}

fn rewrite(seed: u64) -> Rewrite {
    Rewrite { share: share(seed, 40), zero_percent: 20, same_percent: 20 }
}

fn base_state() -> DeviceState {
    let mut history = History::default();
    history.push(Operation::Fill { seed: BASE_SEED });
    DeviceState { count: 5, history }
}

fn assert_verified(guest: &mut ProcessGuest) {
    let verified = guest.control.verify().expect("the guest verifies");
    assert!(verified.pages > 0);
    assert_eq!(verified.mismatches, 0, "{verified:?}");
}

/// Every checksum the guest answers is that of what its history says.
fn assert_checksums(guest: &mut ProcessGuest) {
    let history = guest.control.state().expect("the guest has a state").history;
    let checksums = guest.control.checksums(0, u32::MAX).expect("the guest answers checksums");
    for (page, answered) in (0_u32..).zip(&checksums) {
        assert_eq!(*answered, Some(checksum(&history.expected(page).bytes())), "page {page}");
    }
}

#[test]
fn a_fresh_guest_works_and_its_memory_outlives_it() {
    let mut arguments = GuestArguments { regions: 3, ..GuestArguments::fresh(16 * MIB) };
    arguments.threads = NonZeroUsize::new(2).expect("not zero");
    let mut guest = ProcessGuest::spawn(&options(arguments)).expect("a guest starts");
    assert_eq!(guest.hello().pid, guest.id());
    assert_eq!(guest.hello().regions.len(), 3);
    assert_verified(&mut guest);
    assert_eq!(guest.control.fill(BASE_SEED).expect("fills").new_pages, 4096);
    let written = guest.control.rewrite(rewrite(2)).expect("rewrites");
    assert!(written.new_pages > 0 && written.zero_pages > 0 && written.same_pages > 0);
    assert!(guest.control.discard(share(3, 10), DiscardHow::Remove).expect("removes").pages > 0);
    assert!(guest.control.discard(share(4, 10), DiscardHow::DontNeed).expect("unmaps").pages > 0);
    assert_verified(&mut guest);
    assert_checksums(&mut guest);
    let ticked = guest.control.tick(8).expect("ticks");
    assert_eq!((ticked.count, ticked.verified.pages, ticked.verified.mismatches), (1, 8, 0));
    guest.control.place(Some(0)).expect("CPU 0 exists");
    guest.control.place(None).expect("anywhere exists");

    let memfd = guest.memfd().expect("shared memory has a memfd").try_clone().expect("a descriptor is free");
    let history = guest.control.state().expect("the guest has a state").history;
    assert!(!memfd.seal_writes().expect("asking is allowed"), "a living guest can write");
    assert!(guest.exit().expect("exits").expect("a child").success());
    assert!(memfd.seal_writes().expect("asking is allowed"), "an ended guest cannot write");
    let mut bytes = [0; PAGE_BYTES];
    for page in 0..4096 {
        memfd.read_at(&mut bytes, u64::from(page) * 4096).expect("the file is there");
        assert!(bytes == history.expected(page).bytes(), "page {page}");
    }
}

#[test]
fn a_frozen_guest_answers_after_thaw_and_a_killed_one_never() {
    let mut guest = ProcessGuest::spawn(&options(GuestArguments::fresh(16 * MIB))).expect("a guest starts");
    let filling = guest.control.begin_fill(BASE_SEED).expect("told");
    guest.process.freeze().expect("freezes in the middle of work");
    assert!(filling.wait_for(A_MOMENT).is_ok());
    guest.thaw().expect("thaws");
    guest.freeze().expect("freezes again");
    guest.freeze().expect("a frozen guest is frozen already");
    let ticking = guest.control.begin_tick(4).expect("told");
    let ticking = ticking.wait_for(A_MOMENT).expect("the guest lives").expect_err("a frozen guest is silent");
    guest.process.thaw().expect("thaws");
    assert_eq!(ticking.wait().expect("answers").count, 1);
    assert_verified(&mut guest);

    guest.freeze().expect("freezes");
    let status = guest.kill().expect("a frozen guest can be killed").expect("a child");
    assert_eq!(status.signal(), Some(9));
    assert!(matches!(guest.control.tick(1), Err(GuestError::Gone { .. })));
}

/// Runs a guest restored from [`base_state`] through every kind of work while a handler serves it.
fn served_guest(arguments: &GuestArguments, user_id: Option<u32>) -> (Served, Option<bool>) {
    let directory = tempfile::tempdir().expect("a directory");
    let everyone = fs::Permissions::from_mode(0o777);
    fs::set_permissions(directory.path(), everyone.clone()).expect("the directory is ours");
    let listening = Listening::at(directory.path());
    fs::set_permissions(listening.path(), everyone).expect("the socket is ours");
    let (kind, tracking) = (arguments.kind, arguments.tracking);
    let protect = if tracking == TrackingKind::Resident { Protect::Writable } else { Protect::Protected };
    let fds_with_memfd = arguments.send_memfd;
    let arguments = GuestArguments { handover: Some(listening.path().to_owned()), ..arguments.clone() };
    let mut guest =
        ProcessGuest::spawn(&GuestOptions { user_id, ..options(arguments) }).expect("a guest starts");
    let received = listening.receive();
    assert_eq!(received.regions.len(), guest.hello().regions.len());
    assert_eq!(received.memfd.is_some(), fds_with_memfd);
    assert!(guest.memfd().is_none(), "only the handler has the memfd");
    let serving = received.serve(base_state().history, protect);

    guest.control.restore(base_state()).expect("restores");
    assert_eq!(guest.control.tick(8).expect("ticks").count, 6);
    assert_verified(&mut guest);
    if tracking == TrackingKind::Scan {
        assert_eq!(written_pages(&guest), 0, "reading is not writing");
    }
    let written = guest.control.rewrite(rewrite(2)).expect("rewrites");
    if tracking == TrackingKind::Scan && kind.page_kind().bytes() == PAGE_BYTES {
        assert_eq!(written_pages(&guest), u64::from(written.pages()));
    }
    let private_how = [DiscardHow::DontNeed].as_slice();
    let shared_how = [DiscardHow::DontNeed, DiscardHow::Remove].as_slice();
    for (seed, how) in (3..).zip(if kind.is_shared() { shared_how } else { private_how }) {
        let discarded = guest.control.discard(share(seed, 30), *how).expect("discards");
        assert!(discarded.pages > 0);
        assert_verified(&mut guest);
    }
    guest.control.rewrite(rewrite(9)).expect("rewrites");
    assert_verified(&mut guest);
    assert_checksums(&mut guest);
    guest.freeze().expect("freezes while it is served");
    guest.thaw().expect("thaws");
    let user_only = guest.hello().user_faults_only;
    assert!(guest.exit().expect("exits").expect("a child").success());
    let served = serving.wait_for_hang_up();
    assert!(served.guest_is_gone);
    assert!(served.faults > 0 && served.removed_pages > 0, "{served:?}");
    assert_eq!(served.write_protect_faults > 0, tracking == TrackingKind::Events, "{served:?}");
    assert!(!served.threads.is_empty(), "faults name their thread");
    (served, user_only)
}

fn written_pages(guest: &ProcessGuest) -> u64 {
    let pagemap = Pagemap::of(guest.id()).expect("the guest is ours");
    let mut bytes = 0;
    for region in &guest.hello().regions {
        let range = GuestRange::new(region.start, region.bytes);
        let mut last_end = 0;
        let mut add = |found: GuestRange| {
            let start = found.start.max(last_end);
            last_end = found.end().max(last_end);
            bytes += last_end - start.min(last_end);
        };
        pagemap.scan(range, PageClass::Written, &mut add).expect("scans");
    }
    bytes / 4096
}

#[test]
fn a_shared_guest_in_three_regions_is_served_with_two_descriptors() {
    for tracking in [TrackingKind::Resident, TrackingKind::Events, TrackingKind::Scan] {
        let arguments = GuestArguments { regions: 3, tracking, ..GuestArguments::fresh(8 * MIB) };
        served_guest(&GuestArguments { send_memfd: true, ..arguments.clone() }, None);
        served_guest(&arguments, None);
    }
}

#[test]
fn a_private_guest_in_three_regions_is_served_with_one_descriptor() {
    for tracking in [TrackingKind::Resident, TrackingKind::Events, TrackingKind::Scan] {
        let kind = MemoryKind::Private;
        let threads = NonZeroUsize::new(2).expect("not zero");
        let fresh = GuestArguments::fresh(8 * MIB);
        let (served, _) =
            served_guest(&GuestArguments { kind, regions: 3, tracking, threads, ..fresh }, None);
        assert!(served.threads.len() >= 2, "two threads fault");
    }
}

#[test]
fn a_guest_of_huge_pages_is_served_by_the_huge_page() {
    let reservation = match HugepageReservation::reserve(20) {
        Ok(reservation) => reservation,
        Err(error) => return skipped("huge pages", &error.to_string()),
    };
    for kind in [MemoryKind::Huge, MemoryKind::PrivateHuge] {
        for tracking in [TrackingKind::Resident, TrackingKind::Events, TrackingKind::Scan] {
            let fresh = GuestArguments::fresh(40 * MIB);
            served_guest(&GuestArguments { kind, regions: 3, tracking, ..fresh }, None);
        }
    }
    drop(reservation);
}

#[test]
fn a_guest_without_root_is_served_its_user_faults() {
    const NOBODY: u32 = 65534;
    let status = fs::read_to_string("/proc/self/status").expect("every process has one");
    let root = status.lines().any(|line| line.split_ascii_whitespace().take(2).eq(["Uid:", "0"]));
    if !root {
        let (_, user_only) = served_guest(&GuestArguments::fresh(8 * MIB), None);
        assert!(user_only.is_some());
        return;
    }
    match probe_as(NOBODY) {
        Err(error) => skipped("guest without root", &format!("the program cannot be run as nobody: {error}")),
        Ok(()) => {
            let (_, user_only) = served_guest(&GuestArguments::fresh(8 * MIB), Some(NOBODY));
            assert_eq!(user_only, Some(true));
        }
    }
}

/// Checks that another user may run the program in its place.
fn probe_as(user_id: u32) -> Result<(), GuestError> {
    let options = GuestOptions { user_id: Some(user_id), ..options(GuestArguments::fresh(MIB)) };
    ProcessGuest::spawn(&options).map(drop)
}

#[test]
fn two_threads_fault_at_once_and_each_touch_is_timed() {
    let directory = tempfile::tempdir().expect("a directory");
    let listening = Listening::at(directory.path());
    let handover = Some(listening.path().to_owned());
    let arguments = GuestArguments { kind: MemoryKind::Private, handover, ..GuestArguments::fresh(8 * MIB) };
    let mut guest = ProcessGuest::spawn(&options(arguments)).expect("a guest starts");
    let serving = listening.receive().serve(base_state().history, Protect::Writable);
    guest.control.restore(base_state()).expect("restores");
    let trace = Trace {
        pattern: Pattern::Runs { seed: 4, runs: 16, run_pages: 64 },
        access: Access::Write,
        threads: NonZeroUsize::new(2).expect("not zero"),
        cpus: vec![0, 0],
        timing: Timing::EachTouch,
    };
    let times = guest.control.touch_trace(trace).expect("touches");
    assert_eq!(times.touches, 1024);
    assert_eq!(times.each_nanoseconds.iter().map(Vec::len).collect::<Vec<_>>(), [512, 512]);
    assert!(times.nanoseconds > 0);
    assert_verified(&mut guest);
    let served = serving.stop();
    assert_eq!(served.faults, 2048, "each page faulted once");
    assert!(!served.guest_is_gone);
}

#[test]
fn a_guest_that_nobody_serves_is_silent_and_ends_with_its_driver() {
    let directory = tempfile::tempdir().expect("a directory");
    let listening = Listening::at(directory.path());
    let handover = Some(listening.path().to_owned());
    let arguments = GuestArguments { handover, ..GuestArguments::fresh(MIB) };
    let mut guest = ProcessGuest::spawn(&options(arguments)).expect("a guest starts");
    let received = listening.receive();
    let ticking = guest.control.begin_tick(1).expect("told");
    let silent = ticking.wait_for(A_MOMENT).expect("the guest lives");
    assert!(silent.is_err(), "its page never comes");
    guest.freeze().expect("a guest that waits for a page can be frozen");
    guest.thaw().expect("thaws");
    let mut process = guest.process;
    drop(guest.control);
    assert!(process.wait().expect("ends by itself").expect("a child").success());
    drop(received);
}

#[test]
fn a_guest_that_cannot_be_says_why() {
    let missing = Some("/no such directory/handover".into());
    for (arguments, named) in [
        (GuestArguments { memory: 4097, ..GuestArguments::fresh(0) }, "not whole pages"),
        (GuestArguments { handover: missing, ..GuestArguments::fresh(MIB) }, "/no such directory"),
    ] {
        let error = ProcessGuest::spawn(&options(arguments)).expect_err("no such guest can be");
        assert!(matches!(&error, GuestError::SetUp { reason, .. } if reason.contains(named)), "{error}");
    }
    let absent = GuestOptions::program("/no such program", GuestArguments::fresh(MIB));
    let error = ProcessGuest::spawn(&absent).expect_err("no such program");
    assert!(matches!(&error, GuestError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound));

    let mut private = GuestArguments::fresh(MIB);
    private.kind = MemoryKind::Private;
    let mut guest = ProcessGuest::spawn(&options(private)).expect("a guest starts");
    let refused = guest.control.discard(share(1, 50), DiscardHow::Remove);
    assert!(matches!(refused, Err(GuestError::Refused { command: "discard", .. })), "{refused:?}");
    assert_verified(&mut guest);
}

#[test]
fn a_guest_started_by_hand_says_that_it_is_not_meant_to_be() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rekindle"));
    let output = command.args(["guest", "--memory", "1048576"]).stdin(Stdio::null()).output();
    let output = output.expect("the program runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not by hand"), "{output:?}");
}
