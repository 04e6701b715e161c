//! The duties of every decoder of bytes we did not write: it ends without a panic and knows one encoding of each value.
//!
//! The same entries serve the fuzz targets and the test that replays their corpus with damage.

use std::collections::BTreeMap;

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use rekindle_engine::frame::frames_of;
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::handover;
use rekindle_engine::identity::{Domain, FrameDigest, LayerId, SnapshotId};
use rekindle_engine::layer_index::LayerIndex;
use rekindle_engine::limits;
use rekindle_engine::manifest::{
    LayerName, Manifest, ObjectName, Publication, SnapshotFacts, StoredLayer, VolumeChange, VolumeShape,
};
use rekindle_engine::object::ObjectTable;
use rekindle_engine::page_set::PageSet;
use rekindle_engine::ranked_set::RankedSet;
use rekindle_engine::working_set::{Touch, WorkingSet};
use rekindle_kernel::PageKind;

/// One decoder of a stored format or of a peer's message.
#[derive(Debug)]
pub struct Decoder {
    /// Its name: that of its fuzz target and of the directory of its corpus.
    pub name: &'static str,
    /// Decodes and checks what every decoder owes; says whether the bytes were accepted.
    pub accepts: fn(&[u8]) -> bool,
    /// The encoder's output today, under names for the files of the corpus.
    pub samples: fn() -> BTreeMap<&'static str, Vec<u8>>,
}

/// All of them.
pub const DECODERS: [Decoder; 5] = [
    Decoder { name: "publication", accepts: publication, samples: publication_samples },
    Decoder { name: "layer_index", accepts: layer_index, samples: layer_index_samples },
    Decoder { name: "object_table", accepts: object_table, samples: object_table_samples },
    Decoder { name: "handover", accepts: handover, samples: handover_samples },
    Decoder { name: "working_set", accepts: working_set, samples: working_set_samples },
];

/// Bytes of a publication before its body: magic, version, length, checksum.
const PUBLICATION_FRONT_BYTES: usize = 22;
/// Place of the length in it.
const PUBLICATION_LENGTH_AT: usize = 6;

/// Decodes a publication.
pub fn publication(bytes: &[u8]) -> bool {
    let Ok(publication) = Publication::decode(bytes) else { return false };
    assert_eq!(publication.encode(), bytes, "a publication has one encoding");
    for volume in publication.manifest().volumes() {
        let pages: u64 = volume.map.runs().map(|(run, _)| u64::from(run.count())).sum();
        assert_eq!(pages, u64::from(volume.map.pages()), "a map covers its volume once");
    }
    true
}

/// The bytes with the length and the checksum that a publication with this body has, so that damage gets past them.
#[must_use]
pub fn publication_resealed(bytes: &[u8]) -> Vec<u8> {
    let mut resealed = bytes.to_vec();
    let Some(body) = bytes.get(PUBLICATION_FRONT_BYTES..) else { return resealed };
    let length = u64::try_from(body.len()).expect("a size in memory has 64 bits");
    let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body);
    let front = [length.to_le_bytes(), checksum.to_le_bytes()].concat();
    resealed[PUBLICATION_LENGTH_AT..PUBLICATION_FRONT_BYTES].copy_from_slice(&front);
    resealed
}

/// Decodes a layer index.
pub fn layer_index(bytes: &[u8]) -> bool {
    let Ok(index) = LayerIndex::decode(bytes) else { return false };
    assert_eq!(index.encode(), bytes, "an index has one encoding");
    let pages: u32 = index.pages().runs().map(GuestPages::count).sum();
    assert_eq!(pages, index.page_count(), "the runs are the pages");
    true
}

/// Decodes the table of a layer object, after 8 bytes that say how long the frames before it are.
pub fn object_table(bytes: &[u8]) -> bool {
    let Some((frames_bytes, table)) = bytes.split_first_chunk() else { return false };
    let frames_bytes = u64::from_le_bytes(*frames_bytes);
    let Ok(table) = ObjectTable::decode(table, frames_bytes) else { return false };
    assert_eq!(table.encode(), &bytes[size_of::<u64>()..], "a table has one encoding");
    assert_eq!(table.frames_bytes(), frames_bytes, "the frames fill the object up to the table");
    true
}

/// Pages of the volume that hand-over messages are checked against.
const HANDOVER_PAGES: u32 = 1 << 20;

/// Decodes the message by which a VMM hands its memory over.
pub fn handover(bytes: &[u8]) -> bool {
    let Ok(Some(regions)) = handover::regions_of(bytes, HANDOVER_PAGES) else { return false };
    assert_eq!(regions.pages(), HANDOVER_PAGES, "the regions are the volume");
    for region in regions.iter() {
        let first = region.pages().start();
        assert_eq!(regions.page_at(region.start), Some(first), "an address leads to its page");
        assert_eq!(
            regions.range_of(regions.unit_of(first)).start,
            region.start,
            "and the page to its address"
        );
    }
    true
}

