//! Manifests against models, and publications against damage.

mod editions;
mod named_objects;
mod tables;
use proptest::prelude::*;

use super::*;
use crate::geometry::{GuestPage, GuestPages, usize_of};
use crate::identity::{FrameDigest, KeyId};
use crate::key_ring::{DomainKey, KeyRing, MissingKey};
use crate::limits::{MANIFEST_BYTES_MAX, MANIFEST_GENERATION_MAX, MANIFEST_RUN_BYTES, NAME_BYTES_MAX};
use crate::page_map::Place;
use crate::tag::{TaggedError, write_tag};
use crate::wire::{Problem, Writer};

/// Pages of the volumes that the tests' histories change.
const PAGES: [u32; 2] = [1300, 40];

fn facts(number: u64) -> SnapshotFacts {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    let blobs = [("device-state".to_owned(), Bytes::from(format!("state {number}")))];
    SnapshotFacts {
        snapshot: SnapshotId::from_bytes(id),
        created_unix_ms: 1_700_000_000_000 + number,
        blobs: blobs.into(),
    }
}

fn volume_name(volume: usize) -> VolumeName {
    ["memory", "disk-0"][volume].parse().expect("a valid name")
}

fn shapes() -> Vec<VolumeShape> {
    let kinds = [PageKind::Huge, PageKind::Small];
    let shape =
        |(volume, page_kind)| VolumeShape { name: volume_name(volume), page_kind, pages: PAGES[volume] };
    (0..).zip(kinds).map(shape).collect()
}

/// A layer whose name follows from `number` and its pages.
fn layer_name(number: u64, kept: &PageSet) -> LayerName {
    let content = format!("{number} {kept:?}");
    LayerName {
        id: LayerId::from_bytes(*FrameDigest::without_key(content.as_bytes()).as_bytes()),
        domain: keys().own().domain().clone(),
        pages: kept.len(),
    }
}

fn set_of(pages: u32, runs: &[(u32, u32)]) -> PageSet {
    let mut set = PageSet::new(pages);
    for (start, count) in runs {
        let start = start % pages;
        set.insert_run(GuestPages::new(GuestPage::new(start), *count.min(&(pages - start))));
    }
    set
}

/// A change of the volume of this position, without a layer where nothing is kept.
fn change<'a>(volume: usize, number: u64, kept: &'a PageSet, zero: &'a PageSet) -> VolumeChange<'a> {
    let layer = (!kept.is_empty()).then(|| (layer_name(number, kept), kept));
    VolumeChange { volume: volume_name(volume), layer, zero }
}

/// One generation: which volume changes, what it keeps, what becomes zero.
type Step = (usize, Vec<(u32, u32)>, Vec<(u32, u32)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let runs = || prop::collection::vec((0_u32..1300, 1_u32..500), 0..4);
    prop::collection::vec((0_usize..2, runs(), runs()), 1..12)
}

/// The layer and its page that each page of each volume should be in.
type Model = [Vec<Option<(LayerId, u32)>>; 2];

fn empty_model() -> Model {
    PAGES.map(|pages| vec![None; usize_of(pages)])
}

fn play(steps: &[Step]) -> (Manifest, Model) {
    let mut model = empty_model();
    let mut manifest: Option<Manifest> = None;
    for (number, (volume, kept, zero)) in (0..).zip(steps) {
        let (kept, mut zero) = (set_of(PAGES[*volume], kept), set_of(PAGES[*volume], zero));
        zero.subtract(&kept);
        let changes = [change(*volume, number, &kept, &zero)];
        manifest = Some(match &manifest {
            None => Manifest::first(facts(number), shapes(), &changes).expect("within limits"),
            Some(parent) => parent.overlay(facts(number), &changes).expect("within limits"),
        });
        let id = layer_name(number, &kept).id;
        for (rank, page) in (0..).zip(kept.iter()) {
            model[*volume][page.index()] = Some((id, rank));
        }
        zero.iter().for_each(|page| model[*volume][page.index()] = None);
    }
    (manifest.expect("there is a first step"), model)
}

