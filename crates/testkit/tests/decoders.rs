//! Every decoder of a stored format against its corpus, whole and damaged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rekindle_engine::layer_index::LayerIndex;
use rekindle_testkit::damage::Damage;
use rekindle_testkit::decoders::{self, DECODERS, Decoder};

/// The environment variable with the seed to replay.
const SEED: &str = "REKINDLE_SEED";
/// Damaged inputs for each decoder.
const DAMAGED_INPUTS: usize = 20_000;

fn corpus_directory(decoder: &Decoder) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(decoder.name)
}

/// The files of the decoder's corpus by name.
fn corpus(decoder: &Decoder) -> BTreeMap<String, Vec<u8>> {
    let directory = corpus_directory(decoder);
    let entries = std::fs::read_dir(&directory).expect("every decoder has a corpus under fuzz/corpus");
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("the directory can be listed").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        (name, std::fs::read(&path).expect("the file can be read"))
    };
    entries.map(file).collect()
}

/// The seed that is asked for, or a fixed one; printed with a failure.
fn seed() -> u64 {
    let asked = std::env::var(SEED).ok();
    let seed = asked.map_or(0x5eed, |seed| seed.parse().expect("a seed is a number"));
    println!("replay with {SEED}={seed}");
    seed
}

fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit, flipped)
    })
}

/// The file of the corpus that has a sample in a version of its format.
fn golden(version: u16, sample: &str) -> String {
    format!("version-{version}-{sample}")
}

#[test]
fn every_version_that_was_ever_written_is_read_and_means_what_it_meant() {
    for decoder in &DECODERS {
        let corpus = corpus(decoder);
        for name in (decoder.samples)().into_keys() {
            // A sample that older versions could not have is in every one since.
            let first = (1..=decoder.newest).find(|version| corpus.contains_key(&golden(*version, name)));
            for version in first.expect("a sample has a file")..=decoder.newest {
                let of = |version| {
                    let file = golden(version, name);
                    corpus.get(&file).unwrap_or_else(|| panic!("{} has no {file}", decoder.name))
                };
                let (written, anew) = (of(version), of((decoder.rewritten_as)(version)));
                assert_eq!(
                    (decoder.rewritten)(written).as_ref(),
                    Some(anew),
                    "{} {name} {version}",
                    decoder.name
                );
            }
        }
    }
}

#[test]
fn what_is_written_today_is_the_newest_version_byte_for_byte() {
    for decoder in &DECODERS {
        let corpus = corpus(decoder);
        for (name, sample) in (decoder.samples)() {
            let newest = corpus.get(&golden(decoder.newest, name));
            assert_eq!(newest, Some(&sample), "{} {name}", decoder.name);
        }
    }
}

#[test]
fn no_input_of_the_corpus_breaks_a_decoder() {
    for decoder in &DECODERS {
        for bytes in corpus(decoder).values() {
            (decoder.rewritten)(bytes);
            decoders::publication(&decoders::manifest_resealed(bytes));
            decoders::local_manifest(&decoders::manifest_resealed(bytes));
        }
    }
}

#[test]
fn no_damage_breaks_a_decoder() {
    let mut damage = Damage::seeded(seed());
    for decoder in &DECODERS {
        let corpus: Vec<Vec<u8>> = corpus(decoder).into_values().collect();
        for number in 0..DAMAGED_INPUTS {
            let damaged = damage.to(&corpus[number % corpus.len()], &corpus);
            (decoder.rewritten)(&damaged);
        }
    }
}

#[test]
fn no_damage_under_a_right_checksum_breaks_the_decoder_of_publications() {
    let mut damage = Damage::seeded(seed());
    let corpus: Vec<Vec<u8>> = corpus(&DECODERS[0]).into_values().collect();
    let mut accepted = 0;
    for number in 0..DAMAGED_INPUTS {
        let damaged = damage.to(&corpus[number % corpus.len()], &corpus);
        accepted += usize::from(decoders::publication(&decoders::manifest_resealed(&damaged)).is_some());
    }
    // Damage to a digest or a time is another publication; all the rest contradicts itself.
    assert!(accepted > 0 && accepted < DAMAGED_INPUTS);
}

#[test]
fn case_18_a_flipped_bit_of_a_stored_publication_is_refused() {
    for (name, bytes) in (DECODERS[0].samples)() {
        for (bit, flipped) in flipped(&bytes) {
            assert!(decoders::publication(&flipped).is_none(), "bit {bit} of {name}");
        }
    }
}

#[test]
fn case_18_a_flipped_bit_of_a_stored_layer_index_is_refused_by_the_layers_name() {
    let (keys, index) =
        (decoders::keys(), |bytes: &[u8]| LayerIndex::decode(bytes).map(|index| index.encode()));
    for (name, bytes) in (DECODERS[1].samples)() {
        let id = keys.own().layer_id(&index(&bytes).expect("samples are read"));
        for (bit, flipped) in flipped(&bytes) {
            let is_the_layer = index(&flipped).is_ok_and(|read| keys.own().layer_id(&read) == id);
            assert!(!is_the_layer, "bit {bit} of {name}");
        }
    }
}

#[test]
#[ignore = "writes files: run it when a format gets a new version; the files of older ones stay as they are"]
fn write_the_samples_into_the_corpus() {
    for decoder in &DECODERS {
        let directory = corpus_directory(decoder);
        std::fs::create_dir_all(&directory).expect("the repository can be written");
        for (name, sample) in (decoder.samples)() {
            std::fs::write(directory.join(golden(decoder.newest, name)), sample)
                .expect("the repository can be written");
        }
    }
}