/// Bytes of a working set before what its checksum is of: magic, version, checksum.
const WORKING_SET_FRONT_BYTES: usize = 14;
/// Place of the checksum in it.
const WORKING_SET_CHECKSUM_AT: usize = 6;

/// Decodes a working set, as it is and with the checksum that it should have.
pub fn working_set(bytes: &[u8]) -> bool {
    let mut resealed = bytes.to_vec();
    if let Some(body) = bytes.get(WORKING_SET_FRONT_BYTES..) {
        let checksum = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, body);
        resealed[WORKING_SET_CHECKSUM_AT..WORKING_SET_FRONT_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }
    checked_working_set(&resealed);
    checked_working_set(bytes)
}

fn checked_working_set(bytes: &[u8]) -> bool {
    let Ok(set) = WorkingSet::decode(bytes) else { return false };
    assert_eq!(set.encode(), bytes, "a working set has one encoding");
    assert!(set.pages() <= limits::WORKING_SET_PAGES_MAX, "it is bounded");
    let mut runs = set.runs().to_vec();
    runs.sort_by_key(|run| run.start());
    assert!(runs.windows(2).all(|pair| pair[0].end() <= pair[1].start()), "a page comes once");
    true
}

fn working_set_samples() -> BTreeMap<&'static str, Vec<u8>> {
    let of = |pages: u32, touches: &[Touch]| {
        WorkingSet::new(SnapshotId::from_bytes([7; 16]), pages, touches.iter().copied()).encode()
    };
    let fault = |page: u32| Touch::Fault(GuestPage::new(page));
    let beside = |start: u32, count: u32| Touch::Beside(GuestPages::new(GuestPage::new(start), count));
    let scattered: Vec<_> = (0..300).map(|step| fault(step * 7919 % 100_000)).collect();
    BTreeMap::from([
        ("nothing", of(1, &[])),
        ("one-page", of(1 << 28, &[fault((1 << 28) - 1)])),
        ("walks", of(100_000, &[fault(5000), beside(5001, 1), fault(90), beside(91, 63), fault(5002)])),
        ("scattered", of(100_000, &scattered)),
        ("as-much-as-may-be", of(1 << 20, &[fault(1 << 19), beside(0, limits::WORKING_SET_PAGES_MAX)])),
    ])
}

fn handover_samples() -> BTreeMap<&'static str, Vec<u8>> {
    let message = |text: &str| text.as_bytes().to_vec();
    BTreeMap::from([
        (
            "one-region",
            message(
                r#"[{"base_host_virt_addr":139637976727552,"size":4294967296,"offset":0,"page_size":4096}]"#,
            ),
        ),
        (
            "two-regions-reversed",
            message(
                r#"[{"base_host_virt_addr":140000000000000,"size":3221225472,"offset":0,"page_size":4096,"page_size_kib":4096},{"base_host_virt_addr":138998026604544,"size":1073741824,"offset":3221225472,"page_size":4096,"page_size_kib":4096}]"#,
            ),
        ),
        (
            "huge-pages-in-the-older-words",
            message(
                r#"[{"base_host_virt_addr":35184372088832,"size":4294967296,"offset":0,"page_size_kib":2097152,"unknown":{"a":[1]}}]"#,
            ),
        ),
    ])
}

/// The pages of `runs`, first page and length, of a volume of `pages`.
fn set_of(pages: u32, runs: impl IntoIterator<Item = (u32, u32)>) -> PageSet {
    let mut set = PageSet::new(pages);
    for (start, count) in runs {
        set.insert_run(GuestPages::new(GuestPage::new(start), count));
    }
    set
}

fn index_of(set: &PageSet) -> LayerIndex {
    let digests = (0..frames_of(set.len())).map(|frame| FrameDigest::of(&frame.to_le_bytes())).collect();
    LayerIndex::new(RankedSet::new(set), digests)
}

fn index_samples() -> BTreeMap<&'static str, LayerIndex> {
    BTreeMap::from([
        ("one-page", index_of(&set_of(1, [(0, 1)]))),
        ("whole-frames", index_of(&set_of(1000, [(0, 64), (700, 64)]))),
        ("alternating", index_of(&set_of(601, (0..300).map(|page| (2 * page, 1))))),
        ("sparse", index_of(&set_of(4 << 20, [(0, 3), (1_000_000, 200), ((4 << 20) - 1, 1)]))),
    ])
}

