//! The index that a layer's name commits to: the pages of a volume that it packs, and the digest of each of its frames.
//!
//! Layout, little-endian: magic `RKLI`, version u16, a byte for the order of the pages (0: the guest's), varint pages of
//! the volume, varint pages packed, then for each run of them the varint gap since the run before and the varint length
//! less 1, then 32 bytes of digest a frame. In version 1 the order is not said, and the digests have no key. A layer's
//! name is of these very bytes, so an index is written in the version in which it was read.

use crate::frame::{FrameNumber, frames_of, pages_in_frame};
use crate::geometry::{GuestPage, GuestPages};
use crate::identity::FrameDigest;
use crate::key_ring::DomainKey;
use crate::limits::{LAYER_INDEX_BYTES_MAX, MANIFEST_PAGES_MAX};
use crate::page_tree::{PageTree, ProvenPages};
use crate::ranked_set::RankedSet;
use crate::wire::{Problem, Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKLI";
/// The form of each version, from 1 on.
const FORMS: [IndexForm; 2] = [IndexForm::DigestsWithoutKey, IndexForm::KeyedDigests];
/// The layer's pages are in the order of the guest's. Another order will have another code.
const GUESTS_ORDER: u8 = 0;

/// The form of an index: the version in which it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexForm {
    /// Version 1.
    DigestsWithoutKey,
    /// Version 2.
    KeyedDigests,
}

/// The pages a layer packs, in their order, and the digests of its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    form: IndexForm,
    pages: RankedSet,
    digests: Box<[FrameDigest]>,
}

impl LayerIndex {
    /// The index of a layer that packs `pages`, one keyed digest a frame; there is no layer of no pages.
    #[must_use]
    pub fn new(pages: RankedSet, digests: Vec<FrameDigest>) -> Self {
        assert!(!pages.is_empty(), "a layer packs at least one page");
        assert!(pages.pages() <= MANIFEST_PAGES_MAX, "a volume is within its limit");
        assert_eq!(digests.len(), frames_of(pages.len()), "each frame has one digest");
        Self { form: IndexForm::KeyedDigests, pages, digests: digests.into_boxed_slice() }
    }

    /// The pages of the volume that the layer packs.
    #[must_use]
    pub const fn pages(&self) -> &RankedSet {
        &self.pages
    }

    /// Number of pages the layer packs.
    #[must_use]
    pub const fn page_count(&self) -> u32 {
        self.pages.len()
    }

    /// Number of frames they are in.
    #[must_use]
    pub const fn frames(&self) -> usize {
        self.digests.len()
    }

    /// Its form.
    #[must_use]
    pub const fn form(&self) -> IndexForm {
        self.form
    }

    /// True if these are the uncompressed bytes of a frame of this layer, whose domain has `key`.
    #[must_use]
    pub fn is_frame(&self, frame: FrameNumber, bytes: &[u8], key: &DomainKey) -> bool {
        let digest = match self.form {
            IndexForm::DigestsWithoutKey => FrameDigest::without_key(bytes),
            IndexForm::KeyedDigests => key.frame_digest(bytes),
        };
        digest == self.digest(frame)
    }

    /// True if these are some of the pages of a frame of this layer, by their proof.
    pub(crate) fn has_pages(&self, frame: FrameNumber, of: ProvenPages<'_>, key: &DomainKey) -> bool {
        if frame.index() >= self.frames() {
            return false;
        }
        let digest = self.tree(key).digest(pages_in_frame(frame, self.page_count()), of);
        digest.is_some_and(|digest| FrameDigest::from_bytes(digest) == self.digest(frame))
    }

    /// The tree whose root is the digest of a frame.
    pub(crate) fn tree<'a>(&self, key: &'a DomainKey) -> PageTree<'a> {
        match self.form {
            IndexForm::DigestsWithoutKey => PageTree::without_key(),
            IndexForm::KeyedDigests => key.frame_tree(),
        }
    }

    /// The digest of a frame; a frame the layer does not have is a bug of the caller.
    #[must_use]
    pub fn digest(&self, frame: FrameNumber) -> FrameDigest {
        self.digests[frame.index()]
    }

    /// The one encoding of the index.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(MAGIC);
        match self.form {
            IndexForm::DigestsWithoutKey => writer.u16(1),
            IndexForm::KeyedDigests => {
                writer.u16(2);
                writer.u8(GUESTS_ORDER);
            }
        }
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

    /// Reads an index; refuses every encoding that [`LayerIndex::encode`] does not write.
    ///
    /// The bytes are some layer's index: only its id, which its domain's key makes of them, says of which.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        if bytes.len() > LAYER_INDEX_BYTES_MAX {
            return Err(reader.invalid("layer index", "it is longer than an index can be"));
        }
        reader.expect_bytes("layer index magic", MAGIC)?;
        let form = reader.version("layer index version", &FORMS)?;
        read_order(&mut reader, form)?;
        let volume_pages = reader.varint_u32("volume pages", MANIFEST_PAGES_MAX)?;
        let packed_pages = reader.varint_u32("packed pages", volume_pages)?;
        let runs = decode_runs(&mut reader, volume_pages, packed_pages)?;
        let digests = reader.bytes("frame digests", frames_of(packed_pages) * size_of::<FrameDigest>())?;
        reader.finish()?;
        let (digests, _) = digests.as_chunks();
        let digests = digests.iter().map(|digest| FrameDigest::from_bytes(*digest)).collect();
        // Only now: a few bytes may name a large volume, and most of such inputs are refused above.
        Ok(Self { form, pages: RankedSet::of_runs(volume_pages, &runs), digests })
    }

    /// Bytes of heap the index holds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.pages.heap_bytes() + size_of_val::<[FrameDigest]>(&self.digests)
    }
}

