//! The library preloaded into a program that maps memory right and wrong: this test program, run again.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rekindle_kernel::{Memfd, PageKind, fd_passing};
use tempfile::TempDir;

const ROLE: &str = "SHIM_TEST_ROLE";
const HANDOVER: &str = "REKINDLE_HANDOVER";
const MEMORY: &str = "REKINDLE_MEMORY";
const PRIVATE: &str = "REKINDLE_PRIVATE";
const BYTES: usize = 16 << 12;

/// The child's output once it has done all of its work.
const DONE: &str = "mapped everything";

/// The library as Cargo made it for this test.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("a program has a path");
    let library = program.parent().expect("it is in a directory").join("librekindle_shim.so");
    assert!(library.is_file(), "{} is made with this test", library.display());
    library
}

struct Handler {
    directory: TempDir,
    listener: UnixListener,
}

impl Handler {
    fn listen() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("handover")).expect("a new socket");
        Self { directory, listener }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("handover")
    }
}

/// Runs the child in a role, with a memory file as its standard input, to be handed over at `socket`.
fn run(role: &str, socket: Option<&Path>) -> Output {
    let length = u64::try_from(BYTES).expect("64 KiB");
    let memory = Memfd::create("guest", length, PageKind::Small).expect("a memory file");
    let status = rustix::fs::fstat(&memory).expect("it is open");
    let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
    command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("LD_PRELOAD", library()).env(ROLE, role);
    if role == "image" {
        command.env(PRIVATE, "1");
    }
    if let Some(socket) = socket {
        command.env(HANDOVER, socket);
        match role {
            "no-memory" => {}
            "no-numbers" => {
                command.env(MEMORY, "1:2");
            }
            _ => {
                command.env(MEMORY, format!("{}:{}:{BYTES}", status.st_dev, status.st_ino));
            }
        }
    }
    command.stdin(OwnedFd::from(memory));
    command.output().expect("this program runs")
}