fn layer_index_samples() -> BTreeMap<&'static str, Vec<u8>> {
    index_samples().into_iter().map(|(name, index)| (name, index.encode())).collect()
}

fn object_table_samples() -> BTreeMap<&'static str, Vec<u8>> {
    let sample = |(name, index): (_, LayerIndex)| {
        let lengths: Vec<u64> = (1000..).step_by(7).take(index.frames()).collect();
        let table = ObjectTable::new(index, &lengths);
        (name, [&table.frames_bytes().to_le_bytes()[..], &table.encode()].concat())
    };
    // The last frame of a layer of one page is raw: as long as the page.
    let raw = ObjectTable::new(index_of(&set_of(9, [(4, 1)])), &[4096]);
    let raw = ("raw-frame", [&raw.frames_bytes().to_le_bytes()[..], &raw.encode()].concat());
    let compressible = index_samples().into_iter().filter(|(name, _)| *name != "one-page").map(sample);
    compressible.chain([raw]).collect()
}

/// The generations of a volume: what each keeps and what it zeroes.
type Generations<'a> = &'a [(&'a [(u32, u32)], &'a [(u32, u32)])];

fn publication_samples() -> BTreeMap<&'static str, Vec<u8>> {
    let alternating: Vec<_> = (0..400).map(|page| (2 * page + 1, 1)).collect();
    let everything: &[(u32, u32)] = &[(0, 100_000)];
    BTreeMap::from([
        ("no-pages", publication_of(0, &[(&[], &[])])),
        ("all-zero", publication_of(1 << 20, &[(&[], &[])])),
        ("one-layer", publication_of(100_000, &[(everything, &[])])),
        ("alternating", publication_of(1300, &[(&[(0, 1300)], &[]), (&alternating, &[(0, 1)])])),
        (
            "generations",
            publication_of(
                100_000,
                &[
                    (everything, &[]),
                    (&[(10, 5), (40, 90), (5000, 3)], &[(600, 1000)]),
                    (&[(12, 1), (50, 40), (90_000, 10_000)], &[(5001, 1), (89_000, 3)]),
                    (&[(0, 1), (99_999, 1)], &[]),
                ],
            ),
        ),
    ])
}

/// The encoded publication of the last of these generations of a volume, beside a disk that has one layer.
fn publication_of(pages: u32, generations: Generations<'_>) -> Vec<u8> {
    let shape = |name: &str, page_kind, pages| VolumeShape {
        name: name.parse().expect("the name is valid"),
        page_kind,
        pages,
    };
    let disk = set_of(30, [(3, 20)]);
    let disk_change = VolumeChange {
        volume: "disk-0".parse().expect("the name is valid"),
        layer: Some((layer_name(u8::MAX, &disk), &disk)),
        zero: &PageSet::new(30),
    };
    let shapes = vec![shape("memory", PageKind::Huge, pages), shape("disk-0", PageKind::Small, 30)];
    let mut manifest =
        Manifest::first(facts(0), shapes, &[disk_change]).expect("the sample is within limits");
    for (number, (kept, zero)) in (1..).zip(generations) {
        let (kept, zero) = (set_of(pages, kept.iter().copied()), set_of(pages, zero.iter().copied()));
        let layer = (!kept.is_empty()).then(|| (layer_name(number, &kept), &kept));
        let change =
            VolumeChange { volume: "memory".parse().expect("the name is valid"), layer, zero: &zero };
        manifest = manifest.overlay(facts(number), &[change]).expect("the sample is within limits");
    }
    let stored = manifest.layers().iter().map(stored_layer).collect();
    Publication::new(manifest, stored).encode()
}

fn facts(number: u8) -> SnapshotFacts {
    let blobs = [("device-state", "{\"ticks\":7}"), ("user", "")];
    SnapshotFacts {
        snapshot: SnapshotId::from_bytes([number; 16]),
        created_unix_ms: 1_700_000_000_000 + u64::from(number),
        blobs: blobs.map(|(name, bytes)| (name.to_owned(), Bytes::from_static(bytes.as_bytes()))).into(),
    }
}

fn layer_name(number: u8, kept: &PageSet) -> LayerName {
    LayerName { id: LayerId::from_bytes([number; 32]), domain: Domain::shared(), pages: kept.len() }
}

fn stored_layer(layer: &LayerName) -> StoredLayer {
    let [number, ..] = *layer.id.as_bytes();
    let upload = SnapshotId::from_bytes([number ^ 0xff; 16]).to_string().parse().expect("it is a UUID");
    StoredLayer {
        object: ObjectName { publisher: SnapshotId::from_bytes([number; 16]), upload },
        table_digest: [number; 32],
        table_bytes: 99,
        object_bytes: 99 + u64::from(layer.pages) * 1000,
    }
}
