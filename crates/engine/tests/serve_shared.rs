//! Guests that share the pages of their snapshot: each page is the snapshot's or the guest's own, whatever the others write
//! and whenever the shared memory is given back.

mod support;

use std::sync::{Arc, mpsc};

use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::image::Image;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::serve::{Epoch, FaultServer};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_kernel::Memfd;
use support::{Guest, Kind, Node, counted, options, pages_of};

const PAGES: usize = 2048;
const COUNT: u32 = 2048;

fn word_of(page: usize) -> u64 {
    0x5eed_0000 + u64::try_from(page).expect("a page number")
}

/// A volume with runs of zero pages and runs of others.
fn sparse(page: usize) -> Option<u64> {
    (!(page / 5).is_multiple_of(3)).then(|| word_of(page))
}

fn filled_pages() -> u64 {
    u64::try_from((0..PAGES).filter(|page| sparse(*page).is_some()).count()).expect("64 bits")
}

fn verify(guest: &Guest, word: impl Fn(usize) -> Option<u64>) {
    for page in 0..guest.pages {
        assert!(guest.has(page, word(page).unwrap_or(0)), "page {page} is {:#x}", guest.word(page));
    }
}

/// A guest on the image of `snapshot`, served.
fn serve(test: &str, node: &Node, snapshot: &Arc<Snapshot>) -> Option<(Guest, FaultServer, Arc<Image>)> {
    let image = node.engine.image(snapshot).expect("memory");
    let (guest, handover) = Guest::on_image(test, &image)?;
    let (view, fetcher) = (Arc::clone(snapshot.memory()), node.engine.fetcher().clone());
    let server = FaultServer::start(view, handover, fetcher, options(Tracking::Scan)).expect("serves");
    assert_eq!(server.tracking(), Tracking::Diverged);
    Some((guest, server, image))
}

#[test]
fn each_page_is_in_ram_once_however_many_guests_read_it_and_what_one_writes_is_its_own() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((first, one, image)) = serve("shared pages", &node, &snapshot) else { return };
    let Some((second, two, same)) = serve("shared pages", &node, &snapshot) else { return };
    assert!(Arc::ptr_eq(&image, &same));
    verify(&first, sparse);
    let filled = bytes_of_pages(u32::try_from(filled_pages()).expect("few"));
    assert_eq!((image.bytes_held(), node.engine.image_bytes_held()), (filled, filled));
    assert!(node.engine.capture_bytes_held() <= filled, "images do not count as captures");
    first.write(3, 7);
    first.write(5, 8);
    verify(&second, sparse);
    let stats = counted(&two, |stats| stats.pages_shared == filled_pages());
    assert_eq!(stats.pages_from_capture + stats.pages_from_layer, 0, "{stats:?}");
    assert_eq!(image.bytes_held(), filled, "nothing was copied for the second");
    let changed = one.end_epoch().changed_pages().expect("it stands");
    assert_eq!(changed.kept, pages_of(&[(3, 1), (5, 1)], COUNT));
    assert!(changed.zero.is_empty());
    drop(first);
    assert!(two.end_epoch().changed_pages().expect("it stands").kept.is_empty());
}

#[test]
fn memory_that_was_given_back_comes_again_and_written_pages_stay() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server, image)) = serve("given back", &node, &snapshot) else { return };
    let written = |page: usize| if page.is_multiple_of(7) { Some(1 << 40) } else { sparse(page) };
    (0..PAGES).step_by(7).for_each(|page| guest.write(page, 1 << 40));
    verify(&guest, written);
    node.engine.give_images_back();
    assert_eq!((image.bytes_held(), image.memfd().allocated_bytes().expect("asked")), (0, 0));
    verify(&guest, written);
    assert!(image.bytes_held() > 0);
    let changed = server.end_epoch().changed_pages().expect("it stands");
    assert_eq!(changed.kept.iter().filter(|page| !page.number().is_multiple_of(7)).count(), 0);
    assert_eq!(changed.kept.len(), COUNT.div_ceil(7));
}

#[test]
fn memory_is_given_back_under_guests_that_read_and_write_it() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((first, _one, _)) = serve("under guests", &node, &snapshot) else { return };
    let Some((second, _two, _)) = serve("under guests", &node, &snapshot) else { return };
    let (tell, told) = mpsc::channel();
    let runs = |guest: &Guest, step: usize, tell: mpsc::Sender<()>| {
        let tell_now_and_then = |page: usize| {
            if page.is_multiple_of(16) {
                tell.send(()).expect("memory is given back until all guests have ended");
            }
        };
        for _ in 0..4 {
            for page in (0..PAGES).step_by(step) {
                guest.write(page, 1 << 41);
                tell_now_and_then(page);
            }
            for page in 0..PAGES {
                let word = if page.is_multiple_of(step) { Some(1 << 41) } else { sparse(page) };
                assert!(guest.has(page, word.unwrap_or(0)), "page {page} is {:#x}", guest.word(page));
                tell_now_and_then(page);
            }
        }
    };
    std::thread::scope(|scope| {
        for (guest, step) in [(&first, 3), (&second, 5)] {
            let (runs, tell) = (&runs, tell.clone());
            scope.spawn(move || runs(guest, step, tell));
        }
        drop(tell);
        // As often as they get on: a page that is gone before it is mapped is brought again.
        told.iter().for_each(|()| node.engine.give_images_back());
    });
}

