//! Other processes: their memory, their open files, their end; and descriptors sent between them.
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails; clippy knows tests, but not what they call"
)]

mod support;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use rekindle_kernel::process::{UnreadableMemory, inherited_fd, read_memory};
use rekindle_kernel::{
    GuestRange, Memfd, PAGE_BYTES, PageKind, ProcessHandle, Signal, WritableMapping, fd_passing, placement,
};
use support::{CHILD_PAGES, ChildProcess, child_control, child_role, page, run_memory_child, skipped};

const LONG: Duration = Duration::from_secs(60);

#[test]
#[ignore = "the child of other tests"]
fn child() {
    match child_role().as_deref() {
        Some("memory") => run_memory_child(false),
        Some("few descriptors") => receive_with_few_descriptors(),
        _ => {}
    }
}

/// Receives while hardly any descriptor may be opened, and answers how that went.
fn receive_with_few_descriptors() {
    let control = child_control();
    let next = u64::try_from(std::fs::File::open("/dev/null").unwrap().as_raw_fd()).unwrap();
    let limit = rustix::process::Rlimit { current: Some(next + 1), maximum: Some(next + 1) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let result = fd_passing::receive(&control, &mut [0; 8], 4);
    let answer = u8::from(result.is_err_and(|error| error.raw_os_error() == Some(libc::EMFILE)));
    // Those that did arrive are closed: one more can be opened.
    let answer = answer + u8::from(std::fs::File::open("/dev/null").is_ok());
    (&control).write_all(&[answer]).unwrap();
}

/// True if another process's memory may be read here; prints a line if not.
fn may_read(test: &str, result: &std::io::Result<()>) -> bool {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            skipped(test, format!("{error}; CAP_SYS_PTRACE is missing"));
            false
        }
        _ => true,
    }
}

#[test]
fn the_memory_of_another_process_is_read_in_the_order_asked() {
    let child = ChildProcess::start("memory");
    let memory = child.memory();
    let process = ProcessHandle::open(memory.pid).unwrap();
    process.signal(Signal::Stop).unwrap();
    let ranges =
        [page(memory.private, 7), GuestRange::new(memory.private.start + 4095, 2), page(memory.private, 0)];
    let mut capture = WritableMapping::create("capture", 3 * PAGE_BYTES, PageKind::Small).unwrap();
    let into = &mut capture.as_mut_slice()[..2 * PAGE_BYTES + 2];
    let result = read_memory(memory.pid, &ranges, into);
    if !may_read("process_vm_readv", &result) {
        return;
    }
    result.unwrap();
    assert!(into[..PAGE_BYTES].iter().all(|byte| *byte == 8));
    assert_eq!(into[PAGE_BYTES..PAGE_BYTES + 2], [1, 2]);
    assert!(into[PAGE_BYTES + 2..].iter().all(|byte| *byte == 1));
}

#[test]
fn more_ranges_than_one_call_takes_are_read() {
    let child = ChildProcess::start("memory");
    let memory = child.memory();
    let last = u64::try_from(CHILD_PAGES).unwrap();
    let ranges: Vec<GuestRange> = (0..5000)
        .map(|at| GuestRange::new(page(memory.private, at % last).start + at % 4000, at % 3))
        .collect();
    let bytes = usize::try_from(ranges.iter().map(|range| range.bytes).sum::<u64>()).unwrap();
    let mut into = vec![0; bytes];
    let result = read_memory(memory.pid, &ranges, &mut into);
    if !may_read("process_vm_readv of many ranges", &result) {
        return;
    }
    result.unwrap();
    let expected: Vec<u8> = (0..5000_u64)
        .flat_map(|at| vec![u8::try_from(at % last + 1).unwrap(); usize::try_from(at % 3).unwrap()])
        .collect();
    assert!(into == expected, "every byte is that of its page");
}

#[test]
fn memory_that_is_not_there_is_an_error_that_names_it() {
    let child = ChildProcess::start("memory");
    let memory = child.memory();
    let beyond = GuestRange::new(memory.private.end() - 4096, 2 * 4096);
    let mut into = vec![0; 3 * PAGE_BYTES];
    let result = read_memory(memory.pid, &[page(memory.private, 0), beyond], &mut into);
    if !may_read("process_vm_readv past the end", &result) {
        return;
    }
    let error = result.unwrap_err();
    let unreadable = error.get_ref().and_then(|inner| inner.downcast_ref::<UnreadableMemory>()).unwrap();
    assert_eq!(unreadable.range, GuestRange::new(memory.private.end(), 4096), "what is left of it: {error}");
    assert!(read_memory(memory.pid, &[GuestRange::new(0, 4096)], &mut into[..PAGE_BYTES]).is_err());
}

