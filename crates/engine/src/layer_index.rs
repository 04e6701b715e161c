//! What a layer's name commits to: which pages of a volume it packs, and the digest of each frame of them.
//!
//! Layout, little-endian: magic `RKLI`, version u16, varint pages of the volume, varint pages packed, then for each
//! run of them the varint gap since the run before and the varint length less 1, then 32 bytes of digest a frame.

use crate::frame::{FrameNumber, frames_of};
use crate::geometry::{GuestPage, GuestPages};
use crate::identity::{Domain, FrameDigest, LayerId};
use crate::limits::{LAYER_INDEX_BYTES_MAX, MANIFEST_PAGES_MAX};
use crate::page_set::PageSet;
use crate::ranked_set::RankedSet;
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKLI";
const VERSION: u16 = 1;

/// The pages a layer packs, in their order, and the digests of its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    pages: RankedSet,
    digests: Box<[FrameDigest]>,
}

impl LayerIndex {
    /// The index of a layer that packs `pages`, one digest a frame; there is no layer of no pages.
    #[must_use]
    pub fn new(pages: RankedSet, digests: Vec<FrameDigest>) -> Self {
        assert!(!pages.is_empty(), "a layer packs at least one page");
        assert!(pages.pages() <= MANIFEST_PAGES_MAX, "a volume is within its limit");
        assert_eq!(digests.len(), frames_of(pages.len()), "each frame has one digest");
        Self { pages, digests: digests.into_boxed_slice() }
    }

    /// The pages of the volume that the layer packs.
    #[must_use]
    pub const fn pages(&self) -> &RankedSet {
        &self.pages
    }

    /// How many pages the layer packs.
    #[must_use]
    pub const fn page_count(&self) -> u32 {
        self.pages.len()
    }

    /// How many frames they are in.
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.digests.len()
    }

    /// The digest of a frame; a frame the layer does not have is a bug of the caller.
    #[must_use]
    pub fn digest(&self, frame: FrameNumber) -> FrameDigest {
        self.digests[frame.index()]
    }

    /// The layer's name in `domain`.
    #[must_use]
    pub fn id(&self, domain: &Domain) -> LayerId {
        LayerId::from_bytes(blake3::keyed_hash(domain.key(), &self.encode()).into())
    }

    /// The one encoding of the index.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(MAGIC);
        writer.u16(VERSION);
        writer.varint(self.pages.pages().into());
        writer.varint(self.pages.len().into());
        let mut end = GuestPage::FIRST;
        for run in self.pages.runs() {
            writer.varint(run.start().pages_since(end).into());
            writer.varint((run.count() - 1).into());
            end = run.end();
        }
        self.digests.iter().for_each(|digest| writer.bytes(digest.as_bytes()));
        assert!(writer.len() <= LAYER_INDEX_BYTES_MAX, "an index within its limits is never too long");
        writer.into_bytes()
    }

    /// Reads an index; refuses whatever [`LayerIndex::encode`] does not write.
    ///
    /// What was read is some layer's index: whose, only its [`LayerIndex::id`] says.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if bytes.len() > LAYER_INDEX_BYTES_MAX {
            return Err(reader.invalid("layer index", "it is longer than an index can be"));
        }
        reader.expect_bytes("layer index magic", MAGIC)?;
        reader.expect_u16("layer index version", VERSION)?;
        let volume_pages = reader.varint_u32("volume pages", MANIFEST_PAGES_MAX)?;
        let packed_pages = reader.varint_u32("packed pages", volume_pages)?;
        let pages = decode_pages(&mut reader, volume_pages, packed_pages)?;
        let digests = reader.bytes("frame digests", frames_of(packed_pages) * size_of::<FrameDigest>())?;
        reader.finish()?;
        let (digests, _) = digests.as_chunks();
        Ok(Self { pages, digests: digests.iter().map(|digest| FrameDigest::from_bytes(*digest)).collect() })
    }

    /// Bytes of heap the index holds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.pages.heap_bytes() + size_of_val::<[FrameDigest]>(&self.digests)
    }
}

/// Reads runs until they have `packed_pages` pages, which must be all of them and some.
fn decode_pages(
    reader: &mut Reader<'_>,
    volume_pages: u32,
    packed_pages: u32,
) -> Result<RankedSet, WireError> {
    if packed_pages == 0 {
        return Err(reader.invalid("packed pages", "a layer packs at least one page"));
    }
    let mut pages = PageSet::new(volume_pages);
    let (mut end, mut missing) = (GuestPage::FIRST, packed_pages);
    while missing > 0 {
        let gap = reader.varint_u32("packed run gap", volume_pages - end.number())?;
        if gap == 0 && missing < packed_pages {
            return Err(reader.invalid("packed run gap", "the run goes on from the one before"));
        }
        let start = end.plus(gap);
        let room = (volume_pages - start.number()).min(missing);
        let Some(count_max) = room.checked_sub(1) else {
            return Err(reader.invalid("packed run gap", "the run starts after the volume"));
        };
        let run = GuestPages::new(start, reader.varint_u32("packed run pages", count_max)? + 1);
        pages.insert_run(run);
        end = run.end();
        missing -= run.count();
    }
    Ok(RankedSet::new(&pages))
}
