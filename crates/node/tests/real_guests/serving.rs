//! Faults of real guests: removes beside installs, faults before the server starts, a store that is away, a cold disk.

use std::fs::File;

use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::serve::{EndReason, Neighbours, Placement, ServeOptions, ServeStatus};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace};
use rekindle_testkit::skip::skipped;
use rekindle_testkit::stores::REFUSAL;
use rekindle_vmm::process::GuestShape;
use rekindle_vmm::process::ProcessGuest;

use crate::support::{
    Case, FilledNode, LIMIT, Node, assert_resumes, assert_verified, each_case, each_kind, ends, eventually,
    filled_snapshot, pause, resume, rewrite, share, state_of, wait_published,
};

const SINGLE_PAGES: ServeOptions = ServeOptions {
    tracking: Tracking::Resident,
    placement: Placement::Anywhere,
    neighbours: Neighbours::None,
};

fn touch(pages: impl IntoIterator<Item = u32>) -> Trace {
    let threads = std::num::NonZeroUsize::MIN;
    let pattern = Pattern::List(pages.into_iter().collect());
    Trace { pattern, access: Access::Read, threads, cpus: Vec::new(), timing: Timing::Whole }
}

fn is_stalled(status: &ServeStatus) -> bool {
    matches!(status, ServeStatus::Stalled { .. })
}

fn everything(snapshot: &Snapshot) -> PageSet {
    PageSet::full(snapshot.memory().pages())
}

#[test]
fn case_36_removes_and_installs_race_and_every_page_is_right() {
    each_case(|case| {
        let filled = FilledNode::of(case);
        for seed in [10, 20] {
            let mut sandbox = filled.resume();
            sandbox.server().expect("it is served").prefetch(everything(&filled.snapshot));
            for part in 0..5 {
                sandbox.guest.control.discard(share(seed + part, 20), case.discard).expect("discards");
            }
            assert_verified(&mut sandbox.guest);
            filled.assert_resumes(&filled.pause(sandbox).snapshot);
        }
    });
}

#[test]
fn case_36_a_remove_waits_for_no_page_that_the_store_has() {
    let filled = FilledNode::usual();
    let cold = filled.cold();
    let _away = cold.away_after(0);
    let mut sandbox = cold.resume();
    sandbox.server().expect("it is served").prefetch(everything(&cold.snapshot));
    eventually("a failed fetch", || cold.faults.struck() > 0);
    sandbox
        .guest
        .control
        .discard(share(2, 100), filled.case.discard)
        .expect("discards while a fetch is under way");
    assert_verified(&mut sandbox.guest);
    assert_eq!(sandbox.server().expect("it is served").status(), ServeStatus::Running);
}

#[test]
fn case_37_a_removed_page_is_zero_whatever_is_installed_after() {
    each_kind(|case| {
        let filled = FilledNode::of(case);
        let mut sandbox = filled.resume();
        sandbox.guest.control.tick(200).expect("ticks");
        sandbox.guest.control.discard(share(2, 50), case.discard).expect("discards");
        let server = sandbox.server().expect("it is served");
        let removed = server.stats().pages_removed;
        assert!(removed > 0);
        server.prefetch(everything(&filled.snapshot));
        eventually("the rest is installed", || {
            let stats = server.stats();
            let there = stats.pages_from_capture + stats.pages_from_layer;
            there + removed >= u64::from(filled.snapshot.memory().pages())
        });
        assert_verified(&mut sandbox.guest);
    });
}

#[test]
fn case_38_a_write_after_a_zero_page_was_installed_is_in_the_next_snapshot() {
    each_case(|case| {
        let filled = FilledNode::of(case);
        let mut sandbox = filled.resume();
        sandbox.guest.control.discard(share(2, 50), case.discard).expect("discards");
        // Some removed pages are first read, others first written.
        sandbox.guest.control.tick(1000).expect("ticks");
        sandbox.guest.control.rewrite(rewrite(3)).expect("rewrites");
        let paused = filled.pause(sandbox);
        let mut sandbox = resume(&filled.node.engine, &paused.snapshot, &case.shape);
        // Zeroes of the snapshot itself, read and then written.
        assert_verified(&mut sandbox.guest);
        sandbox.guest.control.rewrite(rewrite(4)).expect("rewrites");
        filled.assert_resumes(&filled.pause(sandbox).snapshot);
    });
}

