//! The process that serves a guest is killed, again and again, at any moment: the guest only waits for the next one,
//! which knows of every page that was given back or written.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::identity::{SnapshotId, VolumeName};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::pause::{PausedGuest, PausedVolume};
use rekindle_engine::serve::{
    Epoch, EpochFacts, FaultServer, KeptEpoch, Neighbours, Placement, ServeOptions,
};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::store::Store;
use rekindle_guest::process::history::Rewrite;
use rekindle_kernel::fd_passing;
use rekindle_testkit::random::Random;
use rekindle_vmm::copied_memory::copy_pages;
use rekindle_vmm::process::{GuestControl, ProcessGuest};
use serde::{Deserialize, Serialize};

use crate::support::{
    Case, FilledNode, LIMIT, Node, assert_reads, assert_verified, each_case, random_of_this_run, share,
    state_of, wait_published,
};

/// Servers that are killed under each guest, at most, where `REKINDLE_KILLS` does not say another number.
const KILLS: usize = 5;
/// Says in a child's environment that it is to serve.
const ORDERED: &str = "REKINDLE_TEST_SERVES";
/// The longest order: regions and a path.
const ORDER_BYTES_MAX: usize = 64 << 10;

/// Orders to a serving process; descriptors come beside them.
#[derive(Serialize, Deserialize)]
struct Order {
    facts: EpochFacts,
    snapshot: String,
    store: PathBuf,
    local: PathBuf,
    /// True if all pages are installed ahead of the guest.
    prefetch: bool,
}

/// A process of its own that serves a guest, killed when dropped.
struct ServerProcess {
    child: Child,
    control: UnixStream,
}

impl ServerProcess {
    fn start(order: &Order, kept: &KeptEpoch) -> Self {
        let (control, theirs) = UnixStream::pair().expect("a pair of sockets");
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program)
            .args(["--exact", "killed_servers::server_process", "--ignored", "--nocapture"])
            .env(ORDERED, "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .expect("this program starts again");
        let order = serde_json::to_vec(order).expect("plain data");
        let fds = [&kept.userfaultfd, &kept.stream, &kept.journal].into_iter().chain(&kept.memfd);
        let fds: Vec<BorrowedFd<'_>> = fds.map(AsFd::as_fd).collect();
        fd_passing::send(&control, &order, &fds).expect("the child lives");
        Self { child, control }
    }

    /// Waits until it serves.
    fn wait_serving(&mut self) {
        self.control.set_read_timeout(Some(LIMIT)).expect("a socket has a limit");
        self.control.read_exact(&mut [0]).expect("it serves in time");
    }

