//! Rows on saving: bytes a second of a seal, and of publishing what was sealed.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rekindle_engine::capture::CapturedPages;
use rekindle_engine::frame::FRAME_PAGES;
use rekindle_engine::geometry::{bytes_of_pages, usize_of};
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::object::EncodedFrame;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::snapshot::Snapshot;
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind, WritableMapping};
use rekindle_testkit::random::Random;

use super::node::{Node, paused_guest, wait_published};
use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave};

/// Pages of the guest: 256 MiB.
const PAGES: u32 = 64 << 10;
/// Pages of a run that is rewritten, and of one that is not.
const RUN_PAGES: usize = 8;
/// Bytes that are written to a layer's file at once.
const WRITE_BYTES: usize = 1 << 20;
/// Longest time of a seal.
const SEAL_LIMIT: Duration = Duration::from_secs(120);
/// A file system in memory: nothing of a disk is measured.
const IN_MEMORY: &str = "/dev/shm";

pub(crate) const SEAL: Row = Row {
    name: "seal-throughput",
    what: "Captured bytes that are sealed in a second: 256 MiB captured, half of it equal to the parent's.",
    ours: "from `Engine::commit_pause` to the manifest",
    reference: "memcmp with the parent's bytes, a keyed BLAKE3 a frame, writes of 1 MiB and fsync, on one thread",
    fast: false,
    measure: measure_seal,
};

pub(crate) const PUBLISH: Row = Row {
    name: "publish-throughput",
    what: "Bytes of pages that are published in a second: a layer of 256 MiB, half of it compressible, to and from a file \
           system in memory.",
    ours: "from the manifest on this node to the one in the store, the capture's RAM given back first",
    reference: "zstd of each frame on all cores, and writes of the compressed frames to a file of the same file system",
    fast: false,
    measure: measure_publish,
};

fn measure_seal(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let pages = effort.choose(PAGES, PAGES / 16);
    let node = Node::new()?;
    let parent_bytes = bytes(pages, 1, false)?;
    let parent = commit(&node, None, memfd_of(&parent_bytes)?, pages)?;
    wait_published(&parent)?;
    let child_bytes = half_rewritten(&parent_bytes);
    let place = tempfile::tempdir().context("a directory for a file")?;
    let ours = || {
        let memfd = memfd_of(&child_bytes)?;
        let begun = Instant::now();
        let snapshot = commit(&node, Some(&parent), memfd, pages)?;
        snapshot.wait_manifest(SEAL_LIMIT)?;
        let a_second = throughput(pages, begun.elapsed());
        node.forget(&snapshot)?;
        Ok(a_second)
    };
    let bare = || {
        let begun = Instant::now();
        seal_bare(&parent_bytes, &child_bytes, place.path())?;
        Ok(throughput(pages, begun.elapsed()))
    };
    part(&format!("{} MiB", bytes_of_pages(pages) >> 20), 0.8, interleave(effort.heavy_pairs(), ours, bare)?)
}

/// The work of a seal, with nothing around it.
fn seal_bare(parent: &[u8], child: &[u8], place: &Path) -> anyhow::Result<()> {
    let key = KeyRing::of_name("default");
    let file = File::create(place.join("layer"))?;
    let (mut kept, mut written) = (Vec::with_capacity(WRITE_BYTES), 0);
    let mut write = |kept: &mut Vec<u8>| -> anyhow::Result<()> {
        for frame in kept.chunks(usize_of(FRAME_PAGES) * PAGE_BYTES) {
            black_box(key.own().frame_digest(frame));
        }
        file.write_all_at(kept, written)?;
        written += u64::try_from(kept.len())?;
        kept.clear();
        Ok(())
    };
    for (before, now) in parent.chunks(PAGE_BYTES).zip(child.chunks(PAGE_BYTES)) {
        if before != now {
            kept.extend_from_slice(now);
            if kept.len() == WRITE_BYTES {
                write(&mut kept)?;
            }
        }
    }
    write(&mut kept)?;
    Ok(file.sync_all()?)
}

