//! Shared parts of the kernel's tests: saying that a test was skipped, and a child process to act on.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use rekindle_kernel::{
    Backing, Discard, Features, GuestMemory, GuestRange, Memfd, PAGE_BYTES, PageKind, RegisterMode,
    Userfaultfd, fd_passing,
};

/// Says that `test` could not run and why, on standard error and in the file that `.ci/run` looks at.
pub(crate) fn skipped(test: &str, why: impl std::fmt::Display) {
    let line = format!("skipped: kernel: {test}: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("REKINDLE_SKIPS_FILE") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

/// A userfaultfd with `features`, or none and a line that says so.
pub(crate) fn userfaultfd(test: &str, features: Features) -> Option<Userfaultfd> {
    match Userfaultfd::open(features) {
        Ok(userfaultfd) => Some(userfaultfd),
        Err(error) => {
            skipped(test, error);
            None
        }
    }
}

/// True if page map entries tell this user which kind of marker stands in a page's place; says so if not.
pub(crate) fn markers_are_told(test: &str) -> bool {
    let told = rustix::process::geteuid().is_root();
    if !told {
        skipped(test, "without CAP_SYS_ADMIN a marker of protection looks like a page that was swapped out");
    }
    told
}

/// Page `page` of a range.
pub(crate) fn page(range: GuestRange, page: u64) -> GuestRange {
    GuestRange::new(range.start + page * 4096, 4096)
}

/// A page whose every byte is `value`.
pub(crate) fn filled(value: u8) -> [u8; PAGE_BYTES] {
    [value; PAGE_BYTES]
}

/// Pages of the child's memory.
pub(crate) const CHILD_PAGES: usize = 16;

/// This test program again, running the ignored test `child`, which calls [`run_child`].
pub(crate) struct ChildProcess {
    child: Child,
    control: UnixStream,
}

/// Memory that a child has handed over.
pub(crate) struct ChildMemory {
    pub(crate) pid: u32,
    pub(crate) private: GuestRange,
    pub(crate) shared: GuestRange,
    pub(crate) memfd: OwnedFd,
    pub(crate) memfd_number: i32,
    pub(crate) userfaultfd: Option<OwnedFd>,
}

impl ChildProcess {
    pub(crate) fn start(role: &str) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("KERNEL_TEST_ROLE", role)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, control }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn control(&self) -> &UnixStream {
        &self.control
    }

    /// Waits for what a child of role `memory` hands over first.
    pub(crate) fn memory(&self) -> ChildMemory {
        let mut message = [0; 24];
        let (bytes, mut fds) = fd_passing::receive(&self.control, &mut message, 2).unwrap();
        assert_eq!(bytes, message.len(), "the child's first message is whole");
        let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().unwrap());
        let length = u64::try_from(CHILD_PAGES * PAGE_BYTES).unwrap();
        ChildMemory {
            pid: self.pid(),
            private: GuestRange::new(word(0), length),
            shared: GuestRange::new(word(8), length),
            memfd_number: i32::try_from(word(16)).unwrap(),
            userfaultfd: (fds.len() > 1).then(|| fds.remove(1)),
            memfd: fds.remove(0),
        }
    }

    /// Asks a child of role `memory` to do something to a page of its private memory.
    pub(crate) fn ask(&self, what: u8, page: u8) {
        (&self.control).write_all(&[what, page]).unwrap();
    }

    /// The child's answer.
    pub(crate) fn answer(&self) -> u8 {
        let mut answer = [0];
        (&self.control).read_exact(&mut answer).unwrap();
        answer[0]
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
        }
    }
}

/// The child's side: its control stream, on standard input.
pub(crate) fn child_control() -> UnixStream {
    UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap())
}

/// The role that a child was started for; none where the test `child` was run by hand.
pub(crate) fn child_role() -> Option<String> {
    std::env::var("KERNEL_TEST_ROLE").ok()
}

/// The child of role `memory`: private memory, page `n` all bytes `n + 1`; shared memory of a memfd, writable.
///
/// Of role `served`: private memory is registered with a userfaultfd and empty.
pub(crate) fn run_memory_child(served: bool) {
    let control = child_control();
    let length = CHILD_PAGES * PAGE_BYTES;
    let private = GuestMemory::map(Backing::Private(PageKind::Small), length, PAGE_BYTES).unwrap();
    let memfd = Memfd::create("child", u64::try_from(length).unwrap(), PageKind::Small).unwrap();
    let shared = GuestMemory::map(Backing::Shared(&memfd, 0), length, 0).unwrap();
    let mut userfaultfd = None;
    if served {
        let opened = Userfaultfd::open(Features::EVENT_REMOVE | Features::THREAD_ID).unwrap();
        opened.register(private.range(), RegisterMode::Missing).unwrap();
        userfaultfd = Some(opened);
    } else {
        for page in 0..CHILD_PAGES {
            private.write(page * PAGE_BYTES, &filled(u8::try_from(page + 1).unwrap()));
        }
    }
    let number = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&memfd.as_fd())).unwrap();
    let message = [private.range().start, shared.range().start, number].map(u64::to_ne_bytes).concat();
    let fds: Vec<BorrowedFd<'_>> =
        std::iter::once(memfd.as_fd()).chain(userfaultfd.iter().map(|fd| fd.as_fd())).collect();
    fd_passing::send(&control, &message, &fds).unwrap();
    let mut request = [0; 2];
    while (&control).read_exact(&mut request).is_ok() {
        let offset = usize::from(request[1]) * PAGE_BYTES;
        let answer = match request[0] {
            b'r' => private.touch(offset),
            b'w' => {
                private.touch_write(offset, 0xee);
                0
            }
            b'd' => {
                private.discard(offset, PAGE_BYTES, Discard::DontNeed).unwrap();
                0
            }
            other => other,
        };
        (&control).write_all(&[answer]).unwrap();
    }
}
