//! Keeps chains short: when a manifest names too many layers, the live pages of small ones are merged into one.

use std::collections::HashSet;
use std::sync::Arc;

use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::frame::{FRAME_PAGES, FrameNumber, frame_of};
use crate::key_ring::DomainKey;
use crate::layer::Layer;
use crate::limits;
use crate::local_file::LocalFile;
use crate::pack::{PackError, pack_pages};
use crate::page_map::{LayerSlot, PageMap, Place};
use crate::page_set::PageSet;
use crate::read_plan::ReadPlan;
use crate::view::{LiveView, PieceSource};

/// The layers of each volume to merge into one, chosen over the whole manifest; none of a volume that gives no room.
///
/// They are among the smaller half of all layers, by live pages, and none has more than twice the pages of all smaller
/// ones that are merged with it, so a page is written again about once each time the pages above it double. If that
/// leaves too little room for one more layer of each volume, the cheapest others are merged too.
pub(crate) fn slots_to_merge(maps: &[&PageMap], merge_at_layers: usize) -> Vec<Vec<LayerSlot>> {
    let mut merging: Vec<VolumeMerge> = maps.iter().map(|map| VolumeMerge::none_of(map)).collect();
    if layers_after(&merging) >= merge_at_layers {
        take_smaller_half(&mut merging);
        merging.iter_mut().for_each(VolumeMerge::drop_dear);
        while layers_after(&merging) + maps.len() > limits::MERGED_LAYERS_MAX {
            let cheapest = merging.iter_mut().filter_map(|volume| Some((volume.next_price()?, volume)));
            let Some((_, volume)) = cheapest.min_by_key(|(price, _)| *price) else { break };
            volume.taken = (volume.taken + 1).max(2);
        }
    }
    merging.into_iter().map(VolumeMerge::slots).collect()
}

/// The live layers of one volume, the smallest first, and the number of them to merge.
struct VolumeMerge {
    layers: Vec<(u32, LayerSlot)>,
    taken: usize,
}

impl VolumeMerge {
    fn none_of(map: &PageMap) -> Self {
        let mut layers: Vec<_> = map.live_slots().map(|slot| (map.live_pages(slot), slot)).collect();
        layers.sort_unstable();
        Self { layers, taken: 0 }
    }

    /// Leaves out layers that are much larger than all others that would be merged with them; one layer alone is no
    /// merge.
    fn drop_dear(&mut self) {
        while self.taken > 1 && u64::from(self.layers[self.taken - 1].0) > 2 * self.pages(self.taken - 1) {
            self.taken -= 1;
        }
        if self.taken == 1 {
            self.taken = 0;
        }
    }

    /// Pages that are written again to save one more layer; none if no merge is left.
    fn next_price(&self) -> Option<u64> {
        let next = (self.taken + 1).max(2);
        (next <= self.layers.len()).then(|| self.pages(next) - self.pages(self.taken))
    }

    fn pages(&self, layers: usize) -> u64 {
        self.layers[..layers].iter().map(|(pages, _)| u64::from(*pages)).sum()
    }

    fn slots(self) -> Vec<LayerSlot> {
        self.layers[..self.taken].iter().map(|(_, slot)| *slot).collect()
    }
}

/// Chooses, in every volume, the layers among the smaller half of all. One more than half, so that merging this many of
/// one volume leaves half.
fn take_smaller_half(merging: &mut [VolumeMerge]) {
    let mut all: Vec<(u32, usize)> = Vec::new();
    for (volume, merge) in merging.iter().enumerate() {
        all.extend(merge.layers.iter().map(|(pages, _)| (*pages, volume)));
    }
    all.sort_unstable();
    for (_, volume) in all.iter().take(all.len() / 2 + 1) {
        merging[*volume].taken += 1;
    }
}

/// Layers of the manifest once the chosen ones are merged. Volumes may share a layer.
fn layers_after(merging: &[VolumeMerge]) -> usize {
    let left = merging.iter().flat_map(|volume| &volume.layers[volume.taken..]);
    let left: HashSet<LayerSlot> = left.map(|(_, slot)| *slot).collect();
    left.len() + merging.iter().filter(|volume| volume.taken > 0).count()
}

/// The frames that a merge of these layers reads, and that are not verified on this node.
pub(crate) fn frames_to_bring(
    map: &PageMap,
    view: &LiveView,
    slots: &[LayerSlot],
) -> Vec<(Arc<LocalFile>, FrameNumber)> {
    let mut frames: Vec<(Arc<LocalFile>, FrameNumber)> = Vec::new();
    for run in pages_in(map, slots).runs() {
        let mut left = run;
        while !left.is_empty() {
            let piece = view.piece_at(left.start(), left.count());
            left = left.after(piece.pages.count());
            let PieceSource::Layer(file, first) = &piece.source else { continue };
            let mut done = file.verified_run(*first, piece.pages.count());
            while done < piece.pages.count() {
                let page = first.plus(done);
                let frame = frame_of(page);
                let is_last = |(last, known): &(Arc<LocalFile>, FrameNumber)| {
                    *known == frame && Arc::ptr_eq(last, file)
                };
                if !frames.last().is_some_and(is_last) {
                    frames.push((Arc::clone(file), frame));
                }
                done += FRAME_PAGES - page.number() % FRAME_PAGES;
            }
        }
    }
    frames
}