#[test]
fn ranges_that_do_not_fill_the_buffer_are_refused() {
    let pid = std::process::id();
    let mut into = [0; 8];
    for ranges in
        [&[GuestRange::new(0x1000, 7)][..], &[GuestRange::new(0x1000, u64::MAX), GuestRange::new(0, 9)]]
    {
        let error = read_memory(pid, ranges, &mut into).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{error}");
    }
    assert!(read_memory(0, &[GuestRange::new(0x1000, 8)], &mut into).is_err());
    read_memory(pid, &[], &mut []).unwrap();
}

#[test]
fn a_file_that_another_process_has_open_is_had_by_its_number() {
    let child = ChildProcess::start("memory");
    let memory = child.memory();
    let process = ProcessHandle::open(memory.pid).unwrap();
    let theirs = match process.duplicate_fd(memory.memfd_number) {
        Ok(fd) => fd,
        Err(error) => return skipped("pidfd_getfd", error),
    };
    Memfd::adopt(memory.memfd).unwrap().write_at(b"same file", 0).unwrap();
    let mut bytes = [0; 9];
    Memfd::adopt(theirs).unwrap().read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"same file");
    assert_eq!(process.duplicate_fd(9999).unwrap_err().raw_os_error(), Some(libc::EBADF));
}

#[test]
fn a_process_is_alive_until_it_ends_waited_for_or_not() {
    let mut child = ChildProcess::start("memory");
    let process = ProcessHandle::open(child.pid()).unwrap();
    assert!(process.is_alive());
    assert!(!process.wait_exit(Duration::from_millis(1)));
    process.signal(Signal::Stop).unwrap();
    process.signal(Signal::Continue).unwrap();
    process.signal(Signal::Kill).unwrap();
    assert!(process.wait_exit(LONG));
    assert!(!process.is_alive(), "nobody has waited for it yet");
    assert_eq!(child.wait().signal(), Some(libc::SIGKILL));
    assert!(!process.is_alive());
    assert!(process.signal(Signal::Terminate).is_err(), "its pid may be another's by now");
    assert!(ProcessHandle::open(0).is_err());
    assert!(ProcessHandle::open(u32::MAX).is_err());
}

