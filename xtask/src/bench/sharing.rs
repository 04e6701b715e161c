//! Rows on guests that share the pages of their snapshot: faults, installing ahead, and a pause, in this process.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use rekindle_engine::geometry::{GuestPage, GuestPages, bytes_of_pages, usize_of};
use rekindle_engine::handover::Handover;
use rekindle_engine::image::Image;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::regions::{Region, Regions};
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions};
use rekindle_engine::snapshot::Snapshot;
use rekindle_engine::tracking::Tracking;
use rekindle_kernel::wakeup::Wakeup;
use rekindle_kernel::{
    Backing, Features, GuestMemory, GuestRange, HUGE_PAGE_BYTES, Install, Mapping, Memfd, PAGE_BYTES,
    PageKind, Protect, RegisterMode, Userfaultfd, placement, process,
};
use rekindle_testkit::random::Random;
use rekindle_vmm::copied_memory::copy_pages;

use super::node::Node;
use super::row::{Effort, Part, Row, Target, Unit, interleave};
use super::served::answer_each;
use super::statistics::as_float;

const MIB: u64 = 1 << 20;
/// Guest memory whose pages are installed and faulted on.
const MEMORY: u64 = 64 * MIB;
/// Processor of the handler thread, and of the thread that touches pages.
const HANDLER_CPU: usize = 0;
/// Pages that are touched in random order.
const TOUCHED: u32 = 6000;
const SEED: u64 = 5;
/// Guest memory that is paused, and the share of its runs that are written before.
const PAUSED_MEMORY: [u64; 2] = [1 << 30, 64 * MIB];
const RUN_PAGES: u32 = 8;
const RUNS_EACH: u32 = 20;

pub(crate) const INSTALL: Row = Row {
    name: "shared-install",
    what: "Installing a working set of 64 MiB ahead of the second guest of a snapshot, whose image has all of it.",
    ours: "`FaultServer::prefetch`, until the last page is counted",
    reference: "UFFDIO_COPY of the same in 2 MiB pieces, nothing else, on the same processor",
    fast: false,
    measure: measure_install,
};

pub(crate) const FAULT: Row = Row {
    name: "shared-fault",
    what: "One fault on a page that the image has, no neighbours installed; handler and guest on one processor.",
    ours: "`FaultServer`",
    reference: "a loop of poll, read and UFFDIO_CONTINUE on the same image, placed alike",
    fast: false,
    measure: measure_fault,
};

pub(crate) const PAUSE: Row = Row {
    name: "pause-shared",
    what: "Capturing a guest on shared pages that wrote 5 % of its memory: its changed pages are found and copied.",
    ours: "the end of its epoch, a scan of its page tables, and a copy of the changed pages into a memory file",
    reference: "process_vm_readv of the same pages into new memory",
    fast: false,
    measure: measure_pause,
};

/// Memory of this process that a guest in another one would have, with its hand-over.
struct Mapped {
    memory: GuestMemory,
    handover: Handover,
    _stream: UnixStream,
}

impl Mapped {
    fn new(
        backing: Backing<'_>,
        bytes: u64,
        (features, mode): (Features, RegisterMode),
    ) -> anyhow::Result<Self> {
        let userfaultfd = Userfaultfd::open(Features::EVENT_REMOVE | features)?;
        let memory = GuestMemory::map(backing, usize::try_from(bytes)?, 0)?;
        userfaultfd.register(memory.range(), mode)?;
        let region = Region { start: memory.range().start, bytes, offset: 0, page: PageKind::Small };
        let regions = Regions::new(vec![region], u32::try_from(bytes / 4096)?)?;
        let (_stream, stream) = UnixStream::pair()?;
        let handover =
            Handover { regions, userfaultfd, memfd: None, image: None, pid: std::process::id(), stream };
        Ok(Self { memory, handover, _stream })
    }

    fn on_image(image: &Arc<Image>) -> anyhow::Result<Self> {
        let memfd = Memfd::adopt(image.memfd().reopen_to_read()?)?;
        let features = Features::MISSING_SHMEM | Features::MINOR_SHMEM;
        let (bytes, registered) = (memfd.bytes(), (features, RegisterMode::MissingAndMinor));
        let mut mapped = Self::new(Backing::PrivateOf(&memfd, 0), bytes, registered)?;
        mapped.handover.image = Some(Arc::clone(image));
        Ok(mapped)
    }
}

