//! Memory files: seals, holes, what is refused; and the writable buffers made of them.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rekindle_kernel::memfd::AdoptError;
use rekindle_kernel::{
    Backing, GuestMemory, Mapping, Memfd, PAGE_BYTES, PageKind, ProcessHandle, SharedBuffer, Signal,
    WritableMapping,
};
use rustix::fs::{MemfdFlags, SealFlags};
use support::{ChildProcess, child_role, filled, run_memory_child};

fn sixteen_pages() -> Memfd {
    Memfd::create("test", 16 * 4096, PageKind::Small).unwrap()
}

#[test]
#[ignore = "the child of other tests"]
fn child() {
    if child_role().is_some() {
        run_memory_child(false);
    }
}

/// The reason for `data_runs`: reading a mapping of a sparse memory file to look for content fills the file.
#[test]
fn reading_a_hole_through_a_mapping_allocates_it() {
    let memfd = sixteen_pages();
    let mapping = Mapping::of_memfd(&memfd).unwrap();
    assert_eq!(memfd.allocated_bytes().unwrap(), 0);
    mapping.copy_to(3 * PAGE_BYTES, &mut filled(1)).unwrap();
    assert_eq!(memfd.allocated_bytes().unwrap(), 4096);
    assert_eq!(memfd.data_runs().unwrap().as_slice(), std::slice::from_ref(&(3 * 4096..4 * 4096)));
}

#[test]
fn looking_for_data_and_reading_by_call_allocate_nothing() {
    let memfd = sixteen_pages();
    assert_eq!(memfd.data_runs().unwrap(), []);
    let mut page = filled(9);
    memfd.read_at(&mut page, 4096).unwrap();
    assert_eq!(page, filled(0));
    assert_eq!(memfd.allocated_bytes().unwrap(), 0);
}

#[test]
fn data_runs_are_the_written_pages_zero_or_not() {
    let memfd = sixteen_pages();
    memfd.write_at(&filled(1), 0).unwrap();
    memfd.write_at(&filled(0), 4096).unwrap();
    memfd.write_at(&[1], 15 * 4096).unwrap();
    assert_eq!(memfd.data_runs().unwrap(), [0..2 * 4096, 15 * 4096..16 * 4096]);
    memfd.punch_hole(0, 4096).unwrap();
    assert_eq!(memfd.data_runs().unwrap(), [4096..2 * 4096, 15 * 4096..16 * 4096]);
    assert_eq!(memfd.allocated_bytes().unwrap(), 2 * 4096);
}

#[test]
fn writes_are_sealed_only_when_no_writable_mapping_lives() {
    let memfd = sixteen_pages();
    let writable = GuestMemory::map(Backing::Shared(&memfd, 0), 16 * PAGE_BYTES, 0).unwrap();
    writable.write(0, b"before");
    assert!(!memfd.seal_writes().unwrap());
    assert!(!memfd.is_write_sealed().unwrap());
    writable.write(0, b"still!");
    drop(writable);
    assert!(memfd.seal_writes().unwrap());
    assert!(memfd.is_write_sealed().unwrap());
    assert!(memfd.seal_writes().unwrap(), "sealing again changes nothing");
}

#[test]
fn the_writable_mapping_of_a_stopped_process_keeps_writes_unsealed_until_it_ends() {
    let mut child = ChildProcess::start("memory");
    let memory = child.memory();
    let memfd = Memfd::adopt(memory.memfd).unwrap();
    let process = ProcessHandle::open(memory.pid).unwrap();
    process.signal(Signal::Stop).unwrap();
    assert!(!memfd.seal_writes().unwrap());
    child.kill();
    assert!(memfd.seal_writes().unwrap());
}

