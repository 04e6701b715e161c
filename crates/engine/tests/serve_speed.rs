//! Cost of a fault against a bare loop of poll, read and UFFDIO_COPY; both sides take turns on the same processors.
//!
//! `cargo test --release -p rekindle-engine --test serve_speed -- --ignored --nocapture` prints the ratios. They are
//! not asserted on: they are only worth something on a machine with nothing else to do.
#![allow(clippy::unwrap_used, reason = "only a test uses this")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_engine::budget::Budget;
use rekindle_engine::capture::{Capture, CapturedPages};
use rekindle_engine::handover::Handover;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::reaper::Reaper;
use rekindle_engine::serve::{FaultServer, Neighbours, Placement, ServeOptions};
use rekindle_engine::tracking::Tracking;
use rekindle_engine::view::{LiveView, View};
use rekindle_kernel::event_buffer::{Event, EventBuffer};
use rekindle_kernel::wakeup::{Wakeup, wait_readable};
use rekindle_kernel::{Features, Mapping, Memfd, PageKind, Protect, placement};
use std::os::fd::AsFd;
use support::{Guest, Kind, Node};

const PAGES: usize = 8192;
const ROUNDS: usize = 31;

/// Processors of both sides.
struct Place {
    name: &'static str,
    /// Any processor, if none.
    guest: Option<usize>,
    handler: usize,
}

/// The bytes every guest of a comparison is served from.
struct Content {
    node: Node,
    _reaper: Reaper,
    mapping: Mapping,
    view: Arc<LiveView>,
}

impl Content {
    fn new() -> Self {
        let bytes = u64::try_from(PAGES * 4096).unwrap();
        let memfd = Memfd::create("content", bytes, PageKind::Small).unwrap();
        memfd.write_at(&vec![7; PAGES * 4096], 0).unwrap();
        let mapping = Mapping::of_memfd(&memfd).unwrap();
        let reaper = Reaper::start().unwrap();
        let lease = Budget::new(bytes).lease(bytes, Duration::ZERO).unwrap();
        let pages = u32::try_from(PAGES).unwrap();
        let captured = CapturedPages { kept: PageSet::full(pages), zero: PageSet::new(pages) };
        let capture = Arc::new(Capture::adopt(memfd, captured, lease, reaper.handle()).unwrap());
        let view = Arc::new(LiveView::new(View::captured(capture, None)));
        Self { node: Node::start(), _reaper: reaper, mapping, view }
    }

    /// Nanoseconds per page with the fault server.
    fn ours(&self, place: &Place, placement: Placement, neighbours: Neighbours, trace: &[usize]) -> f64 {
        let (guest, handover) = guest();
        let options = ServeOptions { tracking: Tracking::Resident, placement, neighbours };
        let fetcher = self.node.engine.fetcher().clone();
        let server = FaultServer::start(Arc::clone(&self.view), handover, fetcher, options).unwrap();
        let cost = touch(&guest, place, trace);
        drop(server);
        cost
    }

    /// Nanoseconds per page with the bare loop.
    fn bare(&self, place: &Place, trace: &[usize]) -> f64 {
        let (guest, handover) = guest();
        let stop = Wakeup::new().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| self.bare_loop(place, &handover, &stop));
            let cost = touch(&guest, place, trace);
            stop.wake();
            cost
        })
    }

    fn bare_loop(&self, place: &Place, handover: &Handover, stop: &Wakeup) {
        placement::run_on(place.handler).unwrap();
        let mut events = EventBuffer::private(128);
        let userfaultfd = &handover.userfaultfd;
        // The loop's end needs a second descriptor; ours has three.
        while !wait_readable([Some(userfaultfd.as_fd()), Some(stop.as_fd())], None).unwrap()[1].readable {
            let count = userfaultfd.read_events(&mut events).unwrap();
            for event in events.events(count) {
                if let Event::Fault { address, .. } = event {
                    let page = handover.regions.page_at(address).unwrap();
                    let source = self.mapping.source(page.offset(), 4096);
                    userfaultfd.copy(address & !4095, source, Protect::Writable);
                }
            }
        }
    }
}

fn guest() -> (Guest, Handover) {
    Guest::start("serve_speed", Kind::Private, PAGES, Features::NONE).expect("a userfaultfd to measure with")
}

fn touch(guest: &Guest, place: &Place, trace: &[usize]) -> f64 {
    place.guest.map_or_else(placement::run_anywhere, placement::run_on).unwrap();
    guest.touch(trace[0]);
    let began = Instant::now();
    trace[1..].iter().for_each(|&page| guest.touch(page));
    let cost = began.elapsed().as_secs_f64() * 1e9;
    cost / f64::from(u32::try_from(trace.len() - 1).unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(content: &Content, name: &str, place: &Place, neighbours: Neighbours, trace: &[usize]) {
    let (mut ours, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let placement = Placement::Cpu(place.handler);
        let (one, other) = (content.ours(place, placement, neighbours, trace), content.bare(place, trace));
        ours.push(one);
        bare.push(other);
        ratios.push(one / other);
    }
    let (ours, bare, ratio) = (median(ours), median(bare), median(ratios));
    println!("{name}, {}: {ours:.0} ns a page, bare loop {bare:.0} ns, ratio {ratio:.3}", place.name);
}

#[test]
#[ignore = "measures; run it alone, in release"]
fn a_fault_against_a_bare_loop() {
    if Guest::start("serve_speed", Kind::Private, PAGES, Features::NONE).is_none() {
        return;
    }
    let content = Content::new();
    let random: Vec<_> = (0..PAGES).map(|step| step * 4099 % PAGES).collect();
    let walk: Vec<_> = (0..PAGES).collect();
    for place in [
        Place { name: "same core", guest: Some(0), handler: 0 },
        Place { name: "other core", guest: Some(0), handler: 1 },
    ] {
        compare(&content, "single pages", &place, Neighbours::None, &random);
        compare(&content, "random trace with neighbours", &place, Neighbours::Adaptive, &random);
        compare(&content, "walk with neighbours", &place, Neighbours::Adaptive, &walk);
    }
}

#[test]
#[ignore = "measures; run it alone, in release"]
fn a_handler_that_follows_against_one_that_is_scheduled() {
    if Guest::start("serve_speed", Kind::Private, PAGES, Features::NONE).is_none() {
        return;
    }
    let content = Content::new();
    let random: Vec<_> = (0..PAGES).map(|step| step * 4099 % PAGES).collect();
    for guest in [None, Some(0), Some(1)] {
        let place = Place { name: "", guest, handler: 0 };
        let (mut follows, mut anywhere) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            follows.push(content.ours(&place, Placement::FollowFaults, Neighbours::None, &random));
            anywhere.push(content.ours(&place, Placement::Anywhere, Neighbours::None, &random));
        }
        let (follows, anywhere) = (median(follows), median(anywhere));
        println!("guest on {guest:?}: following {follows:.0} ns a page, scheduled {anywhere:.0} ns");
    }
}