fn published(manifest: Manifest) -> Publication {
    let stored = (0..=u8::MAX).cycle().zip(manifest.layers()).map(|(number, layer)| StoredLayer {
        object: ObjectName { publisher: manifest.snapshot(), upload: uuid::Uuid::from_bytes([number; 16]) },
        table_digest: [number; 32],
        table_bytes: 100 + u64::from(number),
        object_bytes: 100 + u64::from(layer.pages) * 4096,
    });
    let stored = stored.collect();
    Publication::new(Edition::FIRST, manifest, stored)
}

fn keys() -> KeyRing {
    KeyRing::new(DomainKey::new("tenant-1".parse().expect("a legal name"), &[7; 32]), Vec::new())
}

/// Bytes of the tag of [`keys`]: a code, the domain's name with its length, the key's id, the tag.
const TAG_BYTES: usize = 1 + 9 + 8 + 32;

fn tenant() -> Domain {
    keys().own().domain().clone()
}

/// A list of domains as it is written.
fn domains(listed: &[&Domain]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.varint_usize(listed.len());
    listed.iter().for_each(|domain| crate::tag::write_domain(&mut writer, domain));
    writer.into_bytes()
}

fn read(bytes: &[u8]) -> Result<Publication, TaggedError> {
    Publication::decode(bytes, &keys())
}

proptest! {
    #[test]
    fn every_page_is_in_the_layer_that_kept_it_last(steps in steps()) {
        let (manifest, model) = play(&steps);
        prop_assert_eq!(manifest.generation() + 1, u64::try_from(steps.len()).expect("few"));
        let mut named = BTreeSet::new();
        for (volume, places) in manifest.volumes().iter().zip(&model) {
            for (page, expected) in (0..).map(GuestPage::new).zip(places) {
                let found = match volume.map.lookup(page) {
                    Place::Zero => None,
                    Place::Layer { slot, page } => Some((manifest.layers()[slot.index()].id, page.number())),
                };
                prop_assert_eq!(found, *expected);
                named.extend(found.map(|(id, _)| id));
            }
        }
        let listed: BTreeSet<_> = manifest.layers().iter().map(|layer| layer.id).collect();
        prop_assert_eq!(listed.len(), manifest.layers().len());
        prop_assert_eq!(listed, named);
    }

    #[test]
    fn a_local_manifest_is_read_back_equal_with_what_is_known_of_each_layer(steps in steps(), known: u64) {
        let publication = published(play(&steps).0);
        let stored = publication.stored().iter().zip(0..);
        let stored = stored.map(|(stored, bit)| (known >> bit & 1 == 1).then(|| stored.clone())).collect();
        let local = LocalManifest::new(Edition::of(known % 3), publication.manifest().clone(), stored);
        let bytes = local.encode();
        let back = LocalManifest::decode(&bytes);
        prop_assert_eq!(back.as_ref(), Ok(&local));
        prop_assert_eq!(LocalManifest::decode(&publication.encode(keys().own())).is_err(), true);
        prop_assert_eq!(LocalManifest::decode(&bytes[..bytes.len() - 1]).is_err(), true);
    }

    #[test]
    fn a_publication_is_read_back_equal_and_writes_the_same_bytes(steps in steps()) {
        let publication = published(play(&steps).0);
        let bytes = publication.encode(keys().own());
        let back = read(&bytes);
        prop_assert_eq!(back.as_ref(), Ok(&publication));
        prop_assert_eq!(back.expect("just compared").encode(keys().own()), bytes);
    }

    #[test]
    fn a_publication_cut_anywhere_is_refused(steps in steps(), at: prop::sample::Index) {
        let bytes = published(play(&steps).0).encode(keys().own());
        prop_assert!(read(&bytes[..at.index(bytes.len())]).is_err());
    }
}

