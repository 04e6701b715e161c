//! Guests that are served again from the kept parts of their epoch: no removed or written page is forgotten, and pages
//! that are there already do no harm.

mod support;

use std::os::fd::AsFd;
use std::sync::Arc;

use rekindle_engine::engine::Engine;
use rekindle_engine::geometry::GuestPage;
use rekindle_engine::serve::{
    Epoch, EpochFacts, FaultServer, JournalError, KeptEpoch, RecoverError, ServeStatus,
};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use support::{Guest, Kind, Node, counted, features, options, pages_of};

const PAGES: usize = 2048;
const KINDS: [Kind; 3] = [Kind::Private, Kind::Shared, Kind::Huge];
const TRACKINGS: [Tracking; 3] = [Tracking::Scan, Tracking::Events, Tracking::Resident];

fn word_of(page: usize) -> u64 {
    0x5eed_0000 + u64::try_from(page).expect("a page number")
}

/// Some pages of the snapshot are zero.
fn word_or_zero(page: usize) -> u64 {
    if page % 64 < 8 { 0 } else { word_of(page) }
}

fn page(number: usize) -> GuestPage {
    GuestPage::new(u32::try_from(number).expect("a page number"))
}

fn snapshot(node: &Node) -> Arc<Snapshot> {
    node.snapshot(PAGES, |page| Some(word_or_zero(page)).filter(|word| *word != 0))
}

fn begin(test: &str, kind: Kind, tracking: Tracking) -> Option<(Guest, Epoch)> {
    let (guest, handover) = Guest::start(test, kind, PAGES, features(tracking))?;
    let epoch = Epoch::begin(handover, tracking).expect("begins");
    Some((guest, epoch))
}

fn serve(engine: &Engine, snapshot: &Snapshot, epoch: Epoch) -> FaultServer {
    let options = options(epoch.tracking());
    FaultServer::resume(Arc::clone(snapshot.memory()), epoch, engine.fetcher().clone(), options)
        .expect("serves")
}

fn clone(kept: &KeptEpoch) -> KeptEpoch {
    let clone = |fd: &std::os::fd::OwnedFd| fd.as_fd().try_clone_to_owned().expect("a descriptor more");
    KeptEpoch {
        facts: kept.facts.clone(),
        userfaultfd: clone(&kept.userfaultfd),
        memfd: kept.memfd.as_ref().map(clone),
        image: kept.image.as_ref().map(clone),
        stream: clone(&kept.stream),
        journal: clone(&kept.journal),
    }
}

#[test]
fn case_54_what_was_given_back_and_written_is_known_to_every_later_server() {
    let node = Node::start();
    let snapshot = snapshot(&node);
    for kind in KINDS {
        let unit = if kind == Kind::Huge { 512 } else { 1 };
        for tracking in TRACKINGS {
            let Some((guest, epoch)) = begin("case_54", kind, tracking) else { continue };
            let kept = epoch.kept().expect("kept");
            let server = serve(&node.engine, &snapshot, epoch);
            // Read, written first, read and written, given back and left, given back and read, and written.
            (0..600).for_each(|page| guest.touch(page));
            guest.write(1100, 7);
            guest.write(300, 7);
            guest.discard(512, unit, kind);
            guest.discard(1536, unit, kind);
            assert!(guest.has(1536, 0));
            guest.write(1536, 9);
            drop(server);

            let epoch = Epoch::recover(clone(&kept)).expect("recovers");
            assert_eq!(epoch.facts(), kept.facts);
            assert!(epoch.installed().is_empty());
            for given_back in [512, 1536] {
                assert!(epoch.removed().contains(page(given_back)), "{kind:?} {tracking:?} {given_back}");
            }
            assert_eq!(epoch.removed().len(), u32::try_from(2 * unit).expect("few"));
            if tracking == Tracking::Events {
                assert!([1100, 300].iter().all(|&written| epoch.written().contains(page(written))));
            }
            let server = serve(&node.engine, &snapshot, epoch);
            guest.write(301, 8);
            drop(server);

            let server = serve(&node.engine, &snapshot, Epoch::recover(kept).expect("recovers again"));
            for number in 0..PAGES {
                let expected = match number {
                    300 | 1100 => 7,
                    301 => 8,
                    1536 => 9,
                    _ if (512..512 + unit).contains(&number) || (1536..1536 + unit).contains(&number) => 0,
                    _ => word_or_zero(number),
                };
                assert!(guest.has(number, expected), "{kind:?} {tracking:?} page {number}");
            }
            assert_eq!(server.status(), ServeStatus::Running);
            let captured = server.end_epoch().changed_pages().expect("the guest stands");
            for written in [300, 301, 1100, 1536] {
                assert!(captured.kept.contains(page(written)), "{kind:?} {tracking:?} page {written}");
            }
            let zero_either_way = captured.zero.contains(page(512)) || captured.kept.contains(page(512));
            assert!(zero_either_way, "{kind:?} {tracking:?}");
        }
    }
}

