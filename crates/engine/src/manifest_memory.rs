//! The copies that manifests name, remembered from one look of a collector to the next, also over a restart: a manifest
//! never changes.
//!
//! The file's layout, little-endian: magic `RKMM`, version u16, the BLAKE3 of the rest; the number of copies, and of each
//! the layer, the publisher and the upload; the number of manifests, and of each the snapshot, its edition, its bytes, its
//! time u64, the number of copies that it names and their numbers.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use object_store::ObjectMeta;
use uuid::Uuid;

use crate::collectable::LayerCopy;
use crate::geometry::{u64_of, usize_of};
use crate::identity::{LayerId, SnapshotId};
use crate::layer_files::UNFINISHED;
use crate::limits::MANIFEST_LAYERS_MAX;
use crate::manifest::{Edition, ObjectName};
use crate::private;
use crate::wire::{Reader, WireError, Writer};

/// The copies that the newest manifest of each snapshot names.
#[derive(Debug, Default)]
pub(crate) struct ManifestMemory {
    read: BTreeMap<SnapshotId, ReadManifest>,
    copies: Vec<LayerCopy>,
    numbers: HashMap<LayerCopy, u32>,
    /// True if the file has something else.
    is_changed: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct ReadManifest {
    written: WrittenManifest,
    /// Numbers of the copies.
    named: Box<[u32]>,
}

/// One put of a manifest. If the store was brought back to an earlier state, an edition may have another content than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrittenManifest {
    pub(crate) edition: Edition,
    pub(crate) bytes: u64,
    /// Time of the store, in milliseconds since 1970.
    pub(crate) unix_ms: i64,
}

/// An edition of a snapshot's manifest, as it was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedManifest {
    pub(crate) snapshot: SnapshotId,
    /// None if an older program put it.
    pub(crate) written: Option<WrittenManifest>,
}

impl ListedManifest {
    pub(crate) fn of(snapshot: SnapshotId, edition: Option<Edition>, object: &ObjectMeta) -> Self {
        let unix_ms = object.last_modified.timestamp_millis();
        let written = edition.map(|edition| WrittenManifest { edition, bytes: object.size, unix_ms });
        Self { snapshot, written }
    }

    pub(crate) fn edition(&self) -> Option<Edition> {
        self.written.map(|written| written.edition)
    }
}

impl ReadManifest {
    fn numbers(&self) -> impl Iterator<Item = usize> {
        self.named.iter().map(|number| usize_of(*number))
    }
}

impl ManifestMemory {
    /// The copies that a manifest names, if it was read.
    pub(crate) fn named(
        &self,
        snapshot: SnapshotId,
        written: WrittenManifest,
    ) -> Option<impl Iterator<Item = LayerCopy>> {
        let read = self.read.get(&snapshot).filter(|read| read.written == written)?;
        Some(read.numbers().map(|number| self.copies[number]))
    }

    /// A manifest was read, and names these.
    pub(crate) fn remember(&mut self, snapshot: SnapshotId, written: WrittenManifest, named: &[LayerCopy]) {
        let named = named.iter().map(|copy| self.number(*copy)).collect();
        self.read.insert(snapshot, ReadManifest { written, named });
        self.is_changed = true;
    }

    /// Each snapshot whose manifest was read, in their order, with the numbers of the copies that it names.
    pub(crate) fn all(&self) -> impl Iterator<Item = (SnapshotId, impl Iterator<Item = usize>)> {
        self.read.iter().map(|(snapshot, read)| (*snapshot, read.numbers()))
    }

    /// The copies that manifests name; one that several name comes several times.
    pub(crate) fn all_named(&self) -> impl Iterator<Item = LayerCopy> {
        self.all().flat_map(|(_, numbers)| numbers).map(|number| self.copies[number])
    }

    /// True if the manifest of a snapshot was read.
    pub(crate) fn has(&self, snapshot: SnapshotId) -> bool {
        self.read.contains_key(&snapshot)
    }

    /// The number of a copy that a manifest names, or has named.
    pub(crate) fn number_of(&self, copy: &LayerCopy) -> Option<usize> {
        self.numbers.get(copy).map(|number| usize_of(*number))
    }

    /// By the number of each copy, how often manifests name it.
    pub(crate) fn users(&self) -> Vec<u32> {
        let mut users = vec![0; self.copies.len()];
        self.read.values().flat_map(ReadManifest::numbers).for_each(|number| users[number] += 1);
        users
    }

    /// Forgets all manifests of other snapshots than those that `is_there`, and the copies that only they name.
    pub(crate) fn retain(&mut self, is_there: impl Fn(SnapshotId) -> bool) {
        if self.read.keys().all(|snapshot| is_there(*snapshot)) {
            return;
        }
        let before = std::mem::take(self);
        for (snapshot, read) in before.read.iter().filter(|(snapshot, _)| is_there(**snapshot)) {
            let copies: Vec<_> = before.named(*snapshot, read.written).into_iter().flatten().collect();
            self.remember(*snapshot, read.written, &copies);
        }
        self.is_changed = true;
    }