/// Memory of 40 pages in two layers, the second over part of the first.
fn small() -> Manifest {
    let none = PageSet::new(PAGES[1]);
    let (first, second) = (set_of(40, &[(0, 10), (20, 10)]), set_of(40, &[(5, 20)]));
    let manifest =
        Manifest::first(facts(1), shapes(), &[change(1, 1, &first, &none)]).expect("within limits");
    manifest.overlay(facts(2), &[change(1, 2, &second, &none)]).expect("within limits")
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    // Case 18.
    let bytes = published(small()).encode(keys().own());
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn the_list_of_layers_and_their_places_stands_before_everything_else() {
    let publication = published(small());
    let bytes = publication.encode(keys().own());
    let manifest = publication.manifest();
    let mut front =
        [b"RKMF\x04\x00", &bytes[6..22], manifest.snapshot().as_bytes(), &[1], &domains(&[&tenant()]), &[2]]
            .concat();
    for ((layer, stored), table_bytes) in manifest.layers().iter().zip(publication.stored()).zip(100..) {
        front.extend([layer.id.as_bytes(), &[0, 0, 20][..], stored.object.publisher.as_bytes()].concat());
        front.extend(
            [stored.object.upload.as_bytes(), &stored.table_digest[..], &[table_bytes, 0xe4, 0x80, 0x05]]
                .concat(),
        );
    }
    assert_eq!(bytes[..front.len()], front);
}

#[test]
fn a_manifest_of_an_unknown_version_is_refused_by_name() {
    let mut bytes = published(small()).encode(keys().own());
    bytes[4] = 5;
    let refused = read(&bytes).expect_err("it is newer").to_string();
    let reason = "version 5 is unknown to this rekindle, which reads versions 1 to 4: run a newer one";
    assert_eq!(refused, format!("manifest version at byte 4: {reason}"));
}

#[test]
fn an_order_of_pages_that_is_not_known_is_refused_by_name() {
    let publication = published(small());
    let first = publication.manifest().layers()[0].id;
    let order = |code| [first.as_bytes(), &[0, code][..]].concat();
    let unknown = |found, known| Problem::UnknownCode { found, known };
    assert_eq!(tampered(&publication, &order(0), &order(1)), unknown(1, "0 (the guest's order)"));
}

#[test]
fn domains_that_are_not_listed_once_in_the_order_of_their_layers_are_refused() {
    let publication = published(small());
    let [first, second] = [0, 1].map(|slot| publication.manifest().layers()[slot].id);
    let domain = |id: LayerId, number| [id.as_bytes(), &[number][..]].concat();
    let not_listed = tampered(&publication, &domain(second, 0), &domain(second, 1));
    assert_eq!(not_listed, Problem::Invalid("it is not listed"));
    let too_early = tampered(&publication, &domain(first, 0), &domain(first, 1));
    assert_eq!(too_early, Problem::TooLarge { value: 1, max: 0 });
    let (tenant, listed) = (tenant(), domains(&[&tenant()]));
    // Another key of the same name is another domain.
    let other = Domain::new(tenant.name().clone(), KeyId::from_bytes([3; 8]));
    let unused = tampered(&publication, &listed, &domains(&[&tenant, &other]));
    assert_eq!(unused, Problem::Invalid("one of them has no layer"));
    let twice = tampered(&publication, &listed, &domains(&[&tenant, &tenant]));
    assert_eq!(twice, Problem::Invalid("one is listed twice"));
}

#[test]
fn a_layer_costs_a_manifest_little_ram_and_few_bytes() {
    assert!(size_of::<LayerName>() <= 48);
    let of = |layers| published(line(layers).expect("within limits")).encode(keys().own()).len();
    let more = of(MANIFEST_LAYERS_MAX) - of(MANIFEST_LAYERS_MAX / 2);
    assert!(more <= MANIFEST_LAYERS_MAX / 2 * 112, "{more} bytes");
}

#[test]
fn a_layer_no_page_lies_in_is_dropped_and_the_newest_takes_its_slot() {
    let parent = small();
    let (kept, none) = (set_of(40, &[(0, 5), (25, 5)]), PageSet::new(40));
    let manifest = parent.overlay(facts(3), &[change(1, 3, &kept, &none)]).expect("within limits");
    let names: Vec<_> = manifest.layers().iter().map(|layer| layer.id).collect();
    assert_eq!(names, [layer_name(3, &kept).id, parent.layers()[1].id]);
    let memory = (&parent.volumes()[0].map, &manifest.volumes()[0].map);
    assert_eq!(memory.0.chunks_shared_with(memory.1), 3, "the other volume is as it was");
}

#[test]
fn a_snapshot_of_zeroes_names_no_layer() {
    let none = PageSet::new(40);
    let manifest =
        small().overlay(facts(3), &[change(1, 3, &none, &PageSet::full(40))]).expect("within limits");
    assert!(manifest.layers().is_empty());
    assert_eq!(
        read(&published(manifest.clone()).encode(keys().own())).map(|read| read.into_parts().0),
        Ok(manifest)
    );
}

#[test]
fn a_layer_kept_again_with_the_same_bytes_is_listed_once() {
    let parent = small();
    let (again, none) = (set_of(40, &[(5, 20)]), PageSet::new(40));
    let manifest = parent.overlay(facts(3), &[change(1, 2, &again, &none)]).expect("within limits");
    assert_eq!(manifest.layers(), parent.layers());
    assert_eq!(manifest.volumes(), parent.volumes());
}

#[test]
fn a_manifest_of_no_volumes_and_one_of_no_pages_are_read_back() {
    let none = Manifest::first(facts(1), Vec::new(), &[]).expect("within limits");
    let empty = VolumeShape { name: VolumeName::memory(), page_kind: PageKind::Small, pages: 0 };
    let empty = Manifest::first(facts(2), vec![empty], &[]).expect("within limits");
    for manifest in [none, empty] {
        let publication = published(manifest);
        assert_eq!(read(&publication.encode(keys().own())), Ok(publication));
    }
}

/// A line of `layers` snapshots that each keep one more page.
fn line(layers: usize) -> Result<Manifest, ManifestError> {
    let none = PageSet::new(PAGES[0]);
    let mut manifest = Manifest::first(facts(0), shapes(), &[])?;
    for (number, page) in (1..).zip(0..layers) {
        let kept = set_of(PAGES[0], &[(u32::try_from(page).expect("few"), 1)]);
        manifest = manifest.overlay(facts(number), &[change(0, number, &kept, &none)])?;
    }
    Ok(manifest)
}

#[test]
fn what_is_past_a_limit_is_refused_before_it_is_written() {
    // Case 16: the reader's constants are the writer's.
    let most = published(line(MANIFEST_LAYERS_MAX).expect("at the limit"));
    assert_eq!(read(&most.encode(keys().own())), Ok(most));
    assert_eq!(
        line(MANIFEST_LAYERS_MAX + 1),
        Err(ManifestError::TooManyLayers { layers: MANIFEST_LAYERS_MAX + 1 })
    );
    let first = |facts: SnapshotFacts, shapes| Manifest::first(facts, shapes, &[]).map(|_| ());
    let shape = |name: &str, pages| VolumeShape {
        name: name.parse().expect("valid"),
        page_kind: PageKind::Small,
        pages,
    };
    let many: Vec<_> = (0..=MANIFEST_VOLUMES_MAX).map(|number| shape(&format!("disk-{number}"), 1)).collect();
    assert_eq!(
        first(facts(0), many),
        Err(ManifestError::TooManyVolumes { volumes: MANIFEST_VOLUMES_MAX + 1 })
    );
    let large = vec![shape("one", MANIFEST_PAGES_MAX), shape("two", 1)];
    let pages = u64::from(MANIFEST_PAGES_MAX) + 1;
    assert_eq!(first(facts(0), large), Err(ManifestError::TooManyPages { pages }));
    let volume = "one".parse().expect("valid");
    assert_eq!(first(facts(0), vec![shape("one", 1); 2]), Err(ManifestError::SameVolumeTwice { volume }));
}

#[test]
fn blobs_past_a_limit_are_refused_before_they_are_written() {
    let with = |blobs: Vec<(String, Bytes)>| {
        let blobs = blobs.into_iter().collect();
        Manifest::first(SnapshotFacts { blobs, ..facts(0) }, Vec::new(), &[]).map(|_| ())
    };
    let many = (0..=MANIFEST_BLOBS_MAX).map(|number| (format!("blob-{number}"), Bytes::new())).collect();
    assert_eq!(with(many), Err(ManifestError::TooManyBlobs { blobs: MANIFEST_BLOBS_MAX + 1 }));
    let bytes = BLOB_BYTES_MAX + 1;
    let long = vec![("long".to_owned(), Bytes::from(vec![0; bytes]))];
    assert_eq!(with(long), Err(ManifestError::BlobTooLong { name: "long".to_owned(), bytes }));
    let unnamed = vec![("../x".to_owned(), Bytes::new())];
    let source = NameError::Character { at: 0 };
    assert_eq!(with(unnamed), Err(ManifestError::BlobName { name: "../x".to_owned(), source }));
}

/// The publication with these bytes in its body put in place of those, its length, checksum and tag made right again.
fn tampered(publication: &Publication, from: &[u8], to: &[u8]) -> Problem {
    let bytes = publication.encode(keys().own());
    let body = &bytes[22..bytes.len() - TAG_BYTES];
    let at = body.windows(from.len()).position(|window| window == from).expect("the body has these bytes");
    let body = [&body[..at], to, &body[at + from.len()..]].concat();
    let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &body);
    let length = u64::try_from(body.len()).expect("short");
    let head = [&bytes[..6], &length.to_le_bytes(), &checksum.to_le_bytes()].concat();
    let mut writer = Writer::new();
    writer.bytes(&[head, body].concat());
    problem_of(&write_tag(writer, keys().own()))
}

