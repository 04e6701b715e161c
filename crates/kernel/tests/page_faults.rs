//! Userfaultfd: what each install, event and protection does, and what each misuse is answered with.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread::Scope;

use rekindle_kernel::userfaultfd::{AdoptError, OpenError};
use rekindle_kernel::{
    Backing, Discard, Event, EventBuffer, FaultKind, FaultScope, Features, GuestMemory, GuestRange, Install,
    LostBytes, Mapping, Memfd, PAGE_BYTES, PageClass, PageKind, Pagemap, Protect, RegisterMode, SharedBuffer,
    Source, Userfaultfd,
};
use rustix::event::{PollFd, PollFlags};
use support::{
    ChildProcess, child_role, filled, markers_are_told, page, run_memory_child, skipped, userfaultfd,
};

const PAGES: usize = 16;

#[test]
#[ignore = "the child of other tests"]
fn child() {
    if child_role().is_some() {
        run_memory_child(true);
    }
}

fn private_memory() -> GuestMemory {
    GuestMemory::map(Backing::Private(PageKind::Small), PAGES * PAGE_BYTES, PAGE_BYTES).unwrap()
}

fn memory_file() -> Memfd {
    Memfd::create("guest", 16 * 4096, PageKind::Small).unwrap()
}

fn shared_memory(memfd: &Memfd) -> GuestMemory {
    GuestMemory::map(Backing::Shared(memfd, 0), PAGES * PAGE_BYTES, 0).unwrap()
}

/// A userfaultfd over private memory, or a skipped test.
fn served(test: &str, features: Features, mode: RegisterMode) -> Option<(Userfaultfd, GuestMemory)> {
    let memory = private_memory();
    let uffd = userfaultfd(test, features)?;
    uffd.register(memory.range(), mode).unwrap();
    Some((uffd, memory))
}

/// Waits for events and takes them in one read.
fn next_events(uffd: &Userfaultfd, buffer: &mut EventBuffer) -> Vec<Event> {
    loop {
        let mut fds = [PollFd::new(uffd, PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        let count = uffd.read_events(buffer).unwrap();
        if count > 0 {
            return buffer.events(count).collect();
        }
    }
}

fn next_event(uffd: &Userfaultfd) -> Event {
    let events = next_events(uffd, &mut EventBuffer::private(1));
    events[0]
}

fn fault_address(event: Event) -> u64 {
    let Event::Fault { address, .. } = event else { unreachable!("only faults were asked for: {event:?}") };
    address
}

fn is_resident(range: GuestRange) -> bool {
    let mut resident = false;
    let mut found = |_| resident = true;
    Pagemap::of_self().unwrap().scan(range, PageClass::Resident, &mut found).unwrap();
    resident
}

/// Touches from a thread of its own, so that this one can serve the fault.
fn on_thread<'a, 'b, T: Send + 'a>(
    scope: &'a Scope<'a, 'b>,
    act: impl FnOnce() -> T + Send + 'a,
) -> std::thread::ScopedJoinHandle<'a, T> {
    scope.spawn(act)
}

#[test]
fn a_missing_page_is_served_to_the_thread_that_is_named() {
    let test = "a missing page is served";
    let Some((uffd, memory)) = served(test, Features::THREAD_ID, RegisterMode::Missing) else { return };
    std::thread::scope(|scope| {
        let guest = on_thread(scope, || (memory.touch(PAGE_BYTES + 5), rustix::thread::gettid()));
        let event = next_event(&uffd);
        let there = page(memory.range(), 1);
        let source = filled(0x5a);
        assert!(matches!(
            uffd.copy(there.start, Source::from(&source[..]), Protect::Writable),
            Install::Installed
        ));
        let (byte, thread) = guest.join().unwrap();
        assert_eq!(byte, 0x5a);
        let thread = u32::try_from(thread.as_raw_pid()).unwrap();
        assert_eq!(event, Event::Fault { address: there.start, kind: FaultKind::Read, thread: Some(thread) });
    });
}

