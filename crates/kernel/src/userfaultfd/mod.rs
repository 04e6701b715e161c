//! Userfaultfd, to serve another process's page faults: registration, installs, protection, events.

mod features;
mod granted;
mod install;
mod open;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::event_buffer::{EVENT_BYTES, EventBuffer};
use crate::guest_range::GuestRange;
use crate::ioctl::{Unregister, Wake, perform};
use crate::number::{wide, word};
use crate::source::Source;

pub use features::{Features, RegisteredIoctls};
pub use install::Install;
pub use open::OpenError;

/// An owned, non-blocking userfaultfd. Its calls act on the process that opened it, whichever process holds it.
///
/// When the last descriptor closes, faults that would have been served read zeroes, silently.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    scope: Option<FaultScope>,
}

/// Faults that a userfaultfd receives: all, or only those of user mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultScope {
    /// Also those of the kernel, for instance if KVM or a system call touches the memory.
    All,
    /// Those of user-mode code only; a system call that meets a missing page fails with EFAULT.
    UserOnly,
}

/// Faults to be reported for a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterMode {
    /// Faults for pages that are missing.
    Missing,
    /// Also protection against writes.
    MissingAndWriteProtect,
    /// Also faults for pages that are in the file and not mapped.
    MissingAndMinor,
}

/// Protection of installed pages: writable at once, or protected against the first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protect {
    /// Writes are not tracked.
    Writable,
    /// The first write is tracked.
    Protected,
}

/// Reason that a descriptor that was handed over cannot serve faults.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is something else.
    #[error("not a userfaultfd but {found}")]
    NotUserfaultfd {
        /// Its kind, as /proc has it.
        found: String,
    },
    /// It cannot be inspected or set up.
    #[error("cannot be set up: {0}")]
    Io(#[from] io::Error),
}

/// UFFDIO_CONTINUE_MODE_WP (linux/userfaultfd.h).
const CONTINUE_MODE_WP: u64 = 2;

/// UFFDIO_WRITEPROTECT_MODE_WP (linux/userfaultfd.h).
const WRITEPROTECT_MODE_WP: u64 = 1;

impl Userfaultfd {
    /// Opens one for this process's memory with exactly `features`, for kernel-mode faults too where that is allowed.
    pub fn open(features: Features) -> Result<Self, OpenError> {
        let (fd, scope) = open::open_any()?;
        open::handshake(&fd, features)?;
        Ok(Self { fd, scope: Some(scope) })
    }

    /// The features that this kernel has.
    pub fn offered() -> Result<Features, OpenError> {
        let (fd, _) = open::open_any()?;
        open::handshake(&fd, Features::NONE)
    }

    /// Takes over a descriptor that another process has opened and done the handshake on.
    pub fn adopt(fd: OwnedFd) -> Result<Self, AdoptError> {
        let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if target.as_os_str() != "anon_inode:[userfaultfd]" {
            return Err(AdoptError::NotUserfaultfd { found: target.display().to_string() });
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(io::Error::from)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        Ok(Self { fd, scope: None })
    }

    /// Another handle of the same userfaultfd.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, scope: self.scope })
    }

    /// The faults it receives; unknown for a descriptor that another process opened.
    pub fn scope(&self) -> Option<FaultScope> {
        self.scope
    }

    /// Registers whole mappings or parts of them; the result is the operations that they offer.
    pub fn register(&self, range: GuestRange, mode: RegisterMode) -> io::Result<RegisteredIoctls> {
        let missing = wide(raw::UFFDIO_REGISTER_MODE_MISSING);
        let mode = match mode {
            RegisterMode::Missing => missing,
            RegisterMode::MissingAndWriteProtect => missing | wide(raw::UFFDIO_REGISTER_MODE_WP),
            RegisterMode::MissingAndMinor => missing | wide(raw::UFFDIO_REGISTER_MODE_MINOR),
        };
        let mut argument = raw::uffdio_register { range: range.into(), mode, ioctls: 0 };
        // SAFETY: the range is of the served process; registering changes none of its bytes.
        unsafe { perform(&self.fd, &mut argument) }?;
        Ok(RegisteredIoctls::of_bits(argument.ioctls))
    }

