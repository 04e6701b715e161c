//! The page map against a plain list of places.

use proptest::prelude::*;

use super::*;
use crate::geometry::usize_of;
use crate::wire::{Problem, Reader, WireError, Writer};

/// One generation: combs of pages that are kept, and runs that become zero where nothing is kept.
#[derive(Clone, Debug)]
struct Generation {
    kept: Vec<Comb>,
    zero: Vec<Comb>,
}

/// `teeth` runs of `width` pages, one every `stride` pages.
#[derive(Clone, Copy, Debug)]
struct Comb {
    start: u32,
    width: u32,
    stride: u32,
    teeth: u32,
}

fn comb(pages: u32) -> impl Strategy<Value = Comb> {
    let wide = (0..pages, 1..=pages).prop_map(|(start, width)| Comb { start, width, stride: 1, teeth: 1 });
    let fine = (0..pages, 1_u32..4, 1_u32..5, 1_u32..400).prop_map(|(start, width, gap, teeth)| Comb {
        start,
        width,
        stride: width + gap,
        teeth,
    });
    prop_oneof![wide, fine.clone(), fine]
}

fn history() -> impl Strategy<Value = (u32, Vec<Generation>)> {
    let pages = prop_oneof![1_u32..2600, Just(512), Just(1024), Just(513), Just(511)];
    pages.prop_flat_map(|pages| {
        let combs = || prop::collection::vec(comb(pages), 0..4);
        let generation = (combs(), combs()).prop_map(|(kept, zero)| Generation { kept, zero });
        (Just(pages), prop::collection::vec(generation, 0..8))
    })
}

fn set_of(pages: u32, combs: &[Comb]) -> PageSet {
    let mut set = PageSet::new(pages);
    for comb in combs {
        for start in
            (0..comb.teeth).map(|tooth| comb.start + tooth * comb.stride).take_while(|start| *start < pages)
        {
            set.insert_run(GuestPages::new(GuestPage::new(start), comb.width.min(pages - start)));
        }
    }
    set
}

impl Generation {
    /// Pages of a volume of `pages` that this generation keeps, and those it makes zero.
    fn sets(&self, pages: u32) -> (PageSet, PageSet) {
        let kept = set_of(pages, &self.kept);
        let mut zero = set_of(pages, &self.zero);
        zero.subtract(&kept);
        (kept, zero)
    }
}

/// A map, the places it should have, and the pages of the layer of each generation.
struct Played {
    map: PageMap,
    model: Vec<Place>,
    layer_pages: Vec<u32>,
}

fn play(pages: u32, generations: &[Generation]) -> Played {
    let mut map = PageMap::zero(pages);
    let mut model = vec![Place::Zero; usize_of(pages)];
    let mut layer_pages = Vec::new();
    for (slot, generation) in (0..).map(LayerSlot::new).zip(generations) {
        let (kept, zero) = generation.sets(pages);
        map = map.overlay(&kept, slot, &zero);
        for (page, rank) in kept.iter().zip((0..).map(LayerPage::new)) {
            model[page.index()] = Place::Layer { slot, page: rank };
        }
        zero.iter().for_each(|page| model[page.index()] = Place::Zero);
        layer_pages.push(kept.len());
    }
    Played { map, model, layer_pages }
}

/// The maximal runs of a list of places.
fn model_runs(model: &[Place]) -> Vec<(GuestPages, Place)> {
    let mut runs: Vec<(GuestPages, Place)> = Vec::new();
    for (page, place) in (0..).map(GuestPage::new).zip(model) {
        match runs.last_mut() {
            Some((run, first)) if first.plus(run.count()) == *place => {
                *run = GuestPages::new(run.start(), run.count() + 1);
            }
            _ => runs.push((GuestPages::new(page, 1), *place)),
        }
    }
    runs
}

fn encoded(map: &PageMap) -> Vec<u8> {
    let mut writer = Writer::new();
    map.encode(&mut writer, RunToken::FIRST);
    writer.into_bytes()
}

fn decoded(bytes: &[u8], pages: u32, layer_pages: &[u32]) -> Result<PageMap, WireError> {
    let mut reader = Reader::new(bytes);
    let map = PageMap::decode(&mut reader, pages, layer_pages, RunToken::FIRST)?;
    reader.finish().map(|()| map)
}