#[test]
fn a_page_that_a_guest_gave_back_is_zero_to_it_and_the_snapshots_to_others() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let Some((first, one, _)) = serve("own removes", &node, &snapshot) else { return };
    let Some((second, two, _)) = serve("own removes", &node, &snapshot) else { return };
    verify(&first, |page| Some(word_of(page)));
    first.write(21, 9);
    first.discard(20, 10, Kind::Image);
    first.write(25, 9);
    let word = |page: usize| match page {
        25 => Some(9),
        20..30 => None,
        page => Some(word_of(page)),
    };
    verify(&first, word);
    verify(&second, |page| Some(word_of(page)));
    let changed = one.end_epoch().changed_pages().expect("it stands");
    assert_eq!(changed.kept, pages_of(&[(25, 1)], COUNT));
    assert_eq!(changed.zero, pages_of(&[(20, 5), (26, 4)], COUNT));
    drop(two);
}

#[test]
fn holes_that_a_vmm_made_in_the_shared_file_are_filled_again() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server, image)) = serve("holes", &node, &snapshot) else { return };
    verify(&guest, sparse);
    image.memfd().punch_hole(100 * 4096, 300 * 4096).expect("a hole");
    verify(&guest, sparse);
    drop(server);
}

#[test]
fn a_guest_that_goes_on_from_a_checkpoint_gets_pages_of_its_own_and_the_others_none_of_them() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    let Some((first, one, image)) = serve("checkpoint", &node, &snapshot) else { return };
    let Some((second, _two, _)) = serve("checkpoint", &node, &snapshot) else { return };
    (0..1024).for_each(|page| first.touch(page));
    first.write(10, 9);
    first.discard(11, 1, Kind::Image);
    let mut epoch = one.end_epoch();
    let changed = epoch.changed_pages().expect("it stands");
    assert_eq!(
        (changed.kept.clone(), changed.zero.clone()),
        (pages_of(&[(10, 1)], COUNT), pages_of(&[(11, 1)], COUNT),)
    );
    let of_checkpoint = |page: usize| match page {
        10 => Some(9),
        11 => Some(0),
        _ => None,
    };
    let checkpoint = node.snapshot_of(Some(&snapshot), PAGES, of_checkpoint);
    epoch.begin_anew(&changed.kept).expect("it begins anew");
    let fetcher = node.engine.fetcher().clone();
    let view = Arc::clone(checkpoint.memory());
    let server = FaultServer::resume(view, epoch, fetcher, options(Tracking::Scan)).expect("serves");
    server.prefetch(PageSet::full(COUNT));
    verify(&first, |page| of_checkpoint(page).or(Some(word_of(page))));
    verify(&second, |page| Some(word_of(page)));
    drop((server, image));
}

#[test]
fn a_guest_whose_server_was_killed_shares_on_from_an_image_that_begins_anew() {
    let node = Node::start();
    let snapshot = node.snapshot(PAGES, sparse);
    let Some((guest, server, image)) = serve("recovery", &node, &snapshot) else { return };
    guest.write(4, 1 << 42);
    verify(&guest, |page| if page == 4 { Some(1 << 42) } else { sparse(page) });
    let kept = server.kept().try_clone().expect("descriptors");
    assert_eq!(kept.facts.image, Some(snapshot.id().uuid()));
    // The process that served it is gone, and what it knew of the file.
    drop((server.end_epoch(), image));
    let file = kept.image.as_ref().expect("the file is kept").try_clone().expect("a descriptor");
    // A page that was being filled when it was killed.
    Memfd::adopt(file.try_clone().expect("a descriptor"))
        .expect("memory")
        .write_at(&[1; 4096], 0)
        .expect("room");
    let mut epoch = Epoch::recover(kept).expect("recovers");
    let image = node.engine.adopt_image(&snapshot, file.try_clone().expect("a descriptor")).expect("adopts");
    assert!(Arc::ptr_eq(&image, &node.engine.adopt_image(&snapshot, file).expect("the same")));
    epoch.share(Arc::clone(&image));
    let (view, fetcher) = (Arc::clone(snapshot.memory()), node.engine.fetcher().clone());
    let server = FaultServer::resume(view, epoch, fetcher, options(Tracking::Scan)).expect("serves");
    verify(&guest, |page| if page == 4 { Some(1 << 42) } else { sparse(page) });
    let Some((other, _server, same)) = serve("recovery", &node, &snapshot) else { return };
    assert!(Arc::ptr_eq(&image, &same), "others share on with it");
    verify(&other, sparse);
    drop(server);
}

#[test]
fn a_pause_that_waits_for_ram_gets_that_of_shared_memory_and_guests_get_pages_of_their_own_meanwhile() {
    let bytes = bytes_of_pages(COUNT);
    let node = Node::with_captures(2 * bytes);
    let snapshot = node.snapshot(PAGES, |page| Some(word_of(page)));
    assert!(snapshot.wait_state(rekindle_engine::lifecycle::SnapshotState::Published, support::LIMIT));
    let Some((guest, _server, image)) = serve("for a pause", &node, &snapshot) else { return };
    verify(&guest, |page| Some(word_of(page)));
    assert!(image.bytes_held() > 0);
    let permit = node.engine.permit_pause(Some(&snapshot), 2 * bytes).expect("the images make way");
    assert_eq!(image.bytes_held(), 0);
    verify(&guest, |page| Some(word_of(page)));
    assert_eq!(image.bytes_held(), 0, "no RAM is left for it");
    drop(permit);
}