#[test]
fn our_own_read_only_mapping_does_not_keep_writes_unsealed() {
    let memfd = sixteen_pages();
    memfd.write_at(&filled(5), 0).unwrap();
    let mapping = Mapping::of_memfd(&memfd).unwrap();
    assert!(memfd.seal_writes().unwrap());
    let mut page = filled(0);
    mapping.copy_to(0, &mut page).unwrap();
    assert_eq!(page, filled(5));
    Mapping::of_memfd(&memfd).unwrap().copy_to(0, &mut page).unwrap();
}

#[test]
fn nothing_changes_a_file_sealed_against_writing() {
    let memfd = sixteen_pages();
    assert!(memfd.seal_writes().unwrap());
    assert!(memfd.write_at(b"x", 0).is_err());
    assert!(memfd.punch_hole(0, 4096).is_err());
    assert!(GuestMemory::map(Backing::Shared(&memfd, 0), 16 * PAGE_BYTES, 0).is_err());
    assert!(SharedBuffer::of_memfd(&memfd, 0, PAGE_BYTES).is_err());
}

#[test]
fn a_file_that_is_adopted_can_no_longer_be_cut() {
    let fd = rustix::fs::memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, 8192).unwrap();
    let theirs = fd.try_clone().unwrap();
    let memfd = Memfd::adopt(fd).unwrap();
    assert_eq!((memfd.bytes(), memfd.page_kind()), (8192, PageKind::Small));
    assert!(rustix::fs::ftruncate(&theirs, 0).is_err());
    assert!(rustix::fs::ftruncate(&theirs, 1 << 20).is_err());
    assert!(Memfd::adopt(OwnedFd::from(memfd)).is_ok(), "what is sealed already is taken as it is");
}

#[test]
fn what_cannot_be_guest_memory_is_not_adopted() {
    let (pipe, _other_end) = std::io::pipe().unwrap();
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let null = File::open("/dev/null").unwrap();
    for (what, fd) in [("pipe", OwnedFd::from(pipe)), ("file", program.into())] {
        let error = Memfd::adopt(fd).unwrap_err();
        assert!(
            matches!(error, AdoptError::NotMemory { .. } | AdoptError::Resizable { .. }),
            "{what}: {error}"
        );
    }
    let error = Memfd::adopt(null.into()).unwrap_err();
    assert!(matches!(error, AdoptError::NotMemory { .. } | AdoptError::Resizable { .. }), "device: {error}");
    let unsealable = rustix::fs::memfd_create("unsealable", MemfdFlags::CLOEXEC).unwrap();
    let error = Memfd::adopt(unsealable).unwrap_err();
    assert!(matches!(error, AdoptError::Resizable { .. }), "unsealable: {error}");
    let loose = rustix::fs::memfd_create("loose", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let readable = File::open(format!("/proc/self/fd/{}", loose.as_raw_fd())).unwrap();
    let error = Memfd::adopt(readable.into()).unwrap_err();
    assert!(matches!(error, AdoptError::Resizable { .. }), "read-only: {error}");
}

#[test]
fn a_file_sealed_against_further_seals_is_refused_unless_its_size_is_sealed() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("closed", flags).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL).unwrap();
    assert!(matches!(Memfd::adopt(fd), Err(AdoptError::Resizable { .. })));
    let fd = rustix::fs::memfd_create("closed", flags).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    assert!(Memfd::adopt(fd).is_ok());
}

#[test]
fn whether_writes_can_be_sealed_is_known_before_it_is_tried() {
    let open = sixteen_pages();
    assert!(open.can_seal_writes().unwrap());
    let read_only = File::open(format!("/proc/self/fd/{}", open.as_fd().as_raw_fd())).unwrap();
    assert!(!Memfd::adopt(read_only.into()).unwrap().can_seal_writes().unwrap());
    let closed = sixteen_pages();
    rustix::fs::fcntl_add_seals(closed.as_fd(), SealFlags::SEAL).unwrap();
    assert!(!closed.can_seal_writes().unwrap());
    assert!(closed.seal_writes().is_err());
    let sealed = sixteen_pages();
    rustix::fs::fcntl_add_seals(sealed.as_fd(), SealFlags::WRITE | SealFlags::SEAL).unwrap();
    assert!(sealed.can_seal_writes().unwrap());
    assert!(sealed.seal_writes().unwrap(), "it is sealed already");
}

