//! Opens a userfaultfd: from the device, from the system call, or for user-mode faults only.

use std::io;
use std::os::fd::OwnedFd;

use linux_raw_sys::general::{UFFD_API, UFFD_USER_MODE_ONLY, uffdio_api};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;

use super::{FaultScope, Features};
use crate::ioctl::{NewUserfaultfd, perform};
use crate::number::{size, wide};

/// Reason that no userfaultfd could be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No way to open one works for this process.
    #[error(
        "no userfaultfd: /dev/userfaultfd: {device}; system call: {call}; system call for user-mode faults only: \
         {user_only}. Give this user read and write access to /dev/userfaultfd, or CAP_SYS_PTRACE, or allow the \
         userfaultfd system call"
    )]
    Refused {
        /// The error of opening /dev/userfaultfd.
        device: io::Error,
        /// The error of the system call.
        call: io::Error,
        /// The error of the system call for user-mode faults only.
        user_only: io::Error,
    },
    /// This kernel lacks some of the requested features.
    #[error("this kernel's userfaultfd lacks {missing}; a newer kernel is needed for them")]
    Features {
        /// The features it lacks.
        missing: Features,
    },
    /// The kernel refused the handshake.
    #[error("the userfaultfd refused its first call: {0}")]
    Handshake(io::Error),
}

/// Opens one by the first of the three ways that works; the result has its scope, and no handshake yet.
pub(super) fn open_any() -> Result<(OwnedFd, FaultScope), OpenError> {
    let device = match open_device() {
        Ok(fd) => return Ok((fd, FaultScope::All)),
        Err(errno) => errno.into(),
    };
    let call = match open_call(UserfaultfdFlags::empty()) {
        Ok(fd) => return Ok((fd, FaultScope::All)),
        Err(errno) => errno.into(),
    };
    match open_call(UserfaultfdFlags::from_bits_retain(UFFD_USER_MODE_ONLY)) {
        Ok(fd) => Ok((fd, FaultScope::UserOnly)),
        Err(errno) => Err(OpenError::Refused { device, call, user_only: errno.into() }),
    }
}

fn open_device() -> Result<OwnedFd, Errno> {
    let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let request = NewUserfaultfd { flags: size(wide(flags.bits())) };
    // SAFETY: the ioctl takes a number and touches no memory.
    unsafe { rustix::ioctl::ioctl(&device, request) }
}

fn open_call(more: UserfaultfdFlags) -> Result<OwnedFd, Errno> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | more;
    // SAFETY: the call itself is safe; what the descriptor can do to memory is behind the methods of `Userfaultfd`.
    unsafe { rustix::mm::userfaultfd(flags) }
}

/// Agrees with the kernel on `features`, once in a descriptor's life; the result is all features of the kernel.
pub(super) fn handshake(fd: &OwnedFd, features: Features) -> Result<Features, OpenError> {
    let mut api = uffdio_api { api: wide(UFFD_API), features: features.bits(), ioctls: 0 };
    // SAFETY: the structure has no addresses in it.
    match unsafe { perform(fd, &mut api) } {
        Ok(()) => Ok(Features::of_bits(api.features)),
        Err(Errno::INVAL) if !features.is_empty() => Err(missing(features)),
        Err(errno) => Err(OpenError::Handshake(errno.into())),
    }
}

/// The refused `features` that the kernel lacks, found out by another descriptor.
fn missing(features: Features) -> OpenError {
    match super::Userfaultfd::offered() {
        Ok(offered) if !offered.contains(features) => {
            OpenError::Features { missing: features.without(offered) }
        }
        Ok(_) => OpenError::Handshake(Errno::INVAL.into()),
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Userfaultfd;

    #[test]
    fn features_that_no_kernel_has_are_named_in_the_error() {
        let unknown = Features::of_bits(1 << 60);
        match Userfaultfd::open(Features::EVENT_REMOVE | unknown) {
            Err(OpenError::Features { missing }) => assert!(missing.contains(unknown), "{missing}"),
            Err(error @ OpenError::Refused { .. }) => eprintln!("skipped: kernel: unknown features: {error}"),
            other => unreachable!("a bit without a meaning is refused: {other:?}"),
        }
    }

    #[test]
    fn a_second_handshake_is_refused() {
        match open_any() {
            Ok((fd, _)) => {
                handshake(&fd, Features::NONE).unwrap();
                assert!(matches!(handshake(&fd, Features::NONE), Err(OpenError::Handshake(_))));
            }
            Err(error) => eprintln!("skipped: kernel: second handshake: {error}"),
        }
    }

    #[test]
    fn a_refusal_says_what_was_tried_and_what_to_do() {
        let why = || io::Error::from(io::ErrorKind::PermissionDenied);
        let text = OpenError::Refused { device: why(), call: why(), user_only: why() }.to_string();
        assert!(
            text.contains("/dev/userfaultfd: permission denied") && text.contains("CAP_SYS_PTRACE"),
            "{text}"
        );
    }
}
