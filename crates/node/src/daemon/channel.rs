//! Connections to the channel of a sandbox's guest.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use rekindle_kernel::wakeup::Wakeup;
use rekindle_vmm::firecracker::Vsock;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Bytes that are carried at once, each way.
const BYTES_AT_ONCE: usize = 64 << 10;

/// The channel to a guest's agent, as its VMM has it.
#[derive(Clone, Debug)]
pub(super) enum GuestChannel {
    /// A port, which is one stream: our end of it.
    Port(Arc<UnixStream>),
    /// Ports at which programs in the guest listen.
    Vsock(Arc<Vsock>),
}

/// The connections to a sandbox's channel.
#[derive(Debug, Default)]
pub(super) struct Channel {
    port: Mutex<Option<Connection>>,
    vsock: Mutex<Vec<Connection>>,
}

/// A thread that carries bytes between a client and a guest; it ends when this is dropped.
#[derive(Debug)]
struct Connection {
    guest: Weak<UnixStream>,
    over: Arc<Wakeup>,
    carrier: Option<JoinHandle<()>>,
}

impl Channel {
    /// Connects to a port at which a program in the guest listens.
    pub(super) fn connect_to(&self, vsock: &Vsock, port: u32) -> io::Result<UnixStream> {
        let (guest, saved) = vsock.connect(port)?;
        let (stream, client) = UnixStream::pair()?;
        let connection = Connection::start(Arc::new(guest), client, Some(saved))?;
        let mut connections = self.vsock.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| !connection.has_ended());
        connections.push(connection);
        Ok(stream)
    }

    /// Connects to the guest's only port: the bytes of what it gives are the guest's. None where another client is connected, which
    /// `takes_over` ends.
    pub(super) fn connect(&self, guest: Arc<UnixStream>, takes_over: bool) -> io::Result<Option<UnixStream>> {
        let mut connection = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        let is_taken = connection.as_ref().is_some_and(|other| other.is_to(&guest));
        if is_taken && !takes_over {
            return Ok(None);
        }
        // The other one ends before this one reads what it does not.
        drop(connection.take());
        let (stream, client) = UnixStream::pair()?;
        *connection = Some(Connection::start(guest, client, None)?);
        Ok(Some(stream))
    }
}

impl Connection {
    fn start(guest: Arc<UnixStream>, client: UnixStream, saved: Option<Arc<Wakeup>>) -> io::Result<Self> {
        for side in [&client, &guest] {
            side.set_nonblocking(true)?;
        }
        let over = Arc::new(Wakeup::new()?);
        let connected = Arc::downgrade(&guest);
        let carried = Carrier {
            client,
            guest,
            over: Arc::clone(&over),
            saved: saved.unwrap_or_else(|| Arc::clone(&over)),
            to_guest: Vec::new(),
            to_client: Vec::new(),
            has_ended: false,
        };
        let carrier = std::thread::Builder::new().name("channel".into()).spawn(move || carried.run())?;
        Ok(Self { guest: connected, over, carrier: Some(carrier) })
    }

    /// True if it is a connection to this guest that has not ended.
    fn is_to(&self, guest: &Arc<UnixStream>) -> bool {
        let is_same = Weak::ptr_eq(&self.guest, &Arc::downgrade(guest));
        is_same && !self.has_ended()
    }

    fn has_ended(&self) -> bool {
        self.carrier.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.over.wake();
        if let Some(carrier) = self.carrier.take() {
            drop(carrier.join());
        }
    }
}

/// The two sides of a connection, and bytes that one has given and the other has not taken.
struct Carrier {
    client: UnixStream,
    guest: Arc<UnixStream>,
    over: Arc<Wakeup>,
    /// Woken when the VMM saves its guest, if that ends the connection.
    saved: Arc<Wakeup>,
    to_guest: Vec<u8>,
    to_client: Vec<u8>,
    /// The VMM is gone: it takes nothing more, and what it gave is still to be taken.
    has_ended: bool,
}

impl Carrier {
    fn run(mut self) {
        let carried = loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => break self.finish(),
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = carried {
            tracing::debug!(%error, "a connection to a guest's channel broke");
        }
    }

