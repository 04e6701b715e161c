//! Samples of every stored format: the values that the corpus has in each version.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rekindle_engine::captured_facts::CapturedFacts;
use rekindle_engine::compare::PageClasses;
use rekindle_engine::frame::{FrameNumber, frames_of};
use rekindle_engine::geometry::{GuestPage, GuestPages};
use rekindle_engine::identity::{FrameDigest, LayerId, SnapshotId};
use rekindle_engine::layer_index::LayerIndex;
use rekindle_engine::limits;
use rekindle_engine::manifest::{
    Edition, LayerName, LocalManifest, Manifest, ObjectName, Publication, SnapshotFacts, StoredLayer,
    VolumeChange, VolumeShape,
};
use rekindle_engine::object::{FrameCodec, ObjectTable, StoredFrame};
use rekindle_engine::packed_set::{Chunk, PackedHead, PackedPart};
use rekindle_engine::page_set::PageSet;
use rekindle_engine::page_tree::PageBits;
use rekindle_engine::ranked_set::RankedSet;
use rekindle_engine::snapshot_record::{SealFacts, SnapshotRecord, SnapshotStage};
use rekindle_engine::working_set::{Touch, WorkingSet};
use rekindle_kernel::PageKind;

/// Encoded samples under their names.
type Samples = BTreeMap<&'static str, Vec<u8>>;

