//! Rows on reading: one page that is in memory, 2 MiB in many pieces, and comparing with a parent.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use rekindle_engine::capture::Capture;
use rekindle_engine::compare::compare;
use rekindle_engine::engine::{Engine, EngineOptions};
use rekindle_engine::geometry::{GuestPage, GuestPages, usize_of};
use rekindle_engine::hooks::NoHooks;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::precedence::{GiveWayLimit, Precedence};
use rekindle_engine::store::Store;
use rekindle_engine::view::{LiveView, View};
use rekindle_kernel::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES, placement};
use rekindle_testkit::random::Random;

use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave, seconds_each};
use super::statistics::as_float;
use super::volume::Volumes;

/// Pages of the volumes here: 256 MiB, more than any cache of a processor.
const PAGES: u32 = 64 << 10;
/// Pages read in one sample.
const READS: u32 = 1 << 14;
/// Pages of 2 MiB.
const STRETCH_PAGES: u32 = 512;
/// Stretches read in one sample.
const STRETCHES: u32 = 64;

pub(crate) const PAGE: Row = Row {
    name: "page-read",
    what: "One random 4 KiB page that is in memory, through the read path, and how often that allocates.",
    ours: "`Engine::read` of one page, from a capture and from a layer",
    reference: "copying the same page out of the same mapping; for allocations, none",
    fast: true,
    measure: measure_page,
};

pub(crate) const FRAGMENTED: Row = Row {
    name: "fragmented-read",
    what: "2 MiB of guest memory that lie in 512 runs of two layers, against 2 MiB that lie in one run.",
    ours: "`Engine::read` of 512 pages, every other one in the other layer",
    reference: "`Engine::read` of 512 pages in one layer",
    fast: true,
    measure: measure_fragmented,
};

pub(crate) const COMPARE: Row = Row {
    name: "compare-vs-memcmp",
    what: "Comparing a capture with its parent through a real layer, all pages equal, so that every byte is read.",
    ours: "`compare`, 256 MiB, on one and on two threads of idle priority",
    reference: "memcmp of the same two mappings in 2 MiB pieces, on as many threads of idle priority",
    fast: true,
    measure: measure_compare,
};

/// An engine whose only use here is to read.
struct Reader {
    engine: Engine,
    _directory: tempfile::TempDir,
}

impl Reader {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for an engine")?;
        let store = Store::directory(&directory.path().join("store"))?;
        let engine = Engine::start(EngineOptions::new(
            directory.path().join("cache"),
            store,
            KeyRing::of_name("default"),
        ))?;
        Ok(Self { engine, _directory: directory })
    }

    /// Reads `run` pages from each of `starts` and says how long one such read took.
    fn seconds(&self, view: &LiveView, starts: &[GuestPage], run: u32, into: &mut [u8]) -> f64 {
        let reads = u32::try_from(starts.len()).expect("a sample has few reads");
        seconds_each(reads, || {
            for &start in starts {
                let read = self.engine.read(view, GuestPages::new(start, run), into);
                read.expect("what is in memory can be read");
                black_box(&mut *into);
            }
        })
    }
}

/// `count` starts of stretches of `run` pages in the volume.
fn random_starts(count: u32, run: u32) -> Vec<GuestPage> {
    let mut random = Random::new(11);
    (0..count).map(|_| GuestPage::new(random.below(PAGES / run) * run)).collect()
}

