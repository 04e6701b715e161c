//! A guest in a KVM machine of our own: the tiny guest, real page faults of the kernel, and a state that another
//! machine can continue from.

mod boot;
mod devices;
mod machine;
mod registers;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rekindle_engine::engine::Engine;
use rekindle_engine::handover::Handover;
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions, ServeStats};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::{Tracking, file_pages};
use rekindle_guest::machine::tiny_kernel;
use rekindle_kernel::{
    Backing, Features, GuestMemory, Memfd, PageKind, RegisterMode, Userfaultfd, VirtualMachine, fd_passing,
};

use crate::site::PATIENCE;
use machine::{Machine, Turn};

/// Guest memory: the guest itself at 1 MiB, and a MiB to fill. It is small because KVM may emulate each instruction.
const MEMORY_BYTES: u64 = 2 << 20;
const MEMORY_PAGES: u32 = 512;

/// Longest halt of a guest with its timer enabled.
const TIMER: Duration = Duration::from_millis(10);

/// The blob that holds the processor's and the devices' state.
const DEVICE_STATE: &str = "device-state";

/// A running guest; it ends on drop.
#[derive(Debug)]
pub struct MiniGuest {
    // Dropped in this order: the guest ends before the server of its faults.
    runner: Runner,
    origin: Option<Origin>,
    memfd: Memfd,
}

/// A paused guest; its machine is gone.
#[derive(Debug)]
pub struct PausedMiniGuest {
    /// Its snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Its unread lines from before the pause.
    pub unread: Vec<String>,
}

/// Origin of a resumed guest's pages.
#[derive(Debug)]
struct Origin {
    snapshot: Arc<Snapshot>,
    server: FaultServer,
    /// Descriptors that a VMM keeps open while it lives.
    _handed_over: (Userfaultfd, UnixStream),
}

/// The thread that the machine runs on.
#[derive(Debug)]
struct Runner {
    orders: Option<Sender<Order>>,
    lines: Receiver<String>,
    thread: Option<JoinHandle<Machine>>,
}

enum Order {
    Type(String),
    Stop,
}

impl MiniGuest {
    /// Checks that this host has KVM, and a userfaultfd that receives the kernel's faults.
    pub fn is_possible() -> io::Result<()> {
        let (_, memory) = empty_memory()?;
        VirtualMachine::new(memory).map_err(|error| io::Error::new(error.kind(), format!("KVM: {error}")))?;
        userfaultfd().map(drop)
    }

    /// Starts the guest on empty memory.
    pub fn start() -> io::Result<Self> {
        let (memfd, memory) = empty_memory()?;
        let machine = Machine::fresh(memory, tiny_kernel())?;
        Ok(Self { runner: Runner::start(machine), origin: None, memfd })
    }

    /// Starts a guest on a snapshot's memory and state; pages are installed as it touches them.
    pub fn resume(engine: &Engine, snapshot: &Arc<Snapshot>) -> io::Result<Self> {
        let (memfd, memory) = empty_memory()?;
        let userfaultfd = userfaultfd()?;
        userfaultfd.register(memory.range(), RegisterMode::MissingAndWriteProtect)?;
        let (ours, theirs) = UnixStream::pair()?;
        let range = memory.range();
        let message = format!(
            r#"[{{"base_host_virt_addr": {}, "size": {}, "offset": 0, "page_size": 4096}}]"#,
            range.start, range.bytes
        );
        fd_passing::send(&ours, message.as_bytes(), &[userfaultfd.as_fd(), memfd.as_fd()])?;
        let handover = Handover::receive(theirs, MEMORY_PAGES, PATIENCE).map_err(io::Error::other)?;
        let options = ServeOptions {
            tracking: Tracking::Scan,
            placement: Placement::FollowFaults,
            neighbours: Neighbours::Adaptive,
        };
        let view = Arc::clone(snapshot.memory());
        let server = FaultServer::start(view, handover, engine.fetcher().clone(), options)?;
        let state = &snapshot.blobs()[DEVICE_STATE];
        let machine = Machine::restored(memory, state)?;
        let origin = Origin { snapshot: Arc::clone(snapshot), server, _handed_over: (userfaultfd, ours) };
        Ok(Self { runner: Runner::start(machine), origin: Some(origin), memfd })
    }

    /// Counts of its served faults, if they are served.
    pub fn serve_stats(&self) -> Option<ServeStats> {
        self.origin.as_ref().map(|origin| origin.server.stats())
    }

    /// Types `command`; returns the answer.
    pub fn ask(&self, command: &str) -> String {
        self.say(command);
        self.line()
    }