/// A snapshot whose image has all of it.
struct Shared {
    snapshot: Arc<Snapshot>,
    image: Arc<Image>,
    node: Node,
}

impl Shared {
    fn of(memory_bytes: u64) -> anyhow::Result<Self> {
        let node = Node::new()?;
        let snapshot = node.filled(memory_bytes)?;
        let image = node.engine.image(&snapshot)?;
        let shared = Self { snapshot, image, node };
        let Mapped { memory, handover, _stream } = Mapped::on_image(&shared.image)?;
        let server = shared.serve(handover, Neighbours::Adaptive)?;
        (0..memory.bytes()).step_by(PAGE_BYTES).for_each(|offset| {
            std::hint::black_box(memory.touch(offset));
        });
        ensure!(shared.image.bytes_held() == memory_bytes, "the image has all of the snapshot");
        drop((server, memory));
        Ok(shared)
    }

    fn serve(&self, handover: Handover, neighbours: Neighbours) -> anyhow::Result<FaultServer> {
        let (tracking, placement) = (Tracking::Diverged, Placement::Cpu(HANDLER_CPU));
        let options = ServeOptions { tracking, placement, neighbours };
        let (view, fetcher) = (Arc::clone(self.snapshot.memory()), self.node.engine.fetcher().clone());
        Ok(FaultServer::start(view, handover, fetcher, options)?)
    }
}

/// Waits until `done`, on a processor that the handler is not on.
fn watch(done: impl Fn() -> bool) {
    while !done() {
        (0..1000).for_each(|_| std::hint::spin_loop());
    }
}

fn measure_install(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let shared = Shared::of(MEMORY)?;
    placement::run_on(HANDLER_CPU + 1)?;
    let pairs = interleave(effort.pairs(), || prefetched(&shared), || copied(&shared))?;
    placement::run_anywhere()?;
    let (label, target) = ("64 MiB".to_owned(), Target::RatioAtLeast(8.0));
    Ok(vec![Part { label, unit: Unit::BytesPerSecond, pairs, target }])
}

/// Bytes a second that the fault server maps ahead.
fn prefetched(shared: &Shared) -> anyhow::Result<f64> {
    let Mapped { memory, handover, _stream } = Mapped::on_image(&shared.image)?;
    let server = shared.serve(handover, Neighbours::None)?;
    let wanted = PageSet::full(shared.snapshot.memory().pages());
    let count = u64::from(wanted.pages());
    let start = Instant::now();
    server.prefetch(wanted);
    watch(|| server.stats().pages_prefetched >= count);
    let seconds = start.elapsed().as_secs_f64();
    drop((server, memory));
    Ok(as_float(usize::try_from(MEMORY)?) / seconds)
}

/// Bytes a second that bare ioctls copy.
fn copied(shared: &Shared) -> anyhow::Result<f64> {
    let private = Backing::Private(PageKind::Small);
    let mapped = Mapped::new(private, MEMORY, (Features::NONE, RegisterMode::Missing))?;
    let (from, to) = (Mapping::of_memfd(shared.image.memfd())?, mapped.memory.range().start);
    from.populate(0, from.bytes())?;
    let seconds = std::thread::scope(|scope| {
        let copying = scope.spawn(|| -> anyhow::Result<f64> {
            placement::run_on(HANDLER_CPU)?;
            let start = Instant::now();
            for (offset, at) in
                (0..from.bytes()).step_by(HUGE_PAGE_BYTES).zip((to..).step_by(HUGE_PAGE_BYTES))
            {
                let source = from.source(offset, HUGE_PAGE_BYTES);
                let install = mapped.handover.userfaultfd.copy(at, source, Protect::Writable);
                ensure!(matches!(install, Install::Installed), "installing 2 MiB: {install:?}");
            }
            Ok(start.elapsed().as_secs_f64())
        });
        watch(|| copying.is_finished());
        copying.join().expect("copying does not panic")
    })?;
    Ok(as_float(usize::try_from(MEMORY)?) / seconds)
}

fn measure_fault(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let shared = Shared::of(MEMORY)?;
    placement::run_on(HANDLER_CPU)?;
    let pairs = interleave(effort.pairs(), || served(&shared), || bare(&shared))?;
    placement::run_anywhere()?;
    let (label, target) = ("one thread".to_owned(), Target::RatioAtMost(1.1));
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target }])
}