fn measure_page(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let (volumes, reader) = (Volumes::new()?, Reader::new()?);
    let capture = volumes.capture(PAGES, 1)?;
    let flat = volumes.flat(&capture, &[PageSet::full(PAGES)])?;
    let view = flat.load();
    let layer = view.layers().first().context("a flat view of a full volume has a layer")?.local();
    let captured = LiveView::new(View::captured(Arc::clone(&capture), None));
    let sources = [("capture", &captured, capture.mapping()), ("layer", &flat, layer.mapping())];
    let starts = random_starts(READS, 1);
    let mut parts = Vec::new();
    for (label, view, mapping) in sources {
        let (mut ours_into, mut reference_into) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        let pairs = interleave(
            effort.pairs(),
            || Ok(reader.seconds(view, &starts, 1, &mut ours_into)),
            || Ok(copy_pages(mapping, &starts, &mut reference_into)),
        )?;
        let target = Target::BeyondReferenceAtMost(0.3e-6);
        parts.push(Part { label: label.to_owned(), unit: Unit::Seconds, pairs, target });
        let counted = allocation_counter::measure(|| {
            reader.seconds(view, &starts, 1, &mut ours_into);
        });
        let reads = f64::from(READS);
        let each = as_float(usize::try_from(counted.count_total)?) / reads;
        let pairs = Pairs { ours: vec![each], reference: Vec::new() };
        let label = format!("{label}, allocations");
        parts.push(Part { label, unit: Unit::Count, pairs, target: Target::OursAtMost(0.0) });
    }
    Ok(parts)
}

/// Seconds of copying one page.
fn copy_pages(mapping: &Mapping, starts: &[GuestPage], into: &mut [u8; PAGE_BYTES]) -> f64 {
    seconds_each(READS, || {
        for start in starts {
            mapping.copy_to(start.offset(), into).expect("the mapping holds every page");
            black_box(&mut *into);
        }
    })
}

fn measure_fragmented(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let (volumes, reader) = (Volumes::new()?, Reader::new()?);
    let capture = volumes.capture(PAGES, 1)?;
    let mut even = PageSet::new(PAGES);
    for page in (0..PAGES).step_by(2) {
        even.insert(GuestPage::new(page));
    }
    let mut odd = PageSet::full(PAGES);
    odd.subtract(&even);
    let fragmented = volumes.flat(&capture, &[even, odd])?;
    let whole = volumes.flat(&capture, &[PageSet::full(PAGES)])?;
    let starts = random_starts(STRETCHES, STRETCH_PAGES);
    // One buffer for both: of two, one may lie on huge pages and the other not.
    let into = RefCell::new(vec![0; HUGE_PAGE_BYTES]);
    let seconds = |view| Ok(reader.seconds(view, &starts, STRETCH_PAGES, &mut into.borrow_mut()));
    let pairs = interleave(effort.pairs(), || seconds(&fragmented), || seconds(&whole))?;
    let label = "512 runs against 1".to_owned();
    Ok(vec![Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.3) }])
}

fn measure_compare(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let volumes = Volumes::new()?;
    let capture = volumes.capture(PAGES, 1)?;
    let parent = volumes.flat(&capture, &[PageSet::full(PAGES)])?;
    let view = parent.load();
    let layer = view.layers().first().context("a flat view of a full volume has a layer")?.local();
    let mut parts = Vec::new();
    for threads in [1_usize, 2] {
        let pairs = interleave(
            effort.pairs(),
            || compared_bytes_each_second(&capture, &parent, threads),
            || Ok(memcmp_bytes_each_second(capture.mapping(), layer.mapping(), threads)),
        )?;
        let label = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
        parts.push(Part { label, unit: Unit::BytesPerSecond, pairs, target: Target::RatioAtLeast(0.9) });
    }
    Ok(parts)
}

fn compared_bytes_each_second(
    capture: &Arc<Capture>,
    parent: &LiveView,
    threads: usize,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let compared =
        compare(capture, Some(parent), threads, &GiveWayLimit::new(&Precedence::default()), &NoHooks)?;
    let seconds = start.elapsed().as_secs_f64();
    anyhow::ensure!(compared.classes.equal == PAGES, "all pages are equal");
    Ok(as_float(capture.mapping().bytes()) / seconds)
}

fn memcmp_bytes_each_second(left: &Mapping, right: &Mapping, threads: usize) -> f64 {
    let share = usize_of(PAGES) * PAGE_BYTES / threads;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                placement::idle_priority().ok();
                for offset in (thread * share..(thread + 1) * share).step_by(HUGE_PAGE_BYTES) {
                    let equal = left.equals(offset, right, offset, HUGE_PAGE_BYTES);
                    assert!(equal.expect("both mappings can be read"), "both mappings hold the same bytes");
                }
            });
        }
    });
    as_float(left.bytes()) / start.elapsed().as_secs_f64()
}