    /// Types a command without waiting for the answer.
    pub fn say(&self, command: &str) {
        let orders = self.runner.orders.as_ref().expect("it runs until it is dropped");
        orders.send(Order::Type(format!("{command}\n"))).expect("its thread waits for orders");
    }

    /// The next line of its output.
    ///
    /// # Panics
    /// If there is none for a long time, or its machine cannot go on.
    pub fn line(&self) -> String {
        self.runner.lines.recv_timeout(PATIENCE).expect("the guest says a line")
    }

    /// Pauses the guest at any point, and ends its machine, so that the snapshot can be sealed.
    pub fn pause(self, engine: &Engine) -> io::Result<PausedMiniGuest> {
        let Self { runner, origin, memfd } = self;
        let parent = origin.as_ref().map(|origin| &origin.snapshot);
        let permit = engine.permit_pause(parent, MEMORY_BYTES).map_err(io::Error::other)?;
        let (mut machine, unread) = runner.stop();
        let state = machine.state()?;
        let epoch = origin.map(|origin| (origin.server.end_epoch(), origin._handed_over));
        let pages = match &epoch {
            Some((epoch, _)) => epoch.changed_pages()?,
            None => file_pages(&memfd, MEMORY_PAGES)?,
        };
        let volume = PausedVolume { name: VolumeName::memory(), page_kind: PageKind::Small, memfd, pages };
        let guest = PausedGuest {
            id: SnapshotId::new(),
            volumes: vec![volume],
            blobs: BTreeMap::from([(DEVICE_STATE.to_owned(), state.into())]),
            alongside: Vec::new(),
        };
        let snapshot = engine.commit_pause(permit, guest).map_err(io::Error::other)?;
        // The machine is dropped before the last userfaultfd, without which its memory would read as zeroes.
        drop(machine);
        drop(epoch);
        Ok(PausedMiniGuest { snapshot, unread })
    }
}

impl Runner {
    fn start(mut machine: Machine) -> Self {
        let (orders, received) = mpsc::channel();
        let (sender, lines) = mpsc::channel();
        let thread = thread::spawn(move || {
            run(&mut machine, &received, &sender);
            machine
        });
        Self { orders: Some(orders), lines, thread: Some(thread) }
    }

    /// Stops the machine at its next exit; returns it with its unread lines.
    fn stop(mut self) -> (Machine, Vec<String>) {
        let orders = self.orders.as_ref().expect("it runs until it is stopped");
        orders.send(Order::Stop).expect("its thread waits for orders");
        let thread = self.thread.take().expect("it runs until it is stopped");
        let machine = thread.join().expect("the machine did not get stuck");
        (machine, self.lines.try_iter().collect())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a mini-guest's machine got stuck");
        }
    }
}

/// Runs the machine until it is told to stop, or the sender of its orders is gone.
fn run(machine: &mut Machine, orders: &Receiver<Order>, lines: &Sender<String>) {
    loop {
        let turn = machine.turn();
        // Text typed between its last check and its halt wakes it, like the interrupt of a serial port.
        let halted = turn == Turn::Halted && !machine.devices.has_input();
        if let Turn::Said(line) = turn {
            // It does not matter if the reader is gone.
            drop(lines.send(line));
        }
        match next_order(orders, halted, machine.devices.wants_timer()) {
            Some(Order::Type(text)) => machine.devices.type_in(&text),
            Some(Order::Stop) => return,
            None => {}
        }
    }
}

/// The next order; waits for it while the machine has nothing to do.
fn next_order(orders: &Receiver<Order>, halted: bool, wants_timer: bool) -> Option<Order> {
    if !halted {
        return match orders.try_recv() {
            Ok(order) => Some(order),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Order::Stop),
        };
    }
    if !wants_timer {
        return Some(orders.recv().unwrap_or(Order::Stop));
    }
    match orders.recv_timeout(TIMER) {
        Ok(order) => Some(order),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Order::Stop),
    }
}

/// Memory without any page, mapped as by a VMM of ours.
fn empty_memory() -> io::Result<(Memfd, GuestMemory)> {
    let memfd = Memfd::create("mini-guest", MEMORY_BYTES, PageKind::Small)?;
    let bytes = usize::try_from(MEMORY_BYTES).expect("64 bits");
    let memory = GuestMemory::map(Backing::Shared(&memfd, 0), bytes, 0)?;
    Ok((memfd, memory))
}

fn userfaultfd() -> io::Result<Userfaultfd> {
    let features = Features::EVENT_REMOVE
        | Features::MISSING_SHMEM
        | Features::PAGEFAULT_FLAG_WP
        | Features::WP_HUGETLBFS_SHMEM
        | Features::WP_UNPOPULATED
        | Features::WP_ASYNC
        | Features::THREAD_ID;
    Userfaultfd::open(features).map_err(io::Error::other)
}
