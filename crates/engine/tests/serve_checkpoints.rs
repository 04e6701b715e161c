//! Epochs that begin anew from a snapshot of their guest: the next one has what was written since, and no less.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use rekindle_engine::capture::CapturedPages;
use rekindle_engine::geometry::GuestPage;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::serve::{Epoch, FaultServer};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use support::{Kind, Node, options, serve};

const PAGES: usize = 2048;

/// Content of each page, zero for zeroes.
type Words = Vec<u64>;

fn snapshot(node: &Node, words: &Words) -> Arc<Snapshot> {
    node.snapshot(PAGES, |page| Some(words[page]).filter(|word| *word != 0))
}

fn numbers(pages: &PageSet) -> BTreeSet<usize> {
    pages.iter().map(GuestPage::index).collect()
}

fn serve_again(node: &Node, words: &Words, epoch: Epoch) -> FaultServer {
    let options = options(epoch.tracking());
    let view = Arc::clone(snapshot(node, words).memory());
    FaultServer::resume(view, epoch, node.engine.fetcher().clone(), options).expect("serves")
}

/// The pages that a snapshot has to have are among those it gets, and few others are.
fn assert_captured(captured: &CapturedPages, changed: &[usize], words: &Words, what: &str) {
    let (kept, zero) = (numbers(&captured.kept), numbers(&captured.zero));
    for page in changed {
        let is_there = kept.contains(page) || (words[*page] == 0 && zero.contains(page));
        assert!(is_there, "{what}: page {page}");
    }
    assert!(kept.len() + zero.len() <= changed.len(), "{what}: {kept:?} {zero:?}");
}

#[test]
fn an_epoch_that_began_anew_has_the_pages_that_changed_since() {
    let node = Node::start();
    let first: Words = (0..PAGES).map(|page| if page % 64 < 8 { 0 } else { 1000 + word(page) }).collect();
    for kind in [Kind::Private, Kind::Shared] {
        for tracking in [Tracking::Scan, Tracking::Events] {
            let what = format!("{kind:?} {tracking:?}");
            let mut words = first.clone();
            let base = snapshot(&node, &words);
            let Some((guest, server)) = serve("anew", kind, tracking, &node.engine, &base) else { return };
            (0..PAGES / 2).for_each(|page| guest.touch(page));
            for page in (5..PAGES).step_by(3) {
                guest.write(page, 7 + word(page));
                words[page] = 7 + word(page);
            }
            guest.discard(300, 50, kind);
            words[300..350].fill(0);
            guest.write(310, 9);
            words[310] = 9;
            let mut server = server;
            let changes: [&[usize]; 3] = [&[5, 20, 310, 311, 900, 1500], &[], &[0, 310, 1500, 2047]];
            for (round, changed) in changes.into_iter().enumerate() {
                let mut epoch = server.end_epoch();
                let captured = epoch.changed_pages().expect("it can be scanned");
                epoch.begin_anew(&captured.kept).expect("it begins anew");
                let none = epoch.changed_pages().expect("it can be scanned");
                assert_captured(&none, &[], &words, &what);
                server = serve_again(&node, &words, epoch);
                for page in changed.iter().filter(|page| **page != 5) {
                    let new = 100 * word(round + 1) + word(*page);
                    guest.write(*page, new);
                    words[*page] = new;
                }
                if changed.contains(&5) {
                    guest.discard(5, 1, kind);
                    words[5] = 0;
                }
                // Reading changes nothing, and finds every page as it must be.
                for page in (round..PAGES).step_by(5) {
                    assert!(guest.has(page, words[page]), "{what}: page {page} in round {round}");
                }
                let epoch = server.end_epoch();
                let found = epoch.changed_pages().expect("it can be scanned");
                let zero_pages_read = words.iter().filter(|word| **word == 0).count();
                let changed_pages = numbers(&found.kept).len() + numbers(&found.zero).len();
                assert!(changed_pages <= changed.len() + zero_pages_read, "{what}: {changed_pages}");
                for page in changed {
                    let number = GuestPage::new(u32::try_from(*page).expect("a page number"));
                    let is_there = found.kept.contains(number) || found.zero.contains(number);
                    assert!(is_there, "{what}: page {page} in round {round}");
                }
                server = serve_again(&node, &words, epoch);
            }
            for (page, expected) in words.iter().enumerate() {
                assert!(guest.has(page, *expected), "{what}: page {page}");
            }
            drop(server);
        }
    }
}

fn word(page: usize) -> u64 {
    u64::try_from(page).expect("a page number")
}
