//! Keeps chains short: when a manifest would name too many layers, the live pages of the smallest ones become one.

use std::sync::Arc;

use crate::cache::Cache;
use crate::fetch::Fetcher;
use crate::identity::Domain;
use crate::layer::Layer;
use crate::pack::{PackError, pack_pages};
use crate::page_map::{LayerSlot, PageMap, Place};
use crate::page_set::PageSet;
use crate::read_plan::ReadPlan;
use crate::view::LiveView;

/// Merges layers of `map`, whose manifest has too many; `view` reads the same pages. Half of the layers, those with the
/// fewest live pages, go into one, so a page is written again about once per doubling of what lies above it.
pub(crate) fn merge(
    map: &PageMap,
    view: &LiveView,
    (cache, fetcher, domain): (&Cache, &Fetcher, &Domain),
) -> Result<Option<Arc<Layer>>, PackError> {
    let pages = pages_in(map, &smallest_half(map));
    pack_pages(&pages, cache, domain, |run, into| Ok(ReadPlan::new(view, run).read(fetcher, into)?))
}

fn smallest_half(map: &PageMap) -> Vec<LayerSlot> {
    let mut slots: Vec<LayerSlot> = map.live_slots().collect();
    slots.sort_by_key(|slot| map.live_pages(*slot));
    slots.truncate(slots.len() / 2 + 1);
    slots
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
