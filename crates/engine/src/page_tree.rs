//! Proofs that single pages are those of a frame: the hashes of the parts of its tree that have none of them.
//!
//! A frame's digest is BLAKE3's root over its pages. A page is a whole subtree, so its hash and those of its neighbours lead
//! to the digest, in the tree that BLAKE3 defines: the left half of a part has the largest power of two of its pages.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::geometry::{PAGE_BYTES, u64_of, usize_of};

/// Bytes of one hash of a proof.
pub(crate) const HASH_BYTES: usize = size_of::<ChainingValue>();

/// Some pages of a frame, at least one: a bit a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBits(u64);

/// Pages of a frame, with their proof.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProvenPages<'a> {
    pub(crate) bits: PageBits,
    /// Their bytes, one page after the other.
    pub(crate) pages: &'a [u8],
    pub(crate) proof: &'a [u8],
}

/// The hashes of frames: with a key, or without.
#[derive(Clone, Copy)]
pub(crate) struct PageTree<'a>(Mode<'a>);

/// Consecutive pages of a frame that are a part of its tree.
#[derive(Clone, Copy)]
struct Part {
    first: u32,
    count: u32,
}

/// Pages of a frame and their proof, as far as they are not used.
struct Given<'a> {
    pages: std::slice::ChunksExact<'a, u8>,
    proof: std::slice::ChunksExact<'a, u8>,
}

impl PageBits {
    /// The pages of these bits; none if there are no bits.
    #[must_use]
    pub const fn new(bits: u64) -> Option<Self> {
        if bits == 0 { None } else { Some(Self(bits)) }
    }

    /// One page of a frame.
    #[must_use]
    pub fn of_page(page: u32) -> Self {
        Self::of_run(page, 1)
    }

    /// Consecutive pages of a frame.
    #[must_use]
    pub fn of_run(first: u32, count: u32) -> Self {
        assert!(count > 0 && first + count <= u64::BITS, "a frame has 64 pages at most");
        Self(u64::MAX >> (u64::BITS - count) << first)
    }

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// These pages and others.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Number of pages.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The pages, in their order.
    pub fn pages(self) -> impl Iterator<Item = u32> {
        (0..u64::BITS).filter(move |page| self.0 >> page & 1 == 1)
    }

    /// True if all of them are among the first `pages`.
    #[must_use]
    pub const fn are_within(self, pages: u32) -> bool {
        self.0.leading_zeros() + pages >= u64::BITS
    }

    const fn has_any_of(self, part: Part) -> bool {
        (self.0 >> part.first) << (u64::BITS - part.count) != 0
    }
}

impl Part {
    /// The halves of a part of at least two pages.
    const fn halves(self) -> (Self, Self) {
        let left = 1 << (u32::BITS - 1 - (self.count - 1).leading_zeros());
        (Self { first: self.first, count: left }, Self { first: self.first + left, count: self.count - left })
    }

    /// The parts without wanted pages, as large as they can be, in their order.
    fn unwanted(self, wanted: PageBits, found: &mut Vec<Self>) {
        if !wanted.has_any_of(self) {
            found.push(self);
        } else if self.count > 1 {
            let (left, right) = self.halves();
            left.unwanted(wanted, found);
            right.unwanted(wanted, found);
        }
    }
}

/// Bytes of the proof of `wanted` pages of a frame of so many pages.
pub(crate) fn proof_bytes(frame_pages: u32, wanted: PageBits) -> usize {
    unwanted(frame_pages, wanted).len() * HASH_BYTES
}

fn unwanted(frame_pages: u32, wanted: PageBits) -> Vec<Part> {
    let mut parts = Vec::new();
    Part { first: 0, count: frame_pages }.unwanted(wanted, &mut parts);
    parts
}

impl<'a> PageTree<'a> {
    pub(crate) const fn with_key(key: &'a [u8; blake3::KEY_LEN]) -> Self {
        Self(Mode::KeyedHash(key))
    }

    pub(crate) const fn without_key() -> Self {
        Self(Mode::Hash)
    }

    /// The proof of `wanted` pages of a frame, which has these bytes.
    pub(crate) fn proof(self, frame: &[u8], wanted: PageBits) -> Vec<u8> {
        let frame_pages = u32::try_from(frame.len() / PAGE_BYTES).expect("a frame has few pages");
        let hash_of = |part: Part| {
            let start = usize_of(part.first) * PAGE_BYTES;
            self.hash(part, &frame[start..start + usize_of(part.count) * PAGE_BYTES])
        };
        unwanted(frame_pages, wanted).into_iter().flat_map(hash_of).collect()
    }