#[test]
fn bytes_outside_a_file_are_refused() {
    let memfd = sixteen_pages();
    let mut two = [0; 2];
    for offset in [16 * 4096 - 1, 16 * 4096, u64::MAX, u64::MAX - 1] {
        assert!(memfd.write_at(&two, offset).is_err(), "write at {offset}");
        assert!(memfd.read_at(&mut two, offset).is_err(), "read at {offset}");
    }
    assert!(memfd.punch_hole(0, 0).is_err());
    assert_eq!(memfd.allocated_bytes().unwrap(), 0);
}

#[test]
fn a_file_keeps_its_bytes_through_a_clone() {
    let memfd = sixteen_pages();
    let clone = memfd.try_clone().unwrap();
    drop(memfd);
    clone.write_at(b"kept", 4094).unwrap();
    let mut four = [0; 4];
    clone.read_at(&mut four, 4094).unwrap();
    assert_eq!(&four, b"kept");
    assert!(rustix::io::fcntl_getfd(clone.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_new_file_is_sealed_once_it_is_filled() {
    let mut filling = WritableMapping::create("capture", 4 * PAGE_BYTES, PageKind::Small).unwrap();
    filling.as_mut_slice()[5000] = 7;
    let memfd = filling.into_memfd();
    assert!(memfd.seal_writes().unwrap());
    let mut byte = [0];
    memfd.read_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, [7]);
    assert_eq!(memfd.allocated_bytes().unwrap(), 4096);
}

#[test]
fn a_shared_buffer_is_in_memory_before_it_is_used_and_seen_through_its_file() {
    let buffer = SharedBuffer::create(10_000).unwrap();
    assert_eq!(buffer.bytes(), 3 * PAGE_BYTES);
    assert_eq!(buffer.memfd().allocated_bytes().unwrap(), 3 * 4096);
    buffer.write(4090, b"across pages");
    let other = SharedBuffer::of_memfd(buffer.memfd(), 0, 3 * PAGE_BYTES).unwrap();
    let mut bytes = [0; 12];
    other.read(4090, &mut bytes);
    assert_eq!(&bytes, b"across pages");
}

#[test]
fn a_shared_buffer_outside_its_file_is_refused() {
    let memfd = sixteen_pages();
    assert!(SharedBuffer::of_memfd(&memfd, 0, 17 * PAGE_BYTES).is_err());
    assert!(SharedBuffer::of_memfd(&memfd, u64::MAX, PAGE_BYTES).is_err());
    assert!(SharedBuffer::of_memfd(&memfd, 100, PAGE_BYTES).is_err(), "a mapping starts at a page");
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn a_write_past_a_shared_buffer_is_refused() {
    SharedBuffer::create(PAGE_BYTES).unwrap().write(4090, b"across the end");
}

#[test]
fn bits_set_in_a_shared_buffer_are_in_its_file_in_little_endian_order() {
    let buffer = SharedBuffer::create(PAGE_BYTES).unwrap();
    buffer.set_bits(16, 1 << 8 | 1);
    buffer.set_bits(16, 1 << 63);
    let mut bytes = [9; 24];
    buffer.memfd().read_at(&mut bytes, 8).unwrap();
    assert_eq!(bytes, [[0; 8], [1, 1, 0, 0, 0, 0, 0, 0x80], [0; 8]].concat()[..]);
    // If the user may lock no memory at all, the buffer is as good as before.
    buffer.lock_in_ram().ok();
    buffer.set_bits(PAGE_BYTES - 8, u64::MAX);
}

#[test]
fn a_word_stored_in_a_shared_buffer_is_read_from_every_mapping_of_it() {
    let buffer = SharedBuffer::create(PAGE_BYTES).unwrap();
    buffer.set_word(8, 0x0102_0304_0506_0708);
    let other = SharedBuffer::of_memfd(buffer.memfd(), 0, PAGE_BYTES).unwrap();
    assert_eq!((other.word(0), other.word(8)), (0, 0x0102_0304_0506_0708));
    let mut bytes = [0; 8];
    buffer.memfd().read_at(&mut bytes, 8).unwrap();
    assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1]);
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn a_word_past_a_shared_buffer_is_refused() {
    SharedBuffer::create(PAGE_BYTES).unwrap().word(PAGE_BYTES);
}

#[test]
#[should_panic(expected = "a multiple of its size")]
fn a_word_across_words_of_a_shared_buffer_is_refused() {
    SharedBuffer::create(PAGE_BYTES).unwrap().set_word(4, 1);
}

#[test]
#[should_panic(expected = "lie in a mapping")]
fn bits_past_a_shared_buffer_are_refused() {
    SharedBuffer::create(PAGE_BYTES).unwrap().set_bits(PAGE_BYTES, 1);
}

#[test]
#[should_panic(expected = "at a multiple of its size")]
fn bits_of_a_word_across_others_are_refused() {
    SharedBuffer::create(PAGE_BYTES).unwrap().set_bits(4, 1);
}

/// Waits for a lock: a process that another test is just starting has all our descriptors for a moment.
fn locked_in_time(memfd: &Memfd) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::time::Instant::now() < deadline {
        if memfd.try_lock().unwrap() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn a_lock_is_that_of_one_opening_and_all_its_clones_and_mappings() {
    let memfd = sixteen_pages();
    let other = memfd.reopen().unwrap();
    assert_eq!((other.bytes(), other.page_kind()), (memfd.bytes(), memfd.page_kind()));
    assert!(memfd.try_lock().unwrap());
    assert!(memfd.try_clone().unwrap().try_lock().unwrap(), "a clone has the same lock");
    assert!(!other.try_lock().unwrap());
    let buffer = SharedBuffer::of_memfd(&memfd, 0, PAGE_BYTES).unwrap();
    drop(memfd);
    assert!(!other.try_lock().unwrap(), "a mapping holds the lock");
    buffer.write(0, b"same file");
    drop(buffer);
    assert!(locked_in_time(&other));
    let mut bytes = [0; 9];
    other.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"same file");
}

#[test]
fn a_killed_process_holds_no_lock() {
    let mut child = ChildProcess::start("memory");
    let theirs = child.memory();
    let memfd = Memfd::adopt(theirs.memfd).unwrap();
    // The child sent the opening that it maps: the lock is the child's as much as ours.
    assert!(memfd.try_lock().unwrap());
    let other = memfd.reopen().unwrap();
    drop(memfd);
    assert!(!other.try_lock().unwrap());
    child.kill();
    assert!(locked_in_time(&other));
}

#[test]
fn guest_memory_of_no_whole_pages_is_refused() {
    let private = Backing::Private(PageKind::Small);
    assert!(GuestMemory::map(private, 100, 0).is_err());
    assert!(GuestMemory::map(private, 0, 0).is_err());
    assert!(GuestMemory::map(private, PAGE_BYTES, 1).is_err());
    assert!(GuestMemory::map(private, PAGE_BYTES, 2 << 20).is_err());
    assert!(GuestMemory::map(private, usize::MAX & !4095, 0).is_err());
    let memory = GuestMemory::map(private, 3 * PAGE_BYTES, 5 * PAGE_BYTES).unwrap();
    assert_eq!(memory.range().start % (2 << 20), 5 * 4096);
    assert!(memory.discard(1, PAGE_BYTES, rekindle_kernel::Discard::DontNeed).is_err());
    assert!(memory.discard(0, PAGE_BYTES, rekindle_kernel::Discard::Remove).is_err());
}