#[test]
fn a_write_to_a_missing_page_says_that_it_is_one() {
    let Some((uffd, memory)) = served("write fault", Features::NONE, RegisterMode::Missing) else { return };
    std::thread::scope(|scope| {
        let guest = on_thread(scope, || memory.touch_write(0, 1));
        let address = memory.range().start;
        assert_eq!(next_event(&uffd), Event::Fault { address, kind: FaultKind::Write, thread: None });
        assert!(matches!(uffd.zero(page(memory.range(), 0)), Install::Installed));
        guest.join().unwrap();
        assert_eq!(memory.touch(0), 1);
    });
}

#[test]
fn nothing_to_read_is_no_events() {
    let Some((uffd, _memory)) = served("no events", Features::NONE, RegisterMode::Missing) else { return };
    assert_eq!(uffd.read_events(&mut EventBuffer::private(4)).unwrap(), 0);
}

#[test]
fn one_read_takes_a_batch_into_memory_that_others_hold() {
    let Some((uffd, memory)) = served("batch", Features::NONE, RegisterMode::Missing) else { return };
    let mut buffer = EventBuffer::shared(SharedBuffer::create(PAGE_BYTES).unwrap());
    let memory = &memory;
    std::thread::scope(|scope| {
        for at in 0..4 {
            on_thread(scope, move || memory.touch(at * PAGE_BYTES));
        }
        let mut addresses = Vec::new();
        while addresses.len() < 4 {
            let events = next_events(&uffd, &mut buffer);
            let raw = buffer.shared_buffer().unwrap().memfd();
            let mut first = [0];
            raw.read_at(&mut first, 0).unwrap();
            assert_eq!(first, [0x12], "who holds the file sees the event");
            addresses.extend(events.into_iter().map(fault_address));
        }
        addresses.sort_unstable();
        assert_eq!(addresses, [0, 1, 2, 3].map(|at| page(memory.range(), at).start));
        assert!(matches!(uffd.zero(memory.range()), Install::Installed));
    });
}

#[test]
fn a_page_that_is_there_is_present() {
    let Some((uffd, memory)) = served("EEXIST", Features::NONE, RegisterMode::Missing) else { return };
    let source = filled(1);
    let from = Source::from(&source[..]);
    assert!(matches!(uffd.copy(memory.range().start, from, Protect::Writable), Install::Installed));
    let again = uffd.copy(memory.range().start, from, Protect::Writable);
    assert!(matches!(again, Install::Present { installed_bytes: 0 }), "{again:?}");
    let zero = uffd.zero(page(memory.range(), 0));
    assert!(matches!(zero, Install::Present { installed_bytes: 0 }), "{zero:?}");
    assert_eq!(memory.touch(0), 1);
}

#[test]
fn a_copy_that_meets_a_page_further_on_tells_how_far_it_came() {
    let Some((uffd, memory)) = served("short copy", Features::NONE, RegisterMode::Missing) else { return };
    assert!(matches!(uffd.zero(page(memory.range(), 3)), Install::Installed));
    let source = vec![7; PAGES * PAGE_BYTES];
    let short = uffd.copy(memory.range().start, Source::from(&source[..]), Protect::Writable);
    assert!(matches!(short, Install::Interrupted { installed_bytes: 12288 }), "{short:?}");
    assert_eq!(memory.touch(2 * PAGE_BYTES), 7);
    let from = Source::from(&source[..]).slice(3 * PAGE_BYTES, 13 * PAGE_BYTES);
    let present = uffd.copy(page(memory.range(), 3).start, from, Protect::Writable);
    assert!(matches!(present, Install::Present { installed_bytes: 0 }), "{present:?}");
}

