//! Volumes to read from: captures and layers of random bytes, on a cache directory that vanishes with them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rekindle_engine::budget::Budget;
use rekindle_engine::cache::Cache;
use rekindle_engine::capture::{Capture, CapturedPages, Proven};
use rekindle_engine::geometry::usize_of;
use rekindle_engine::key_ring::KeyRing;
use rekindle_engine::layer::Layer;
use rekindle_engine::pack::pack_pages;
use rekindle_engine::page_map::{LayerSlot, PageMap};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::reaper::Reaper;
use rekindle_engine::view::{LiveView, View};
use rekindle_kernel::{Memfd, PAGE_BYTES, PageKind, WritableMapping};
use rekindle_testkit::random::Random;
use tempfile::TempDir;

/// Directory of captures and layers.
pub(crate) struct Volumes {
    cache: Cache,
    budget: Budget,
    reaper: Reaper,
    directory: TempDir,
}

impl Volumes {
    /// An empty place.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir().context("a directory for layers")?;
        Ok(Self {
            cache: Cache::open(directory.path(), KeyRing::of_name("bench"))?,
            budget: Budget::new(u64::MAX),
            reaper: Reaper::start()?,
            directory,
        })
    }

    /// The directory of the layers.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A frozen capture of all of a volume's pages, page after page random bytes from `seed`.
    pub(crate) fn capture(&self, pages: u32, seed: u64) -> anyhow::Result<Arc<Capture>> {
        let kept = CapturedPages { kept: PageSet::full(pages), zero: PageSet::new(pages) };
        let memfd = random_memfd(pages, seed)?;
        let lease = self.budget.lease(memfd.bytes(), Duration::ZERO)?;
        let capture = Capture::adopt(memfd, kept, lease, self.reaper.handle())?;
        ensure!(capture.prove_frozen(None)? == Proven::Frozen, "nobody else maps a capture of ours");
        let mapping = capture.mapping();
        mapping.populate(0, mapping.bytes()).context("mapping the capture's pages")?;
        Ok(Arc::new(capture))
    }

    /// The pages `packed` of `capture` as a layer, all of it in memory.
    pub(crate) fn layer(&self, packed: &PageSet, capture: &Capture) -> anyhow::Result<Arc<Layer>> {
        let layer = pack_pages(packed, &self.cache, self.cache.keys().own(), |run, into| {
            Ok(capture.mapping().copy_to(run.start().offset(), into)?)
        })?;
        let layer = layer.context("there are pages to pack")?;
        let local = layer.local();
        local.mapping().populate(0, local.mapping().bytes()).context("reading the layer's file")?;
        Ok(layer)
    }

    /// The whole of `capture` as it is read once it is sealed: by name from layers, each of which holds one of `shares`.
    pub(crate) fn flat(&self, capture: &Capture, shares: &[PageSet]) -> anyhow::Result<LiveView> {
        let nothing = PageSet::new(capture.pages());
        let mut map = PageMap::zero(capture.pages());
        let mut layers = Vec::new();
        for (share, slot) in shares.iter().zip(0..) {
            map = map.overlay(share, LayerSlot::new(slot), &nothing);
            layers.push(self.layer(share, capture)?);
        }
        Ok(LiveView::new(View::flat(map, layers.into())))
    }
}

/// A memory file of random bytes, of which no two pages are equal.
pub(crate) fn random_memfd(pages: u32, seed: u64) -> anyhow::Result<Memfd> {
    let mut memory = WritableMapping::create("bench-volume", usize_of(pages) * PAGE_BYTES, PageKind::Small)
        .context("memory for a volume")?;
    Random::new(seed).fill(memory.as_mut_slice());
    Ok(memory.into_memfd())
}