#[test]
fn a_pidfd_from_elsewhere_is_taken_over() {
    let mut child = ChildProcess::start("memory");
    let process = ProcessHandle::open(child.pid()).unwrap();
    let pidfd = || process.as_fd().try_clone_to_owned().unwrap();
    let adopted = ProcessHandle::adopt(pidfd()).unwrap();
    assert_eq!(adopted.pid(), child.pid());
    assert!(adopted.is_alive());
    adopted.signal(Signal::Kill).unwrap();
    assert!(process.wait_exit(LONG));
    assert_eq!(ProcessHandle::adopt(pidfd()).unwrap().pid(), child.pid(), "nobody has waited for it yet");
    child.wait();
    assert_eq!(ProcessHandle::adopt(pidfd()).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(!adopted.is_alive());
    let other = ProcessHandle::adopt(std::fs::File::open("/dev/null").unwrap().into()).unwrap_err();
    assert_eq!(other.kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn a_process_is_stopped_when_all_its_threads_stand_whosever_child_it_is() {
    let mut child = ChildProcess::start("memory");
    child.memory();
    let process = ProcessHandle::open(child.pid()).unwrap();
    let until_stopped = |wanted: bool| {
        let deadline = std::time::Instant::now() + LONG;
        while process.is_stopped().unwrap() != wanted {
            assert!(std::time::Instant::now() < deadline, "stopped is not {wanted} in time");
            std::thread::yield_now();
        }
    };
    // The test that runs in it waits on a thread of its own, for something to read.
    assert!(!process.is_stopped().unwrap());
    for _ in 0..20 {
        process.signal(Signal::Stop).unwrap();
        until_stopped(true);
        process.signal(Signal::Continue).unwrap();
        until_stopped(false);
    }
    process.signal(Signal::Kill).unwrap();
    assert!(process.wait_exit(LONG));
    assert_eq!(process.is_stopped().unwrap_err().kind(), std::io::ErrorKind::NotFound);
    child.wait();
    assert_eq!(process.is_stopped().unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn every_thread_of_a_process_is_made_to_yield() {
    let child = ChildProcess::start("memory");
    let memory = child.memory();
    placement::lower_priority(memory.pid).unwrap();
    for task in std::fs::read_dir(format!("/proc/{}/task", memory.pid)).unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let fields = stat.rsplit_once(") ").unwrap().1;
        assert_eq!(fields.split(' ').nth(19 - 3), Some("19"), "{stat}");
    }
    assert!(placement::lower_priority(u32::MAX).is_err());
}

#[test]
fn descriptors_arrive_with_their_bytes_and_close_on_exec() {
    let (left, right) = UnixStream::pair().unwrap();
    let memfd = Memfd::create("sent", 4096, PageKind::Small).unwrap();
    fd_passing::send(&left, b"hello", &[memfd.as_fd(), left.as_fd()]).unwrap();
    let mut buffer = [0; 64];
    let (bytes, fds) = fd_passing::receive(&right, &mut buffer, 2).unwrap();
    assert_eq!((&buffer[..bytes], fds.len()), (&b"hello"[..], 2));
    for fd in &fds {
        assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }
    drop(left);
    drop(fds);
    let (bytes, fds) = fd_passing::receive(&right, &mut buffer, 2).unwrap();
    assert_eq!((bytes, fds.len()), (0, 0), "the copy of the stream that came with them is closed too");
}

#[test]
fn descriptors_beyond_those_asked_for_are_closed() {
    let (left, right) = UnixStream::pair().unwrap();
    let (mut end, other_end) = std::io::pipe().unwrap();
    fd_passing::send(&left, b"x", &[left.as_fd(), other_end.as_fd(), other_end.as_fd()]).unwrap();
    drop(other_end);
    let (_, fds) = fd_passing::receive(&right, &mut [0; 8], 1).unwrap();
    assert_eq!(fds.len(), 1);
    assert_eq!(end.read(&mut [0]).unwrap(), 0, "no writer of the pipe is left");
}

#[test]
fn descriptors_lost_on_the_way_are_an_error_and_the_others_are_closed() {
    let child = ChildProcess::start("few descriptors");
    let null = std::fs::File::open("/dev/null").unwrap();
    fd_passing::send(child.control(), b"x", &[null.as_fd(); 4]).unwrap();
    assert_eq!(child.answer(), 2);
}

#[test]
fn descriptors_without_a_byte_or_too_many_are_refused() {
    let (left, _right) = UnixStream::pair().unwrap();
    assert!(fd_passing::send(&left, b"", &[left.as_fd()]).is_err());
    assert!(fd_passing::send(&left, b"x", &vec![left.as_fd(); fd_passing::FDS_MAX + 1]).is_err());
    let (left, right) = UnixStream::pair().unwrap();
    drop(right);
    assert!(fd_passing::send(&left, b"x", &[]).is_err(), "nobody is there, and no signal ends us");
}

#[test]
fn a_message_longer_than_the_socket_takes_at_once_is_sent_whole() {
    let (left, right) = UnixStream::pair().unwrap();
    let message: Vec<u8> = (0..1_000_000_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| fd_passing::send(&left, &message, &[left.as_fd()]).unwrap());
        let mut received = Vec::new();
        let mut buffer = [0; 10_000];
        let mut fds_received = 0;
        while received.len() < message.len() {
            let (bytes, fds) = fd_passing::receive(&right, &mut buffer, 8).unwrap();
            received.extend_from_slice(&buffer[..bytes]);
            fds_received += fds.len();
        }
        assert!(received == message);
        assert_eq!(fds_received, 1, "they go once, with the first bytes");
    });
}

#[test]
fn the_peer_of_a_stream_is_known_by_its_pid_and_its_user() {
    let (left, _right) = UnixStream::pair().unwrap();
    assert_eq!(fd_passing::peer_pid(&left).unwrap(), std::process::id());
    assert_eq!(fd_passing::peer_user(&left).unwrap(), rustix::process::geteuid().as_raw());
}

#[test]
fn only_what_was_inherited_is_taken_over() {
    assert!(inherited_fd(0).is_err());
    assert!(inherited_fd(-1).is_err());
    assert!(inherited_fd(9999).is_err());
    let ours = std::fs::File::open("/dev/null").unwrap();
    assert!(inherited_fd(ours.as_raw_fd()).is_err(), "a descriptor of Rust's closes on exec");
    // As an exec leaves them: open, and without an owner in this program.
    // SAFETY: makes a new descriptor.
    let number = unsafe { libc::dup(ours.as_raw_fd()) };
    let taken: OwnedFd = inherited_fd(number).unwrap();
    assert_eq!(taken.as_raw_fd(), number);
    assert!(inherited_fd(number).is_err(), "once");
}