#[test]
fn an_unread_remove_interrupts_every_install_until_it_is_read() {
    let Some((uffd, memory)) = served("EAGAIN", Features::EVENT_REMOVE, RegisterMode::Missing) else {
        return;
    };
    assert!(matches!(uffd.zero(page(memory.range(), 9)), Install::Installed));
    std::thread::scope(|scope| {
        let guest = on_thread(scope, || memory.discard(9 * PAGE_BYTES, PAGE_BYTES, Discard::DontNeed));
        let mut fds = [PollFd::new(&uffd, PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        let source = filled(1);
        let from = Source::from(&source[..]);
        let interrupted = uffd.copy(memory.range().start, from, Protect::Writable);
        assert!(matches!(interrupted, Install::Interrupted { installed_bytes: 0 }), "{interrupted:?}");
        let interrupted = uffd.zero(page(memory.range(), 1));
        assert!(matches!(interrupted, Install::Interrupted { installed_bytes: 0 }), "{interrupted:?}");
        assert_eq!(next_event(&uffd), Event::Remove(page(memory.range(), 9)));
        guest.join().unwrap().unwrap();
        // The guest's call has returned, so the address space has settled.
        assert!(matches!(uffd.copy(memory.range().start, from, Protect::Writable), Install::Installed));
    });
}

#[test]
fn installs_into_a_process_that_ended_find_it_gone() {
    let test = "ESRCH";
    if userfaultfd(test, Features::EVENT_REMOVE | Features::THREAD_ID).is_none() {
        return;
    }
    let mut child = ChildProcess::start("served");
    let memory = child.memory();
    let uffd = Userfaultfd::adopt(memory.userfaultfd.unwrap()).unwrap();
    assert_eq!(uffd.scope(), None);
    let source = filled(0x77);
    let from = Source::from(&source[..]);
    child.ask(b'r', 2);
    let there = page(memory.private, 2);
    let Event::Fault { address, kind: FaultKind::Read, thread } = next_event(&uffd) else {
        unreachable!("the child reads a missing page")
    };
    assert_eq!(address, there.start);
    assert!(rekindle_kernel::ThreadCpu::open(memory.pid, thread.unwrap()).unwrap().cpu().is_ok());
    assert!(matches!(uffd.copy(there.start, from, Protect::Writable), Install::Installed));
    assert_eq!(child.answer(), 0x77);
    child.ask(b'd', 2);
    assert_eq!(next_event(&uffd), Event::Remove(there));
    assert_eq!(child.answer(), 0);
    child.kill();
    for gone in [
        uffd.copy(there.start, from, Protect::Writable),
        uffd.zero(there),
        uffd.poison(there),
        uffd.continue_shared(there, Protect::Writable),
    ] {
        assert!(matches!(gone, Install::Gone), "{gone:?}");
    }
    assert!(uffd.write_protect(there, Protect::Protected).is_err());
    assert_eq!(uffd.read_events(&mut EventBuffer::private(1)).unwrap(), 0);
}

#[test]
fn installs_where_nothing_is_registered_find_it_unmapped() {
    let Some((uffd, memory)) = served("ENOENT", Features::NONE, RegisterMode::Missing) else { return };
    let elsewhere = private_memory();
    let source = filled(1);
    let gone = uffd.copy(elsewhere.range().start, Source::from(&source[..]), Protect::Writable);
    assert!(matches!(gone, Install::Unmapped), "{gone:?}");
    uffd.unregister(memory.range()).unwrap();
    assert!(matches!(uffd.zero(memory.range()), Install::Unmapped));
    assert_eq!(memory.touch(0), 0, "after that its missing pages are zeroes");
}

#[test]
fn a_source_that_cannot_be_read_is_lost_and_nothing_is_installed() {
    let Some((uffd, memory)) = served("EFAULT", Features::NONE, RegisterMode::Missing) else { return };
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let mapping = Mapping::of_file(&file, 8192).unwrap();
    file.set_len(0).unwrap();
    let lost = uffd.copy(memory.range().start, mapping.source(4096, 4096), Protect::Writable);
    assert!(matches!(lost, Install::SourceLost), "{lost:?}");
    assert!(!is_resident(memory.range()));
    assert!(matches!(uffd.zero(page(memory.range(), 0)), Install::Installed));
}

#[test]
fn a_copy_of_no_whole_pages_fails() {
    let Some((uffd, memory)) = served("EINVAL", Features::NONE, RegisterMode::Missing) else { return };
    let source = vec![1; 2 * PAGE_BYTES];
    let from = Source::from(&source[..]);
    let start = memory.range().start;
    assert!(matches!(uffd.copy(start + 1, from, Protect::Writable), Install::Failed(_)));
    assert!(matches!(uffd.copy(start, from.slice(0, 100), Protect::Writable), Install::Failed(_)));
    assert!(matches!(uffd.copy(start, from.slice(0, 0), Protect::Writable), Install::Failed(_)));
    assert!(uffd.register(GuestRange::new(start + 1, 4096), RegisterMode::Missing).is_err());
    assert!(uffd.register(GuestRange::new(0, 4096), RegisterMode::Missing).is_err());
    assert!(uffd.wake(GuestRange::new(start, 0)).is_err());
}

#[test]
fn a_poisoned_page_loses_one_read_and_a_copy_over_it_recovers() {
    let test = "poison";
    let Some(uffd) = userfaultfd(test, Features::POISON) else { return };
    let memory = private_memory();
    let offers = uffd.register(memory.range(), RegisterMode::Missing).unwrap();
    assert!(offers.poison() && offers.copy() && offers.zeropage() && !offers.continue_shared());
    assert!(matches!(uffd.poison(page(memory.range(), 4)), Install::Installed));
    let lost = memory.read(4 * PAGE_BYTES, &mut filled(0));
    assert_eq!(lost, Err(LostBytes { offset: 4 * PAGE_BYTES }));
    let source = filled(3);
    let over = uffd.copy(page(memory.range(), 4).start, Source::from(&source[..]), Protect::Writable);
    assert!(matches!(over, Install::Installed), "{over:?}");
    assert_eq!(memory.touch(4 * PAGE_BYTES), 3);
}

#[test]
fn a_page_that_waits_is_woken_and_waits_again_until_it_is_there() {
    let Some((uffd, memory)) = served("wake", Features::NONE, RegisterMode::Missing) else { return };
    std::thread::scope(|scope| {
        let guest = on_thread(scope, || memory.touch(0));
        let first = next_event(&uffd);
        uffd.wake(page(memory.range(), 0)).unwrap();
        assert_eq!(next_event(&uffd), first);
        assert!(matches!(uffd.zero(page(memory.range(), 0)), Install::Installed));
        assert_eq!(guest.join().unwrap(), 0);
    });
}

#[test]
fn the_first_write_to_a_protected_page_is_an_event_and_later_ones_are_not() {
    let features = Features::PAGEFAULT_FLAG_WP;
    let mode = RegisterMode::MissingAndWriteProtect;
    let Some((uffd, memory)) = served("write protection", features, mode) else { return };
    let source = filled(1);
    let start = memory.range().start;
    assert!(matches!(uffd.copy(start, Source::from(&source[..]), Protect::Protected), Install::Installed));
    assert_eq!(memory.touch(0), 1, "reading is free");
    std::thread::scope(|scope| {
        let guest = on_thread(scope, || {
            memory.touch_write(0, 2);
            memory.touch_write(1, 3);
        });
        let event = next_event(&uffd);
        assert_eq!(event, Event::Fault { address: start, kind: FaultKind::WriteProtect, thread: None });
        uffd.write_protect(page(memory.range(), 0), Protect::Writable).unwrap();
        guest.join().unwrap();
        assert_eq!(uffd.read_events(&mut EventBuffer::private(1)).unwrap(), 0);
    });
}

/// `Present` is not yet "there": protecting a page that was never touched leaves a marker in its place.
#[test]
fn a_protected_page_that_was_never_touched_is_present_for_a_zero_install_until_its_protection_is_lifted() {
    let features = Features::WP_UNPOPULATED | Features::PAGEFAULT_FLAG_WP;
    let mode = RegisterMode::MissingAndWriteProtect;
    let Some((uffd, memory)) = served("protection marker", features, mode) else { return };
    uffd.write_protect(memory.range(), Protect::Protected).unwrap();
    let here = page(memory.range(), 0);
    let present = uffd.zero(here);
    assert!(matches!(present, Install::Present { installed_bytes: 0 }), "{present:?}");
    if markers_are_told("protection marker") {
        assert!(!is_resident(here), "yet nothing is there");
    }
    uffd.write_protect(here, Protect::Writable).unwrap();
    assert!(matches!(uffd.zero(here), Install::Installed));
    assert_eq!(memory.touch(0), 0);
}

#[test]
fn a_page_of_the_file_is_mapped_without_a_copy() {
    let test = "continue";
    let memfd = memory_file();
    memfd.write_at(&filled(8), 4096).unwrap();
    let memory = shared_memory(&memfd);
    let Some(uffd) = userfaultfd(test, Features::MINOR_SHMEM | Features::MISSING_SHMEM) else { return };
    let offers = uffd.register(memory.range(), RegisterMode::MissingAndMinor).unwrap();
    assert!(offers.continue_shared());
    std::thread::scope(|scope| {
        let there = page(memory.range(), 1);
        let guest = on_thread(scope, || memory.touch(PAGE_BYTES));
        assert_eq!(
            next_event(&uffd),
            Event::Fault { address: there.start, kind: FaultKind::Minor, thread: None }
        );
        assert!(matches!(uffd.continue_shared(there, Protect::Writable), Install::Installed));
        assert_eq!(guest.join().unwrap(), 8);
    });
    let none = uffd.continue_shared(page(memory.range(), 2), Protect::Writable);
    assert!(matches!(none, Install::SourceLost), "the file has no such page: {none:?}");
}

#[test]
fn zeroes_are_installed_from_the_static_zeroes() {
    let Some((uffd, memory)) = served("zeroes", Features::NONE, RegisterMode::Missing) else { return };
    let zeroes = Source::zeroes(PAGES * PAGE_BYTES);
    assert!(matches!(uffd.copy(memory.range().start, zeroes, Protect::Writable), Install::Installed));
    assert!(memory.equals(0, &[0; PAGES * PAGE_BYTES]).unwrap());
}

/// On a memory file a page whose mapping alone was dropped is still in the file: a zero install finds it.
#[test]
fn a_zero_install_over_a_page_that_the_file_still_has_is_present() {
    let memfd = memory_file();
    let memory = shared_memory(&memfd);
    let Some(uffd) = userfaultfd("dropped shared page", Features::NONE) else { return };
    uffd.register(memory.range(), RegisterMode::Missing).unwrap();
    let source = filled(1);
    let here = page(memory.range(), 0);
    assert!(matches!(
        uffd.copy(here.start, Source::from(&source[..]), Protect::Writable),
        Install::Installed
    ));
    memory.discard(0, PAGE_BYTES, Discard::DontNeed).unwrap();
    assert!(matches!(uffd.zero(here), Install::Present { installed_bytes: 0 }));
    memory.discard(0, PAGE_BYTES, Discard::Remove).unwrap();
    assert!(matches!(uffd.zero(here), Install::Installed));
    assert_eq!(memory.touch(0), 0);
}

#[test]
fn what_is_no_userfaultfd_is_not_adopted() {
    let (pipe, _other_end) = std::io::pipe().unwrap();
    for fd in [OwnedFd::from(pipe), File::open("/dev/null").unwrap().into(), memory_file().into()] {
        let error = Userfaultfd::adopt(fd).unwrap_err();
        assert!(matches!(error, AdoptError::NotUserfaultfd { .. }), "{error}");
    }
}

#[test]
fn an_opened_one_knows_whose_faults_it_gets_and_reads_without_waiting() {
    let Some(uffd) = userfaultfd("scope", Features::NONE) else { return };
    match uffd.scope() {
        Some(FaultScope::All) => {}
        Some(FaultScope::UserOnly) => {
            skipped("faults of the kernel", "only user-mode faults are allowed here")
        }
        None => unreachable!("we opened it"),
    }
    let flags = rustix::fs::fcntl_getfl(&uffd).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::NONBLOCK));
    assert!(rustix::io::fcntl_getfd(&uffd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn what_this_kernel_offers_can_be_opened() {
    let offered = match Userfaultfd::offered() {
        Ok(offered) => offered,
        Err(error @ OpenError::Refused { .. }) => return skipped("offered features", error),
        Err(error) => unreachable!("only being refused is expected: {error}"),
    };
    let wanted = Features::EVENT_REMOVE
        | Features::WP_ASYNC
        | Features::WP_UNPOPULATED
        | Features::WP_HUGETLBFS_SHMEM
        | Features::PAGEFAULT_FLAG_WP
        | Features::POISON
        | Features::THREAD_ID;
    if !offered.contains(wanted) {
        skipped("full features", format!("this kernel lacks {}", wanted.without(offered)));
    }
    Userfaultfd::open(offered.intersection(wanted)).unwrap();
}
