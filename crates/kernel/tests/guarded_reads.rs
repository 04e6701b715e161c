//! Mappings: reads that fail instead of ending the process, residency, and bytes equal to a model.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

use rekindle_kernel::{LostBytes, Mapping, Memfd, PAGE_BYTES, PageKind, WritableMapping};
use support::{ChildProcess, child_role, filled, skipped};

/// A file of `pages` pages, page `n` all bytes `n + 1`, under a mapping.
fn mapped_file(pages: usize) -> (File, Mapping) {
    let file = tempfile::tempfile().unwrap();
    for page in 0..pages {
        let offset = u64::try_from(page * PAGE_BYTES).unwrap();
        file.write_all_at(&filled(u8::try_from(page + 1).unwrap()), offset).unwrap();
    }
    let mapping = Mapping::of_file(&file, pages * PAGE_BYTES).unwrap();
    (file, mapping)
}

fn memory(pages: usize, fill: impl Fn(usize) -> u8) -> Mapping {
    let mut memory = WritableMapping::create("memory", pages * PAGE_BYTES, PageKind::Small).unwrap();
    for (at, byte) in memory.as_mut_slice().iter_mut().enumerate() {
        *byte = fill(at);
    }
    Mapping::of_memfd(&memory.into_memfd()).unwrap()
}

#[test]
fn a_read_of_bytes_that_are_gone_fails_alone() {
    let (file, mapping) = mapped_file(4);
    file.set_len(4096).unwrap();
    let mut page = filled(0);
    for _ in 0..1000 {
        assert_eq!(mapping.copy_to(2 * PAGE_BYTES, &mut page), Err(LostBytes { offset: 2 * PAGE_BYTES }));
        assert_eq!(mapping.copy_to(0, &mut page), Ok(()));
        assert_eq!(page, filled(1));
    }
    let mut all = vec![0; mapping.bytes()];
    let lost = mapping.copy_to(0, &mut all).unwrap_err();
    assert!(lost.offset >= PAGE_BYTES, "the first page is there: {lost}");
}

#[test]
fn a_copy_to_any_alignment_writes_its_bytes_and_no_others() {
    let source = memory(3, |at| u8::try_from(at % 251).unwrap());
    let expected: Vec<u8> = (0..3 * PAGE_BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
    for (bytes, from) in
        [(0, 0), (1, 5), (127, 0), (128, 3), (PAGE_BYTES, 0), (2 * PAGE_BYTES, 640), (PAGE_BYTES + 1, 7)]
    {
        for at in [0, 1, 8, 16, 63, 64, 100] {
            let mut into = vec![255; at + bytes + 64];
            source.copy_to(from, &mut into[at..at + bytes]).unwrap();
            assert_eq!(into[at..at + bytes], expected[from..from + bytes], "{bytes} bytes to {at}");
            let others = into[..at].iter().chain(&into[at + bytes..]);
            assert!(others.copied().all(|byte| byte == 255), "{bytes} bytes to {at}");
        }
    }
}

#[test]
fn a_copy_to_any_alignment_fails_where_its_bytes_are_gone() {
    let (file, mapping) = mapped_file(4);
    file.set_len(2 * 4096).unwrap();
    for at in [0, 1, 8, 16, 64] {
        let mut into = vec![0; at + mapping.bytes()];
        let lost = mapping.copy_to(0, &mut into[at..]).unwrap_err();
        assert!(lost.offset >= 2 * PAGE_BYTES, "two pages are there: {lost}");
    }
}

#[test]
fn bytes_that_come_back_are_read_again() {
    let (file, mapping) = mapped_file(2);
    let mut page = filled(0);
    file.set_len(0).unwrap();
    assert!(mapping.copy_to(0, &mut page).is_err());
    file.write_all_at(&filled(9), 0).unwrap();
    assert_eq!(mapping.copy_to(0, &mut page), Ok(()));
    assert_eq!(page, filled(9));
}

#[test]
fn a_comparison_with_bytes_that_are_gone_fails_on_either_side() {
    let (file, cut) = mapped_file(4);
    let (_file, whole) = mapped_file(4);
    assert_eq!(cut.equals(0, &whole, 0, 4 * PAGE_BYTES), Ok(true));
    file.set_len(2 * 4096).unwrap();
    let lost = Err(LostBytes { offset: 2 * PAGE_BYTES });
    assert_eq!(cut.equals(2 * PAGE_BYTES, &whole, 2 * PAGE_BYTES, PAGE_BYTES), lost);
    assert_eq!(whole.equals(2 * PAGE_BYTES, &cut, 2 * PAGE_BYTES, PAGE_BYTES), lost);
    assert_eq!(cut.equals(0, &whole, 0, 2 * PAGE_BYTES), Ok(true));
    assert_eq!(cut.equals_slice(3 * PAGE_BYTES, &[4; 10]), Err(LostBytes { offset: 3 * PAGE_BYTES }));
    assert_eq!(cut.is_zero(2 * PAGE_BYTES, PAGE_BYTES), lost);
    assert_eq!(cut.is_zero(0, 4 * PAGE_BYTES), Ok(false));
}

#[test]
fn threads_lose_their_own_reads_only() {
    let (cut_file, cut) = mapped_file(2);
    let (_whole_file, whole) = mapped_file(2);
    cut_file.set_len(0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut page = filled(0);
                for _ in 0..500 {
                    assert_eq!(cut.copy_to(0, &mut page), Err(LostBytes { offset: 0 }));
                    assert_eq!(whole.copy_to(PAGE_BYTES, &mut page), Ok(()));
                    assert_eq!(page, filled(2));
                }
            });
        }
    });
}

