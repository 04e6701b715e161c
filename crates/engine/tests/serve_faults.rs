//! Faults of a guest that runs from a snapshot: every page is the snapshot's, whatever fails on the way.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::page_map::{LayerSlot, PageMap};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::serve::{
    EndReason, Epoch, FaultServer, Latencies, Neighbours, NotServed, Placement, ServeOptions, ServeStats,
    ServeStatus,
};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_engine::view::{LiveView, View};
use rekindle_kernel::Features;
use support::{Guest, Kind, LIMIT, Node, counted, options, pages_of, serve, serve_with, stalled};

const PAGES: usize = 2048;

fn word_of(page: usize) -> u64 {
    0x5eed_0000 + u64::try_from(page).expect("a page number")
}

/// A volume with runs of zero pages and runs of others.
fn sparse(page: usize) -> Option<u64> {
    (!(page / 5).is_multiple_of(3)).then(|| word_of(page))
}

fn verify(guest: &Guest, word: impl Fn(usize) -> Option<u64>) {
    for page in 0..guest.pages {
        assert!(guest.has(page, word(page).unwrap_or(0)), "page {page} is {:#x}", guest.word(page));
    }
}

#[test]
fn every_page_is_the_snapshots_while_it_is_sealed_and_when_it_is_cold() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let (engine, cold) = node.cold(&snapshot);
    for kind in [Kind::Private, Kind::Shared, Kind::Huge] {
        for tracking in [Tracking::Scan, Tracking::Events, Tracking::Resident] {
            for (engine, snapshot) in [(&node.engine, &snapshot), (&engine, &cold)] {
                let Some((guest, server)) = serve("every page", kind, tracking, engine, snapshot) else {
                    continue;
                };
                verify(&guest, sparse);
                let pages =
                    |stats: &ServeStats| stats.pages_zero + stats.pages_from_layer + stats.pages_from_capture;
                let stats = counted(&server, |stats| pages(stats) == u64::try_from(PAGES).unwrap());
                assert!(stats.faults < pages(&stats) / 2, "neighbours come along: {stats:?}");
                assert!(stats.first_fault_at.is_some());
            }
        }
    }
}

#[test]
fn what_was_served_is_counted_by_how_far_its_snapshot_had_come_and_by_how_long_it_took() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let (engine, cold) = node.cold(&snapshot);
    let Some((guest, server)) = serve("phases", Kind::Private, Tracking::Scan, &engine, &cold) else {
        return;
    };
    verify(&guest, sparse);
    let all = |stats: &ServeStats| stats.pages_zero + stats.pages_from_layer + stats.pages_from_capture;
    let stats = counted(&server, |stats| all(stats) == u64::try_from(PAGES).unwrap());
    for by_phase in [stats.capture_by_phase, stats.layer_by_phase, stats.zero_by_phase] {
        assert_eq!((by_phase.captured, by_phase.packed), (0, 0), "a published snapshot is flat: {stats:?}");
    }
    assert_eq!(stats.layer_by_phase.flat + stats.zero_by_phase.flat, all(&stats));
    let timed = |latencies: Latencies| latencies.classes.iter().sum::<u64>();
    assert!(timed(stats.after_fetch) > 0 && timed(stats.after_fetch) <= stats.misses, "{stats:?}");
    assert!(timed(stats.at_once) <= stats.faults, "{stats:?}");
}

#[test]
fn random_faults_of_several_threads_find_their_pages() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let follow = ServeOptions { placement: Placement::FollowFaults, ..options(Tracking::Scan) };
    let Some((guest, server)) = serve_with("random", Kind::Shared, follow, &node.engine, &snapshot) else {
        return;
    };
    std::thread::scope(|scope| {
        for seed in 1..4 {
            let guest = &guest;
            scope.spawn(move || {
                for step in 0..PAGES {
                    let page = (step * 769 + seed * 501) % PAGES;
                    assert!(guest.has(page, sparse(page).unwrap_or(0)), "page {page}");
                }
            });
        }
    });
    assert_eq!(server.status(), ServeStatus::Running);
}