    /// Unregisters a range and wakes its waiters; from then on its missing pages read as zeroes.
    pub fn unregister(&self, range: GuestRange) -> io::Result<()> {
        // SAFETY: the range is of the served process; unregistering changes none of its bytes.
        Ok(unsafe { perform(&self.fd, &mut Unregister(range.into())) }?)
    }

    /// Installs the bytes of `from` at `to` and wakes their waiters.
    #[inline]
    pub fn copy(&self, to: u64, from: Source<'_>, protect: Protect) -> Install {
        let mode = match protect {
            Protect::Writable => 0,
            Protect::Protected => wide(raw::UFFDIO_COPY_MODE_WP),
        };
        let len = word(from.bytes());
        let mut argument = raw::uffdio_copy { dst: to, src: word(from.address()), len, mode, copy: 0 };
        // SAFETY: only pages that are missing are filled, so no reference to them exists; the source is readable for
        // its lifetime, and the kernel answers EFAULT where it is not.
        let result = unsafe { perform(&self.fd, &mut argument) };
        Install::of(result, argument.copy, len)
    }

    /// Installs zero pages, writable, and wakes their waiters.
    #[inline]
    pub fn zero(&self, range: GuestRange) -> Install {
        let mut argument = raw::uffdio_zeropage { range: range.into(), mode: 0, zeropage: 0 };
        // SAFETY: only pages that are missing are filled.
        let result = unsafe { perform(&self.fd, &mut argument) };
        Install::of(result, argument.zeropage, range.bytes)
    }

    /// Maps pages that the memory file has already, and wakes their waiters; `SourceLost` if it has none.
    pub fn continue_shared(&self, range: GuestRange, protect: Protect) -> Install {
        let mode = match protect {
            Protect::Writable => 0,
            Protect::Protected => CONTINUE_MODE_WP,
        };
        let mut argument = raw::uffdio_continue { range: range.into(), mode, mapped: 0 };
        // SAFETY: only pages that are not mapped are mapped.
        let result = unsafe { perform(&self.fd, &mut argument) };
        Install::of(result, argument.mapped, range.bytes)
    }

    /// Makes missing pages fail with SIGBUS when they are used, and wakes their waiters.
    pub fn poison(&self, range: GuestRange) -> Install {
        let mut argument = raw::uffdio_poison { range: range.into(), mode: 0, updated: 0 };
        // SAFETY: only pages that are missing are marked.
        let result = unsafe { perform(&self.fd, &mut argument) };
        Install::of(result, argument.updated, range.bytes)
    }

    /// Protects pages against writes, or lifts their protection and wakes the threads that wait to write them.
    #[inline]
    pub fn write_protect(&self, range: GuestRange, protect: Protect) -> io::Result<()> {
        let mode = match protect {
            Protect::Writable => 0,
            Protect::Protected => WRITEPROTECT_MODE_WP,
        };
        let mut argument = raw::uffdio_writeprotect { range: range.into(), mode };
        // SAFETY: protection changes no bytes.
        Ok(unsafe { perform(&self.fd, &mut argument) }?)
    }

    /// Wakes all threads that wait in the range; those whose page is still missing fault again.
    #[inline]
    pub fn wake(&self, range: GuestRange) -> io::Result<()> {
        // SAFETY: waking changes no bytes.
        Ok(unsafe { perform(&self.fd, &mut Wake(range.into())) }?)
    }

    /// Reads as many events as there are and fit, in one non-blocking read; the result is their number, often 0.
    #[inline]
    pub fn read_events(&self, into: &mut EventBuffer) -> io::Result<usize> {
        let (address, bytes) = into.target();
        // SAFETY: the buffer has that many writable bytes, and is borrowed mutably.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), address.cast(), bytes) };
        match usize::try_from(read) {
            Ok(read) => Ok(read / EVENT_BYTES),
            Err(_) => match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::AGAIN | Errno::INTR) => Ok(0),
                Some(errno) => Err(errno.into()),
                None => Err(io::ErrorKind::Other.into()),
            },
        }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Userfaultfd> for OwnedFd {
    fn from(userfaultfd: Userfaultfd) -> Self {
        userfaultfd.fd
    }
}

impl From<GuestRange> for raw::uffdio_range {
    fn from(range: GuestRange) -> Self {
        Self { start: range.start, len: range.bytes }
    }
}