/// Roles of the child below; run by the tests, not by hand.
#[test]
#[ignore = "the child of other tests"]
fn child() {
    extern "C" fn ends_with_42(_: i32) {
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(42) };
    }
    let Some(role) = child_role() else { return };
    let handler: extern "C" fn(i32) = ends_with_42;
    #[expect(clippy::as_conversions, reason = "signal wants the handler's address as a number")]
    let handler = handler as *const () as usize;
    match role.as_str() {
        // SAFETY: the handler is a function of that kind.
        "earlier handler" => unsafe { libc::signal(libc::SIGBUS, handler) },
        // In place of Rust's own, which lets a raised signal pass once.
        // SAFETY: the default action.
        "raised" => unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) },
        _ => 0,
    };
    let (file, mapping) = mapped_file(1);
    file.set_len(0).unwrap();
    assert!(mapping.copy_to(0, &mut filled(0)).is_err());
    match role.as_str() {
        "raised" => {
            // SAFETY: raises a signal in this process.
            unsafe { libc::raise(libc::SIGBUS) };
        }
        _ => {
            // SAFETY: none of it: this is the access of someone else that must end the process.
            let address = unsafe {
                let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0)
            };
            // SAFETY: as above.
            unsafe { address.cast::<u8>().read_volatile() };
        }
    }
}

#[test]
fn a_sigbus_of_someone_else_still_ends_the_process() {
    for role in ["unguarded", "raised"] {
        let status = ChildProcess::start(role).wait();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{role}: {status}");
    }
}

#[test]
fn a_sigbus_of_someone_else_goes_to_the_handler_that_was_there_before() {
    let status = ChildProcess::start("earlier handler").wait();
    assert_eq!(status.code(), Some(42), "{status}");
}

#[test]
fn reads_of_any_length_and_alignment_equal_the_bytes() {
    let model: Vec<u8> = (0..8 * PAGE_BYTES).map(|at| u8::try_from(at * 31 / 7 % 251).unwrap()).collect();
    let left = memory(8, |at| model[at]);
    let right = memory(8, |at| model[at]);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for _ in 0..2000 {
        let offset = random(model.len());
        let bytes = random(model.len() - offset + 1);
        let mut copy = vec![0; bytes];
        left.copy_to(offset, &mut copy).unwrap();
        assert_eq!(copy, model[offset..offset + bytes]);
        assert!(left.equals(offset, &right, offset, bytes).unwrap());
        assert!(left.equals_slice(offset, &copy).unwrap());
        if let Some(last) = copy.last_mut() {
            *last ^= 1;
            assert!(!left.equals_slice(offset, &copy).unwrap());
        }
    }
}

