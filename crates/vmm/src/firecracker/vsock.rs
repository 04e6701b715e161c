//! The vsock device of a VM: connections to ports at which programs in its guest listen.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rekindle_kernel::wakeup::Wakeup;
use rustix::fs::{FileType, Mode, OFlags};

/// The name of the device's socket in the directory of its process. A saved state has the name, so each clone listens in
/// its own directory.
pub(super) const SOCKET: &str = "vsock.sock";

/// Address of each guest: clones have the same, which nobody else sees.
pub(super) const GUEST_CID: u32 = 3;

/// Longest time for a guest to take a connection.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of the answer to a request to connect: a word, and a number of 32 bits.
const ANSWER_BYTES_MAX: usize = 16;

/// The device of one process.
#[derive(Debug)]
pub struct Vsock {
    directory: PathBuf,
    /// Woken when the VM is saved, which ends all connections for its guest; another one from then on.
    saved: Mutex<Arc<Wakeup>>,
}

impl Vsock {
    pub(super) fn in_directory(directory: PathBuf) -> io::Result<Self> {
        Ok(Self { directory, saved: Mutex::new(Arc::new(Wakeup::new()?)) })
    }

    /// Connects to a port of the guest: the connection, and what is woken when it has ended for the guest.
    pub fn connect(&self, port: u32) -> io::Result<(UnixStream, Arc<Wakeup>)> {
        let saved = Arc::clone(&self.saved.lock().unwrap_or_else(PoisonError::into_inner));
        let mut stream = self.open()?;
        stream.set_read_timeout(Some(TAKEN_WITHIN))?;
        writeln!(stream, "CONNECT {port}")?;
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            let is_over = stream.read(&mut byte).map_err(in_words)? == 0 || answer.len() == ANSWER_BYTES_MAX;
            if is_over {
                let why = format!("no program in the guest listens at port {port}");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why));
            }
            answer.extend(byte);
        }
        if !answer.starts_with(b"OK ") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "Firecracker's answer is not `OK`"));
        }
        stream.set_read_timeout(None)?;
        Ok((stream, saved))
    }

    /// Connects to the device. A jailed process may have put anything in the socket's place.
    fn open(&self) -> io::Result<UnixStream> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket = rustix::fs::open(self.directory.join(SOCKET), flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{SOCKET} is no socket any more"),
            ));
        }
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd()))
    }

    /// Ends all connections: Firecracker ends them for the guest of a VM that is saved.
    pub(super) fn end_connections(&self) -> io::Result<()> {
        let next = Arc::new(Wakeup::new()?);
        std::mem::replace(&mut *self.saved.lock().unwrap_or_else(PoisonError::into_inner), next).wake();
        Ok(())
    }
}

fn in_words(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return error;
    }
    let why = format!("the guest does not take the connection within {TAKEN_WITHIN:?}");
    io::Error::new(io::ErrorKind::TimedOut, why)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answered(answer: &'static [u8]) -> io::Result<(UnixStream, Arc<Wakeup>)> {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(SOCKET)).unwrap();
        let device = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            stream.write_all(answer).unwrap();
            asked
        });
        let connected = Vsock::in_directory(directory.path().to_owned()).unwrap().connect(52);
        assert_eq!(device.join().unwrap(), "CONNECT 52\n");
        connected
    }

    #[test]
    fn a_connection_begins_behind_the_answer_and_one_that_nobody_takes_is_refused() {
        let (mut stream, _saved) = answered(b"OK 1073741824\nhello").unwrap();
        let mut first = String::new();
        stream.read_to_string(&mut first).unwrap();
        assert_eq!(first, "hello");
        assert!(answered(b"").unwrap_err().to_string().contains("listens at port 52"));
        assert_eq!(
            answered(b"something that is longer than any").unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