/// So many pages of a memory, each once, in an order that is the same each time.
pub(super) fn random_pages(memory: &GuestMemory, count: u32) -> anyhow::Result<Vec<GuestPage>> {
    let mut order: Vec<u32> = (0..u32::try_from(memory.bytes() / PAGE_BYTES)?).collect();
    let mut random = Random::new(SEED);
    for at in 0..usize_of(count) {
        let other = at + random.position(order.len() - at);
        order.swap(at, other);
    }
    order.truncate(usize_of(count));
    Ok(order.into_iter().map(GuestPage::new).collect())
}

/// Seconds of one touch of random pages, each for the first time.
fn touch(memory: &GuestMemory) -> anyhow::Result<f64> {
    let order = random_pages(memory, TOUCHED)?;
    let start = Instant::now();
    for page in order {
        std::hint::black_box(memory.touch(page.offset()));
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(TOUCHED))
}

fn served(shared: &Shared) -> anyhow::Result<f64> {
    let Mapped { memory, handover, _stream } = Mapped::on_image(&shared.image)?;
    let server = shared.serve(handover, Neighbours::None)?;
    let seconds = touch(&memory)?;
    drop((server, memory));
    Ok(seconds)
}

fn bare(shared: &Shared) -> anyhow::Result<f64> {
    let Mapped { memory, handover, _stream } = Mapped::on_image(&shared.image)?;
    let stop = Wakeup::new()?;
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| -> anyhow::Result<()> {
            placement::run_on(HANDLER_CPU)?;
            let userfaultfd = &handover.userfaultfd;
            answer_each(userfaultfd, &stop, |page| Ok(userfaultfd.continue_shared(page, Protect::Writable)))
        });
        let seconds = touch(&memory);
        stop.wake();
        answering.join().expect("the loop does not panic")?;
        seconds
    })
}

fn measure_pause(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let [full, quick] = PAUSED_MEMORY;
    let shared = Shared::of(effort.choose(full, quick))?;
    let pairs = interleave(effort.heavy_pairs(), || captured(&shared), || read_out(&shared))?;
    let label = format!("5 % of {} MiB", effort.choose(full, quick) / MIB);
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.2) }])
}

/// A guest that wrote every twentieth run of its pages, and these runs.
fn written(shared: &Shared) -> anyhow::Result<(Served, Vec<GuestPages>)> {
    let Mapped { memory, handover, _stream } = Mapped::on_image(&shared.image)?;
    let server = shared.serve(handover, Neighbours::None)?;
    let pages = shared.snapshot.memory().pages();
    let step = usize_of(RUN_PAGES * RUNS_EACH);
    let runs: Vec<_> =
        (0..pages).step_by(step).map(|start| GuestPages::new(GuestPage::new(start), RUN_PAGES)).collect();
    runs.iter().flat_map(|run| run.iter()).for_each(|page| memory.touch_write(page.offset(), 7));
    Ok((Served { memory, server, _stream }, runs))
}

/// A guest in this process that is served.
struct Served {
    memory: GuestMemory,
    server: FaultServer,
    _stream: UnixStream,
}

fn captured(shared: &Shared) -> anyhow::Result<f64> {
    let (Served { memory, server, _stream }, runs) = written(shared)?;
    let start = Instant::now();
    let epoch = server.end_epoch();
    let pages = epoch.changed_pages()?;
    let copy = copy_pages(epoch.pid(), epoch.regions(), &pages.kept)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(pages.kept.len() == u32::try_from(runs.len())? * RUN_PAGES, "exactly the written pages are kept");
    drop((copy, epoch, memory));
    Ok(seconds)
}

fn read_out(shared: &Shared) -> anyhow::Result<f64> {
    let (Served { memory, server, _stream }, runs) = written(shared)?;
    let first = memory.range().start;
    let ranges: Vec<_> =
        runs.iter().map(|run| GuestRange::new(first + run.start().offset_bytes(), run.bytes())).collect();
    let bytes = bytes_of_pages(u32::try_from(runs.len())? * RUN_PAGES);
    let start = Instant::now();
    let mut into = vec![0; usize::try_from(bytes)?];
    process::read_memory(std::process::id(), &ranges, &mut into).context("reading this process")?;
    let seconds = start.elapsed().as_secs_f64();
    drop((into, server, memory));
    Ok(seconds)
}
