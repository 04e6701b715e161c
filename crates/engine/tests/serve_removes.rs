//! Pages that the guest gives back while it is served: their content for the guest, and in the next pause.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use rekindle_engine::geometry::GuestPage;
use rekindle_engine::serve::ServeStatus;
use rekindle_engine::tracking::Tracking;
use support::{Kind, LIMIT, Node, serve, stalled};

const PAGES: usize = 2048;

fn word_of(page: usize) -> u64 {
    0x5eed_0000 + u64::try_from(page).expect("a page number")
}

fn page(number: usize) -> GuestPage {
    GuestPage::new(u32::try_from(number).expect("a page number"))
}

#[test]
fn case_37_a_page_given_back_reads_zero_and_never_the_snapshot_again() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    for kind in [Kind::Private, Kind::Shared] {
        for tracking in [Tracking::Scan, Tracking::Events, Tracking::Resident] {
            let Some((guest, server)) = serve("case_37", kind, tracking, &node.engine, &snapshot) else {
                return;
            };
            // Some pages were there before, some never.
            (0..64).for_each(|page| assert!(guest.has(page, word_of(page)), "{kind:?} {tracking:?} {page}"));
            guest.discard(32, 64, kind);
            for page in 32..96 {
                assert!(guest.has(page, 0), "{kind:?} {tracking:?} page {page} is {:#x}", guest.word(page));
            }
            guest.write(40, 7);
            guest.discard(40, 1, kind);
            assert!(guest.has(40, 0));
            assert!(guest.has(31, word_of(31)) && guest.has(96, word_of(96)));
            let epoch = server.end_epoch();
            assert_eq!(epoch.removed().len(), 64);
        }
    }
}

#[test]
fn case_53_the_next_pause_has_what_was_written_and_what_was_given_back() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| (!page.is_multiple_of(3)).then(|| word_of(page)));
    for kind in [Kind::Private, Kind::Shared] {
        for tracking in [Tracking::Scan, Tracking::Events] {
            let Some((guest, server)) = serve("case_53", kind, tracking, &node.engine, &snapshot) else {
                return;
            };
            (0..PAGES / 2).for_each(|page| guest.touch(page));
            // Written after it was read, written first, zero in the parent, given back and left, given back and
            // written, given back and read.
            for written in [1, 2, 3, 1500, 1501] {
                guest.write(written, 9);
            }
            guest.discard(100, 3, kind);
            guest.write(101, 9);
            assert!(guest.has(102, 0));
            assert_eq!(server.tracking(), tracking);
            let epoch = server.end_epoch();
            let captured = epoch.changed_pages().unwrap();
            for written in [1, 2, 3, 1500, 1501, 101] {
                assert!(captured.kept.contains(page(written)), "{kind:?} {tracking:?} page {written}");
            }
            assert!(captured.zero.contains(page(100)), "{kind:?} {tracking:?}");
            let zero_either_way = captured.zero.contains(page(102)) || captured.kept.contains(page(102));
            assert!(zero_either_way, "{kind:?} {tracking:?}");
            assert!(captured.kept.is_disjoint_from(&captured.zero));
            assert!(captured.kept.len() <= 7, "{kind:?} {tracking:?}: {} pages", captured.kept.len());
        }
    }
}

#[test]
fn case_36_removes_and_installs_may_meet_at_any_moment() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    for kind in [Kind::Private, Kind::Shared] {
        let Some((guest, server)) = serve("case_36", kind, Tracking::Scan, &node.engine, &snapshot) else {
            return;
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // One thread gives pages back and reads them at once; only it touches its half.
            scope.spawn(|| {
                for round in 0..4 {
                    for page in (0..PAGES / 2).step_by(4) {
                        guest.discard(page, 3, kind);
                        assert!(guest.has(page + 1, 0), "round {round} page {page}");
                        guest.write(page + 2, 5);
                        assert!(guest.has(page + 2, 5));
                    }
                }
                done.store(true, Ordering::Release);
            });
            // Others fault all the while in the other half.
            scope.spawn(|| {
                for page in PAGES / 2..PAGES {
                    assert!(guest.has(page, word_of(page)), "page {page}");
                }
            });
        });
        assert!(done.load(Ordering::Acquire));
        (3..PAGES / 2).step_by(4).for_each(|page| assert!(guest.has(page, word_of(page))));
        assert_eq!(server.status(), ServeStatus::Running);
        drop(server);
    }
}

#[test]
fn case_36_a_remove_is_read_while_a_page_waits_for_the_store() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let (engine, cold) = node.cold(&snapshot);
    let Some((guest, server)) = serve("case_36", Kind::Private, Tracking::Scan, &engine, &cold) else {
        return;
    };
    assert!(guest.has(0, word_of(0)));
    node.store_layers_there(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| guest.has(2000, word_of(2000)));
        let given_back = scope.spawn(|| guest.has(1000, 0));
        let reason = stalled(&server);
        assert!(!reason.is_empty());
        // While both wait, removes and other faults go on; a removed page needs no store.
        guest.discard(900, 100, Kind::Private);
        guest.discard(1000, 1, Kind::Private);
        assert!(guest.has(950, 0));
        assert!(given_back.join().unwrap(), "a page that was given back while it was waited for");
        assert!(guest.has(1, word_of(1)));
        assert!(matches!(server.status(), ServeStatus::Stalled { .. }));
        assert!(!waiting.is_finished());
        node.store_layers_there(true);
        assert!(waiting.join().unwrap());
    });
    let status = server.wait_status(LIMIT, |status| *status == ServeStatus::Running);
    assert_eq!(status, ServeStatus::Running);
    assert!(server.stats().misses >= 2);
}

#[test]
fn a_part_of_a_huge_page_that_was_given_back_reads_zero_and_the_rest_is_the_snapshots() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let Some((guest, server)) = serve("part", Kind::Huge, Tracking::Scan, &node.engine, &snapshot) else {
        return;
    };
    assert!(guest.has(1024, word_of(1024)), "one huge page is there before");
    // The first part of one that is missing, a later part of another, all of a third, a part of the one that is there.
    let given_back = [(0, 3), (600, 5), (1536, 512), (1100, 2)];
    for (page, pages) in given_back {
        guest.discard(page, pages, Kind::Huge);
    }
    server.prefetch(support::pages_of(&[(512, 512)], 2048));
    let is_removed =
        |page: usize| given_back.iter().any(|(first, pages)| (*first..first + pages).contains(&page));
    for page in 0..PAGES {
        let word = if is_removed(page) { 0 } else { word_of(page) };
        assert!(guest.has(page, word), "page {page} is {:#x}", guest.word(page));
    }
    let captured = server.end_epoch().changed_pages().unwrap();
    for removed in (0..PAGES).filter(|page| is_removed(*page)).map(page) {
        assert!(captured.kept.contains(removed) || captured.zero.contains(removed), "page {removed}");
    }
}