    /// The memory in a file; an empty one if there is none, or it is damaged or of an unknown version.
    pub(crate) fn kept_in(file: &Path) -> Self {
        match fs::read(file) {
            Ok(bytes) => Self::decode(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %file.display(), %error, "manifests are read again");
                Self::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(path = %file.display(), %error, "manifests are read again");
                Self::default()
            }
        }
    }

    /// Puts the memory into a file, unless the file has it already.
    pub(crate) fn keep_in(&mut self, file: &Path) -> io::Result<()> {
        if self.is_changed {
            let unfinished = file.with_extension(UNFINISHED);
            let mut written = private::options().create(true).truncate(true).open(&unfinished)?;
            written.write_all(&self.encode())?;
            written.sync_all()?;
            fs::rename(&unfinished, file)?;
            File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            self.is_changed = false;
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        body.varint_usize(self.copies.len());
        for LayerCopy { layer, object } in &self.copies {
            body.bytes(layer.as_bytes());
            body.bytes(object.publisher.as_bytes());
            body.bytes(object.upload.as_bytes());
        }
        body.varint_usize(self.read.len());
        for (snapshot, ReadManifest { written, named }) in &self.read {
            body.bytes(snapshot.as_bytes());
            body.varint(written.edition.number());
            body.varint(written.bytes);
            body.bytes(&written.unix_ms.to_le_bytes());
            body.varint_usize(named.len());
            named.iter().for_each(|number| body.varint((*number).into()));
        }
        let body = body.into_bytes();
        let mut file = Writer::new();
        file.bytes(MAGIC);
        file.u16(VERSION);
        file.bytes(blake3::hash(&body).as_bytes());
        file.bytes(&body);
        file.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.expect_bytes("magic", MAGIC)?;
        reader.version("version", &[()])?;
        let digest: [u8; 32] = reader.array("digest")?;
        if *blake3::hash(&bytes[reader.offset()..]).as_bytes() != digest {
            return Err(reader.invalid("digest", "it is not that of what follows"));
        }
        let mut memory = Self::default();
        for _ in 0..reader.varint_usize("copies", bytes.len())? {
            let layer = LayerId::from_bytes(reader.array("layer")?);
            let publisher = SnapshotId::from_bytes(reader.array("publisher")?);
            let upload = Uuid::from_bytes(reader.array("upload")?);
            memory.number(LayerCopy { layer, object: ObjectName { publisher, upload } });
        }
        for _ in 0..reader.varint_usize("manifests", bytes.len())? {
            let (snapshot, read) = read_manifest(&mut reader, memory.copies.len())?;
            memory.read.insert(snapshot, read);
        }
        reader.finish()?;
        Ok(memory)
    }

    fn number(&mut self, copy: LayerCopy) -> u32 {
        *self.numbers.entry(copy).or_insert_with(|| {
            self.copies.push(copy);
            u32::try_from(self.copies.len() - 1).expect("fewer copies than that fit into RAM")
        })
    }
}

const MAGIC: &[u8] = b"RKMM";
/// The version that is written, and the only one that is read: another one's manifests are read again.
const VERSION: u16 = 1;

fn read_manifest(reader: &mut Reader<'_>, copies: usize) -> Result<(SnapshotId, ReadManifest), WireError> {
    let snapshot = SnapshotId::from_bytes(reader.array("snapshot")?);
    let edition = Edition::of(reader.varint("edition")?).ok_or(reader.invalid("edition", "there is none"))?;
    let bytes = reader.varint("bytes")?;
    let unix_ms = i64::from_le_bytes(reader.array("time")?);
    let count = reader.varint_usize("named copies", MANIFEST_LAYERS_MAX)?;
    let mut named = Vec::with_capacity(count);
    for _ in 0..count {
        let number = reader.varint_u32("named copy", u32::MAX)?;
        if u64::from(number) >= u64_of(copies) {
            return Err(reader.invalid("named copy", "it is not listed"));
        }
        named.push(number);
    }
    Ok((snapshot, ReadManifest { written: WrittenManifest { edition, bytes, unix_ms }, named: named.into() }))
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn copy(number: u8) -> LayerCopy {
        let object =
            ObjectName { publisher: SnapshotId::from_bytes([number; 16]), upload: Uuid::from_bytes([7; 16]) };
        LayerCopy { layer: LayerId::from_bytes([number; 32]), object }
    }

    fn remembered() -> ManifestMemory {
        let mut memory = ManifestMemory::default();
        for number in 1..=3 {
            let written = WrittenManifest { edition: Edition::FIRST, bytes: 12, unix_ms: -5 };
            memory.remember(SnapshotId::from_bytes([number; 16]), written, &[copy(1), copy(number)]);
        }
        memory.retain(|snapshot| snapshot != SnapshotId::from_bytes([2; 16]));
        memory
    }

    #[test]
    fn a_memory_comes_back_from_its_file_which_is_written_only_if_something_changed() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("manifests.memory");
        let mut memory = remembered();
        memory.keep_in(&file).expect("there is room");
        let mut again = ManifestMemory::kept_in(&file);
        assert_eq!((&again.read, &again.copies), (&memory.read, &memory.copies));
        assert_eq!(again.all_named().collect::<Vec<_>>(), [copy(1), copy(1), copy(1), copy(3)]);
        assert_eq!((again.users(), again.number_of(&copy(2))), (vec![3, 1], None));
        fs::remove_file(&file).expect("it is there");
        again.retain(|_| true);
        again.keep_in(&file).expect("there is room");
        assert!(!file.exists(), "nothing has changed");
        again.retain(|_| false);
        again.keep_in(&file).expect("there is room");
        assert!(ManifestMemory::kept_in(&file).read.is_empty());
    }

    #[test]
    fn a_file_that_is_damaged_cut_or_of_another_version_is_no_memory() {
        let whole = remembered().encode();
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            assert!(ManifestMemory::decode(&damaged).is_err(), "byte {position}");
            assert!(ManifestMemory::decode(&whole[..position]).is_err(), "{position} bytes");
        }
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("manifests.memory");
        assert!(ManifestMemory::kept_in(&file).read.is_empty());
        fs::write(&file, &whole[1..]).expect("there is room");
        assert!(ManifestMemory::kept_in(&file).read.is_empty());
    }
}
