//! The smallest fault handler that serves a guest right: pages of its history, and zeroes for pages it removed.

use std::collections::{HashSet, VecDeque};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rekindle_guest::process::content::Content;
use rekindle_guest::process::handover::RegionMessage;
use rekindle_guest::process::history::History;
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use rekindle_kernel::{
    Event, EventBuffer, FaultKind, GuestRange, Install, Memfd, PAGE_BYTES, Protect, Source, Userfaultfd,
    fd_passing,
};

/// A socket that guests hand their memory over to.
pub(crate) struct Listening {
    listener: UnixListener,
    path: PathBuf,
}

/// Message and descriptors of a guest.
pub(crate) struct Received {
    pub(crate) regions: Vec<RegionMessage>,
    pub(crate) memfd: Option<Memfd>,
    userfaultfd: Userfaultfd,
    stream: UnixStream,
}

/// A handler at work; it ends with the guest or when told to.
pub(crate) struct Serving {
    stop: Arc<Wakeup>,
    thread: JoinHandle<Served>,
}

/// Counts of a handler's work.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub(crate) faults: u64,
    pub(crate) write_protect_faults: u64,
    pub(crate) removed_pages: u64,
    pub(crate) threads: HashSet<u32>,
    pub(crate) guest_is_gone: bool,
}

impl Listening {
    pub(crate) fn at(directory: &Path) -> Self {
        let path = directory.join("handover");
        Self { listener: UnixListener::bind(&path).expect("the socket is new"), path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn receive(&self) -> Received {
        let (stream, _) = self.listener.accept().expect("the guest has connected");
        let mut message = vec![0; 64 << 10];
        let (bytes, fds) = fd_passing::receive(&stream, &mut message, 2).expect("one message");
        let mut fds = fds.into_iter();
        let first = fds.next().expect("a userfaultfd was sent");
        Received {
            regions: serde_json::from_slice(&message[..bytes]).expect("regions were sent"),
            userfaultfd: Userfaultfd::adopt(first).expect("the first is a userfaultfd"),
            memfd: fds.next().map(|fd| Memfd::adopt(fd).expect("the second is a memfd")),
            stream,
        }
    }
}

impl Received {
    /// Serves what `history` says each page holds; pages installed for a read are installed with `protect`.
    pub(crate) fn serve(self, history: History, protect: Protect) -> Serving {
        let stop = Arc::new(Wakeup::new().expect("an eventfd"));
        let stopping = stop.clone();
        let mut handler = Handler {
            received: self,
            history,
            protect,
            removed: HashSet::new(),
            pending: VecDeque::new(),
            served: Served::default(),
        };
        let thread = thread::spawn(move || {
            handler.run(&stopping);
            handler.served
        });
        Serving { stop, thread }
    }
}

impl Serving {
    /// Waits until the guest's end of the stream is closed.
    pub(crate) fn wait_for_hang_up(self) -> Served {
        self.thread.join().expect("the handler does not panic")
    }

    /// Ends the handler although the guest lives.
    pub(crate) fn stop(self) -> Served {
        self.stop.wake();
        self.wait_for_hang_up()
    }
}

struct Handler {
    received: Received,
    history: History,
    protect: Protect,
    removed: HashSet<u64>,
    pending: VecDeque<(u64, FaultKind)>,
    served: Served,
}

impl Handler {
    fn run(&mut self, stop: &Wakeup) {
        let mut events = EventBuffer::private(64);
        loop {
            if self.pending.is_empty() {
                let fds = [self.received.userfaultfd.as_fd(), stop.as_fd(), self.received.stream.as_fd()];
                let [_, stopped, hung_up] = wait_readable(fds.map(Some), None).expect("poll");
                if stopped.readable || hung_up.hung_up {
                    self.served.guest_is_gone = hung_up.hung_up;
                    return;
                }
            }
            let count = self.received.userfaultfd.read_events(&mut events).expect("read");
            let batch: Vec<_> = events.events(count).collect();
            batch.iter().for_each(|event| self.note(event));
            for _ in 0..self.pending.len() {
                let (address, kind) = self.pending.pop_front().expect("as many as counted");
                if !self.resolve(address, kind) {
                    self.pending.push_back((address, kind));
                }
            }
        }
    }

    fn note(&mut self, event: &Event) {
        match *event {
            Event::Fault { address, kind, thread } => {
                self.served.faults += 1;
                self.served.threads.extend(thread);
                self.pending.push_back((address, kind));
            }
            Event::Remove(range) => {
                self.served.removed_pages += range.bytes / 4096;
                let pages = (range.start..range.start + range.bytes).step_by(PAGE_BYTES);
                self.removed.extend(pages);
            }
            Event::Unmap(_) | Event::Other(_) => {}
        }
    }

    /// True if the fault needs no further try.
    fn resolve(&mut self, address: u64, kind: FaultKind) -> bool {
        let region = self.received.regions.iter().find(|region| {
            (region.base_host_virt_addr..region.base_host_virt_addr + region.size).contains(&address)
        });
        let region = region.expect("faults are in the regions that were sent");
        let page_size = region.page_size;
        let address = address - (address - region.base_host_virt_addr) % page_size;
        let first = (address - region.base_host_virt_addr + region.offset) / 4096;
        let range = GuestRange::new(address, page_size);
        if kind == FaultKind::WriteProtect {
            self.served.write_protect_faults += 1;
            return self.received.userfaultfd.write_protect(range, Protect::Writable).is_ok();
        }
        let zero = self.removed.contains(&address);
        let protect = match kind {
            FaultKind::Read if !zero => self.protect,
            FaultKind::Read | FaultKind::Write | FaultKind::WriteProtect | FaultKind::Minor => {
                Protect::Writable
            }
        };
        let mut bytes = Vec::new();
        for page in first..first + page_size / 4096 {
            let page = u32::try_from(page).expect("a small guest");
            let content = if zero { Content::Zero } else { self.history.expected(page) };
            bytes.extend_from_slice(&content.bytes());
        }
        match self.received.userfaultfd.copy(address, Source::from(&bytes[..]), protect) {
            Install::Installed | Install::Gone | Install::Unmapped => true,
            Install::Present { .. } => self.received.userfaultfd.wake(range).is_ok(),
            Install::Interrupted { .. } => false,
            Install::SourceLost | Install::Failed(_) => unreachable!("our own bytes can be installed"),
        }
    }
}
