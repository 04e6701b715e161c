//! Cases of fetching and comparing pages that are only partly on the node.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};

use futures_util::StreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use rekindle_engine::fetch::{FetchError, FrameKey};
use rekindle_engine::frame::{FrameNumber, frame_of};
use rekindle_engine::lifecycle::SnapshotState;
use rekindle_engine::single_flight::Waiter;
use rekindle_engine::view::PieceSource;
use rekindle_testkit::guest::{Guest, Tracking, judge};
use rekindle_testkit::site::PATIENCE;
use rekindle_testkit::stores::{Fault, Operation, Rule};

use crate::{Cold, check, check_elsewhere, open_elsewhere, published, run, verified, wait_published};

#[test]
fn case_23_a_read_over_several_frames_waits_for_the_last_of_them() {
    let (site, _engine, snapshot) = published(700);
    let cold = open_elsewhere(&site, &snapshot.0);
    let read = |pages| {
        let mut bytes = vec![0xaa; usize::try_from(run(0, pages).bytes()).expect("a few")];
        cold.engine.read(cold.snapshot.memory(), run(0, pages), &mut bytes).expect("the store has it");
        bytes
    };
    read(1);
    let stalled = site.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Stall));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(300));
        site.faults.wait_stalled();
        assert!(!reader.is_finished(), "only the first of its frames is there");
        drop(stalled);
        let bytes = reader.join().expect("no panic");
        snapshot.1.check(run(0, 300), &bytes).expect("the model's pages");
    });
}

#[test]
fn case_24_a_cold_frame_that_many_want_is_fetched_once() {
    let (site, _engine, snapshot) = published(700);
    let cold = open_elsewhere(&site, &snapshot.0);
    let before = site.faults.calls(Operation::Get, "layers/");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut page = vec![0; 4096];
                cold.engine.read(cold.snapshot.memory(), run(599, 1), &mut page).expect("the store has it");
                snapshot.1.check(run(599, 1), &page).expect("the model's page");
            });
        }
    });
    let fetches = site.faults.calls(Operation::Get, "layers/") - before;
    assert_eq!(fetches, 1, "the frame: its place is in the manifest");
}

#[test]
fn case_27_a_page_is_ready_when_the_frame_that_it_lies_in_is_there_and_not_before() {
    // A child's pages lie in its layer at other places than in the guest, and the last frames are short.
    let (site, engine, first) = published(700);
    let second = crate::child(&engine, &first, run(30, 130), 2);
    wait_published(&second.0);
    let cold = open_elsewhere(&site, &second.0);
    for wanted in [650, 100, 31, 320, 0] {
        let mut page = vec![0; 4096];
        cold.engine.read(cold.snapshot.memory(), run(wanted, 1), &mut page).expect("the store has it");
        while cold.engine.fetcher().under_way() > 0 {
            std::thread::yield_now();
        }
        for (start, limit) in (0..700).flat_map(|start| [1, 63, 64, 700].map(|limit| (start, limit))) {
            let piece = cold.snapshot.memory().piece_at(run(start, 1).start(), limit);
            let PieceSource::Layer(file, page) = &piece.source else { continue };
            let is_there = |skip: &u32| file.is_verified(frame_of(page.plus(*skip)));
            let ready = (0..piece.pages.count()).take_while(is_there).count();
            assert_eq!(usize::try_from(piece.readable_now()).expect("64 bits"), ready, "{start} {limit}");
        }
    }
    judge(&cold.engine, &cold.snapshot, &second.1).expect("every page is the model's");
}

#[test]
fn case_28_a_failed_fetch_answers_all_who_wait_for_it_and_is_not_remembered() {
    let (site, _engine, snapshot) = published(600);
    let cold = open_elsewhere(&site, &snapshot.0);
    for fault in [Fault::Fail, Fault::Truncate, Fault::Corrupt] {
        let failing = site.faults.inject(Rule::always(Operation::Get, "layers/", fault));
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let mut page = vec![0; 4096];
                    let read = cold.engine.read(cold.snapshot.memory(), run(70, 1), &mut page);
                    read.expect_err("the store is bad");
                });
            }
        });
        drop(failing);
    }
    judge(&cold.engine, &cold.snapshot, &snapshot.1).expect("every page is the model's");
}

/// Reports the frames that arrived.
#[derive(Debug)]
struct Told(Sender<FrameNumber>);

impl Waiter<FrameKey, FetchError> for Told {
    fn ready(&self, (_, frame): FrameKey) {
        self.0.send(frame).ok();
    }

    fn failing(&self, _: FrameKey, _: &Arc<FetchError>) {}
}

