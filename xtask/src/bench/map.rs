//! Rows on the page map: time of a lookup, and cost of a run in RAM and in a stored manifest.

use std::hint::black_box;

use rekindle_engine::geometry::{GuestPage, GuestPages, usize_of};
use rekindle_engine::limits;
use rekindle_engine::page_map::{LayerSlot, PageMap, Place, RunToken};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::wire::Writer;
use rekindle_testkit::random::Random;

use super::row::{Effort, Pairs, Part, Row, Target, Unit, interleave, seconds_each};
use super::statistics::as_float;

/// Pages of 16 GiB, the volume on which maps are measured.
pub(crate) const MAP_PAGES: u32 = 4 << 20;
/// Runs of a map that is called large.
pub(crate) const MAP_RUNS: u32 = 1_000_000;
/// Pauses in a row behind an old sandbox.
const GENERATIONS: u32 = 10_000;
/// Lookups of one sample.
const LOOKUPS: u32 = 1 << 18;
const SEED: u64 = 0x72656b_696e646c;

pub(crate) const LOOKUP: Row = Row {
    name: "map-lookup",
    what: "One lookup of a random page, each independent of the one before, in a map of 1,000,000 runs over 16 GiB.",
    ours: "`PageMap::lookup`, after 1 and after 10,000 generations, each a layer of its own",
    reference: "binary search in a sorted array of runs; for the last part, ours after 1 generation",
    fast: true,
    measure: measure_lookup,
};

pub(crate) const RAM: Row = Row {
    name: "map-ram-per-run",
    what: "Bytes of heap a map of 1,000,000 runs holds, for each run, with every index that reading needs.",
    ours: "`PageMap::heap_bytes`, chunks shared with other generations counted in full",
    reference: "a sorted array of runs, in its smallest form; elsewhere: 14 B",
    fast: true,
    measure: measure_ram,
};

pub(crate) const WIRE: Row = Row {
    name: "map-wire-per-run",
    what: "Bytes a map of 1,000,000 runs takes in a stored manifest, for each run.",
    ours: "`PageMap::encode`",
    reference: "three varints a run: pages, layer, page in the layer; elsewhere: 3.4 to 4.1 B",
    fast: true,
    measure: measure_wire,
};

/// The maps on which lookups are measured, with names for their parts.
fn maps(effort: Effort) -> [(String, PageMap); 2] {
    let generations = effort.choose(GENERATIONS, GENERATIONS / 10);
    [1, generations].map(|generations| {
        (format!("generation {generations}"), fragmented_map(MAP_PAGES, MAP_RUNS, generations))
    })
}

/// The maps whose size is measured: the old one also as a manifest holds it, its layers merged as seals do it.
fn sized_maps(effort: Effort) -> [(String, PageMap); 2] {
    let [young, (label, old)] = maps(effort);
    [young, (format!("{label}, merged"), merged(&old))]
}

/// `map` as it is when its layers, in their order, were merged to as many as a merge leaves.
fn merged(map: &PageMap) -> PageMap {
    let layers = u32::try_from(limits::MERGED_LAYERS_MAX).expect("the limit is small");
    let generations = map.live_slots().last().map_or(1, |slot| u32::from(slot.number()) + 1);
    let mut sets = vec![PageSet::new(map.pages()); limits::MERGED_LAYERS_MAX];
    for (run, place) in map.runs() {
        if let Place::Layer { slot, .. } = place {
            let set = u32::from(slot.number()) * layers / generations;
            sets[usize_of(set)].insert_run(run);
        }
    }
    let nothing = PageSet::new(map.pages());
    sets.iter().zip(0..).fold(PageMap::zero(map.pages()), |merged, (set, slot)| {
        merged.overlay(set, LayerSlot::new(slot), &nothing)
    })
}

/// A map of about `runs` runs that `generations` overlays of random short runs made over one full layer.
pub(crate) fn fragmented_map(pages: u32, runs: u32, generations: u32) -> PageMap {
    let mut random = Random::new(SEED);
    let nothing = PageSet::new(pages);
    let mut map = PageMap::zero(pages).overlay(&PageSet::full(pages), LayerSlot::new(0), &nothing);
    for generation in 1..=generations {
        let wanted = u32::try_from(u64::from(runs) * u64::from(generation) / u64::from(generations));
        let wanted = wanted.expect("a share of the runs is no more than all");
        // A run inside another one makes two more; those that touch each other make up for themselves later.
        let kept = random_runs(&mut random, pages, wanted.saturating_sub(map.runs_count()).div_ceil(2));
        let slot = LayerSlot::new(u16::try_from(generation).expect("generations here are fewer than slots"));
        map = map.overlay(&kept, slot, &nothing);
    }
    map
}

/// The pages of `count` runs of one to four pages; some of them touch each other.
pub(crate) fn random_runs(random: &mut Random, pages: u32, count: u32) -> PageSet {
    let mut set = PageSet::new(pages);
    for _ in 0..count {
        let length = 1 + random.below(4);
        set.insert_run(GuestPages::new(GuestPage::new(random.below(pages - length)), length));
    }
    set
}

