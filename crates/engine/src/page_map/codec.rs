//! Page maps as bytes: two for most runs.
//!
//! A run is a token of 16 bits, lowest first: some for the slot (0 is zero pages, else the slot's number and 1), some for
//! how many pages of that layer were skipped since the last run in it, the rest for the run's pages less 1. A part whose
//! bits are all set goes on as a varint after the token, in the same order, with what exceeds them. The number of layers
//! says how many bits each part has: 7, 4 and 5 up to 126 layers, and 10, 3 and 3 for more than 510.

use super::chunk::{CHUNK_PAGES, Chunk, ChunkDraft};
use super::overlay::count_in;
use super::{LayerSlot, PageMap, Place};
use crate::geometry::{LayerPage, usize_of};
use crate::wire::{Reader, WireError, Writer};

/// One part of a token: its lowest bit and its largest value, which says that more follows.
#[derive(Clone, Copy, Debug)]
struct Part {
    field: &'static str,
    shift: u16,
    max: u16,
}

/// The parts of a token, in the number of bits that each has.
#[derive(Clone, Copy, Debug)]
pub struct RunToken {
    slot: Part,
    skip: Part,
    count: Part,
}

impl RunToken {
    /// The token of the first version of manifests, which have at most 64 layers.
    pub const FIRST: Self = Self::of_bits(7, 4);

    /// The token in a manifest of this many layers.
    #[must_use]
    pub const fn of_layers(layers: usize) -> Self {
        match layers {
            0..=126 => Self::of_bits(7, 4),
            127..=254 => Self::of_bits(8, 4),
            255..=510 => Self::of_bits(9, 4),
            _ => Self::of_bits(10, 3),
        }
    }

    const fn of_bits(slot: u16, skip: u16) -> Self {
        Self {
            slot: Part::of_bits("map run slot", 0, slot),
            skip: Part::of_bits("map run skip", slot, skip),
            count: Part::of_bits("map run pages", slot + skip, 16 - slot - skip),
        }
    }
}

impl Part {
    const fn of_bits(field: &'static str, shift: u16, bits: u16) -> Self {
        Self { field, shift, max: (1 << bits) - 1 }
    }

    fn put(&self, value: u32) -> u16 {
        u16::try_from(value).unwrap_or(self.max).min(self.max) << self.shift
    }

    fn put_rest(&self, value: u32, writer: &mut Writer) {
        if let Some(rest) = value.checked_sub(self.max.into()) {
            writer.varint(rest.into());
        }
    }

    fn get(&self, token: u16, reader: &mut Reader<'_>, max: u32) -> Result<u32, WireError> {
        let value = u32::from(token >> self.shift & self.max);
        if value < self.max.into() {
            return Ok(value);
        }
        Ok(value + reader.varint_u32(self.field, max.saturating_sub(value))?)
    }
}

impl PageMap {
    /// Writes the map, without its number of pages.
    pub fn encode(&self, writer: &mut Writer, token: RunToken) {
        let RunToken { slot: slot_part, skip: skip_part, count: count_part } = token;
        let mut cursors = vec![LayerPage::FIRST; self.live.len()];
        for (run, place) in self.runs() {
            let (slot, skip) = match place {
                Place::Zero => (0, 0),
                Place::Layer { slot, page } => {
                    let skip = page.pages_since(cursors[slot.index()]);
                    cursors[slot.index()] = page.plus(run.count());
                    (u32::from(slot.number()) + 1, skip)
                }
            };
            let count = run.count() - 1;
            writer.u16(slot_part.put(slot) | skip_part.put(skip) | count_part.put(count));
            slot_part.put_rest(slot, writer);
            skip_part.put_rest(skip, writer);
            count_part.put_rest(count, writer);
        }
    }

    /// Reads the map of a volume of `pages` with the number of pages of the layer at each slot, 0 for a vacant slot.
    ///
    /// Refuses every encoding that [`PageMap::encode`] does not write: pages left over or covered twice, places outside
    /// their layer or not in its order, runs that should be one.
    pub fn decode(
        reader: &mut Reader<'_>,
        pages: u32,
        layer_pages: &[u32],
        token: RunToken,
    ) -> Result<Self, WireError> {
        let RunToken { slot: slot_part, skip: skip_part, count: count_part } = token;
        let mut cursors = vec![LayerPage::FIRST; layer_pages.len()];
        let mut draft = MapDraft::default();
        while draft.pages < pages {
            let token = reader.u16("map run")?;
            let slot = slot_part.get(token, reader, LayerSlot::COUNT_MAX.into())?;
            let skip = skip_part.get(token, reader, u32::MAX)?;
            let count = count_part.get(token, reader, u32::MAX - 1)? + 1;
            if count > pages - draft.pages {
                return Err(reader.invalid("map run pages", "the run ends after the volume"));
            }
            let place = place_of(reader, slot, skip, count, layer_pages, &mut cursors)?;
            if draft.end == Some(place) {
                return Err(reader.invalid("map run", "the run goes on from the one before"));
            }
            draft.push(place, count);
        }
        Ok(draft.finish())
    }
}

/// Start of a run of `count` pages in this slot, once that was checked; moves the slot's cursor past it.
fn place_of(
    reader: &Reader<'_>,
    slot: u32,
    skip: u32,
    count: u32,
    layer_pages: &[u32],
    cursors: &mut [LayerPage],
) -> Result<Place, WireError> {
    let Some(number) = slot.checked_sub(1) else {
        let zero = (skip == 0).then_some(Place::Zero);
        return zero.ok_or(reader.invalid("map run skip", "zero pages are in no layer"));
    };
    let Some(cursor) = cursors.get_mut(usize_of(number)) else {
        return Err(reader.invalid("map run slot", "there is no layer in this slot"));
    };
    let page = cursor.checked_add(skip);
    let end = page.and_then(|page| page.checked_add(count));
    let Some((page, end)) = page.zip(end).filter(|(_, end)| end.number() <= layer_pages[usize_of(number)])
    else {
        return Err(reader.invalid("map run", "the run ends after its layer"));
    };
    *cursor = end;
    let slot =
        u16::try_from(number).ok().and_then(LayerSlot::checked).expect("slots end below the count of them");
    Ok(Place::Layer { slot, page })
}

/// A map collected run by run.
#[derive(Default)]
struct MapDraft {
    chunks: Vec<Chunk>,
    chunk: ChunkDraft,
    live: Vec<u32>,
    pages: u32,
    runs: u32,
    /// Place at which the last run would go on.
    end: Option<Place>,
}

impl MapDraft {
    fn push(&mut self, place: Place, count: u32) {
        count_in(&mut self.live, place, count);
        let mut pushed = 0;
        while pushed < count {
            let part = (count - pushed).min(CHUNK_PAGES - self.chunk.pages());
            self.chunk.push(place.plus(pushed), part);
            pushed += part;
            if self.chunk.pages() == CHUNK_PAGES {
                self.chunks.push(self.chunk.finish());
            }
        }
        self.pages += count;
        self.runs += 1;
        self.end = Some(place.plus(count));
    }

    fn finish(mut self) -> PageMap {
        if self.chunk.pages() > 0 {
            self.chunks.push(self.chunk.finish());
        }
        PageMap { chunks: self.chunks.into(), live: self.live.into(), pages: self.pages, runs: self.runs }
    }
}
