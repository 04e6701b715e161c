//! Messages of nodes that are damaged, or no messages at all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rekindle_engine::captured_facts::CapturedFacts;
use rekindle_engine::identity::{LayerId, SnapshotId, VolumeName};
use rekindle_engine::manifest::VolumeShape;
use rekindle_engine::origin::Origin;
use rekindle_engine::peer::{Described, EngineId, HeldLayers, WantedLayer, WantedPages};
use rekindle_engine::sources::Class;
use rekindle_kernel::PageKind;
use rekindle_peer::layers::{
    begin_frames, decode_frames, decode_held, decode_layers, decode_wanted_frames, encode_held,
    encode_layers, encode_wanted_frames,
};
use rekindle_peer::message::{decode_pages, decode_wanted, encode_pages, encode_wanted, snapshot_of};
use rekindle_peer::{Taken, Taking};
use rekindle_testkit::damage::Damage;
use uuid::Uuid;

use crate::fleet::run;

const SEED: u64 = 0x5eed;
const DAMAGED_INPUTS: usize = 20_000;

fn described() -> Described {
    let shape = |name: VolumeName, pages| VolumeShape { name, page_kind: PageKind::Small, pages };
    let facts = CapturedFacts {
        parent: Some(SnapshotId::from_bytes([2; 16])),
        generation: 3,
        created_unix_ms: 1_700_000_000_000,
        volumes: vec![shape(VolumeName::memory(), 512), shape("disk-1".parse().expect("it is legal"), 7)],
        blobs: BTreeMap::from([("device-state".to_owned(), Bytes::from_static(b"{}"))]),
    };
    Described { domain: "tenant".parse().expect("it is legal"), is_published: false, facts }
}

fn taking() -> Taking {
    Taking {
        snapshot: SnapshotId::from_bytes([7; 16]),
        sandbox: Uuid::from_bytes([8; 16]),
        origin: Origin { node: "a".to_owned(), address: "10.0.0.7:7420".to_owned() },
        name: Some("web".to_owned()),
        labels: [("team", "blue"), ("zone", "")].map(|(name, value)| (name.into(), value.into())).into(),
    }
}

/// The corpus of a fuzz target.
fn corpus_of(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files = std::fs::read_dir(directory).expect("every fuzz target has a corpus");
    let read = |path: PathBuf| {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("it can be read"))
    };
    files.map(|file| read(file.expect("it can be read").path())).collect()
}

#[test]
fn the_messages_in_the_corpus_of_fuzz_targets_are_read_as_they_were() {
    let bytes_of = |target, wanted| {
        let found = corpus_of(target).into_iter().find(|(name, _)| name == wanted);
        found.expect("it is in the corpus").1
    };
    let request = bytes_of("peer_request", "version-1-pages");
    let (wanted, class) = decode_wanted(&request).expect("it is a request");
    assert_eq!((wanted.pages(), encode_wanted(&wanted, class)), (73, request.clone()));
    let answer = bytes_of("peer_answer", "version-1-pages");
    let pages = decode_pages(&answer, &request, 73).expect("it is the answer to that");
    assert_eq!(encode_pages(&request, &pages), answer);
    let described = bytes_of("peer_answer", "version-1-described");
    assert_eq!(Described::decode(&described).expect("it describes a snapshot").encode(), described);
    assert_eq!(Taking::decode(&bytes_of("peer_request", "version-1-take")), Ok(taking()));
    let taken = bytes_of("peer_answer", "version-1-taken");
    assert_eq!(Taken::decode(taking().snapshot, &taken), Ok(Taken::Runs(Uuid::from_bytes([9; 16]))));
}

#[test]
fn no_damage_to_a_message_breaks_its_decoder_and_each_value_has_one_encoding() {
    let wanted = WantedPages {
        snapshot: SnapshotId::from_bytes([7; 16]),
        volume: 1,
        runs: vec![run(3, 9), run(70, 64)],
    };
    let request = encode_wanted(&wanted, Class::Ahead);
    let mut pages = vec![0; 73 * 4096];
    pages[5 * 4096 + 1] = 1;
    let answer = encode_pages(&request, &pages);
    let whole = described();
    assert_eq!(Described::decode(&whole.encode()), Ok(whole.clone()));
    let no = Taken::Refused("no room".to_owned()).encode(wanted.snapshot);
    let frames = WantedLayer { layer: LayerId::from_bytes([7; 32]), pages: 130, frames: 1..3 };
    let asked = encode_wanted_frames(&frames, Class::Fault);
    let mut sent = begin_frames(&asked, &[false, true]);
    sent.extend([5; 8192]);
    let held = HeldLayers { engine: EngineId([3; 16]), bytes: vec![0, 1 << 40] };
    let mut corpus = vec![request.clone(), answer, whole.encode(), taking().encode(), no];
    corpus.extend([asked.clone(), sent, encode_layers(&[frames.layer]), encode_held(&held)]);
    corpus.extend(["peer_request", "peer_answer"].into_iter().flat_map(corpus_of).map(|(_, bytes)| bytes));
    let mut damage = Damage::seeded(SEED);
    for number in 0..DAMAGED_INPUTS {
        let damaged = damage.to(&corpus[number % corpus.len()], &corpus);
        if let Ok((wanted, class)) = decode_wanted(&damaged) {
            assert_eq!(decode_wanted(&encode_wanted(&wanted, class)), Ok((wanted, class)));
        }
        if let Ok(described) = Described::decode(&damaged) {
            assert_eq!(described.encode(), damaged);
        }
        if let Ok(pages) = decode_pages(&damaged, &request, 73) {
            assert_eq!(pages.len(), 73 * 4096);
        }
        if let Ok(taking) = Taking::decode(&damaged) {
            assert_eq!(taking.encode(), damaged);
        }
        if let Ok(taken) = Taken::decode(wanted.snapshot, &damaged) {
            assert_eq!(taken.encode(wanted.snapshot), damaged);
        }
        if let Ok(layers) = decode_layers(&damaged) {
            assert_eq!(decode_layers(&encode_layers(&layers)), Ok(layers));
        }
        if let Ok(held) = decode_held(&damaged) {
            assert_eq!(decode_held(&encode_held(&held)), Ok(held));
        }
        if let Ok((wanted, class)) = decode_wanted_frames(&damaged) {
            assert_eq!(decode_wanted_frames(&encode_wanted_frames(&wanted, class)), Ok((wanted, class)));
        }
        if let Ok(frames) = decode_frames(&Bytes::from(damaged.clone()), &asked, &frames) {
            assert_eq!(frames.len(), 2);
        }
        snapshot_of(&damaged).ok();
    }
}
