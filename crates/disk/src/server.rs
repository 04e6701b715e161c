//! One disk of a running guest: its socket, the threads that answer there, and its stop for a pause.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;

use rekindle_engine::fetch::Fetcher;
use rekindle_engine::identity::VolumeName;
use rekindle_engine::pause::PausedVolume;
use rekindle_engine::view::LiveView;
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::AsFd as _;

use super::access::Access;
use super::cold::Cold;
use super::connection;
use super::content::Content;
use super::gate::Gate;
use super::limits;
use super::overlay::Overlay;
use super::served::ServedDisk;
use super::stats::{DiskCounters, DiskStats};

/// Sources that a disk is served from.
#[derive(Debug)]
pub struct DiskSource {
    /// The volume the guest runs on; none where the disk was nothing but zeroes.
    pub base: Option<Arc<LiveView>>,
    /// Fetches its cold pages.
    pub fetcher: Fetcher,
    /// The guest's writes since.
    pub overlay: Overlay,
    /// Bytes of the disk, whole sectors; the overlay has the pages they take.
    pub bytes: u64,
    /// The guest's right to write.
    pub access: Access,
}

/// One disk of a running guest, served over NBD at a unix socket by threads of its own. Dropping it ends them.
#[derive(Debug)]
pub struct Disk {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    /// Device and inode of the socket, to remove no other's.
    socket: Option<(u64, u64)>,
}

/// A disk that stands still: no request is half done, and none is begun before [`Self::thaw`], even if this is dropped.
#[derive(Debug)]
#[must_use = "a frozen disk stays so until it is told to go on"]
pub struct Frozen<'a>(&'a Disk);

/// Counts of a disk, also after its end, and a way to see if it gets its pages. It keeps nothing of it alive.
#[derive(Clone, Debug)]
pub struct DiskWatch {
    counters: Arc<DiskCounters>,
    served: Weak<Shared>,
}

/// State shared by the threads of one disk.
#[derive(Debug)]
struct Shared {
    disk: ServedDisk,
    ending: Wakeup,
    open: Mutex<Open>,
}

/// The connections, each with its thread.
#[derive(Debug, Default)]
struct Open {
    connections: Vec<Connected>,
}

#[derive(Debug)]
struct Connected {
    stream: UnixStream,
    cold: Arc<Cold>,
    thread: JoinHandle<()>,
}

impl Disk {
    /// Serves a disk at `socket`, a path of at most 107 bytes, in the place of any socket that is there.
    pub fn serve(socket: &Path, source: DiskSource) -> io::Result<Self> {
        let DiskSource { base, fetcher, overlay, bytes, access } = source;
        let disk = ServedDisk {
            content: Content::new(base, overlay, bytes)?,
            fetcher,
            access,
            gate: Gate::default(),
            counters: Arc::default(),
            socket: socket.to_owned(),
        };
        let shared = Arc::new(Shared { disk, ending: Wakeup::new()?, open: Mutex::default() });
        let listener = listen(socket)?;
        let identity = identity_of(socket);
        let accepting = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("disk-accept".into())
            .spawn(move || accepting.accept_all(&listener))?;
        Ok(Self { shared, accepting: Some(accepting), socket: identity })
    }

    /// Bytes of the disk.
    pub fn bytes(&self) -> u64 {
        self.shared.disk.content.bytes()
    }

    /// The guest's writes: the next server of the disk needs their files.
    pub fn overlay(&self) -> &Overlay {
        self.shared.disk.content.overlay()
    }

    /// Stops the disk at a moment between two requests. Requests that wait for cold pages have changed nothing yet, and
    /// this does not wait for them; of a zeroing of many megabytes a part may be done.
    pub fn freeze(&self) -> Frozen<'_> {
        self.shared.disk.gate.close();
        Frozen(self)
    }

    /// Lets a frozen disk go on; nothing happens to one that is not frozen.
    pub fn thaw(&self) {
        self.shared.disk.gate.open();
    }

    /// The disk's counts.
    pub fn stats(&self) -> DiskStats {
        self.watch().stats()
    }

    /// A watch of the disk, to be asked from anywhere.
    pub fn watch(&self) -> DiskWatch {
        DiskWatch { counters: Arc::clone(&self.shared.disk.counters), served: Arc::downgrade(&self.shared) }
    }

    /// Ends the server, without opening a frozen disk again. Dropping does the same.
    pub fn end(self) {}
}