#[test]
fn one_byte_that_is_not_zero_is_found_wherever_it_is() {
    for at in [0, 1, 4095, 4096, 3 * PAGE_BYTES - 1] {
        let memory = memory(3, |byte| u8::from(byte == at));
        assert_eq!(memory.is_zero(0, 3 * PAGE_BYTES), Ok(false), "at {at}");
        assert_eq!(memory.is_zero(0, at), Ok(true), "before {at}");
        assert_eq!(memory.is_zero(at + 1, 3 * PAGE_BYTES - at - 1), Ok(true), "after {at}");
    }
}

#[test]
fn a_mapping_of_nothing_has_nothing_to_read() {
    let (_file, mapping) = mapped_file(0);
    assert_eq!(mapping.bytes(), 0);
    assert_eq!(mapping.copy_to(0, &mut []), Ok(()));
    assert_eq!(mapping.is_zero(0, 0), Ok(true));
    assert!(mapping.is_resident(0, 0));
    mapping.populate(0, 0).unwrap();
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn a_copy_past_the_mapping_is_refused() {
    memory(1, |_| 0).copy_to(1, &mut filled(0)).unwrap();
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn a_comparison_past_the_other_mapping_is_refused() {
    memory(2, |_| 0).equals(0, &memory(1, |_| 0), 1, PAGE_BYTES).unwrap();
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn a_length_that_overflows_is_refused() {
    memory(1, |_| 0).is_zero(8, usize::MAX - 4).unwrap();
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn a_source_past_the_mapping_is_refused() {
    memory(1, |_| 0).source(PAGE_BYTES, 1);
}

#[test]
fn a_page_that_left_memory_is_not_resident_until_it_is_read_again() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; 64 * PAGE_BYTES], 0).unwrap();
    file.sync_all().unwrap();
    let forget = |mapping: Mapping| {
        drop(mapping);
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        Mapping::of_file(&file, 64 * PAGE_BYTES).unwrap()
    };
    let mapping = Mapping::of_file(&file, 64 * PAGE_BYTES).unwrap();
    assert!(mapping.is_resident(0, 64 * PAGE_BYTES), "what was just written is in memory");
    let mapping = forget(mapping);
    if mapping.is_resident(0, 64 * PAGE_BYTES) {
        return skipped("residency", "the temporary directory is in memory, its pages never leave it");
    }
    mapping.populate(0, 64 * PAGE_BYTES).unwrap();
    assert!(mapping.is_resident(0, 64 * PAGE_BYTES));
    assert!(mapping.is_resident(5000, 3));
}

#[test]
fn the_resident_part_ends_at_the_first_hole() {
    let memfd = Memfd::create("sparse", 8 << 20, PageKind::Small).unwrap();
    let head = 700 * PAGE_BYTES;
    memfd.write_at(&vec![1; head], 0).unwrap();
    memfd.write_at(&[1], u64::try_from(head + PAGE_BYTES).unwrap()).unwrap();
    let mapping = Mapping::of_memfd(&memfd).unwrap();
    assert_eq!(mapping.resident_prefix_bytes(0, 8 << 20), head);
    assert_eq!(mapping.resident_prefix_bytes(10, 8 << 19), head - 10);
    assert_eq!(mapping.resident_prefix_bytes(head - 1, 100), 1);
    assert_eq!(mapping.resident_prefix_bytes(head, 100), 0);
    assert_eq!(mapping.resident_prefix_bytes(5000, 100), 100);
    assert!(mapping.is_resident(0, head) && !mapping.is_resident(0, head + 1));
    assert_eq!(
        memfd.allocated_bytes().unwrap(),
        u64::try_from(head + PAGE_BYTES).unwrap(),
        "asking allocates nothing"
    );
}