#[test]
fn pages_that_an_earlier_server_installed_are_in_nobodys_way() {
    let node = Node::start();
    let snapshot = snapshot(&node);
    for kind in KINDS {
        for tracking in TRACKINGS {
            let Some((guest, epoch)) = begin("present pages", kind, tracking) else { continue };
            let kept = epoch.kept().expect("kept");
            let server = serve(&node.engine, &snapshot, epoch);
            (0..PAGES).step_by(5).for_each(|page| guest.touch(page));
            (0..PAGES).step_by(35).for_each(|page| guest.write(page, 3));
            drop(server);
            // Walks both ways run into them, and so does a prefetch.
            let server = serve(&node.engine, &snapshot, Epoch::recover(clone(&kept)).expect("recovers"));
            let expected = |page: usize| if page.is_multiple_of(35) { 3 } else { word_or_zero(page) };
            (0..300)
                .for_each(|page| assert!(guest.has(page, expected(page)), "{kind:?} {tracking:?} {page}"));
            (300..600)
                .rev()
                .for_each(|page| assert!(guest.has(page, expected(page)), "{kind:?} {tracking:?} {page}"));
            server.prefetch(pages_of(&[(0, 2048)], 2048));
            // Written where it is present and where it may not be.
            (0..PAGES).step_by(70).for_each(|page| guest.write(page, 4));
            drop(server);
            let server = serve(&node.engine, &snapshot, Epoch::recover(kept).expect("recovers"));
            let expected = |page: usize| if page.is_multiple_of(70) { 4 } else { expected(page) };
            (0..PAGES)
                .for_each(|page| assert!(guest.has(page, expected(page)), "{kind:?} {tracking:?} {page}"));
            let captured = server.end_epoch().changed_pages().expect("the guest stands");
            for written in (0..PAGES).step_by(35) {
                assert!(captured.kept.contains(page(written)), "{kind:?} {tracking:?} page {written}");
            }
        }
    }
}

#[test]
fn case_40_threads_that_fault_while_nobody_serves_wait_for_the_next_server() {
    let node = Node::start();
    let snapshot = snapshot(&node);
    for kind in [Kind::Private, Kind::Shared] {
        let Some((guest, epoch)) = begin("case_40", kind, Tracking::Events) else { continue };
        let kept = epoch.kept().expect("kept");
        drop(epoch);
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| assert!(guest.has(100, word_of(100))));
            let giving_back = scope.spawn(|| {
                guest.discard(200, 10, kind);
                assert!(guest.has(205, 0));
            });
            let server = serve(&node.engine, &snapshot, Epoch::recover(kept).expect("recovers"));
            reading.join().expect("read");
            giving_back.join().expect("given back");
            counted(&server, |stats| stats.pages_removed == 10);
            assert_eq!(server.end_epoch().removed().len(), 10);
        });
    }
}

/// The kept parts of an epoch whose server is gone, for each refusal to damage.
fn kept_epoch(kind: Kind) -> Option<(Guest, KeptEpoch)> {
    let (guest, epoch) = begin("refusals", kind, Tracking::Scan)?;
    let kept = epoch.kept().expect("kept");
    drop(epoch);
    Some((guest, kept))
}