proptest! {
    #[test]
    fn a_map_equals_its_model((pages, generations) in history(), limit in 1_u32..1500) {
        let Played { map, model, .. } = play(pages, &generations);
        let runs = model_runs(&model);
        prop_assert_eq!(map.runs().collect::<Vec<_>>(), runs.clone());
        prop_assert_eq!(usize_of(map.runs_count()), runs.len());
        for (run, first) in runs {
            for (index, page) in (0..).zip(run.iter()) {
                prop_assert_eq!(map.lookup(page), first.plus(index));
            }
            let last = run.start().plus(run.count() - 1);
            prop_assert_eq!(map.run_at(run.start(), limit), (first, run.count().min(limit)));
            prop_assert_eq!(map.run_at(last, limit), (first.plus(run.count() - 1), 1));
        }
        for (slot, _) in (0..).map(LayerSlot::new).zip(&generations) {
            let live = model.iter().filter(|place| matches!(place, Place::Layer { slot: of, .. } if *of == slot));
            prop_assert_eq!(usize_of(map.live_pages(slot)), live.count());
        }
        prop_assert!(map.live_slots().all(|slot| map.live_pages(slot) > 0));
    }

    #[test]
    fn a_map_is_read_back_equal_and_writes_the_same_bytes((pages, generations) in history()) {
        let Played { map, layer_pages, .. } = play(pages, &generations);
        let bytes = encoded(&map);
        let read = decoded(&bytes, pages, &layer_pages);
        prop_assert_eq!(read.as_ref(), Ok(&map));
        prop_assert_eq!(encoded(&read.expect("just compared")), bytes);
    }

    #[test]
    fn whatever_is_read_is_written_the_same((pages, generations) in history(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let Played { map, layer_pages, .. } = play(pages, &generations);
        let mut bytes = encoded(&map);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(read) = decoded(&bytes, pages, &layer_pages) {
            prop_assert_eq!(encoded(&read), bytes);
            prop_assert_eq!(read.runs().count(), usize_of(read.runs_count()));
        }
    }

    #[test]
    fn a_generation_shares_the_chunks_it_does_not_touch((pages, generations) in history(), last in comb(2600)) {
        let Played { map, .. } = play(pages, &generations);
        let kept = set_of(pages, &[last]);
        let child = map.overlay(&kept, LayerSlot::new(99), &PageSet::new(pages));
        let chunks = pages.div_ceil(CHUNK_PAGES);
        let touched = (0..chunks).filter(|chunk| {
            let start = chunk * CHUNK_PAGES;
            let window = GuestPages::new(GuestPage::new(start), CHUNK_PAGES.min(pages - start));
            kept.runs_in(window).next().is_some()
        });
        prop_assert_eq!(child.chunks_shared_with(&map), usize_of(chunks) - touched.count());
    }

    #[test]
    fn renumbered_pages_stay_where_they_are((pages, generations) in history(), turn in 0_u16..8) {
        let Played { map, model, .. } = play(pages, &generations);
        let moved = |slot: LayerSlot| LayerSlot::new((slot.number() + turn) % 8);
        let slots: Vec<_> = (0..8).map(LayerSlot::new).map(|slot| (map.live_pages(slot) > 0).then(|| moved(slot))).collect();
        let renumbered = map.renumber(&slots);
        for (page, place) in (0..).map(GuestPage::new).zip(&model) {
            let expected = match *place {
                Place::Zero => Place::Zero,
                Place::Layer { slot, page } => Place::Layer { slot: moved(slot), page },
            };
            prop_assert_eq!(renumbered.lookup(page), expected);
        }
        for slot in (0..8).map(LayerSlot::new) {
            prop_assert_eq!(renumbered.live_pages(moved(slot)), map.live_pages(slot));
        }
        if turn == 0 {
            prop_assert_eq!(renumbered.chunks_shared_with(&map), map.chunks.len());
            prop_assert_eq!(renumbered, map);
        }
    }
}

fn runs_set(pages: u32, runs: &[(u32, u32)]) -> PageSet {
    let mut set = PageSet::new(pages);
    runs.iter().for_each(|(start, count)| set.insert_run(GuestPages::new(GuestPage::new(*start), *count)));
    set
}

fn layer(slot: u16, page: u32) -> Place {
    Place::Layer { slot: LayerSlot::new(slot), page: LayerPage::new(page) }
}

/// Pages 0..10 and 20..30 of 40 in layer 0, of which 5..25 then went to layer 1, and 8..22 then to zero.
fn overwritten() -> PageMap {
    let none = PageSet::new(40);
    PageMap::zero(40)
        .overlay(&runs_set(40, &[(0, 10), (20, 10)]), LayerSlot::new(0), &none)
        .overlay(&runs_set(40, &[(5, 20)]), LayerSlot::new(1), &none)
        .overlay(&none, LayerSlot::new(2), &runs_set(40, &[(8, 14)]))
}

#[test]
fn case_15_adjacent_runs_are_joined_only_where_their_storage_is_adjacent() {
    // Case 15: pages 9 and 20 are neighbours in the layer but not in the guest, and 4 and 25 the other way around.
    let kept = runs_set(40, &[(0, 10), (20, 10)]);
    let map = PageMap::zero(40).overlay(&kept, LayerSlot::new(0), &PageSet::new(40));
    let map = map.overlay(&runs_set(40, &[(5, 20)]), LayerSlot::new(1), &PageSet::new(40));
    let runs: Vec<_> = map.runs().map(|(run, place)| (run.start().number(), run.count(), place)).collect();
    assert_eq!(
        runs,
        [(0, 5, layer(0, 0)), (5, 20, layer(1, 0)), (25, 5, layer(0, 15)), (30, 10, Place::Zero)]
    );
    let gone = map.overlay(&PageSet::new(40), LayerSlot::new(2), &runs_set(40, &[(5, 20)]));
    assert_eq!(gone.run_at(GuestPage::new(4), 40), (layer(0, 4), 1));
    assert_eq!(gone.run_at(GuestPage::new(25), 40), (layer(0, 15), 5));
    assert_eq!(gone.runs_count(), 4);
}

#[test]
fn case_20_zero_pages_change_no_set_and_no_other_generation() {
    // Case 20: page sets are read only, and the map that was overlaid stays what it was.
    let before = overwritten();
    let zero = runs_set(40, &[(0, 40)]);
    let after = before.overlay(&PageSet::new(40), LayerSlot::new(3), &zero);
    assert_eq!((zero.len(), zero.runs().count()), (40, 1));
    assert_eq!(before, overwritten());
    assert_eq!(after, PageMap::zero(40));
    assert_eq!(after.live_slots().count(), 0);
}

#[test]
fn a_map_of_no_pages_has_no_runs() {
    let map = PageMap::zero(0);
    assert_eq!((map.runs().count(), map.runs_count()), (0, 0));
    let map = map.overlay(&PageSet::new(0), LayerSlot::new(0), &PageSet::new(0));
    assert_eq!(decoded(&encoded(&map), 0, &[]), Ok(map));
}

#[test]
fn case_17_alternating_single_pages_of_a_whole_volume_are_each_a_run() {
    let pages = 8 * CHUNK_PAGES + 77;
    let kept = set_of(pages, &[Comb { start: 1, width: 1, stride: 2, teeth: pages }]);
    let map = PageMap::zero(pages).overlay(&kept, LayerSlot::new(0), &PageSet::new(pages));
    assert_eq!(map.runs_count(), pages);
    assert_eq!(encoded(&map).len(), 2 * usize_of(pages));
    assert_eq!(map.lookup(GuestPage::new(pages - 2)), layer(0, pages / 2 - 1));
}

#[test]
fn a_run_longer_than_any_chunk_is_one_run() {
    let pages = 100 * CHUNK_PAGES + 5;
    let map = PageMap::zero(pages).overlay(&PageSet::full(pages), LayerSlot::new(0), &PageSet::new(pages));
    assert_eq!(map.run_at(GuestPage::new(3), u32::MAX), (layer(0, 3), pages - 3));
    assert_eq!(map.runs_count(), 1);
    assert_eq!(encoded(&map).len(), 2 + 3);
}

#[test]
fn pages_kept_equal_again_leave_their_chunk_shared() {
    let map = overwritten();
    let again = map.overlay(&PageSet::new(40), LayerSlot::new(3), &runs_set(40, &[(9, 3)]));
    assert_eq!(again.chunks_shared_with(&map), 1);
}

#[test]
fn case_21_nothing_is_allocated_beyond_what_is_held() {
    // Case 21: every chunk is one allocation of exactly its bytes.
    let pages = 4 * CHUNK_PAGES;
    let combs = [
        Comb { start: CHUNK_PAGES, width: 3, stride: 100, teeth: 5 },
        Comb { start: 2 * CHUNK_PAGES, width: 1, stride: 2, teeth: 256 },
    ];
    let map = PageMap::zero(pages).overlay(&set_of(pages, &combs), LayerSlot::new(0), &PageSet::new(pages));
    let (counts, few, many) = (16, 8 * 10, 80 + 6 * 512);
    let bytes: Vec<_> = map.chunks.iter().map(Chunk::heap_bytes).collect();
    assert_eq!(bytes, [0, counts + few, counts + many, 0]);
    assert_eq!(map.heap_bytes(), counts + 4 * 24 + counts + 4 + bytes.iter().sum::<usize>());
}

#[test]
#[should_panic(expected = "no other page lies in the slot")]
fn a_slot_in_use_takes_no_other_layer() {
    let map = overwritten();
    drop(map.overlay(&runs_set(40, &[(0, 1)]), LayerSlot::new(1), &PageSet::new(40)));
}

#[test]
fn the_layer_in_a_slot_may_be_kept_again_whole() {
    let map = overwritten();
    let again = map.overlay(&runs_set(40, &[(5, 20)]), LayerSlot::new(1), &PageSet::new(40));
    assert_eq!(again.live_pages(LayerSlot::new(1)), 20);
    assert_eq!(again.lookup(GuestPage::new(5)), layer(1, 0));
}

fn problem(bytes: &[u8], pages: u32, layer_pages: &[u32]) -> Problem {
    decoded(bytes, pages, layer_pages).expect_err("it is not what a map writes").problem
}

/// A token of the wire format.
fn token(slot: u16, skip: u16, count: u16) -> [u8; 2] {
    (slot | skip << 7 | (count - 1) << 11).to_le_bytes()
}

#[test]
fn pages_left_over_or_covered_twice_are_refused() {
    // Case 19, as for the next two tests.
    assert_eq!(problem(&token(0, 0, 9), 10, &[]), Problem::Truncated);
    assert_eq!(problem(&token(0, 0, 11), 10, &[]), Problem::Invalid("the run ends after the volume"));
    let twice = [token(0, 0, 10), token(1, 0, 1)].concat();
    assert_eq!(problem(&twice, 10, &[1]), Problem::Trailing { bytes: 2 });
    assert_eq!(problem(&[0xff; 12], 10, &[1]), Problem::NotCanonical);
}

#[test]
fn places_outside_their_layer_are_refused() {
    assert_eq!(problem(&token(2, 0, 10), 10, &[10]), Problem::Invalid("there is no layer in this slot"));
    assert_eq!(problem(&token(1, 0, 10), 10, &[9]), Problem::Invalid("the run ends after its layer"));
    assert_eq!(problem(&token(1, 1, 10), 10, &[10]), Problem::Invalid("the run ends after its layer"));
    let overflowing = [&token(1, 14, 5)[..], &token(1, 15, 5), &[0xf0, 0xff, 0xff, 0xff, 0x0f]].concat();
    assert_eq!(problem(&overflowing, 10, &[u32::MAX]), Problem::Invalid("the run ends after its layer"));
    assert_eq!(problem(&token(0, 1, 10), 10, &[]), Problem::Invalid("zero pages are in no layer"));
}

#[test]
fn one_run_written_as_two_is_refused() {
    let joined = Problem::Invalid("the run goes on from the one before");
    assert_eq!(problem(&[token(0, 0, 4), token(0, 0, 6)].concat(), 10, &[]), joined);
    assert_eq!(problem(&[token(1, 0, 4), token(1, 0, 6)].concat(), 10, &[10]), joined);
    let apart = [token(1, 0, 4), token(1, 1, 6)].concat();
    assert_eq!(decoded(&apart, 10, &[11]).map(|map| map.runs_count()), Ok(2));
}

#[test]
fn a_map_over_as_many_layers_as_there_may_be_is_read_back_in_two_to_three_bytes_a_run() {
    let layers = crate::limits::MANIFEST_LAYERS_MAX;
    let pages = 16 * u32::try_from(layers).expect("a small number");
    let nothing = PageSet::new(pages);
    // Each layer has sixteen pages, a whole number of strides apart.
    let comb = |slot: u32| Comb { start: slot, width: 1, stride: pages / 16, teeth: 16 };
    let map = (0..pages / 16).fold(PageMap::zero(pages), |map, slot| {
        let number = u16::try_from(slot).expect("a small number");
        map.overlay(&set_of(pages, &[comb(slot)]), LayerSlot::new(number), &nothing)
    });
    assert_eq!(map.runs_count(), pages);
    let token = RunToken::of_layers(layers);
    let mut writer = Writer::new();
    map.encode(&mut writer, token);
    let bytes = writer.into_bytes();
    assert!(bytes.len() <= 5 * usize_of(pages) / 2, "{} bytes for {pages} runs", bytes.len());
    let mut reader = Reader::new(&bytes);
    assert_eq!(PageMap::decode(&mut reader, pages, &vec![16; layers], token), Ok(map));
    assert_eq!(reader.finish(), Ok(()));
}

#[test]
fn up_to_126_layers_a_run_is_written_as_in_the_first_version() {
    let parts = |token: RunToken| format!("{token:?}");
    assert_eq!(parts(RunToken::of_layers(126)), parts(RunToken::FIRST));
    assert_ne!(parts(RunToken::of_layers(127)), parts(RunToken::FIRST));
}