#[test]
fn case_38_a_write_is_never_lost_between_install_and_arming() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    for kind in [Kind::Private, Kind::Shared, Kind::Huge] {
        for tracking in [Tracking::Scan, Tracking::Events] {
            let Some((guest, server)) = serve("case_38", kind, tracking, &node.engine, &snapshot) else {
                continue;
            };
            std::thread::scope(|scope| {
                // One thread reads every page while another writes every seventh one for the first time.
                scope.spawn(|| (0..PAGES).for_each(|page| guest.touch(page)));
                scope.spawn(|| (0..PAGES).step_by(7).for_each(|page| guest.write(page, 3)));
            });
            let captured = server.end_epoch().changed_pages().unwrap();
            for page in (0..PAGES).step_by(7) {
                let number = GuestPage::new(u32::try_from(page).unwrap());
                assert!(captured.kept.contains(number), "{kind:?} {tracking:?} page {page}");
            }
        }
    }
}

#[test]
fn case_41_a_page_that_cannot_be_had_stalls_its_thread_and_no_other() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let (engine, cold) = node.cold(&snapshot);
    let Some((guest, server)) = serve("case_41", Kind::Private, Tracking::Scan, &engine, &cold) else {
        return;
    };
    (0..256).for_each(|page| assert!(guest.has(page, word_of(page))));
    let retries = server.stats().retries;
    node.store_layers_there(false);
    std::thread::scope(|scope| {
        let waiting: Vec<_> =
            (0..3).map(|_| scope.spawn(|| assert!(guest.has(1999, word_of(1999))))).collect();
        let reason = stalled(&server);
        assert!(reason.contains("layer") || reason.contains("frame"), "it says what is missing: {reason}");
        let status = server.status();
        assert!(
            matches!(status, ServeStatus::Stalled { page, .. } if page == GuestPage::new(1999)),
            "{status:?}"
        );
        (0..256).for_each(|page| assert!(guest.has(page, word_of(page))));
        assert!(server.stats().retries <= retries + 1, "a missing frame is waited for, not tried for");
        node.store_layers_there(true);
        waiting.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let running = server.wait_status(LIMIT, |status| *status == ServeStatus::Running);
    assert_eq!(running, ServeStatus::Running);
    verify(&guest, |page| Some(word_of(page)));
}

#[test]
fn case_40_a_guest_is_served_on_by_another_handler() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    for kind in [Kind::Private, Kind::Shared] {
        let Some((guest, server)) = serve("case_40", kind, Tracking::Scan, &node.engine, &snapshot) else {
            return;
        };
        (0..100).for_each(|page| guest.touch(page));
        guest.discard(50, 10, kind);
        std::thread::scope(|scope| {
            // Threads fault while no server runs: they wait, and never see zeroes.
            let epoch = server.end_epoch();
            let faulting =
                scope.spawn(|| verify(&guest, |page| Some(if page / 10 == 5 { 0 } else { word_of(page) })));
            let view = Arc::clone(snapshot.memory());
            let fetcher = node.engine.fetcher().clone();
            let again = FaultServer::resume(view, epoch, fetcher, options(Tracking::Scan)).unwrap();
            faulting.join().unwrap();
            assert_eq!(again.end_epoch().removed().len(), 10);
        });
    }
}

#[test]
fn case_39_the_userfaultfd_lives_as_long_as_anything_installs_by_it() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let Some((guest, server)) = serve("case_39", Kind::Private, Tracking::Scan, &node.engine, &snapshot)
    else {
        return;
    };
    // A prefetch is under way when the server ends: the thread that does it owns the descriptor, and is joined.
    server.prefetch(pages_of(&[(0, 2048)], 2048));
    let epoch = server.end_epoch();
    let installed = epoch.installed().clone();
    for page in installed.iter() {
        assert!(guest.has(page.index(), word_of(page.index())));
    }
}

#[test]
fn a_guest_whose_handler_failed_waits_and_reads_no_zeroes() {
    let node = Node::start();
    let pages = u32::try_from(PAGES).unwrap();
    // A bug: the map names a layer that the view lacks.
    let map = PageMap::zero(pages).overlay(&PageSet::full(pages), LayerSlot::new(0), &PageSet::new(pages));
    let view = Arc::new(LiveView::new(View::flat(map, Arc::from([]))));
    let Some((guest, handover)) = Guest::start("failed handler", Kind::Private, PAGES, Features::NONE) else {
        return;
    };
    let options = options(Tracking::Resident);
    let server = FaultServer::start(view, handover, node.engine.fetcher().clone(), options).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| guest.touch(0));
        let ended = server.wait_status(LIMIT, |status| matches!(status, ServeStatus::Ended { .. }));
        assert!(matches!(ended, ServeStatus::Ended { why: EndReason::Failed { .. } }), "{ended:?}");
        assert!(server.has_failed());
        let waits = guest.is_registered(0);
        drop(server);
        assert!(waits);
    });
}