/// The pages of `count` runs of one to four pages, none of which touches another: one in every eight pages.
pub(crate) fn separate_runs(random: &mut Random, pages: u32, count: u32) -> PageSet {
    let mut set = PageSet::new(pages);
    for stretch in 0..count {
        let start = 8 * stretch + random.below(4);
        set.insert_run(GuestPages::new(GuestPage::new(start), 1 + random.below(4)));
    }
    set
}

/// Place of a page of the reference's array.
#[derive(Clone, Copy)]
pub(crate) struct ArrayRun {
    start: u32,
    page: u32,
    slot: u16,
}

/// The reference: every run of `map` in one sorted array, zero pages in the slot after all others.
pub(crate) fn sorted_runs(map: &PageMap) -> Vec<ArrayRun> {
    map.runs()
        .map(|(run, place)| match place {
            Place::Zero => ArrayRun { start: run.start().number(), page: 0, slot: u16::MAX },
            Place::Layer { slot, page } => {
                ArrayRun { start: run.start().number(), page: page.number(), slot: slot.number() }
            }
        })
        .collect()
}

/// The reference's way to put pages on top of a map: a new array of all its runs, with those of `kept` in between.
pub(crate) fn merge_runs(runs: &[ArrayRun], kept: &PageSet) -> Vec<ArrayRun> {
    let mut merged = Vec::with_capacity(runs.len());
    let mut below = runs.iter().copied().peekable();
    let mut page = 0;
    for run in kept.runs() {
        let mut covering = None;
        while let Some(older) = below.next_if(|older| older.start < run.end().number()) {
            if older.start < run.start().number() {
                merged.push(older);
            }
            covering = Some(older);
        }
        merged.push(ArrayRun { start: run.start().number(), page, slot: u16::MAX - 1 });
        page += run.count();
        if let Some(older) = covering {
            let start = run.end().number();
            merged.push(ArrayRun { start, page: older.page + (start - older.start), slot: older.slot });
        }
    }
    merged.extend(below);
    merged
}

fn measure_lookup(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let mut random = Random::new(SEED);
    let pages: Vec<GuestPage> = (0..LOOKUPS).map(|_| GuestPage::new(random.below(MAP_PAGES))).collect();
    let maps = maps(effort);
    let mut parts = Vec::new();
    for (label, map) in &maps {
        let runs = sorted_runs(map);
        let pairs = interleave(effort.pairs(), || Ok(look_up(map, &pages)), || Ok(search(&runs, &pages)))?;
        parts.push(Part {
            label: label.clone(),
            unit: Unit::Seconds,
            pairs,
            target: Target::OursAtMost(30e-9),
        });
    }
    let [(_, young), (label, old)] = &maps;
    let pairs = interleave(effort.pairs(), || Ok(look_up(old, &pages)), || Ok(look_up(young, &pages)))?;
    let label = format!("{label} against 1");
    parts.push(Part { label, unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.0) });
    Ok(parts)
}

/// Seconds of one lookup in `map`.
fn look_up(map: &PageMap, pages: &[GuestPage]) -> f64 {
    seconds_each(LOOKUPS, || {
        let mut sum = 0_u32;
        for &page in pages {
            sum = sum.wrapping_add(match map.lookup(page) {
                Place::Zero => 1,
                Place::Layer { slot, page } => page.number() ^ u32::from(slot.number()),
            });
        }
        black_box(sum);
    })
}

/// Seconds of one binary search in `runs`.
fn search(runs: &[ArrayRun], pages: &[GuestPage]) -> f64 {
    seconds_each(LOOKUPS, || {
        let mut sum = 0_u32;
        for page in pages {
            let after = runs.partition_point(|run| run.start <= page.number());
            let run = runs[after - 1];
            let found = run.page + (page.number() - run.start);
            sum = sum.wrapping_add(found ^ u32::from(run.slot));
        }
        black_box(sum);
    })
}

fn measure_ram(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let parts = sized_maps(effort).map(|(label, map)| {
        let runs = f64::from(map.runs_count());
        let array = sorted_runs(&map);
        let reference = as_float(size_of_val(array.as_slice())) / runs;
        exact_part(label, as_float(map.heap_bytes()) / runs, reference, 10.0)
    });
    Ok(parts.into())
}

fn measure_wire(effort: Effort) -> anyhow::Result<Vec<Part>> {
    let parts = sized_maps(effort).map(|(label, map)| {
        let runs = f64::from(map.runs_count());
        let mut writer = Writer::new();
        map.encode(&mut writer, RunToken::of_layers(limits::MERGED_LAYERS_MAX));
        let ours = as_float(writer.into_bytes().len()) / runs;
        exact_part(label, ours, as_float(encode_plainly(&map).into_bytes().len()) / runs, 2.5)
    });
    Ok(parts.into())
}

/// A part of one exact pair of bytes.
fn exact_part(label: String, ours: f64, reference: f64, bytes_max: f64) -> Part {
    let pairs = Pairs { ours: vec![ours], reference: vec![reference] };
    Part { label, unit: Unit::Bytes, pairs, target: Target::OursAtMost(bytes_max) }
}

fn encode_plainly(map: &PageMap) -> Writer {
    let mut writer = Writer::new();
    for (run, place) in map.runs() {
        writer.varint(run.count().into());
        match place {
            Place::Zero => writer.varint(0),
            Place::Layer { slot, page } => {
                writer.varint(u64::from(slot.number()) + 1);
                writer.varint(page.number().into());
            }
        }
    }
    writer
}
