//! A process guest whose faults this process answers: by the fault server, or by a bare loop.

use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use rekindle_engine::capture::Capture;
use rekindle_engine::geometry::bytes_of_pages;
use rekindle_engine::handover::Handover;
use rekindle_guest::process::arguments::GuestArguments;
use rekindle_guest::process::trace::{Access, Pattern, Timing, Trace};
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use rekindle_kernel::{Event, EventBuffer, GuestRange, Install, PAGE_BYTES, Protect, Userfaultfd, placement};
use rekindle_vmm::process::{GuestOptions, ProcessGuest};

/// Longest time for a guest to hand its memory over.
const HANDOVER_LIMIT: Duration = Duration::from_secs(30);
/// Events the bare loop reads at once.
const BARE_EVENTS: usize = 64;

/// A guest of `pages` missing pages, and what it handed over.
pub(crate) fn hand_over(pages: u32) -> anyhow::Result<(ProcessGuest, Handover)> {
    let directory = tempfile::tempdir().context("a directory for the hand-over socket")?;
    let socket = directory.path().join("handover");
    let listener = UnixListener::bind(&socket).context("listening for the guest")?;
    let mut arguments = GuestArguments::fresh(bytes_of_pages(pages));
    arguments.handover = Some(socket);
    let guest = ProcessGuest::spawn(&GuestOptions::this_program(arguments)?)?;
    let (stream, _) = listener.accept().context("the guest's connection")?;
    Ok((guest, Handover::receive(stream, pages, HANDOVER_LIMIT)?))
}

/// A trace of reads by one thread on each of `cpus`.
pub(crate) fn reads(pattern: Pattern, cpus: &[usize]) -> anyhow::Result<Trace> {
    let threads = NonZeroUsize::new(cpus.len()).context("somebody reads")?;
    Ok(Trace { pattern, access: Access::Read, threads, cpus: cpus.to_vec(), timing: Timing::Whole })
}

/// The reference of every fault row: poll, read, UFFDIO_COPY of one page, and nothing else.
pub(crate) struct BareLoop {
    stop: Arc<Wakeup>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl BareLoop {
    /// Answers the faults of a guest of one region out of `capture`, on processor `cpu`.
    pub(crate) fn start(handover: Handover, capture: &Arc<Capture>, cpu: usize) -> anyhow::Result<Self> {
        let stop = Arc::new(Wakeup::new()?);
        let (stopped, capture) = (Arc::clone(&stop), Arc::clone(capture));
        let thread = std::thread::spawn(move || {
            placement::run_on(cpu)?;
            answer(&handover, &capture, &stopped)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the loop, after its guest, and says whether it went well.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.stop.wake();
        let thread = self.thread.take().expect("only this and drop take the thread");
        thread.join().expect("the loop does not panic")
    }
}

impl Drop for BareLoop {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn answer(handover: &Handover, capture: &Capture, stop: &Wakeup) -> anyhow::Result<()> {
    let region = handover.regions.iter().next().context("the guest has a region")?;
    let userfaultfd = &handover.userfaultfd;
    answer_each(userfaultfd, stop, |page| {
        let offset = usize::try_from(page.start - region.start)?;
        Ok(userfaultfd.copy(page.start, capture.mapping().source(offset, PAGE_BYTES), Protect::Writable))
    })
}

/// Poll, read, an install of one page for each fault, and nothing else, until `stop`.
pub(crate) fn answer_each(
    userfaultfd: &Userfaultfd,
    stop: &Wakeup,
    install: impl Fn(GuestRange) -> anyhow::Result<Install>,
) -> anyhow::Result<()> {
    let mut events = EventBuffer::private(BARE_EVENTS);
    loop {
        let [faults, stop] = wait_readable([Some(userfaultfd.as_fd()), Some(stop.as_fd())], None)?;
        if stop.readable {
            return Ok(());
        }
        if !faults.readable {
            continue;
        }
        let count = userfaultfd.read_events(&mut events)?;
        for event in events.events(count) {
            let Event::Fault { address, .. } = event else { continue };
            let install = install(GuestRange::page_at(address))?;
            ensure!(matches!(install, Install::Installed), "installing a page: {install:?}");
        }
    }
}