fn read_order(reader: &mut Reader<'_>, form: IndexForm) -> Result<(), WireError> {
    match form {
        IndexForm::DigestsWithoutKey => Ok(()),
        IndexForm::KeyedDigests => match reader.u8("layer page order")? {
            GUESTS_ORDER => Ok(()),
            found => {
                let known = "0 (the guest's order)";
                Err(reader.error("layer page order", Problem::UnknownCode { found, known }))
            }
        },
    }
}

/// Reads runs until they have `packed_pages` pages, which must be all of them and some. Holds as many as were encoded.
fn decode_runs(
    reader: &mut Reader<'_>,
    volume_pages: u32,
    packed_pages: u32,
) -> Result<Vec<GuestPages>, WireError> {
    if packed_pages == 0 {
        return Err(reader.invalid("packed pages", "a layer packs at least one page"));
    }
    let mut runs = Vec::new();
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
        runs.push(run);
        end = run.end();
        missing -= run.count();
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::usize_of;
    use crate::page_set::PageSet;

    fn index_of(pages: u32, runs: &[(u32, u32)]) -> LayerIndex {
        let mut set = PageSet::new(pages);
        runs.iter()
            .for_each(|(start, count)| set.insert_run(GuestPages::new(GuestPage::new(*start), *count)));
        let digests =
            (0..frames_of(set.len())).map(|frame| FrameDigest::without_key(&frame.to_le_bytes())).collect();
        LayerIndex::new(RankedSet::new(&set), digests)
    }

    fn index() -> impl Strategy<Value = LayerIndex> {
        (1_u32..3000)
            .prop_flat_map(|pages| (Just(pages), prop::collection::vec((0..pages, 1_u32..200), 1..30)))
            .prop_map(|(pages, runs)| {
                let clipped: Vec<_> =
                    runs.iter().map(|(start, count)| (*start, *count.min(&(pages - start)))).collect();
                index_of(pages, &clipped)
            })
    }

    proptest! {
        #[test]
        fn an_index_is_read_back_equal(index in index()) {
            prop_assert_eq!(LayerIndex::decode(&index.encode()), Ok(index));
        }

        #[test]
        fn whatever_is_read_is_written_the_same(index in index(), at: prop::sample::Index, byte: u8) {
            let mut bytes = index.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = LayerIndex::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused_or_is_another_layer() {
        // Case 18: the name commits to every bit, and one index has one encoding.
        let index = index_of(1000, &[(0, 1), (2, 1), (100, 300), (999, 1)]);
        let (bytes, key) = (index.encode(), key_of("shared"));
        let name = key.layer_id(&bytes);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = LayerIndex::decode(&damaged) {
                assert_ne!(key.layer_id(&read.encode()), name, "bit {bit}");
            }
        }
    }

    #[test]
    fn equal_layers_of_two_domains_have_different_names() {
        let [one, again] = [(); 2].map(|()| index_of(10, &[(3, 2)]).encode());
        let [shared, tenant] = ["shared", "tenant-1"].map(key_of);
        assert_ne!(shared.layer_id(&one), tenant.layer_id(&one));
        assert_eq!(tenant.layer_id(&one), tenant.layer_id(&again));
    }

    #[test]
    fn the_format_is_the_one_that_is_stored_already() {
        // One gap and length for each run, after the volume's 300 pages and the layer's 67.
        let runs = [&[0xac, 2][..], &[67], &[1, 1], &[0xc5, 1, 64]].concat();
        let index = index_of(300, &[(1, 2), (200, 65)]);
        let layout = [&b"RKLI"[..], &[2, 0, 0], &runs].concat();
        assert_eq!(index.encode()[..layout.len()], layout);
        assert_eq!(index.encode().len(), layout.len() + 2 * 32);
        // Version 1 has no order, and stays as it is.
        let first = [&b"RKLI"[..], &[1, 0], &index.encode()[7..]].concat();
        let index = LayerIndex::decode(&first).expect("it was written once");
        assert_eq!((index.form(), index.encode()), (IndexForm::DigestsWithoutKey, first));
        let name = "0acd1241ccee830ec3fa5fdc7386b2349e1d7900c1e8434d91cc459f3939e6fa";
        assert_eq!(key_of("shared").layer_id(&index.encode()).to_string(), name);
    }

    fn key_of(domain: &str) -> DomainKey {
        DomainKey::of_name(domain.parse().expect("a legal name"))
    }

    fn problem(fields: &[u8]) -> Problem {
        let bytes = [MAGIC, &[2, 0, GUESTS_ORDER], fields].concat();
        LayerIndex::decode(&bytes).expect_err("no index writes this").problem
    }

    #[test]
    fn pages_out_of_order_or_outside_the_volume_are_refused() {
        // Case 19: a gap cannot be negative, so disorder and overlap have no encoding.
        assert_eq!(problem(&[10, 2, 11, 0]), Problem::TooLarge { value: 11, max: 10 });
        assert_eq!(problem(&[10, 2, 10, 0]), Problem::Invalid("the run starts after the volume"));
        assert_eq!(problem(&[10, 2, 9, 1]), Problem::TooLarge { value: 1, max: 0 });
        assert_eq!(problem(&[10, 2, 0, 2]), Problem::TooLarge { value: 2, max: 1 });
        assert_eq!(problem(&[10, 2, 0, 0, 0, 0]), Problem::Invalid("the run goes on from the one before"));
        assert_eq!(problem(&[10, 11]), Problem::TooLarge { value: 11, max: 10 });
        assert_eq!(problem(&[10, 0]), Problem::Invalid("a layer packs at least one page"));
    }

    #[test]
    fn a_frame_is_told_by_the_key_of_its_domain_and_in_version_1_without_one() {
        let (key, other) = (key_of("a"), key_of("b"));
        let set = index_of(10, &[(3, 2)]).pages;
        let index = LayerIndex::new(set.clone(), vec![key.frame_digest(b"bytes")]);
        let told = |bytes: &[u8], key| index.is_frame(FrameNumber::new(0), bytes, key);
        assert_eq!(
            [told(b"bytes", &key), told(b"bytes", &other), told(b"other", &key)],
            [true, false, false]
        );
        let first = LayerIndex {
            form: IndexForm::DigestsWithoutKey,
            ..LayerIndex::new(set, vec![FrameDigest::without_key(b"bytes")])
        };
        assert!(first.is_frame(FrameNumber::new(0), b"bytes", &key));
    }

    #[test]
    fn an_order_of_pages_that_is_not_known_is_refused_by_name() {
        let mut bytes = index_of(10, &[(3, 2)]).encode();
        bytes[6] = 1;
        let refused = LayerIndex::decode(&bytes).expect_err("it is unknown").problem;
        assert_eq!(refused, Problem::UnknownCode { found: 1, known: "0 (the guest's order)" });
    }

    #[test]
    fn missing_and_surplus_digests_are_refused() {
        let mut bytes = index_of(100, &[(0, 65)]).encode();
        bytes.push(0);
        assert_eq!(
            LayerIndex::decode(&bytes).map_err(|error| error.problem),
            Err(Problem::Trailing { bytes: 1 })
        );
        bytes.truncate(bytes.len() - 2);
        assert_eq!(LayerIndex::decode(&bytes).map_err(|error| error.problem), Err(Problem::Truncated));
    }

    #[test]
    fn a_volume_past_its_limit_is_neither_read_nor_written() {
        // Case 16: one constant on both sides.
        let mut writer = Writer::new();
        writer.varint(u64::from(MANIFEST_PAGES_MAX) + 1);
        let too_large =
            Problem::TooLarge { value: u64::from(MANIFEST_PAGES_MAX) + 1, max: MANIFEST_PAGES_MAX.into() };
        assert_eq!(problem(&writer.into_bytes()), too_large);
        let beyond = std::panic::catch_unwind(|| index_of(MANIFEST_PAGES_MAX + 1, &[(0, 1)]));
        assert!(beyond.is_err());
    }

    #[test]
    fn an_index_holds_its_digests_and_little_more() {
        let index = index_of(1 << 20, &[(0, 1 << 18)]);
        assert_eq!(index.frames(), 4096);
        assert!(index.heap_bytes() <= 4096 * 32 + usize_of(1 << 20) / 512 * 8);
    }
}