fn measure_publish(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let pages = effort.choose(PAGES, PAGES / 16);
    let node = Node::in_directory(tempfile::tempdir_in(IN_MEMORY).context("a directory in memory")?)?;
    let place = tempfile::tempdir_in(IN_MEMORY).context("a directory in memory")?;
    let content = bytes(pages, 3, true)?;
    let ours = || {
        let snapshot = commit(&node, None, memfd_of(&content)?, pages)?;
        snapshot.wait_manifest(SEAL_LIMIT)?;
        let begun = Instant::now();
        wait_published(&snapshot)?;
        let a_second = throughput(pages, begun.elapsed());
        node.forget(&snapshot)?;
        Ok(a_second)
    };
    let bare = || {
        let begun = Instant::now();
        publish_bare(&content, place.path())?;
        Ok(throughput(pages, begun.elapsed()))
    };
    part(&format!("{} MiB", bytes_of_pages(pages) >> 20), 0.9, interleave(effort.heavy_pairs(), ours, bare)?)
}

/// Compresses frames on all cores and writes them, in any order.
fn publish_bare(content: &[u8], place: &Path) -> anyhow::Result<()> {
    let file = File::create(place.join("object"))?;
    let frames: Vec<&[u8]> = content.chunks(usize_of(FRAME_PAGES) * PAGE_BYTES).collect();
    let (next, end) = (AtomicUsize::new(0), AtomicU64::new(0));
    let work = || -> anyhow::Result<()> {
        while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
            let encoded = EncodedFrame::of(frame)?.bytes;
            let at = end.fetch_add(u64::try_from(encoded.len())?, Ordering::Relaxed);
            file.write_all_at(&encoded, at)?;
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("compressing does not panic"))
    })
}

fn part(label: &str, at_least: f64, pairs: Pairs) -> anyhow::Result<Vec<Part>> {
    let (label, target) = (label.to_owned(), Target::RatioAtLeast(at_least));
    Ok(vec![Part { label, unit: Unit::BytesPerSecond, pairs, target }])
}

fn throughput(pages: u32, elapsed: Duration) -> f64 {
    f64::from(pages) * 4096.0 / elapsed.as_secs_f64()
}

/// Random bytes, or such of which every second run of pages is compressible.
fn bytes(pages: u32, seed: u64, compressible: bool) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; usize_of(pages) * PAGE_BYTES];
    Random::new(seed).fill(&mut bytes);
    if compressible {
        for run in bytes.chunks_mut(RUN_PAGES * PAGE_BYTES).step_by(2) {
            // One byte in eight stays as it was.
            for (at, byte) in run.iter_mut().enumerate().filter(|(at, _)| at % 8 != 0) {
                *byte = u8::try_from(at % 7)?;
            }
        }
    }
    Ok(bytes)
}

/// The same with other bytes in every second run of pages.
fn half_rewritten(parent: &[u8]) -> Vec<u8> {
    let mut child = parent.to_vec();
    let mut random = Random::new(2);
    for run in child.chunks_mut(RUN_PAGES * PAGE_BYTES).step_by(2) {
        random.fill(run);
    }
    child
}

fn memfd_of(bytes: &[u8]) -> anyhow::Result<Memfd> {
    let mut memory = WritableMapping::create("bench-guest", bytes.len(), PageKind::Small)?;
    memory.as_mut_slice().copy_from_slice(bytes);
    Ok(memory.into_memfd())
}

/// Pauses a guest, all of whose pages were written.
fn commit(
    node: &Node,
    parent: Option<&Arc<Snapshot>>,
    memfd: Memfd,
    pages: u32,
) -> anyhow::Result<Arc<Snapshot>> {
    let permit = node.engine.permit_pause(parent, memfd.bytes())?;
    ensure!(memfd.bytes() == bytes_of_pages(pages), "the guest has as many pages");
    let pages = CapturedPages { kept: PageSet::full(pages), zero: PageSet::new(pages) };
    Ok(node.engine.commit_pause(permit, paused_guest(memfd, pages))?)
}