#[test]
fn a_prefetch_of_another_size_is_a_bug_of_who_asks_for_it() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let Some((guest, server)) = serve("prefetch", Kind::Private, Tracking::Scan, &node.engine, &snapshot)
    else {
        return;
    };
    let asked = AssertUnwindSafe(|| server.prefetch(pages_of(&[(0, 1)], 3)));
    assert!(catch_unwind(asked).is_err());
    verify(&guest, |page| Some(word_of(page)));
    assert_eq!(server.status(), ServeStatus::Running);
}

#[test]
fn what_is_prefetched_does_not_fault() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let (engine, cold) = node.cold(&snapshot);
    for kind in [Kind::Private, Kind::Shared, Kind::Huge] {
        for (engine, snapshot) in [(&node.engine, &snapshot), (&engine, &cold)] {
            let Some((guest, server)) = serve("prefetch", kind, Tracking::Scan, engine, snapshot) else {
                continue;
            };
            server.prefetch(pages_of(&[(0, 2048)], 2048));
            counted(&server, |stats| stats.pages_prefetched == 2048);
            verify(&guest, sparse);
            assert_eq!(server.stats().faults, 0);
        }
    }
}

#[test]
fn case_59_a_page_that_is_local_but_not_in_memory_is_never_copied_inline() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    assert!(snapshot.wait_state(SnapshotState::Published, LIMIT), "published in time");
    if !node.evict_layers("case_59", &snapshot) {
        return;
    }
    let options = options(Tracking::Resident);
    let Some((guest, server)) = serve_with("case_59", Kind::Private, options, &node.engine, &snapshot) else {
        return;
    };
    assert!(guest.has(PAGES / 2, word_of(PAGES / 2)));
    assert_eq!(server.stats().misses, 1, "the page was asked for, and copied only when it was there");
    verify(&guest, |page| Some(word_of(page)));
}

#[test]
fn a_vmm_that_hangs_up_has_ended() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server)) = serve("hang-up", Kind::Private, Tracking::Scan, &node.engine, &snapshot)
    else {
        return;
    };
    guest.stream.shutdown(std::net::Shutdown::Both).unwrap();
    let ended = ServeStatus::Ended { why: EndReason::HungUp };
    assert_eq!(server.wait_status(LIMIT, |status| *status == ended), ended);
    // A thread of the VMM may still be ending, and must not hang.
    assert!(guest.has(6, word_of(6)));
}

#[test]
fn single_pages_are_installed_where_neighbours_are_not_wanted() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let alone = ServeOptions { neighbours: Neighbours::None, ..options(Tracking::Scan) };
    let Some((guest, server)) = serve_with("single", Kind::Private, alone, &node.engine, &snapshot) else {
        return;
    };
    verify(&guest, sparse);
    let stats = counted(&server, |stats| stats.faults == u64::try_from(PAGES).unwrap());
    assert_eq!((stats.pages_neighbour, stats.faults), (0, u64::try_from(PAGES).unwrap()));
}

#[test]
fn memory_that_is_not_served_any_more_is_no_end_of_the_guest() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, handover)) = Guest::start("unmapped", Kind::Private, PAGES, Features::NONE) else {
        return;
    };
    let gone = GuestPages::new(GuestPage::new(100), 20);
    handover.userfaultfd.unregister(handover.regions.range_of(gone)).unwrap();
    let view = Arc::clone(snapshot.memory());
    let options = options(Tracking::Resident);
    let server = FaultServer::start(view, handover, node.engine.fetcher().clone(), options).unwrap();
    server.prefetch(pages_of(&[(90, 40)], 2048));
    // A walk whose neighbours reach into it, and back again.
    for page in (0..100).chain((120..PAGES).rev()) {
        assert!(guest.has(page, sparse(page).unwrap_or(0)), "page {page}");
    }
    assert_eq!(server.status(), ServeStatus::Running);
}

