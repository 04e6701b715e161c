//! Hands the memory over by Firecracker's protocol: one message, a userfaultfd, the memory file.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use libc::c_int;
use rekindle_kernel::{FaultScope, Features, GuestRange, RegisterMode, Userfaultfd, fd_passing};

use crate::asked::Asked;
use crate::refusal::Refusal;

/// Descriptors that stay open until the program ends: without a userfaultfd its missing pages would read as zeroes, and
/// the handler takes the end of the stream for the end of the program.
static KEPT_OPEN: OnceLock<(Userfaultfd, UnixStream)> = OnceLock::new();

/// A mapping of the whole memory file.
#[derive(Clone, Copy)]
pub(crate) struct Mapped {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
    pub(crate) fd: c_int,
}

/// Registers the mapping and sends it to the handler; does not wait for the handler to receive it.
pub(crate) fn send(asked: &Asked, mapped: Mapped) -> Result<(), Refusal> {
    let (userfaultfd, mode) = open(asked)?;
    let range = GuestRange::new(mapped.start, mapped.bytes);
    userfaultfd.register(range, mode).map_err(|source| Refusal::NotRegistered { source })?;
    let sent = UnixStream::connect(&asked.socket).and_then(|stream| {
        // SAFETY: it is open: the program has just mapped it, in this very call.
        let memory = unsafe { BorrowedFd::borrow_raw(mapped.fd) };
        let fds = [userfaultfd.as_fd(), memory];
        // The handler has an image already, and it is not this program's memory.
        let sent = if asked.is_private { &fds[..1] } else { &fds[..] };
        fd_passing::send(&stream, message(mapped).as_bytes(), sent)?;
        Ok(stream)
    });
    let stream = sent.map_err(|source| Refusal::NotSent { socket: asked.socket.clone(), source })?;
    KEPT_OPEN.set((userfaultfd, stream)).map_err(|_| Refusal::Twice)
}

/// The best userfaultfd of this kernel for shared memory: with page-table scans for written pages, or with events for
/// them, or without either. A private mapping needs none of these: a written page is the program's own. The handler chooses a processor for its thread by the thread ids.
fn open(asked: &Asked) -> Result<(Userfaultfd, RegisterMode), Refusal> {
    let missing = Features::EVENT_REMOVE | Features::MISSING_SHMEM;
    if asked.is_private {
        let minor = missing | Features::MINOR_SHMEM;
        let opened = Userfaultfd::open(minor | Features::THREAD_ID).or_else(|_| Userfaultfd::open(minor));
        let userfaultfd = opened.map_err(|source| Refusal::NoUserfaultfd { source })?;
        return enough(&userfaultfd, asked.user_faults_suffice)
            .map(|()| (userfaultfd, RegisterMode::MissingAndMinor));
    }
    let events = missing | Features::PAGEFAULT_FLAG_WP | Features::WP_HUGETLBFS_SHMEM;
    let scans = events | Features::WP_UNPOPULATED | Features::WP_ASYNC;
    let protecting = RegisterMode::MissingAndWriteProtect;
    let ways = [
        (scans | Features::THREAD_ID, protecting),
        (scans, protecting),
        (events, protecting),
        (missing, RegisterMode::Missing),
    ];
    let mut refused = None;
    for (features, mode) in ways {
        match Userfaultfd::open(features) {
            Ok(userfaultfd) => {
                return enough(&userfaultfd, asked.user_faults_suffice).map(|()| (userfaultfd, mode));
            }
            Err(source) => refused = Some(Refusal::NoUserfaultfd { source }),
        }
    }
    Err(refused.expect("there are ways"))
}

/// Checks the scope: without the kernel's faults, a call fails if the kernel touches a missing page, for a disk or KVM.
fn enough(userfaultfd: &Userfaultfd, user_faults_suffice: bool) -> Result<(), Refusal> {
    match userfaultfd.scope() {
        Some(FaultScope::UserOnly) if !user_faults_suffice => Err(Refusal::UserFaultsOnly),
        Some(FaultScope::UserOnly | FaultScope::All) | None => Ok(()),
    }
}

/// One region: the whole file. Both names of the page size are in bytes.
fn message(mapped: Mapped) -> String {
    let Mapped { start, bytes, .. } = mapped;
    let pages = "\"page_size\":4096,\"page_size_kib\":4096";
    format!("[{{\"base_host_virt_addr\":{start},\"size\":{bytes},\"offset\":0,{pages}}}]")
}