fn problem_of(bytes: &[u8]) -> Problem {
    match read(bytes).expect_err("no publication writes this") {
        TaggedError::Wire(error) => error.problem,
        error @ (TaggedError::Key(_) | TaggedError::Forged { .. }) => unreachable!("{error}"),
    }
}

#[test]
fn a_publication_of_another_key_or_with_a_forged_or_missing_tag_is_refused_by_name() {
    let publication = published(small());
    let bytes = publication.encode(keys().own());
    let other = DomainKey::new(tenant().name().clone(), &[8; 32]);
    let missing = MissingKey { domain: other.domain().clone() };
    assert_eq!(read(&publication.encode(&other)), Err(missing.into()));
    // The key that anybody can make from the domain's name is none that counts.
    assert!(matches!(
        read(&publication.encode(&DomainKey::of_name(tenant().name().clone()))),
        Err(TaggedError::Key(_))
    ));
    let (untagged, tag) = bytes.split_at(bytes.len() - TAG_BYTES);
    assert!(matches!(read(&[untagged, &[0]].concat()), Err(TaggedError::Wire(_))));
    // Another manifest under the tag of this one.
    let changed = published(Manifest { generation: 5, ..small() }).encode(&other);
    let forged = [&changed[..changed.len() - TAG_BYTES], tag].concat();
    assert_eq!(read(&forged), Err(TaggedError::Forged { domain: tenant() }));
}