#[test]
fn a_guest_that_cannot_be_served_waits_until_it_is() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let other = node.snapshot(PAGES / 2, |page| Some(word_of(page)));
    let Some((guest, server)) = serve("not served", Kind::Shared, Tracking::Scan, &node.engine, &snapshot)
    else {
        return;
    };
    assert!(guest.has(7, word_of(7)));
    let epoch = server.end_epoch();
    let again = |snapshot: &Snapshot, epoch| {
        let (view, fetcher) = (Arc::clone(snapshot.memory()), node.engine.fetcher().clone());
        FaultServer::resume(view, epoch, fetcher, options(Tracking::Scan))
    };
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.has(1999, word_of(1999)));
        let NotServed { epoch, error } = again(&other, epoch).unwrap_err();
        assert!(error.to_string().contains("2048"), "{error}");
        let server = again(&snapshot, *epoch).unwrap();
        assert!(waiting.join().unwrap());
        assert_eq!(server.wait_status(std::time::Duration::MAX, |_| true), ServeStatus::Running);
        verify(&guest, |page| Some(word_of(page)));
    });
}

#[test]
fn a_guest_whose_descriptors_cannot_be_waited_on_is_not_served_and_waits() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let Some((guest, mut handover)) = Guest::start("not waited on", Kind::Private, PAGES, Features::NONE)
    else {
        return;
    };
    // A file on a disk is always ready, so the system refuses to wait for it.
    let file = std::fs::File::create(node.directory.path().join("no stream")).unwrap();
    handover.stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(file));
    let epoch = Epoch::begin(handover, Tracking::Resident).unwrap();
    let (view, fetcher) = (Arc::clone(snapshot.memory()), node.engine.fetcher().clone());
    let NotServed { epoch, .. } =
        FaultServer::resume(view, epoch, fetcher, options(Tracking::Resident)).unwrap_err();
    assert!(guest.is_registered(0), "it reads no zeroes");
    drop(epoch);
}

/// Waits until all of `threads` have reported that they went on. Not scoped threads: a scope would wait for one that
/// hangs.
fn all_go_on(threads: usize, went_on: &Receiver<usize>) -> Vec<usize> {
    let mut pages: Vec<_> =
        (0..threads).map(|_| went_on.recv_timeout(LIMIT).expect("each thread goes on")).collect();
    pages.sort_unstable();
    pages
}

/// Starts a thread for each page, which reports once it has read the right content.
fn touching(guest: &Arc<Guest>, pages: &[usize]) -> Receiver<usize> {
    let (tell, went_on) = channel();
    for &page in pages {
        let (guest, tell) = (Arc::clone(guest), tell.clone());
        drop(std::thread::spawn(move || {
            if guest.has(page, word_of(page)) {
                tell.send(page).ok();
            }
        }));
    }
    went_on
}

#[test]
fn threads_that_wait_on_pages_of_one_cold_frame_all_go_on_when_it_comes() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let (engine, cold) = node.cold(&snapshot);
    let alone = ServeOptions { neighbours: Neighbours::None, ..options(Tracking::Scan) };
    let Some((guest, server)) = serve_with("one frame", Kind::Private, alone, &engine, &cold) else {
        return;
    };
    node.store_layers_there(false);
    let pages = [1990, 1995, 2000, 2005, 2010];
    let guest = Arc::new(guest);
    let went_on = touching(&guest, &pages);
    counted(&server, |stats| stats.misses == 5);
    stalled(&server);
    node.store_layers_there(true);
    assert_eq!(all_go_on(5, &went_on), pages);
}

#[test]
fn a_thread_whose_page_came_by_another_way_while_it_waited_goes_on() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let (engine, cold) = node.cold(&snapshot);
    let Some((guest, handover)) = Guest::start("present", Kind::Shared, PAGES, Features::NONE) else {
        return;
    };
    let memory = handover.memfd.as_ref().expect("it is shared").try_clone().unwrap();
    let view = Arc::clone(cold.memory());
    let fetcher = engine.fetcher().clone();
    let server = FaultServer::start(view, handover, fetcher, options(Tracking::Resident)).unwrap();
    node.store_layers_there(false);
    let guest = Arc::new(guest);
    let went_on = touching(&guest, &[1999]);
    stalled(&server);
    // Like another mapping of the same memory: no thread is woken by it.
    memory.write_at(&support::content(word_of(1999)), 1999 * 4096).unwrap();
    node.store_layers_there(true);
    assert_eq!(all_go_on(1, &went_on), [1999]);
}
