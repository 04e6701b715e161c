//! Reads while their sources change: captures become layers, layers become flat views, parents are dropped.

use std::sync::Arc;

use engine_under_shuttle::geometry::GuestPage;
use engine_under_shuttle::lifecycle::SnapshotEvent;
use engine_under_shuttle::page_map::PageMap;
use engine_under_shuttle::page_set::PageSet;
use engine_under_shuttle::view::{LiveView, PackedPages, PieceSource, View, ViewPhase};
use shuttle::thread;

use crate::node::{GUEST_BYTES, Node, PAGES, directory};
use crate::schedule::{every, random};

/// Cases 1 and 7.
#[test]
fn a_planned_read_is_right_whatever_the_seal_does_before_it_is_read() {
    let cache = directory();
    random(1500, move || {
        let node = Arc::new(Node::new(cache.path(), 8 * GUEST_BYTES));
        let paused = node.pause(None, &[(0, 7), (1, 0), (3, 9)]);
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (node, view, model) =
                    (Arc::clone(&node), Arc::clone(paused.snapshot.memory()), paused.model);
                thread::spawn(move || {
                    let plan = Node::plan(&view);
                    thread::yield_now();
                    node.check_plan(plan, &model);
                    node.check(&view, &model);
                })
            })
            .collect();
        node.steps.seal(&paused.snapshot, paused.captures);
        readers.into_iter().for_each(|reader| reader.join().expect("a reader found the model"));
        assert_eq!(paused.snapshot.memory().load().phase(), ViewPhase::Flat);
        let Ok(node) = Arc::try_unwrap(node) else { panic!("all readers have ended") };
        node.end(0);
    });
}

#[test]
fn a_capture_is_freed_once_after_its_last_plan_and_not_before() {
    let cache = directory();
    random(1500, move || {
        let node = Arc::new(Node::new(cache.path(), 8 * GUEST_BYTES));
        let paused = node.pause(None, &[(0, 7), (2, 8)]);
        let (holder, view) = (Arc::clone(&node), Arc::clone(paused.snapshot.memory()));
        let reader = thread::spawn(move || {
            let piece = view.piece_at(GuestPage::FIRST, 1);
            let of_capture = matches!(piece.source, PieceSource::Capture(_));
            thread::yield_now();
            assert!(!of_capture || holder.budget.bytes_held() > 0, "a plan stands on freed memory");
            let mut page = [0; 4096];
            piece.copy_to(&mut page).expect("memory is readable");
            assert_eq!(page, [7; 4096]);
        });
        node.steps.seal(&paused.snapshot, paused.captures);
        reader.join().expect("the reader found the model");
        let Ok(node) = Arc::try_unwrap(node) else { panic!("the reader has ended") };
        node.end(0);
    });
}

/// Cases 13 and 55.
#[test]
fn two_children_stand_on_a_parent_that_is_sealed_and_deleted() {
    let cache = directory();
    random(1000, move || {
        let node = Arc::new(Node::new(cache.path(), 16 * GUEST_BYTES));
        let mut parent = node.pause(None, &[(0, 1), (1, 2), (2, 3)]);
        let children =
            [node.pause(Some(&parent), &[(0, 4), (1, 0)]), node.pause(Some(&parent), &[(1, 2), (3, 6)])];
        let captures = std::mem::take(&mut parent.captures);
        let (sealing, snapshot) = (Arc::clone(&node), Arc::clone(&parent.snapshot));
        let seal = thread::spawn(move || sealing.steps.seal(&snapshot, captures));
        let (deleting, snapshot) = (Arc::clone(&node), parent.snapshot);
        let delete = thread::spawn(move || deleting.steps.record(&snapshot, SnapshotEvent::Deleted));
        let running: Vec<_> = children
            .into_iter()
            .map(|child| {
                let node = Arc::clone(&node);
                thread::spawn(move || {
                    node.check(child.snapshot.memory(), &child.model);
                    node.steps.seal(&child.snapshot, child.captures);
                    node.check(child.snapshot.memory(), &child.model);
                    child.snapshot
                })
            })
            .collect();
        let left: Vec<_> =
            running.into_iter().map(|child| child.join().expect("a child found the model")).collect();
        seal.join().expect("the parent seals, deleted or not");
        delete.join().expect("deleting is always possible");
        let Ok(node) = Arc::try_unwrap(node) else { panic!("all threads have ended") };
        // The children are still alive, but none of them depends on a capture.
        node.end(0);
        drop(left);
    });
}

#[test]
fn a_line_three_deep_reads_right_while_all_of_it_seals() {
    let cache = directory();
    random(700, move || {
        let node = Arc::new(Node::new(cache.path(), 16 * GUEST_BYTES));
        let first = node.pause(None, &[(0, 1), (1, 2), (2, 3), (3, 4)]);
        let second = node.pause(Some(&first), &[(1, 5), (2, 0)]);
        let third = node.pause(Some(&second), &[(2, 6), (3, 4)]);
        let (view, model, reading) = (Arc::clone(third.snapshot.memory()), third.model, Arc::clone(&node));
        let reader = thread::spawn(move || {
            for _ in 0..3 {
                reading.check(&view, &model);
            }
        });
        let sealing: Vec<_> = [third, second, first]
            .into_iter()
            .map(|paused| {
                let node = Arc::clone(&node);
                thread::spawn(move || {
                    node.steps.seal(&paused.snapshot, paused.captures);
                    node.check(paused.snapshot.memory(), &paused.model);
                })
            })
            .collect();
        reader.join().expect("the reader found the model");
        sealing.into_iter().for_each(|seal| seal.join().expect("a seal ended"));
        let Ok(node) = Arc::try_unwrap(node) else { panic!("all threads have ended") };
        node.end(0);
    });
}

/// Case 6.
#[test]
fn a_late_replacement_never_overwrites_a_newer_view() {
    let cache = directory();
    random(3000, move || {
        let node = Node::new(cache.path(), GUEST_BYTES);
        let paused = node.pause(None, &[(0, 0), (1, 0), (2, 0), (3, 0)]);
        let packed = || View::packed(PackedPages { layer: None, zero: PageSet::full(PAGES) }, None);
        let flat = || View::flat(PageMap::zero(PAGES), Arc::default());
        let live = Arc::new(LiveView::new(View::captured(Arc::clone(&paused.captures[0]), None)));
        let late = Arc::clone(&live);
        let late = thread::spawn(move || late.improve(&late.load(), packed()));
        let further = Arc::clone(&live);
        let further = thread::spawn(move || while !further.improve(&further.load(), flat()) {});
        let seen = [live.load().phase(), live.load().phase(), live.load().phase()];
        assert!(seen.is_sorted(), "the view went back: {seen:?}");
        late.join().expect("a replacement ended");
        further.join().expect("the last view came");
        assert_eq!(live.load().phase(), ViewPhase::Flat);
    });
}

#[test]
fn of_two_replacements_of_one_view_one_wins() {
    every(100_000, || {
        let packed = View::packed(PackedPages { layer: None, zero: PageSet::full(PAGES) }, None);
        let live = Arc::new(LiveView::new(packed));
        let seen = live.load();
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let (live, seen) = (Arc::clone(&live), Arc::clone(&seen));
                thread::spawn(move || live.improve(&seen, View::flat(PageMap::zero(PAGES), Arc::default())))
            })
            .collect();
        let won = writers.into_iter().map(|writer| writer.join().expect("it ended"));
        assert_eq!(won.filter(|won| *won).count(), 1);
    });
}