#[test]
fn layers_of_two_keys_of_one_domain_are_read_back_each_with_its_own() {
    let mut manifest = small();
    manifest.layers[0].domain = DomainKey::of_name(tenant().name().clone()).domain().clone();
    let publication = published(manifest);
    assert_eq!(read(&publication.encode(keys().own())), Ok(publication));
}

#[test]
fn case_19_contradictions_with_a_right_checksum_are_refused() {
    // Case 19.
    let publication = published(small());
    let [first, second] = [0, 1].map(|slot| publication.manifest().layers()[slot].id);
    let invalid = Problem::Invalid;
    let same_name = tampered(&publication, second.as_bytes(), first.as_bytes());
    assert_eq!(same_name, invalid("two layers have one name"));
    assert_eq!(tampered(&publication, b"\x06disk-0", b"\x06memory"), invalid("two volumes have one name"));
    assert_eq!(tampered(&publication, b"\x06disk-0", b"\x06disk/0"), invalid("the text names no volume"));
    assert_eq!(tampered(&publication, b"tenant-1", b"tenant 1"), invalid("the text names no domain"));
    assert_eq!(tampered(&publication, b"device-state", b"device_state"), invalid("the text names no blob"));
    assert_eq!(
        tampered(&publication, b"\x06memory\x01", b"\x06memory\x02"),
        invalid("there is no such kind of page")
    );
    // The first layer's 20 pages become 19.
    assert_eq!(
        tampered(
            &publication,
            &[first.as_bytes(), &[0, 0, 20][..]].concat(),
            &[first.as_bytes(), &[0, 0, 19][..]].concat()
        ),
        invalid("the run ends after its layer")
    );
}