impl DiskWatch {
    /// The reason that a request waits in vain for a cold page, if one does.
    pub fn stalled(&self) -> Option<String> {
        self.served.upgrade()?.lock().connections.iter().find_map(|connected| connected.cold.failing())
    }

    /// The disk's counts so far.
    pub fn stats(&self) -> DiskStats {
        self.counters.snapshot()
    }

    /// True if the disk is gone: its counts are final.
    pub fn is_gone(&self) -> bool {
        self.served.strong_count() == 0
    }
}

impl Frozen<'_> {
    /// The writes since the last pause, as a volume of this one, with zero copy: the overlay's own memory. After the
    /// pause is committed it must not be written: the disk is ended, and never thawed.
    pub fn volume(&self, name: VolumeName) -> io::Result<PausedVolume> {
        self.0.overlay().volume(name)
    }

    /// Goes on from a volume that has all that was written so far; where the disk's files are kept, that is its base for
    /// the next server too.
    pub fn rebase(&self, base: Arc<LiveView>) -> io::Result<()> {
        self.0.shared.disk.content.rebase(base)
    }

    /// Lets the disk go on.
    pub fn thaw(self) {
        self.0.thaw();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.disk.gate.remove();
        self.shared.ending.wake();
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("the accepting thread does not panic");
        }
        let connections = std::mem::take(&mut self.shared.lock().connections);
        for connected in connections {
            connected.end();
        }
        if self.socket.is_some() && identity_of(&self.shared.disk.socket) == self.socket {
            std::fs::remove_file(&self.shared.disk.socket).ok();
        }
    }
}

impl Connected {
    fn end(self) {
        // Fails only where the client is gone already.
        self.stream.shutdown(std::net::Shutdown::Both).ok();
        self.cold.end();
        self.thread.join().expect("a connection's thread does not panic");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().expect("no thread panics while it holds a lock")
    }

    fn accept_all(self: &Arc<Self>, listener: &UnixListener) {
        loop {
            match wait_readable([Some(self.ending.as_fd()), Some(listener.as_fd())], None) {
                Ok([ending, _]) if ending.readable => return,
                Ok([_, listening]) if !listening.readable => continue,
                Ok(_) => {}
                Err(error) => return tracing::error!(%error, "a disk takes no more connections"),
            }
            if let Err(error) = self.accept(listener) {
                tracing::warn!(%error, "a disk could not take a connection");
                if let Ok([ending]) = wait_readable([Some(self.ending.as_fd())], Some(limits::ACCEPT_RETRY))
                    && ending.readable
                {
                    return;
                }
            }
        }
    }

    /// Takes one connection, or closes it where there are too many.
    fn accept(self: &Arc<Self>, listener: &UnixListener) -> io::Result<()> {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let finished: Vec<_> =
            self.lock().connections.extract_if(.., |connected| connected.thread.is_finished()).collect();
        finished.into_iter().for_each(Connected::end);
        if self.lock().connections.len() >= limits::CONNECTIONS_MAX {
            tracing::warn!(limit = limits::CONNECTIONS_MAX, "a disk has too many connections");
            return Ok(());
        }
        let cold = Arc::new(Cold::default());
        let (shared, of_thread) = (Arc::clone(self), Arc::clone(&cold));
        let reading = stream.try_clone()?;
        let thread = std::thread::Builder::new().name("disk-connection".into()).spawn(move || {
            if let Err(error) = connection::serve(&shared.disk, &reading, &of_thread) {
                tracing::debug!(%error, "a connection to a disk ended");
            }
            // The stream has another handle: the client hears of the end by this. It fails where the client knows.
            reading.shutdown(std::net::Shutdown::Both).ok();
        })?;
        self.lock().connections.push(Connected { stream, cold, thread });
        Ok(())
    }
}

/// Listens at `path`, for this user alone from the first moment on.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        // Binding says that something else is in the way.
        Ok(_) | Err(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, 128)?;
    Ok(UnixListener::from(socket))
}

fn identity_of(path: &Path) -> Option<(u64, u64)> {
    rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino))
}
