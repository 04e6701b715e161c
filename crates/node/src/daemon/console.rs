//! A sandbox's serial console: the last output of its guests, and the way to type there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rekindle_api::limits::CONSOLE_BYTES_MAX;
use rekindle_api::types::ConsoleOutput;
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use rekindle_vmm::serial_line::SerialLine;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use uuid::Uuid;

/// Longest time for a guest to read typed text before that is given up.
const TYPED_WITHIN: Duration = Duration::from_secs(10);

/// The console of one sandbox, over all guests it has had since the daemon started.
#[derive(Debug, Default)]
pub(super) struct Console {
    shared: Arc<Shared>,
    /// The guest whose serial line is read now, by a thread.
    line: Mutex<Option<Line>>,
}

#[derive(Debug, Default)]
struct Shared {
    printed: Mutex<Printed>,
    changed: Condvar,
}

/// The last bytes that were printed.
#[derive(Debug, Default)]
struct Printed {
    bytes: VecDeque<u8>,
    /// Number of bytes printed in all.
    end: u64,
}

/// One guest's serial line.
#[derive(Debug)]
struct Line {
    guest: Uuid,
    input: Arc<OwnedFd>,
    over: Arc<Wakeup>,
    reader: Option<JoinHandle<()>>,
}

impl Console {
    /// Reads the serial line of `guest` from now on, unless it is read already.
    pub(super) fn follow(&self, guest: Uuid, serial: SerialLine) -> io::Result<()> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.as_ref().is_some_and(|line| line.guest == guest) {
            return Ok(());
        }
        let SerialLine { output, input } = serial;
        for end in [&output, &input] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        let over = Arc::new(Wakeup::new()?);
        let (shared, end) = (Arc::clone(&self.shared), Arc::clone(&over));
        let reader = std::thread::Builder::new()
            .name("console".into())
            .spawn(move || shared.take_all(&output, &end))?;
        *line = Some(Line { guest, input: Arc::new(input), over, reader: Some(reader) });
        Ok(())
    }

    /// The output from `from` on; waits for it at most `limit`.
    pub(super) fn read(&self, from: Option<u64>, limit: Duration) -> ConsoleOutput {
        let printed = self.shared.lock();
        let is_missing = |printed: &mut Printed| {
            from.is_none_or(|from| from >= printed.end) && {
                // A read without a position gets all known output.
                from.is_some() || printed.bytes.is_empty()
            }
        };
        let waited = self.shared.changed.wait_timeout_while(printed, limit, is_missing);
        let (printed, _) = waited.unwrap_or_else(PoisonError::into_inner);
        printed.since(from)
    }

    /// Types at the guest whose output is read here; an error without such a guest, or if it does not read.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let input = {
            let line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
            let line = line.as_ref().ok_or(io::ErrorKind::NotConnected)?;
            Arc::clone(&line.input)
        };
        let until = Instant::now() + TYPED_WITHIN;
        let mut left = bytes;
        while !left.is_empty() {
            match rustix::io::write(&*input, left) {
                Ok(count) => left = &left[count..],
                Err(Errno::AGAIN) => wait_writable(&input, until)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Printed> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the guest prints until its line ends or that is `over`.
    fn take_all(&self, output: &OwnedFd, over: &Wakeup) {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let waited = wait_readable([Some(output.as_fd()), Some(over.as_fd())], None);
            let Ok([line, end]) = waited else { return };
            if end.readable {
                return;
            }
            match rustix::io::read(output, &mut bytes) {
                Ok(0) => return,
                Ok(count) => {
                    self.lock().add(&bytes[..count]);
                    self.changed.notify_all();
                }
                Err(Errno::AGAIN | Errno::INTR) if !line.hung_up => {}
                Err(_) => return,
            }
        }
    }
}

impl Printed {
    fn add(&mut self, bytes: &[u8]) {
        let bytes_count = u64::try_from(bytes.len()).expect("usize is 64 bits");
        self.end += bytes_count;
        self.bytes.extend(bytes);
        let surplus = self.bytes.len().saturating_sub(CONSOLE_BYTES_MAX);
        self.bytes.drain(..surplus);
    }

    fn since(&self, from: Option<u64>) -> ConsoleOutput {
        let known = u64::try_from(self.bytes.len()).expect("usize is 64 bits");
        let start = self.end - known;
        let from = from.unwrap_or(start).clamp(start, self.end);
        let skip = usize::try_from(from - start).expect("it is in memory");
        let bytes: Vec<u8> = self.bytes.iter().skip(skip).copied().collect();
        ConsoleOutput { from, next: self.end, bytes: BASE64_STANDARD.encode(bytes) }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.over.wake();
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

fn wait_writable(input: &OwnedFd, until: Instant) -> io::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut polled = [PollFd::new(input, PollFlags::OUT)];
    match rustix::event::poll(&mut polled, Some(&left)) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not read what is typed")),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn line_of(socket: &UnixStream) -> SerialLine {
        SerialLine::of_socket(socket.as_fd()).expect("a descriptor is free")
    }

    fn text(output: &ConsoleOutput) -> String {
        String::from_utf8(BASE64_STANDARD.decode(&output.bytes).expect("it is base64")).expect("it is text")
    }

    #[test]
    fn what_is_printed_is_read_from_any_place_on_over_several_guests() {
        let console = Console::default();
        for (guest, said) in [(1, "first\n"), (2, "second\n")] {
            let (ours, theirs) = UnixStream::pair().expect("a pair");
            console.follow(Uuid::from_u128(guest), line_of(&ours)).expect("it is followed");
            let before = console.read(None, Duration::ZERO).next;
            rustix::io::write(&theirs, said.as_bytes()).expect("printed");
            let output = console.read(Some(before), Duration::from_secs(60));
            assert_eq!((output.from, text(&output)), (before, said.to_owned()));
        }
        assert_eq!(text(&console.read(None, Duration::ZERO)), "first\nsecond\n");
        assert_eq!(text(&console.read(Some(3), Duration::ZERO)), "st\nsecond\n");
        let nothing = console.read(Some(1000), Duration::ZERO);
        assert_eq!((nothing.from, nothing.next, text(&nothing)), (13, 13, String::new()));
    }

    #[test]
    fn only_the_last_bytes_are_known_and_the_place_says_so() {
        let mut printed = Printed::default();
        for _ in 0..40 {
            printed.add(&[b'x'; 10_000]);
        }
        let output = printed.since(Some(7));
        let known = u64::try_from(CONSOLE_BYTES_MAX).expect("it is small");
        assert_eq!((output.from, output.next), (400_000 - known, 400_000));
    }

    #[test]
    fn typing_reaches_the_guest_and_a_sandbox_without_one_says_so() {
        let console = Console::default();
        assert_eq!(console.write(b"x").expect_err("nobody").kind(), io::ErrorKind::NotConnected);
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        console.follow(Uuid::nil(), line_of(&ours)).expect("it is followed");
        console.write(b"tick\n").expect("typed");
        let mut read = [0; 5];
        rustix::io::read(&theirs, &mut read).expect("read");
        assert_eq!(&read, b"tick\n");
    }
}