#[test]
fn case_40_a_guest_whose_handler_ended_waits_and_goes_on_when_it_is_served_again() {
    let filled = FilledNode::usual();
    let (mut guest, server) = filled.restored(SINGLE_PAGES);
    guest.control.tick(8).expect("ticks");
    // Ended under the running guest, which is in the middle of its faults.
    let verifying = guest.control.begin_verify().expect("told");
    let before = server.stats().faults;
    eventually("a fault", || server.stats().faults > before);
    let epoch = server.end_epoch();
    assert!(!epoch.installed().is_empty());
    let server = filled.serve_again(epoch, SINGLE_PAGES);
    let verified = verifying.wait().expect("the guest goes on");
    assert_eq!((verified.pages, verified.mismatches), (filled.snapshot.memory().pages(), 0));
    guest.kill().expect("ends");
    drop(server);
}

#[test]
fn case_40_the_end_of_a_guest_and_of_its_server_are_seen_on_the_status() {
    let filled = FilledNode::usual();
    let mut sandbox = filled.resume();
    sandbox.guest.control.tick(8).expect("ticks");
    assert_eq!(sandbox.server().expect("it is served").status(), ServeStatus::Running);
    sandbox.guest.kill().expect("ends");
    let server = sandbox.server().expect("it was served");
    let ended = server.wait_status(LIMIT, |status| matches!(status, ServeStatus::Ended { .. }));
    let gone = [EndReason::HungUp, EndReason::MemoryGone].map(|why| ServeStatus::Ended { why });
    assert!(gone.contains(&ended), "{ended:?}");
    ends("dropping the sandbox of a killed guest", move || drop(sandbox));
    filled.assert_resumes(&filled.snapshot);
}

#[test]
fn case_41_one_page_that_cannot_be_had_is_named_and_the_others_are_served() {
    let filled = FilledNode::usual();
    let mut cold = filled.cold();
    cold.shape.neighbours = Neighbours::None;
    let mut sandbox = cold.resume();
    // One page of the first frame, which is then verified as a whole.
    sandbox.guest.control.touch_trace(touch([0])).expect("touches");
    let away = cold.away_after(0);
    let far = cold.snapshot.memory().pages() - 1;
    let waiting = Waiting::begin(&mut sandbox.guest, far);
    let server = sandbox.server().expect("it is served");
    let stalled = server.wait_status(LIMIT, is_stalled);
    assert!(
        matches!(&stalled, ServeStatus::Stalled { page, reason }
            if page.number() == far && reason.contains(REFUSAL)),
        "{stalled:?}"
    );
    let before = server.stats();
    let mut near = PageSet::new(cold.snapshot.memory().pages());
    near.insert_run(GuestPages::new(GuestPage::new(1), 63));
    server.prefetch(near);
    eventually("the other pages", || server.stats().pages_prefetched == before.pages_prefetched + 63);
    assert!(is_stalled(&server.status()), "the page is still away");
    assert_eq!(server.stats().retries, 0, "waiting is no retry");
    drop(away);
    let running = server.wait_status(LIMIT, |status| *status == ServeStatus::Running);
    assert_eq!(running, ServeStatus::Running);
    waiting.end(&mut sandbox.guest);
    assert_verified(&mut sandbox.guest);
}

/// A guest that touches a page that cannot be had. Its answer is left on the socket until the next command.
struct Waiting {
    page: u32,
}

impl Waiting {
    fn begin(guest: &mut ProcessGuest, page: u32) -> Self {
        drop(guest.control.begin_touch_trace(touch([page])).expect("told"));
        Self { page }
    }

    fn end(self, guest: &mut ProcessGuest) {
        let touched = guest.control.touch_trace(touch([self.page])).expect("the page came");
        assert_eq!(touched.touches, 1);
    }
}

#[test]
fn case_42_faults_before_anybody_serves_are_answered() {
    let filled = FilledNode::usual();
    let (mut guest, handover) = filled.handed_over();
    guest.control.restore(state_of(&filled.snapshot)).expect("restores");
    let ticking = guest.control.begin_tick(8).expect("told");
    let server = filled.serve(handover, SINGLE_PAGES);
    let ticked = ticking.wait().expect("the early faults are answered");
    assert_eq!((ticked.verified.pages, ticked.verified.mismatches), (8, 0));
    assert_verified(&mut guest);
    guest.kill().expect("ends");
    drop(server);
}

#[test]
fn case_42_memory_in_many_regions_at_odd_addresses_in_reverse_order_is_served() {
    let case = Case::usual();
    let node = Node::start();
    for regions in [2, 7] {
        let shape = GuestShape { regions, ..case.shape.clone() };
        let snapshot = filled_snapshot(&node.engine, &shape, 1);
        let mut sandbox = resume(&node.engine, &snapshot, &shape);
        let starts: Vec<_> = sandbox.guest.hello().regions.iter().map(|region| region.start).collect();
        assert!(!starts.is_sorted());
        sandbox.guest.control.rewrite(rewrite(2)).expect("rewrites");
        assert_verified(&mut sandbox.guest);
        assert_resumes(&node.engine, &pause(&node.engine, sandbox).snapshot, &shape);
    }
}