/// Packs the live pages of these layers as one layer of the domain that has the key; `view` reads the pages of `map`.
pub(crate) fn merge(
    map: &PageMap,
    view: &LiveView,
    slots: &[LayerSlot],
    (cache, key, fetcher): (&Cache, &DomainKey, &Fetcher),
) -> Result<Option<Arc<Layer>>, PackError> {
    let pages = pages_in(map, slots);
    pack_pages(&pages, cache, key, |run, into| Ok(ReadPlan::new(view, run).read(fetcher, into)?))
}

fn pages_in(map: &PageMap, slots: &[LayerSlot]) -> PageSet {
    let mut pages = PageSet::new(map.pages());
    for (run, place) in map.runs() {
        match place {
            Place::Layer { slot, .. } if slots.contains(&slot) => pages.insert_run(run),
            Place::Layer { .. } | Place::Zero => {}
        }
    }
    pages
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::geometry::{GuestPage, GuestPages};

    const NONE: Vec<u32> = Vec::new();

    /// Maps whose layers have these numbers of live pages; every layer has a slot of its own.
    fn maps(volumes: &[Vec<u32>]) -> Vec<PageMap> {
        let mut slots = (0..).map(LayerSlot::new);
        let map_of = |layers: &Vec<u32>| {
            let pages = layers.iter().sum();
            let mut start = GuestPage::new(0);
            layers.iter().fold(PageMap::zero(pages), |map, layer| {
                let mut kept = PageSet::new(pages);
                kept.insert_run(GuestPages::new(start, *layer));
                start = start.plus(*layer);
                map.overlay(&kept, slots.next().expect("16 bits"), &PageSet::new(pages))
            })
        };
        volumes.iter().map(map_of).collect()
    }

    /// The sizes of the layers that are merged in each volume.
    fn merged(volumes: &[Vec<u32>]) -> Vec<Vec<u32>> {
        let maps = maps(volumes);
        let slots = slots_to_merge(&maps.iter().collect::<Vec<_>>(), limits::MERGE_AT_LAYERS);
        let sizes = |(map, slots): (&PageMap, Vec<LayerSlot>)| {
            slots.into_iter().map(|slot| map.live_pages(slot)).collect()
        };
        maps.iter().zip(slots).map(sizes).collect()
    }

    #[test]
    fn nothing_is_merged_before_there_are_too_many_layers() {
        assert_eq!(merged(&[vec![1; 30], vec![5]]), [NONE, NONE]);
    }

    #[test]
    fn half_of_one_volumes_layers_become_one() {
        let sizes: Vec<u32> = std::iter::once(1000).chain(vec![3; 31]).collect();
        assert_eq!(merged(&[sizes]), [vec![3; 17]]);
    }

    #[test]
    fn a_disk_of_one_layer_and_a_disk_of_an_image_with_a_change_are_left_alone_where_memory_gives_the_room() {
        let memory: Vec<u32> = std::iter::once(900).chain(vec![4; 30]).collect();
        let [memory, image, changed]: [Vec<u32>; 3] =
            merged(&[memory, vec![500], vec![800, 2]]).try_into().expect("three volumes");
        assert!(memory.len() > 14 && memory.iter().all(|pages| *pages == 4), "{memory:?}");
        assert_eq!([image, changed], [NONE, NONE]);
    }

    #[test]
    fn sixteen_volumes_of_an_image_and_a_change_rewrite_nothing() {
        assert_eq!(merged(&vec![vec![700, 2]; 16]), vec![NONE; 16]);
    }

    #[test]
    fn no_merge_is_of_one_layer_and_there_is_always_room_for_another_layer_of_each_volume() {
        let mut volumes = vec![vec![700]; 16];
        let mut rewritten = 0;
        for pause in 0..200_u32 {
            let chosen = merged(&volumes);
            for (volume, merged) in volumes.iter_mut().zip(chosen) {
                assert_ne!(merged.len(), 1, "pause {pause}");
                rewritten += merged.iter().sum::<u32>();
                for size in &merged {
                    let at = volume.iter().position(|layer| layer == size).expect("it was merged");
                    volume.swap_remove(at);
                }
                volume.extend((!merged.is_empty()).then(|| merged.iter().sum::<u32>()));
                volume.push(2);
            }
            let layers: usize = volumes.iter().map(Vec::len).sum();
            assert!(layers <= limits::MERGED_LAYERS_MAX, "pause {pause}: {layers} layers");
        }
        let images_each_time = 200 * 16 * 700;
        assert!(rewritten < images_each_time / 10, "{rewritten} pages written again");
    }
}