    fn kill(mut self) {
        self.child.kill().expect("it is ours to kill");
        self.child.wait().expect("it is ours to wait for");
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

#[test]
#[ignore = "the serving process of the other test"]
fn server_process() {
    if std::env::var_os(ORDERED).is_none() {
        return;
    }
    let mut control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("our order"));
    let mut bytes = vec![0; ORDER_BYTES_MAX];
    let (count, fds) = fd_passing::receive(&control, &mut bytes, 4).expect("one message");
    let order: Order = serde_json::from_slice(&bytes[..count]).expect("an order");
    let mut fds = fds.into_iter();
    let mut next = || fds.next().expect("three descriptors at least");
    let (userfaultfd, stream, journal) = (next(), next(), next());
    let kept = KeptEpoch { facts: order.facts, userfaultfd, memfd: fds.next(), image: None, stream, journal };
    let store = Store::directory(&order.store).expect("the store");
    let engine = Engine::start(EngineOptions::new(order.local, store, KeyRing::of_name("default")))
        .expect("an engine starts");
    let id: SnapshotId = order.snapshot.parse().expect("an id");
    let snapshot = engine.open(id).expect("it was published");
    let server = served(&engine, &snapshot, Epoch::recover(kept).expect("recovers"));
    if order.prefetch {
        server.prefetch(PageSet::full(snapshot.memory().pages()));
    }
    control.write_all(&[1]).expect("whoever started us waits to kill us");
    // Nothing more is said; the end of it means that the test has ended.
    control.read_exact(&mut [0]).ok();
}

fn served(engine: &Engine, snapshot: &Snapshot, epoch: Epoch) -> FaultServer {
    let options = ServeOptions {
        tracking: epoch.tracking(),
        placement: Placement::Anywhere,
        neighbours: Neighbours::Adaptive,
    };
    let view = Arc::clone(snapshot.memory());
    FaultServer::resume(view, epoch, engine.fetcher().clone(), options).expect("serves")
}

/// Pages are given back and written, and looked at in between.
fn work(control: &mut GuestControl, case: &Case, seeds: &[u64]) {
    for &seed in seeds {
        let percent = u8::try_from(20 + seed % 40).expect("below a hundred");
        let rewrite = Rewrite { share: share(seed, percent / 2), zero_percent: 20, same_percent: 20 };
        control.discard(share(seed ^ 1, percent), case.discard).expect("discards");
        control.rewrite(rewrite).expect("rewrites");
        let ticked = control.tick(300).expect("ticks");
        assert_eq!(ticked.verified.mismatches, 0, "{ticked:?}");
    }
}

/// Kills one server after the other while the guest works, then lets one live until the work is done.
fn kill_servers(
    guest: &mut ProcessGuest,
    case: &Case,
    random: &mut Random,
    start: &dyn Fn(u64) -> ServerProcess,
) {
    let kills = std::env::var("REKINDLE_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let seeds: Vec<u64> = (0..kills).map(|_| random.number()).collect();
    thread::scope(|scope| {
        let working = scope.spawn(|| work(&mut guest.control, case, &seeds));
        let mut killed = 0;
        while killed < kills && !working.is_finished() {
            let mut server = start(random.number());
            if random.below(8) > 0 {
                server.wait_serving();
            }
            // From at once to what a few thousand faults take.
            let until = Instant::now() + Duration::from_micros(1 << random.below(17));
            while Instant::now() < until && !working.is_finished() {
                thread::yield_now();
            }
            server.kill();
            killed += 1;
        }
        let last = start(random.number());
        working.join().expect("the guest's pages are right");
        last.kill();
    });
}

/// The guest is served by this process, stopped, and captured as a pause does it.
fn pause(
    node: &Node,
    guest: &mut ProcessGuest,
    parent: &Arc<Snapshot>,
    case: &Case,
    kept: KeptEpoch,
) -> Arc<Snapshot> {
    let permit = node.engine.permit_pause(Some(parent), case.shape.memory_bytes).expect("there is room");
    let server = served(&node.engine, parent, Epoch::recover(kept).expect("recovers"));
    let state = guest.control.state().expect("answers");
    guest.freeze().expect("freezes");
    let epoch = server.end_epoch();
    let pages = epoch.changed_pages().expect("the guest stands");
    let memfd = match epoch.memfd() {
        Some(memfd) => memfd.try_clone().expect("a descriptor more"),
        None => copy_pages(guest.id(), epoch.regions(), &pages.kept).expect("its pages are there"),
    };
    let page_kind = case.shape.kind.page_kind();
    let volume = PausedVolume { name: VolumeName::memory(), page_kind, memfd, pages };
    let blob = serde_json::to_vec(&state).expect("plain data");
    let blobs = [("device-state".to_owned(), blob.into())].into_iter().collect();
    let snapshot = node
        .engine
        .commit_pause(
            permit,
            PausedGuest { id: SnapshotId::new(), volumes: vec![volume], blobs, alongside: Vec::new() },
        )
        .expect("pauses");
    guest.kill().expect("ends");
    snapshot
}

fn order(kept: &KeptEpoch, snapshot: &Snapshot, node: &Node, seed: u64) -> Order {
    Order {
        facts: kept.facts.clone(),
        snapshot: snapshot.id().to_string(),
        store: node.store_directory(),
        local: node.directory.path().join(format!("server-{seed}")),
        prefetch: seed.is_multiple_of(3),
    }
}

#[test]
fn case_54_a_guest_whose_servers_are_killed_has_every_page_and_so_has_its_next_snapshot() {
    let mut random = random_of_this_run("killed servers");
    let random = std::cell::RefCell::new(&mut random);
    each_case(|case| {
        let random = &mut **random.borrow_mut();
        let filled = FilledNode::of(case);
        wait_published(&filled.snapshot);
        let (mut guest, handover) = filled.handed_over();
        let FilledNode { snapshot, node, .. } = filled;
        let epoch = Epoch::begin(handover, case.shape.tracking).expect("begins");
        let kept = epoch.kept().expect("kept");
        drop(epoch);
        guest.control.restore(state_of(&snapshot)).expect("restores");
        kill_servers(&mut guest, case, random, &|seed| {
            ServerProcess::start(&order(&kept, &snapshot, &node, seed), &kept)
        });
        // Half of the guests are paused with pages that were not touched since they were given back.
        if random.below(2) == 0 {
            let server = ServerProcess::start(&order(&kept, &snapshot, &node, random.number()), &kept);
            assert_verified(&mut guest);
            server.kill();
        }
        let paused = pause(&node, &mut guest, &snapshot, case, kept);
        assert_reads(&node.engine, &paused, &state_of(&paused).history);
        drop(guest);
        wait_published(&paused);
        assert_reads(&node.engine, &paused, &state_of(&paused).history);
    });
}
