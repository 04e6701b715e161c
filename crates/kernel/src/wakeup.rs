//! Waiting on several descriptors at once, and waking a thread that waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// An eventfd: readable from `wake` until `clear`.
#[derive(Debug)]
pub struct Wakeup(OwnedFd);

/// What one descriptor has to say after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read, or an error or end-of-file to find out about by reading.
    pub readable: bool,
    /// The other side is gone: it closed its end, or the descriptor can only fail from now on.
    pub hung_up: bool,
}

impl Wakeup {
    /// A wake-up nobody asked for yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable; never blocks, and waking twice is waking once.
    pub fn wake(&self) {
        // EAGAIN means that the counter is full: the descriptor is readable already.
        let written = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        debug_assert!(matches!(written, Ok(8) | Err(Errno::AGAIN)), "an eventfd takes 8 bytes: {written:?}");
    }

    /// Forgets every wake so far.
    pub fn clear(&self) {
        let mut count = [0; 8];
        let read = rustix::io::read(&self.0, &mut count);
        debug_assert!(matches!(read, Ok(8) | Err(Errno::AGAIN)), "an eventfd gives 8 bytes: {read:?}");
    }
}

impl AsFd for Wakeup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` is readable or hung up, or `limit` is over (`None`: no limit). An interrupted wait
/// answers that nothing is ready. `None` among the descriptors is never ready.
pub fn wait_readable<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    limit: Option<Duration>,
) -> io::Result<[Readiness; N]> {
    // A negative descriptor is skipped by poll(2); `None` is expressed by asking for nothing of a live one.
    let flags = PollFlags::IN | PollFlags::RDHUP;
    let Some(any) = fds.iter().flatten().next().copied() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a wait needs a descriptor"));
    };
    let mut polled = fds.map(|fd| match fd {
        Some(fd) => PollFd::from_borrowed_fd(fd, flags),
        None => PollFd::from_borrowed_fd(any, PollFlags::empty()),
    });
    let limit =
        limit.map(|limit| Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
    match rustix::event::poll(&mut polled, limit.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => polled.iter_mut().for_each(PollFd::clear_revents),
        Err(error) => return Err(error.into()),
    }
    let mut at = 0;
    Ok(polled.map(|fd| {
        let asked = fds[at].is_some();
        at += 1;
        let events = fd.revents();
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL;
        Readiness {
            readable: asked && events.intersects(PollFlags::IN | gone),
            hung_up: asked && events.intersects(gone),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const AT_ONCE: Option<Duration> = Some(Duration::ZERO);
    const IDLE: Readiness = Readiness { readable: false, hung_up: false };

    #[test]
    fn a_wake_is_seen_until_it_is_cleared() {
        let wakeup = Wakeup::new().unwrap();
        assert_eq!(wait_readable([Some(wakeup.as_fd())], AT_ONCE).unwrap(), [IDLE]);
        wakeup.wake();
        wakeup.wake();
        assert!(wait_readable([Some(wakeup.as_fd())], None).unwrap()[0].readable);
        wakeup.clear();
        wakeup.clear();
        assert_eq!(wait_readable([Some(wakeup.as_fd())], AT_ONCE).unwrap(), [IDLE]);
    }

    #[test]
    fn a_wake_ends_a_wait_of_another_thread() {
        let wakeup = Wakeup::new().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait_readable([Some(wakeup.as_fd())], None).unwrap());
            wakeup.wake();
            assert!(waiting.join().unwrap()[0].readable);
        });
    }

    #[test]
    fn each_descriptor_answers_for_itself() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let wakeup = Wakeup::new().unwrap();
        here.write_all(b"x").unwrap();
        let answers = wait_readable([Some(wakeup.as_fd()), None, Some(there.as_fd())], None).unwrap();
        assert_eq!(answers, [IDLE, IDLE, Readiness { readable: true, hung_up: false }]);
        drop(here);
        assert!(wait_readable([Some(there.as_fd())], None).unwrap()[0].hung_up);
    }

    #[test]
    fn a_wait_on_nothing_is_refused() {
        assert!(wait_readable([None, None], AT_ONCE).is_err());
    }
}