#[test]
fn a_snapshot_under_itself_or_at_the_end_of_time_is_refused() {
    // Case 19.
    let publication = published(small());
    let (snapshot, parent) = (publication.manifest().snapshot(), facts(1).snapshot);
    let parent_field = [&[1], &parent.as_bytes()[..], &[1]].concat();
    let itself = [&[1], &snapshot.as_bytes()[..], &[1]].concat();
    let own_parent = Problem::Invalid("the snapshot is its own parent");
    assert_eq!(tampered(&publication, &parent_field, &itself), own_parent);
    let never = [&[1], &parent.as_bytes()[..], &[0xff; 9], &[1]].concat();
    let too_late = Problem::TooLarge { value: u64::MAX, max: MANIFEST_GENERATION_MAX };
    assert_eq!(tampered(&publication, &parent_field, &never), too_late);
    let first_of_line = Problem::Invalid("only a snapshot without parent is the first of its line");
    assert_eq!(tampered(&publication, &parent_field, &[0, 1]), first_of_line);
}

#[test]
fn no_manifest_within_its_limits_is_too_long_to_be_read() {
    // Case 16. A run takes at most 12 bytes: a token, and varints for its slot, its skip and its pages.
    let maps = usize::try_from(MANIFEST_RUN_BYTES).expect("64 bits") * usize_of(MANIFEST_RUNS_MAX);
    let blobs = MANIFEST_BLOBS_MAX * (BLOB_BYTES_MAX + NAME_BYTES_MAX + 8);
    let layers = MANIFEST_LAYERS_MAX * (NAME_BYTES_MAX + 200);
    let volumes = MANIFEST_VOLUMES_MAX * (NAME_BYTES_MAX + 16);
    assert!(maps + blobs + layers + volumes + 1000 < MANIFEST_BYTES_MAX);
}

#[test]
fn a_layer_nothing_lies_in_is_refused_when_read() {
    let manifest = small();
    let mut dead = manifest.clone();
    dead.layers.push(layer_name(9, &PageSet::full(40)));
    let problem = problem_of(&published(dead).encode(keys().own()));
    assert_eq!(problem, Problem::Invalid("no page lies in one of the layers"));
}

#[test]
fn an_object_shorter_than_its_table_is_refused() {
    let publication = published(small());
    // Object length of a layer, 100 + 20 * 4096 as a varint.
    let problem = tampered(&publication, &[0xe4, 0x80, 0x05], &[0x10]);
    assert_eq!(problem, Problem::Invalid("the object has no room for its table, or it is too long"));
}

#[test]
fn blobs_keep_only_their_own_bytes_alive() {
    // Case 21: a blob read from a manifest object does not hold the whole object.
    let bytes = Bytes::from(published(small()).encode(keys().own()));
    let read = read(&bytes).expect("it was just written");
    let blob = &read.manifest().blobs()["device-state"];
    assert!(!bytes.as_ptr_range().contains(&blob.as_ptr()));
    assert_eq!(blob.as_ref(), b"state 2");
}