pub(super) fn working_set() -> Samples {
    let of = |pages: u32, touches: &[Touch]| {
        WorkingSet::new(SnapshotId::from_bytes([7; 16]), pages, touches.iter().copied())
            .encode(super::keys().own())
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

pub(super) fn packed_set() -> Samples {
    let set = |touches: &[Touch]| {
        WorkingSet::new(SnapshotId::from_bytes([7; 16]), 100_000, touches.iter().copied())
    };
    let beside = |start: u32, count: u32| Touch::Beside(GuestPages::new(GuestPage::new(start), count));
    let part = |layer: usize, frame: usize, frame_pages: u32, bits: u64| PackedPart {
        layer,
        frame: FrameNumber::new(frame),
        frame_pages,
        bits: PageBits::new(bits).expect("it has pages"),
    };
    let layers = || vec![LayerId::from_bytes([1; 32]), LayerId::from_bytes([2; 32])];
    let chunk = |parts: Vec<PackedPart>| {
        let raw = Chunk { codec: FrameCodec::Raw, bytes: 0, parts };
        Chunk { bytes: u32::try_from(raw.raw_bytes()).expect("it is short"), ..raw }
    };
    let of = |head: PackedHead| head.encode(super::keys().own());
    let compressed = Chunk { codec: FrameCodec::Zstd, bytes: 999, ..chunk(vec![part(1, 0, 64, u64::MAX)]) };
    let scattered = (0..120).map(|number| part(number % 2, number, 64, 1 << (number * 7 % 64))).collect();
    BTreeMap::from([
        ("no-pages", of(PackedHead::new(set(&[]), Vec::new(), Vec::new()))),
        (
            "one-page",
            of(PackedHead::new(set(&[beside(5, 1)]), layers(), vec![chunk(vec![part(0, 0, 1, 1)])])),
        ),
        ("scattered", of(PackedHead::new(set(&[beside(90, 120)]), layers(), vec![chunk(scattered)]))),
        (
            "two-chunks",
            of(PackedHead::new(
                set(&[beside(64, 64), beside(7, 2)]),
                layers(),
                vec![compressed, chunk(vec![part(0, 3, 9, 0b1_0000_0001)])],
            )),
        ),
    ])
}

pub(super) fn handover() -> Samples {
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
    let digests =
        (0..frames_of(set.len())).map(|frame| FrameDigest::without_key(&frame.to_le_bytes())).collect();
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

pub(super) fn layer_index() -> Samples {
    index_samples().into_iter().map(|(name, index)| (name, index.encode())).collect()
}

pub(super) fn object_table() -> Samples {
    let sample = |(name, index): (_, LayerIndex)| {
        let zstd = |bytes: u64| StoredFrame { codec: FrameCodec::Zstd, bytes };
        let frames: Vec<_> = (1000..).step_by(7).map(zstd).take(index.frames()).collect();
        let table = ObjectTable::new(index, &frames);
        (name, [&table.frames_bytes().to_le_bytes()[..], &table.encode()].concat())
    };
    let frame = StoredFrame { codec: FrameCodec::Raw, bytes: 4096 };
    let raw = ObjectTable::new(index_of(&set_of(9, [(4, 1)])), &[frame]);
    let raw = ("raw-frame", [&raw.frames_bytes().to_le_bytes()[..], &raw.encode()].concat());
    let compressible = index_samples().into_iter().filter(|(name, _)| *name != "one-page").map(sample);
    compressible.chain([raw]).collect()
}

/// The generations of a volume: what each keeps and what it zeroes.
type Generations<'a> = &'a [(&'a [(u32, u32)], &'a [(u32, u32)])];

pub(super) fn publication() -> Samples {
    publications()
        .into_iter()
        .chain([("tables", with_tables())])
        .map(|(name, publication)| (name, publication.encode(super::keys().own())))
        .collect()
}

/// The same manifests as a catalog has them, with the places of every second layer.
pub(super) fn local_manifest() -> Samples {
    let local = |publication: Publication| {
        let (manifest, stored) = publication.into_parts();
        let every_second = |(number, place): (usize, StoredLayer)| (number % 2 == 0).then_some(place);
        let stored = stored.into_iter().enumerate().map(every_second).collect();
        LocalManifest::new(None, manifest, stored).encode()
    };
    publications().into_iter().map(|(name, publication)| (name, local(publication))).collect()
}

pub(super) fn snapshot_record() -> Samples {
    let volumes = vec![shape("memory", PageKind::Huge, 512), shape("disk-1", PageKind::Small, 7)];
    let SnapshotFacts { created_unix_ms, blobs, .. } = facts(3);
    let first = CapturedFacts { parent: None, generation: 0, created_unix_ms, volumes, blobs };
    let parent = Some(SnapshotId::from_bytes([2; 16]));
    let child = CapturedFacts { parent, generation: 300, ..first.clone() };
    let classes = PageClasses { dirty: 10, zero: 1, equal: 2, kept: 7, unread: 3 };
    let sealed = SealFacts { classes: Some(classes), seal_time: Some(Duration::from_micros(31_415)) };
    // Records of version 1 say no domain; its name in later ones is what the tests of the record try.
    let encoded = |stage| SnapshotRecord { domain: None, stage }.encode();
    BTreeMap::from([
        ("first", encoded(SnapshotStage::Captured(first))),
        ("child", encoded(SnapshotStage::Captured(child.clone()))),
        ("remote", encoded(SnapshotStage::Remote { node: "10.0.0.7:7420".to_owned(), facts: child.clone() })),
        ("refuted", encoded(SnapshotStage::Refuted { reason: "page 3".to_owned(), facts: child })),
        ("sealed", encoded(SnapshotStage::Sealed(sealed))),
        ("published", encoded(SnapshotStage::Published(sealed))),
        ("opened", encoded(SnapshotStage::Published(SealFacts::default()))),
    ])
}

fn publications() -> BTreeMap<&'static str, Publication> {
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

/// The publication of the last of these generations of a volume, beside a disk that has one layer.
fn publication_of(pages: u32, generations: Generations<'_>) -> Publication {
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
    Publication::new(Edition::FIRST, manifest, stored)
}

/// A publication with the tables of two of its three layers.
fn with_tables() -> Publication {
    let everything: &[(u32, u32)] = &[(0, 1000)];
    let (manifest, mut stored) = publication_of(1000, &[(everything, &[]), (&[(10, 5)], &[])]).into_parts();
    let mut tables: Vec<_> =
        object_table().into_values().map(|table| Bytes::from(table).split_off(8)).map(Some).collect();
    tables.truncate(stored.len());
    tables[1] = None;
    for (place, table) in stored.iter_mut().zip(&tables) {
        if let Some(table) = table {
            place.table_digest = *FrameDigest::without_key(table).as_bytes();
            place.table_bytes = u64::try_from(table.len()).expect("a size in memory has 64 bits");
            place.object_bytes += place.table_bytes;
        }
    }
    Publication::new(Edition::FIRST, manifest, stored).with_tables(tables)
}

fn shape(name: &str, page_kind: PageKind, pages: u32) -> VolumeShape {
    VolumeShape { name: name.parse().expect("the name is valid"), page_kind, pages }
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
    LayerName {
        id: LayerId::from_bytes([number; 32]),
        domain: super::keys().own().domain().clone(),
        pages: kept.len(),
    }
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
