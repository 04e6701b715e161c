//! Waits on several descriptors at once, and wakes a thread that waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;

/// An eventfd: readable from `wake` until `clear`.
#[derive(Debug)]
pub struct Wakeup(OwnedFd);

/// State of one descriptor after a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read, or an error or an end of file that reading reports.
    pub readable: bool,
    /// The other side is gone: it closed its end, or the descriptor can only fail from now on.
    pub hung_up: bool,
}

impl Wakeup {
    /// A wake-up that is not signalled yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable; never blocks. Waking it twice is the same as once.
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

/// Waits until one of `fds` is readable or hung up, or `limit` is over (`None`: no limit). After an interrupted wait
/// nothing is ready. `None` among the descriptors is never ready.
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

/// A set of `N` descriptors that one thread waits on again and again: the kernel gets the set once, not at every wait
/// as with [`wait_readable`].
///
/// A descriptor that is closed everywhere is never ready again; the set does not own any.
#[derive(Debug)]
pub struct WaitSet<const N: usize> {
    epoll: OwnedFd,
}

impl<const N: usize> WaitSet<N> {
    /// A set of `fds`; the answers of [`Self::wait`] are in the same order.
    pub fn new(fds: [BorrowedFd<'_>; N]) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        for (position, fd) in (0..).zip(fds) {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(position), flags)?;
        }
        Ok(Self { epoll })
    }

    /// Removes `fd` from the set: it is never ready again.
    pub fn leave_out(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until a descriptor is readable or hung up, or `limit` is over (`None`: no limit). After an interrupted
    /// wait nothing is ready.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<[Readiness; N]> {
        let limit =
            limit.map(|limit| Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }));
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut found = [nothing; N];
        let count = match epoll::wait(&self.epoll, &mut found, limit.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut answers = [Readiness { readable: false, hung_up: false }; N];
        for event in &found[..count] {
            let (position, flags) = (event.data.u64(), event.flags);
            let gone = epoll::EventFlags::HUP | epoll::EventFlags::RDHUP | epoll::EventFlags::ERR;
            let answer = usize::try_from(position).ok().and_then(|position| answers.get_mut(position));
            *answer.expect("the kernel gives back the positions it was given") = Readiness {
                readable: flags.intersects(epoll::EventFlags::IN | gone),
                hung_up: flags.intersects(gone),
            };
        }
        Ok(answers)
    }
}

/// Waits until any of `fds` is readable or hung up, or `limit` is over (`None`: no limit); an interrupted wait returns.
pub fn wait_any(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let flags = PollFlags::IN | PollFlags::RDHUP;
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, flags)).collect();
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match rustix::event::poll(&mut polled, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
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
    fn a_set_answers_for_each_of_its_descriptors_until_it_is_left_out() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let wakeup = Wakeup::new().unwrap();
        let set = WaitSet::new([wakeup.as_fd(), there.as_fd()]).unwrap();
        assert_eq!(set.wait(AT_ONCE).unwrap(), [IDLE, IDLE]);
        here.write_all(b"x").unwrap();
        let written = Readiness { readable: true, hung_up: false };
        assert_eq!(set.wait(None).unwrap(), [IDLE, written]);
        assert_eq!(set.wait(None).unwrap(), [IDLE, written], "it is readable until it is read");
        drop(here);
        wakeup.wake();
        assert_eq!(set.wait(None).unwrap(), [written, Readiness { readable: true, hung_up: true }]);
        set.leave_out(there.as_fd()).unwrap();
        assert_eq!(set.wait(AT_ONCE).unwrap(), [written, IDLE]);
        wakeup.clear();
        assert_eq!(set.wait(Some(Duration::from_millis(1))).unwrap(), [IDLE, IDLE]);
        assert!(set.leave_out(there.as_fd()).is_err(), "it is not in the set any more");
    }

    #[test]
    fn a_set_never_has_a_closed_descriptor_ready() {
        let (here, there) = UnixStream::pair().unwrap();
        let set = WaitSet::new([there.as_fd()]).unwrap();
        drop((here, there));
        assert_eq!(set.wait(AT_ONCE).unwrap(), [IDLE]);
    }

    #[test]
    fn any_of_many_ends_a_wait() {
        let wakeups: Vec<_> = (0..300).map(|_| Wakeup::new().unwrap()).collect();
        wakeups[299].wake();
        let fds: Vec<_> = wakeups.iter().map(|wakeup| wakeup.as_fd()).collect();
        wait_any(&fds, None).unwrap();
        wait_any(&fds[..299], AT_ONCE).unwrap();
        wait_any(&[], AT_ONCE).unwrap();
    }

    #[test]
    fn a_wait_on_nothing_is_refused() {
        assert!(wait_readable([None, None], AT_ONCE).is_err());
    }
}
