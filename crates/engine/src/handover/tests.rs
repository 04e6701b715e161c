//! Tests of the hand-over against each kind of peer.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rekindle_kernel::Features;

use super::*;
use crate::geometry::{GuestPage, GuestPages};

const SOON: Duration = Duration::from_millis(30);
const LIMIT: Duration = Duration::from_secs(30);

/// Two regions of 16 pages in all, in the wrong order, at addresses only 4 KiB aligned.
const MESSAGE: &str = r#"[
    {"base_host_virt_addr": 139637976731648, "size": 40960, "offset": 24576, "page_size": 4096, "page_size_kib": 4096},
    {"base_host_virt_addr": 139637976989696, "size": 24576, "offset": 0, "page_size_kib": 4096, "hot_plugged": {"a": [1]}}
]"#;

fn connection() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

/// The answer to `bytes` sent with `fds` by a peer that then stays.
fn answer(bytes: &str, fds: &[BorrowedFd<'_>]) -> Result<Handover, HandoverError> {
    let (peer, ours) = connection();
    fd_passing::send(&peer, bytes.as_bytes(), fds).unwrap();
    Handover::receive(ours, 16, SOON)
}

fn refusal(bytes: &str, fds: &[BorrowedFd<'_>]) -> HandoverError {
    answer(bytes, fds).expect_err("a bad peer is refused")
}

fn userfaultfd() -> Option<Userfaultfd> {
    Userfaultfd::open(Features::NONE).map_err(|error| println!("skipped: {error}")).ok()
}

#[test]
fn case_42_a_vmm_that_says_nothing_is_given_up() {
    let (_peer, ours) = connection();
    assert!(matches!(Handover::receive(ours, 16, SOON), Err(HandoverError::Silent { limit: SOON })));
    let (peer, ours) = connection();
    drop(peer);
    assert!(matches!(Handover::receive(ours, 16, LIMIT), Err(HandoverError::Closed { bytes: 0 })));
}

#[test]
fn case_42_a_vmm_that_says_half_a_message_is_given_up() {
    let half = &MESSAGE[..MESSAGE.len() / 2];
    assert!(matches!(refusal(half, &[]), HandoverError::Unfinished { bytes, .. } if bytes == half.len()));
    let (mut peer, ours) = connection();
    peer.write_all(half.as_bytes()).unwrap();
    drop(peer);
    let error = Handover::receive(ours, 16, LIMIT).unwrap_err();
    assert!(matches!(error, HandoverError::Closed { bytes } if bytes == half.len()));
}

#[test]
fn case_42_a_vmm_that_says_a_megabyte_is_cut_short() {
    let (mut peer, ours) = connection();
    std::thread::scope(|scope| {
        // It fails when our end closes in the middle of it.
        scope.spawn(move || drop(peer.write_all(&vec![b'['; 1 << 20])));
        assert!(matches!(Handover::receive(ours, 16, LIMIT), Err(HandoverError::TooLong)));
    });
}

#[test]
fn case_42_a_vmm_that_sends_no_descriptor_is_refused() {
    assert!(matches!(refusal(MESSAGE, &[]), HandoverError::NoDescriptor));
}

#[test]
fn case_42_wrong_descriptors_are_refused_and_closed() {
    let (mut kept, sent) = connection();
    assert!(matches!(refusal(MESSAGE, &[sent.as_fd()]), HandoverError::NotUserfaultfd(_)));
    let Some(userfaultfd) = userfaultfd() else { return };
    let fds = [userfaultfd.as_fd(), sent.as_fd()];
    assert!(matches!(refusal(MESSAGE, &fds), HandoverError::NotMemory(_)));
    let fds = [userfaultfd.as_fd(), sent.as_fd(), sent.as_fd(), sent.as_fd()];
    assert!(matches!(refusal(MESSAGE, &fds), HandoverError::TooManyDescriptors { .. }));
    // The receiver held an end of this connection: it ends when the last of them is closed.
    drop(sent);
    assert_eq!(kept.read(&mut [0]).unwrap(), 0);
}

#[test]
fn case_42_memory_that_does_not_fit_the_regions_is_refused() {
    let Some(userfaultfd) = userfaultfd() else { return };
    let short = Memfd::create("guest", 15 * 4096, PageKind::Small).unwrap();
    let error = refusal(MESSAGE, &[userfaultfd.as_fd(), short.as_fd()]);
    assert!(matches!(error, HandoverError::MemorySize { memfd_bytes: 61440, bytes: 65536 }));
}

#[test]
fn what_is_not_a_list_of_regions_is_refused() {
    for bytes in ["hello", "{}", "[1]", r#"[{"size": 4096}]"#, r#"[{"size": -1}]"#] {
        assert!(matches!(refusal(bytes, &[]), HandoverError::Malformed(_)), "{bytes}");
    }
    assert!(matches!(refusal("[]", &[]), HandoverError::Regions(RegionsError::Empty)));
    let odd = MESSAGE.replace("\"page_size\": 4096", "\"page_size\": 4");
    assert!(matches!(refusal(&odd, &[]), HandoverError::PageSize { page_bytes: 4, .. }));
    let huge = MESSAGE.replace("\"page_size\": 4096", "\"page_size\": 2097152");
    assert!(matches!(refusal(&huge, &[]), HandoverError::Regions(RegionsError::Unaligned { .. })));
}

#[test]
fn regions_that_are_not_the_volume_are_refused() {
    let (peer, ours) = connection();
    fd_passing::send(&peer, MESSAGE.as_bytes(), &[]).unwrap();
    let error = Handover::receive(ours, 17, SOON).unwrap_err();
    assert!(matches!(error, HandoverError::Regions(RegionsError::WrongSize { bytes: 65536, .. })));
}

#[test]
fn case_42_regions_come_in_any_order_at_any_page_and_with_fields_we_do_not_know() {
    let Some(userfaultfd) = userfaultfd() else { return };
    let memfd = Memfd::create("guest", 16 * 4096, PageKind::Small).unwrap();
    let handover = answer(MESSAGE, &[userfaultfd.as_fd(), memfd.as_fd()]).unwrap();
    assert_eq!(handover.pid, std::process::id());
    assert_eq!(handover.memfd.map(|memfd| memfd.bytes()), Some(65536));
    assert_eq!(handover.regions.page_at(139_637_976_731_648), Some(GuestPage::new(6)));
    let first = handover.regions.range_of(GuestPages::new(GuestPage::FIRST, 6));
    assert_eq!((first.start, first.bytes), (139_637_976_989_696, 24576));
}

#[test]
fn a_message_may_come_in_pieces() {
    let Some(userfaultfd) = userfaultfd() else { return };
    let (mut peer, ours) = connection();
    std::thread::scope(|scope| {
        let received = scope.spawn(move || Handover::receive(ours, 16, LIMIT));
        let (head, tail) = MESSAGE.split_at(10);
        fd_passing::send(&peer, head.as_bytes(), &[userfaultfd.as_fd()]).unwrap();
        for byte in tail.bytes() {
            peer.write_all(&[byte]).unwrap();
        }
        assert!(received.join().unwrap().unwrap().memfd.is_none());
    });
}