    /// The digest of the frame of so many pages that has these, by their proof; none if pages or proof have another length.
    pub(crate) fn digest(self, frame_pages: u32, of: ProvenPages<'_>) -> Option<[u8; HASH_BYTES]> {
        let ProvenPages { bits: wanted, pages, proof } = of;
        let fits = wanted.are_within(frame_pages)
            && pages.len() == usize_of(wanted.count()) * PAGE_BYTES
            && proof.len() == proof_bytes(frame_pages, wanted);
        if !fits {
            return None;
        }
        let root = Part { first: 0, count: frame_pages };
        if root.count == 1 {
            return Some(self.hasher().update(pages).finalize().into());
        }
        let mut given =
            Given { pages: pages.chunks_exact(PAGE_BYTES), proof: proof.chunks_exact(HASH_BYTES) };
        let (left, right) = root.halves();
        let (left, right) = (self.value(left, wanted, &mut given)?, self.value(right, wanted, &mut given)?);
        Some(merge_subtrees_root(&left, &right, self.0).into())
    }

    fn value(self, part: Part, wanted: PageBits, given: &mut Given<'_>) -> Option<ChainingValue> {
        if !wanted.has_any_of(part) {
            return given.proof.next()?.try_into().ok();
        }
        if part.count == 1 {
            return Some(self.hash(part, given.pages.next()?));
        }
        let (left, right) = part.halves();
        let (left, right) = (self.value(left, wanted, given)?, self.value(right, wanted, given)?);
        Some(merge_subtrees_non_root(&left, &right, self.0))
    }

    /// The hash of a part that is not the whole frame.
    fn hash(self, part: Part, bytes: &[u8]) -> ChainingValue {
        let mut hasher = self.hasher();
        hasher.set_input_offset(u64::from(part.first) * u64_of(PAGE_BYTES));
        hasher.update(bytes).finalize_non_root()
    }

    fn hasher(self) -> Hasher {
        match self.0 {
            Mode::KeyedHash(key) => Hasher::new_keyed(key),
            Mode::Hash | Mode::DeriveKeyMaterial(_) => Hasher::new(),
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(pages: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize_of(pages) * PAGE_BYTES];
        Hasher::new().update(&pages.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn picked(frame: &[u8], wanted: PageBits) -> Vec<u8> {
        let page = |page: u32| frame[usize_of(page) * PAGE_BYTES..][..PAGE_BYTES].to_vec();
        wanted.pages().flat_map(page).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_pages_of_a_frame_and_their_proof_lead_to_its_digest_and_no_others_do(
            frame_pages in 1..=u64::BITS, bits in any::<u64>(), flip in any::<prop::sample::Index>(),
        ) {
            let frame = frame(frame_pages);
            let within = u64::MAX >> (u64::BITS - frame_pages);
            let wanted = PageBits::new(bits & within).unwrap_or(PageBits::of_page(0));
            let key = [7; 32];
            for (tree, whole) in [
                (PageTree::without_key(), blake3::hash(&frame)),
                (PageTree::with_key(&key), blake3::keyed_hash(&key, &frame)),
            ] {
                let (mut pages, proof) = (picked(&frame, wanted), tree.proof(&frame, wanted));
                let digest = |pages: &[u8], proof: &[u8]| {
                    tree.digest(frame_pages, ProvenPages { bits: wanted, pages, proof })
                };
                prop_assert_eq!(digest(&pages, &proof), Some(*whole.as_bytes()));
                prop_assert_eq!(digest(&pages[1..], &proof), None);
                prop_assert_eq!(digest(&pages, &[proof.as_slice(), &[0]].concat()), None);
                let at = flip.index(pages.len());
                pages[at] ^= 1;
                prop_assert_ne!(digest(&pages, &proof), Some(*whole.as_bytes()));
            }
        }
    }

    #[test]
    fn a_page_among_64_needs_six_hashes_and_a_whole_frame_none() {
        assert_eq!(proof_bytes(64, PageBits::of_page(17)), 6 * HASH_BYTES);
        assert_eq!(proof_bytes(64, PageBits(u64::MAX)), 0);
        assert_eq!(proof_bytes(1, PageBits::of_page(0)), 0);
        assert!(PageBits::of_page(63).are_within(64) && !PageBits::of_page(63).are_within(63));
    }
}