#[test]
fn who_joined_a_frame_that_a_read_ahead_did_not_bring_gets_it_all_the_same() {
    // Either the whole request fails, or its middle is damaged, where the third of its four frames begins.
    for fault in [Fault::Fail, Fault::Corrupt] {
        let (site, _engine, snapshot) = published(700);
        let cold = open_elsewhere(&site, &snapshot.0);
        let file = cold.snapshot.memory().load().layers()[0].local();
        // A walk, so that the next request is for four frames.
        for frame in [0, 1] {
            cold.engine.fetcher().load(&file, FrameNumber::new(frame)).expect("the store has it");
        }
        while cold.engine.fetcher().under_way() > 0 {
            std::thread::yield_now();
        }
        let stalled = site.faults.inject(Rule::once(Operation::Get, "layers/", Fault::Stall));
        let failing = site.faults.inject(Rule::once(Operation::Get, "layers/", fault));
        let (tell, told) = channel();
        let waiter = Arc::new(Told(tell));
        let joined: Weak<Told> = Arc::downgrade(&waiter);
        for frame in [3, 5] {
            cold.engine.fetcher().request(&file, FrameNumber::new(frame), joined.clone());
            site.faults.wait_stalled();
        }
        assert_eq!(cold.engine.fetcher().under_way(), 4, "frame 5 is part of the first request");
        drop(stalled);
        let mut came: Vec<_> = (0..2).map(|_| told.recv_timeout(PATIENCE).expect("both come")).collect();
        came.sort();
        assert_eq!(came, [3, 5].map(FrameNumber::new));
        drop(failing);
        judge(&cold.engine, &cold.snapshot, &snapshot.1).expect("every page is the model's");
    }
}

#[test]
fn case_28_who_waits_for_a_frame_is_answered_when_the_engine_ends() {
    let (site, _engine, snapshot) = published(600);
    let Cold { snapshot: opened, engine: cold, _site } = open_elsewhere(&site, &snapshot.0);
    let fetcher = cold.fetcher().clone();
    drop(cold);
    let (answer, answered) = channel();
    let file = opened.memory().load().layers()[0].local();
    // Not a scoped thread: a scope would wait for it if it gets no answer.
    drop(std::thread::spawn(move || {
        answer.send(fetcher.load(&file, FrameNumber::new(3)).is_err()).ok();
    }));
    assert_eq!(answered.recv_timeout(PATIENCE / 4), Ok(true), "an error, and no wait for ever");
}

#[test]
fn case_29_one_cold_frame_keeps_only_its_own_pages() {
    let (site, engine, snapshot) = published(700);
    let mut guest = Guest::resume(&snapshot.0, snapshot.1.clone());
    guest.verify(&engine).expect("the parent can be read");

    // The guest continues with a handle on another node, which has all but a few frames.
    let cold = open_elsewhere(&site, &snapshot.0);
    let mut some = vec![0; 64 * 4096];
    for frame in [1, 2, 5, 8] {
        cold.engine.read(cold.snapshot.memory(), run(frame * 64, 64), &mut some).expect("the store has it");
    }
    // Frames that are read ahead may still be under way when the requested ones are there.
    while cold.engine.fetcher().under_way() > 0 {
        std::thread::yield_now();
    }
    let layer = cold.snapshot.memory().load().layers()[0].clone();
    let there =
        |frame: &u32| layer.local().is_verified(FrameNumber::new(usize::try_from(*frame).expect("64 bits")));
    let missing: u32 = (0..11).filter(|frame| !there(frame)).map(|frame| (700 - frame * 64).min(64)).sum();
    assert!(missing > 0, "something is cold");
    guest.stand_on(&cold.snapshot);
    let paused = guest.pause(&cold.engine, Tracking::Resident).expect("nothing stands against it").end_vmm();
    wait_published(&paused.0);
    let classes = paused.0.status().classes.expect("compared");
    assert_eq!((classes.kept, classes.unread, classes.equal), (missing, missing, 700 - missing));
    check(&cold.engine, &paused);
    check_elsewhere(&site, &paused);
    assert_eq!(paused.0.state(), SnapshotState::Published);
}

#[test]
fn a_fetch_that_panics_answers_those_who_wait_for_its_frames_and_nobody_else() {
    let (site, engine, first) = published(600);
    let second = crate::child(&engine, &first, run(0, 10), 2);
    wait_published(&second.0);
    let cold = open_elsewhere(&site, &second.0);
    let read = |page| {
        let mut bytes = vec![0; 4096];
        cold.engine.read(cold.snapshot.memory(), run(page, 1), &mut bytes).map(|()| bytes)
    };
    let stalled = site.faults.inject(Rule::once(Operation::Get, "layers/", Fault::Stall));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| read(3));
        site.faults.wait_stalled();
        let panicking = site.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Panic));
        let failed = read(500).expect_err("its fetch panicked");
        assert!(failed.to_string().contains("cut short"), "{failed}");
        drop(panicking);
        read(500).expect("the next fetch is a new one");
        drop(stalled);
        let bytes = other.join().expect("no panic").expect("its fetch went on");
        second.1.check(run(3, 1), &bytes).expect("the model's page");
    });
    assert_eq!(cold.engine.fetcher().under_way(), 0);
}

#[test]
fn a_bad_frame_of_a_small_object_makes_only_its_own_pages_wrong() {
    for (bad, wrong_pages) in [(0, 64), (1, 64), (2, 44)] {
        let (site, _engine, snapshot) = published(172);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut listed = site.objects.list(Some(&"layers".into()));
            let path = listed.next().await.expect("one layer").expect("from memory").location;
            let bytes =
                site.objects.get(&path).await.expect("it is there").bytes().await.expect("from memory");
            let mut bytes = bytes.to_vec();
            bytes[bad * 64 * 4096 + 1000] ^= 1;
            site.objects.put(&path, bytes.into()).await.expect("into memory");
        });
        let cold = open_elsewhere(&site, &snapshot.0);
        let found = verified(&cold.engine, &cold.snapshot);
        assert_eq!((found.pages, found.wrong_pages), (172, wrong_pages), "{:?}", found.first);
    }
}