#[test]
fn what_was_kept_of_another_guest_is_refused() {
    let Some((_guest, kept)) = kept_epoch(Kind::Shared) else { return };
    let Some((_other_guest, other)) = kept_epoch(Kind::Private) else { return };
    let refused = |change: &dyn Fn(&mut KeptEpoch)| {
        let mut changed = clone(&kept);
        change(&mut changed);
        Epoch::recover(changed).expect_err("refused")
    };
    let pid = refused(&|kept| kept.facts.pid += 1);
    assert!(matches!(pid, RecoverError::OtherGuest { .. }), "{pid}");
    let tracking = refused(&|kept| kept.facts.tracking = Tracking::Resident);
    assert!(matches!(tracking, RecoverError::OtherGuest { .. }), "{tracking}");
    let moved = refused(&|kept| kept.facts.regions[0].start += 2 << 20);
    assert!(matches!(moved, RecoverError::OtherGuest { .. } | RecoverError::Regions(_)), "{moved}");
    let fewer = refused(&|kept| kept.facts.regions.truncate(1));
    assert!(matches!(fewer, RecoverError::Regions(_)), "{fewer}");
    let none = refused(&|kept| kept.facts.regions.clear());
    assert!(matches!(none, RecoverError::Regions(_)), "{none}");
    let journal = refused(&|kept| kept.journal = clone(&other).journal);
    assert!(matches!(journal, RecoverError::OtherGuest { .. }), "{journal}");
    let no_journal = refused(&|kept| kept.journal = clone(kept).stream);
    assert!(matches!(no_journal, RecoverError::Journal(JournalError::NotMemory(_))), "{no_journal}");
    let memory_for_journal = refused(&|kept| kept.journal = clone(kept).memfd.expect("shared"));
    assert!(
        matches!(memory_for_journal, RecoverError::Journal(JournalError::NotJournal)),
        "{memory_for_journal}"
    );
    let userfaultfd = refused(&|kept| kept.userfaultfd = clone(kept).stream);
    assert!(matches!(userfaultfd, RecoverError::Userfaultfd(_)), "{userfaultfd}");
    let memory = refused(&|kept| kept.memfd = Some(clone(kept).journal));
    assert!(matches!(memory, RecoverError::Memory(_)), "{memory}");
    Epoch::recover(kept).expect("what was not changed is recovered");
}

#[test]
fn facts_are_the_same_after_they_were_written_down() {
    let Some((_guest, kept)) = kept_epoch(Kind::Private) else { return };
    let text = serde_json::to_string(&kept.facts).expect("plain data");
    assert!(text.contains(r#""tracking":"scan""#) && text.contains(r#""page_bytes":4096"#), "{text}");
    let facts: EpochFacts = serde_json::from_str(&text).expect("its own words");
    assert_eq!(facts, kept.facts);
    Epoch::recover(KeptEpoch { facts, ..kept }).expect("recovers");
}

#[test]
fn an_end_of_the_vmm_while_nobody_served_is_noticed() {
    let node = Node::start();
    let snapshot = snapshot(&node);
    let Some((guest, kept)) = kept_epoch(Kind::Private) else { return };
    guest.stream.shutdown(std::net::Shutdown::Both).expect("ends");
    let server = serve(&node.engine, &snapshot, Epoch::recover(kept).expect("recovers"));
    let ended = server.wait_status(support::LIMIT, |status| matches!(status, ServeStatus::Ended { .. }));
    assert_ne!(ended, ServeStatus::Running);
    assert!(guest.has(100, word_of(100)), "a thread that is still ending is served");
}

#[test]
fn an_epoch_is_begun_with_the_tracking_that_the_userfaultfd_has() {
    let Some((_guest, handover)) = Guest::start("tracking", Kind::Private, PAGES, features(Tracking::Scan))
    else {
        return;
    };
    let epoch = Epoch::begin(handover, Tracking::Events).expect("begins");
    assert_eq!(epoch.facts().tracking, Tracking::Scan);
    let mut kept = epoch.kept().expect("kept");
    drop(epoch);
    kept.facts.tracking = Tracking::Events;
    let refused = Epoch::recover(kept).expect_err("refused");
    assert!(matches!(refused, RecoverError::OtherGuest { .. }), "{refused}");
}