fn said(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Asserts that the child printed the reason, in the library's one line, and nothing after it.
fn assert_refused(output: &Output, why: &str) {
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{out}{err}");
    let lines: Vec<_> = err.lines().filter(|line| line.starts_with("rekindle: not started: ")).collect();
    assert_eq!(lines.len(), 1, "{err}");
    assert!(lines[0].contains(why), "{err}");
    assert!(!out.contains(DONE), "{out}");
}

#[test]
fn memory_is_handed_over_once_and_nothing_else_is_touched() {
    if !userfaultfd_is_here() {
        return;
    }
    let handler = Handler::listen();
    let output = run("right", Some(&handler.socket()));
    assert!(said(&output.stdout).contains(DONE), "{}{}", said(&output.stdout), said(&output.stderr));
    let (stream, _) = handler.listener.accept().expect("it has connected");
    let mut message = [0; 4096];
    let (bytes, fds) = fd_passing::receive(&stream, &mut message, 8).expect("one message");
    assert_eq!(fds.len(), 2, "a userfaultfd and the memory file");
    let message = String::from_utf8_lossy(&message[..bytes]).into_owned();
    let region = format!("\"size\":{BYTES},\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096}}]");
    assert!(message.starts_with("[{\"base_host_virt_addr\":") && message.ends_with(&region), "{message}");
    assert_eq!((&stream).read(&mut [0]).expect("the child has ended"), 0);
}

#[test]
fn memory_that_others_share_is_mapped_privately_and_its_file_is_not_handed_over() {
    if !userfaultfd_is_here() {
        return;
    }
    let handler = Handler::listen();
    let output = run("image", Some(&handler.socket()));
    assert!(said(&output.stdout).contains(DONE), "{}{}", said(&output.stdout), said(&output.stderr));
    let (stream, _) = handler.listener.accept().expect("it has connected");
    let (_, fds) = fd_passing::receive(&stream, &mut [0; 4096], 8).expect("one message");
    assert_eq!(fds.len(), 1, "a userfaultfd");
}

#[test]
fn a_program_that_is_asked_for_nothing_maps_as_ever() {
    let output = run("right", None);
    assert!(said(&output.stdout).contains(DONE), "{}", said(&output.stderr));
    assert!(!said(&output.stderr).contains("rekindle: "), "{}", said(&output.stderr));
}

#[test]
fn memory_that_cannot_be_served_ends_the_program_before_it_has_an_address() {
    if !userfaultfd_is_here() {
        return;
    }
    let handler = Handler::listen();
    assert_refused(&run("private", Some(&handler.socket())), "shared and writable");
    assert_refused(&run("read-only", Some(&handler.socket())), "shared and writable");
    assert_refused(
        &run("part", Some(&handler.socket())),
        "guest memory has 65536 bytes, but 61440 are mapped",
    );
    assert_refused(&run("offset", Some(&handler.socket())), "from byte 4096 on");
    assert_refused(&run("twice", Some(&handler.socket())), "a second time");
}

#[test]
fn a_handler_that_is_not_there_ends_the_program() {
    if !userfaultfd_is_here() {
        return;
    }
    assert_refused(
        &run("right", Some(Path::new("/no/such/socket"))),
        "handed over at /no/such/socket: No such file",
    );
}

#[test]
fn variables_that_make_no_sense_end_the_program() {
    let handler = Handler::listen();
    assert_refused(&run("no-memory", Some(&handler.socket())), "REKINDLE_MEMORY");
    assert_refused(&run("no-numbers", Some(&handler.socket())), "REKINDLE_MEMORY");
    assert_refused(&run("right", Some(Path::new("relative"))), "REKINDLE_HANDOVER");
}

/// True if this user may have a userfaultfd that serves the kernel's faults; says so if not.
fn userfaultfd_is_here() -> bool {
    use rekindle_kernel::{FaultScope, Features, Userfaultfd};
    let opened = Userfaultfd::open(Features::EVENT_REMOVE | Features::MISSING_SHMEM);
    let here = opened.is_ok_and(|opened| opened.scope() == Some(FaultScope::All));
    if !here {
        rekindle_testkit::skip::skipped("shim", "no userfaultfd for the kernel's faults");
    }
    here
}

#[test]
#[ignore = "the child of the other tests"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    others_are_as_ever();
    let memory = std::io::stdin();
    let fd = memory.as_fd();
    let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
    let (shared, private) = (libc::MAP_SHARED, libc::MAP_PRIVATE);
    let mapped = match role.as_str() {
        "private" => map(BYTES, write, private, Some(fd), 0),
        "read-only" => map(BYTES, read, shared, Some(fd), 0),
        "part" => map(BYTES - 4096, write, shared, Some(fd), 0),
        "offset" => map(BYTES, write, shared, Some(fd), 4096),
        "twice" => {
            map(BYTES, write, shared, Some(fd), 0).and_then(|_| map(BYTES, write, shared, Some(fd), 0))
        }
        _ => map(BYTES, write, shared, Some(fd), 0),
    };
    let address = mapped.expect("it can be mapped");
    let is_served = std::env::var_os(HANDOVER).is_some();
    assert_eq!(flags_of(address).contains(" um"), is_served, "{}", flags_of(address));
    // "sh": it is shared; "ui": faults on pages that are in the file and not mapped are served (proc(5)).
    let is_private = std::env::var_os(PRIVATE).is_some();
    assert_eq!(flags_of(address).contains(" sh"), !is_private, "{}", flags_of(address));
    assert_eq!(flags_of(address).contains(" ui"), is_private, "{}", flags_of(address));
    others_are_as_ever();
    println!("{DONE}");
}

/// Maps memory without a file and another file, right and wrong, and looks at the results.
fn others_are_as_ever() {
    let write = libc::PROT_READ | libc::PROT_WRITE;
    let anonymous =
        map(BYTES, write, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None, 0).expect("there is room");
    let length = u64::try_from(BYTES).expect("64 KiB");
    let file = Memfd::create("other", length, PageKind::Small).expect("a memory file");
    let other = map(BYTES, write, libc::MAP_SHARED, Some(file.as_fd()), 0);
    let other = other.expect("it can be mapped");
    let program = File::open("/proc/self/exe").expect("a program can be read");
    let fd = program.as_fd();
    let program = map(4096, libc::PROT_READ, libc::MAP_PRIVATE, Some(fd), 0).expect("it can be mapped");
    for address in [anonymous, other, program] {
        assert!(!flags_of(address).contains(" um"), "{}", flags_of(address));
    }
    let refused =
        map(0, write, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None, 0).expect_err("nothing is not mapped");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
}

fn map(
    bytes: usize,
    protection: i32,
    flags: i32,
    fd: Option<BorrowedFd<'_>>,
    offset: i64,
) -> io::Result<usize> {
    let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
    // SAFETY: a new mapping, which nothing else refers to.
    let address = unsafe { libc::mmap64(std::ptr::null_mut(), bytes, protection, flags, fd, offset) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address.addr()) }
}

/// Flags that the kernel shows for the mapping at `address`; `um` means that missing pages are served.
fn flags_of(address: usize) -> String {
    let all = std::fs::read_to_string("/proc/self/smaps").expect("a process sees its own mappings");
    let mut lines = all.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
    lines.find(|line| line.starts_with("VmFlags:")).expect("it is mapped").to_owned()
}