    /// Waits until something can be carried, and carries it; false at the end of either side.
    fn turn(&mut self) -> io::Result<bool> {
        let (has_input, has_output) = (!self.to_guest.is_empty(), !self.to_client.is_empty());
        let flag = |wanted: bool, flag| if wanted { flag } else { PollFlags::empty() };
        let client = flag(!has_input, PollFlags::IN) | flag(has_output, PollFlags::OUT);
        let guest = flag(!has_output, PollFlags::IN) | flag(has_input, PollFlags::OUT);
        // A hang-up is told whatever is asked for: nothing is asked of a side that there is nothing to do with.
        let guest = match guest.is_empty() {
            true => PollFd::new(&*self.over, guest),
            false => PollFd::new(&*self.guest, guest),
        };
        let [over, saved] = [&self.over, &self.saved].map(|end| PollFd::new(&**end, PollFlags::IN));
        let mut polled = [over, saved, PollFd::new(&self.client, client), guest];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => return Ok(true),
            waited => waited?,
        };
        let [over, saved, client, _] = polled.map(|fd| fd.revents());
        let is_over =
            !over.is_empty() || !saved.is_empty() || client.intersects(PollFlags::HUP | PollFlags::ERR);
        if is_over || !self.take_input()? {
            return Ok(false);
        }
        self.give_input();
        let goes_on = self.to_client.is_empty().then(|| take(&self.guest, &mut self.to_client));
        give(&self.client, &mut self.to_client)?;
        goes_on.unwrap_or(Ok(true))
    }

    /// False at the end of what the client sends.
    fn take_input(&mut self) -> io::Result<bool> {
        if self.to_guest.is_empty() && !self.has_ended {
            take(&self.client, &mut self.to_guest)
        } else {
            Ok(true)
        }
    }

    /// Bytes that a VMM has not taken when it ends are lost with it.
    fn give_input(&mut self) {
        if give(&self.guest, &mut self.to_guest).is_err() {
            self.to_guest.clear();
            self.has_ended = true;
        }
    }

    /// Gives the guest what its client sent before the end, as far as there is room.
    fn finish(mut self) -> io::Result<()> {
        loop {
            self.give_input();
            if self.has_ended || !self.to_guest.is_empty() || !self.take_input()? || self.to_guest.is_empty()
            {
                return Ok(());
            }
        }
    }
}

/// Takes what one side has given, if it is something; false at its end.
fn take(mut from: &UnixStream, into: &mut Vec<u8>) -> io::Result<bool> {
    into.resize(BYTES_AT_ONCE, 0);
    let taken = from.read(into);
    into.truncate(taken.as_ref().map_or(0, |count| *count));
    match taken {
        Ok(count) => Ok(count > 0),
        Err(error) => unless_busy(error).map(|()| true),
    }
}

/// Gives bytes to one side, as many as fit.
fn give(mut to: &UnixStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(count) => drop(bytes.drain(..count)),
            Err(error) => return unless_busy(error),
        }
    }
    Ok(())
}

/// Nothing where the other side only has to be waited for.
fn unless_busy(error: io::Error) -> io::Result<()> {
    let is_busy = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
    if is_busy { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A channel with the VMM's end of it.
    fn channel() -> (Arc<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (Arc::new(ours), theirs)
    }

    fn read_line(mut from: &UnixStream) -> Vec<u8> {
        let mut line = vec![0; 5];
        from.read_exact(&mut line).expect("it comes");
        line
    }

    #[test]
    fn one_client_at_a_time_is_connected_and_what_the_last_one_sent_comes_before_its_end() {
        let (guest, mut vmm) = channel();
        vmm.write_all(b"early").expect("it fits");
        let seat = Channel::default();
        let mut first = seat.connect(Arc::clone(&guest), false).expect("it can be").expect("it is free");
        assert_eq!(read_line(&first), b"early", "nobody was connected when it was written");
        assert!(seat.connect(Arc::clone(&guest), false).expect("it can be").is_none());
        first.write_all(b"first").expect("it fits");
        let second = seat.connect(Arc::clone(&guest), true).expect("it can be").expect("it takes over");
        assert_eq!(first.read(&mut [0; 8]).expect("it ended"), 0);
        assert_eq!(read_line(&vmm), b"first");
        vmm.write_all(b"later").expect("it fits");
        assert_eq!(read_line(&second), b"later");
        let (other, _vmm) = channel();
        assert!(
            seat.connect(other, false).expect("it can be").is_some(),
            "another guest has another channel"
        );
    }

    #[test]
    fn what_a_guest_wrote_before_its_end_comes_before_that_of_the_connection() {
        let (guest, mut vmm) = channel();
        let seat = Channel::default();
        let mut client = seat.connect(guest, false).expect("it can be").expect("it is free");
        client.write_all(&[b'x'; 4096]).expect("it fits");
        let written = vec![b'y'; 1 << 20];
        let read = std::thread::scope(|scope| {
            scope.spawn(|| {
                vmm.write_all(&written).expect("it is read");
                drop(vmm);
            });
            let mut read = Vec::new();
            client.read_to_end(&mut read).map(|_| read)
        });
        assert!(read.expect("it ends") == written);
    }

    #[test]
    fn a_client_that_left_its_guest_bytes_without_room_does_not_keep_its_place() {
        let (guest, _vmm) = channel();
        let seat = Channel::default();
        let client = seat.connect(Arc::clone(&guest), false).expect("it can be").expect("it is free");
        client.set_nonblocking(true).expect("it can be");
        while (&client).write(&[b'x'; 4096]).is_ok() {}
        drop(client);
        while seat.connect(Arc::clone(&guest), false).expect("it can be").is_none() {
            std::thread::yield_now();
        }
    }
}