#[test]
fn case_53_a_page_given_back_in_this_epoch_is_zero_in_the_next_snapshot_too() {
    each_case(|case| {
        let filled = FilledNode::of(case);
        let mut sandbox = filled.resume();
        // Of what is given back some was never touched, some only read, some written.
        sandbox.guest.control.tick(200).expect("ticks");
        sandbox.guest.control.rewrite(rewrite(2)).expect("rewrites");
        sandbox.guest.control.discard(share(3, 50), case.discard).expect("discards");
        // And some of it comes back as a zero page before the pause.
        sandbox.guest.control.tick(200).expect("ticks");
        let paused = filled.pause(sandbox);
        filled.assert_resumes(&paused.snapshot);
        wait_published(&paused.snapshot);
        filled.assert_resumes(&paused.snapshot);
    });
}

#[test]
fn case_57_serving_and_pausing_allocate_nothing_in_the_guests_memory_file() {
    let filled = FilledNode::usual();
    let (mut guest, server) = filled.restored(SINGLE_PAGES);
    guest.control.tick(8).expect("ticks");
    guest.freeze().expect("freezes");
    let epoch = server.end_epoch();
    let installed = u64::from(epoch.installed().len());
    let allocated = || epoch.memfd().expect("it was sent").allocated_bytes().expect("it can be asked") / 4096;
    assert!((1..=8).contains(&installed));
    assert_eq!(allocated(), installed);
    let changed = epoch.changed_pages().expect("the guest stands");
    assert_eq!(u64::from(changed.kept.len()), installed);
    assert_eq!(allocated(), installed, "looking for written pages made some");
    let server = filled.serve_again(epoch, SINGLE_PAGES);
    guest.thaw().expect("thaws");
    assert_verified(&mut guest);
    guest.kill().expect("ends");
    drop(server);
}

#[test]
fn case_58_a_store_outage_stalls_a_guest_with_a_reason_and_then_it_goes_on() {
    each_kind(|case| {
        let filled = FilledNode::of(case);
        let cold = filled.cold();
        let away = cold.away_after(5);
        let mut sandbox = cold.resume();
        drop(sandbox.guest.control.begin_verify().expect("told"));
        let server = sandbox.server().expect("it is served");
        let stalled = server.wait_status(LIMIT, is_stalled);
        let ServeStatus::Stalled { reason, .. } = &stalled else { panic!("{stalled:?}") };
        assert!(reason.contains(REFUSAL), "{reason}");
        drop(away);
        let running = server.wait_status(LIMIT, |status| *status == ServeStatus::Running);
        assert_eq!(running, ServeStatus::Running);
        assert_verified(&mut sandbox.guest);
        assert_eq!(sandbox.server().expect("it is served").status(), ServeStatus::Running);
    });
}

#[test]
fn a_guest_that_stalls_can_be_paused_and_its_snapshot_is_whole() {
    let filled = FilledNode::usual();
    let cold = filled.cold();
    let away = cold.away_after(5);
    let mut sandbox = cold.resume();
    // Written before the store went away: those pages are the guest's own.
    sandbox.guest.control.discard(share(2, 30), filled.case.discard).expect("discards");
    sandbox.server().expect("it is served").prefetch(everything(&cold.snapshot));
    eventually("a failed fetch", || cold.faults.struck() > 0);
    let paused = pause(&cold.engine, sandbox);
    assert!(paused.snapshot.manifest_now().is_none_or(|manifest| manifest.generation() == 1));
    drop(away);
    assert_resumes(&cold.engine, &paused.snapshot, &cold.shape);
    wait_published(&paused.snapshot);
}

/// Takes every layer file of a directory out of memory, as far as the system does that.
fn chill(directory: &std::path::Path) {
    for entry in std::fs::read_dir(directory).expect("the cache is there") {
        let file = File::open(entry.expect("an entry").path()).expect("a layer file");
        file.sync_all().expect("the disk is there");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("it is a file");
    }
}

#[test]
fn case_59_a_cold_file_page_is_read_beside_the_other_faults() {
    let filled = FilledNode::usual();
    wait_published(&filled.snapshot);
    chill(&filled.node.directory.path().join("first"));
    let view = filled.snapshot.memory();
    let is_cold = |page| view.piece_at(GuestPage::new(page), 1).readable_now() == 0;
    if !(0..view.pages()).any(is_cold) {
        return skipped("cold layer files", "this file system keeps its pages in memory");
    }
    let mut sandbox = filled.resume();
    assert_verified(&mut sandbox.guest);
    let stats = sandbox.server().expect("it is served").stats();
    assert!(stats.misses > 0, "cold pages are read elsewhere: {stats:?}");
    assert_eq!(filled.node.engine.traffic().fetches, 0, "and not from the store");
}
