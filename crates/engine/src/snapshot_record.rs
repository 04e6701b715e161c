//! The catalog's record of one snapshot besides its manifest: the stage it has reached, and the facts needed to go on.
//!
//! Layout, little-endian: magic `RKSR`, version u16, domain, state u8. A captured one goes on as a manifest does, without
//! layers and maps; a sealed or published one with how its pages fell and how long its seal took. The domain is a byte 1 and
//! its name, or a byte 0: version 1 has none. A remote or refuted one, which version 3 brought, goes on with its node or the
//! reason, then as a captured one does.

use std::time::Duration;

use crate::captured_facts::CapturedFacts;
use crate::compare::PageClasses;
use crate::identity::DomainName;
use crate::limits::{NAME_BYTES_MAX, NODE_BYTES_MAX, REFUTED_BYTES_MAX};
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKSR";
const VERSION: u16 = 3;
/// The form of each version, from 1 on.
const FORMS: [Form; 3] = [Form::WithoutDomain, Form::WithDomain, Form::WithDomain];
const CAPTURED: u8 = 0;
const SEALED: u8 = 1;
const PUBLISHED: u8 = 2;
const REMOTE: u8 = 3;
const REFUTED: u8 = 4;

#[derive(Clone, Copy)]
enum Form {
    WithoutDomain,
    WithDomain,
}

/// The record of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its domain; one that an older program recorded says none, and is of the node's own.
    pub domain: Option<DomainName>,
    /// Its stage.
    pub stage: SnapshotStage,
}

/// Stage that a snapshot has reached, with the facts that are needed to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotStage {
    /// Its memory is with the keeper.
    Captured(CapturedFacts),
    /// Its layers are on this node's disk, its manifest is in the catalog.
    Sealed(SealFacts),
    /// Its manifest is in the store too.
    Published(SealFacts),
    /// Its pages are read from another node, as it has no names yet.
    Remote {
        /// The node.
        node: String,
        /// Its facts.
        facts: CapturedFacts,
    },
    /// That node sent other bytes for it than it has by its names.
    Refuted {
        /// The difference.
        reason: String,
        /// Its facts.
        facts: CapturedFacts,
    },
}

/// Facts of its seal; absent for one that was sealed elsewhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealFacts {
    /// Counts of its captured pages.
    pub classes: Option<PageClasses>,
    /// Time it took.
    pub seal_time: Option<Duration>,
}

impl SnapshotRecord {
    /// The one encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(MAGIC);
        writer.u16(VERSION);
        writer.u8(self.domain.is_some().into());
        if let Some(domain) = &self.domain {
            writer.text(domain.as_str());
        }
        match &self.stage {
            SnapshotStage::Captured(facts) => {
                writer.u8(CAPTURED);
                facts.write(&mut writer);
            }
            SnapshotStage::Sealed(facts) => {
                writer.u8(SEALED);
                facts.write(&mut writer);
            }
            SnapshotStage::Published(facts) => {
                writer.u8(PUBLISHED);
                facts.write(&mut writer);
            }
            SnapshotStage::Remote { node, facts } => {
                writer.u8(REMOTE);
                writer.text(node);
                facts.write(&mut writer);
            }
            SnapshotStage::Refuted { reason, facts } => {
                writer.u8(REFUTED);
                writer.text(reason);
                facts.write(&mut writer);
            }
        }
        writer.into_bytes()
    }

    /// Reads a record of any version; of the newest, refuses all that [`SnapshotRecord::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.expect_bytes("snapshot record magic", MAGIC)?;
        let domain = match reader.version("snapshot record version", &FORMS)? {
            Form::WithoutDomain => None,
            Form::WithDomain => read_domain(&mut reader)?,
        };
        let stage = match reader.u8("snapshot state")? {
            CAPTURED => SnapshotStage::Captured(CapturedFacts::read(&mut reader)?),
            SEALED => SnapshotStage::Sealed(SealFacts::read(&mut reader)?),
            PUBLISHED => SnapshotStage::Published(SealFacts::read(&mut reader)?),
            REMOTE => {
                let node = reader.text("node", NODE_BYTES_MAX)?.to_owned();
                SnapshotStage::Remote { node, facts: CapturedFacts::read(&mut reader)? }
            }
            REFUTED => {
                let reason = reader.text("reason", REFUTED_BYTES_MAX)?.to_owned();
                SnapshotStage::Refuted { reason, facts: CapturedFacts::read(&mut reader)? }
            }
            _ => return Err(reader.invalid("snapshot state", "there is no such state")),
        };
        reader.finish()?;
        Ok(Self { domain, stage })
    }
}

impl SealFacts {
    fn write(&self, writer: &mut Writer) {
        writer.u8(self.classes.is_some().into());
        if let Some(PageClasses { dirty, zero, equal, kept, unread }) = self.classes {
            [dirty, zero, equal, kept, unread].into_iter().for_each(|pages| writer.u32(pages));
        }
        writer.u8(self.seal_time.is_some().into());
        if let Some(time) = self.seal_time {
            writer.u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut facts = Self::default();
        if is_there(reader, "page classes")? {
            let mut next = || reader.u32("page classes");
            facts.classes = Some(PageClasses {
                dirty: next()?,
                zero: next()?,
                equal: next()?,
                kept: next()?,
                unread: next()?,
            });
        }
        if is_there(reader, "seal time")? {
            facts.seal_time = Some(Duration::from_micros(reader.u64("seal time")?));
        }
        Ok(facts)
    }
}

fn read_domain(reader: &mut Reader<'_>) -> Result<Option<DomainName>, WireError> {
    if !is_there(reader, "domain")? {
        return Ok(None);
    }
    let name = reader.text("domain", NAME_BYTES_MAX)?;
    name.parse().map(Some).map_err(|_| reader.invalid("domain", "the text names no domain"))
}

fn is_there(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, WireError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(reader.invalid(field, "it is neither there nor absent")),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use rekindle_kernel::PageKind;

    use super::*;
    use crate::identity::{SnapshotId, VolumeName};
    use crate::manifest::VolumeShape;

    fn records() -> Vec<SnapshotRecord> {
        let shape = |name: &str, pages| VolumeShape {
            name: name.parse().expect("a name"),
            page_kind: PageKind::Huge,
            pages,
        };
        let first = CapturedFacts {
            parent: None,
            generation: 0,
            created_unix_ms: 1_700_000_000_000,
            volumes: vec![shape(VolumeName::memory().as_str(), 512), shape("disk-1", 7)],
            blobs: BTreeMap::from([("device-state".to_owned(), Bytes::from_static(b"{}"))]),
        };
        let child = CapturedFacts { parent: Some(SnapshotId::new()), generation: 9, ..first.clone() };
        let classes = PageClasses { dirty: 10, zero: 1, equal: 2, kept: 7, unread: 3 };
        let sealed = SealFacts { classes: Some(classes), seal_time: Some(Duration::from_millis(31)) };
        let stages = [
            SnapshotStage::Captured(first.clone()),
            SnapshotStage::Captured(child),
            SnapshotStage::Remote { node: "10.0.0.7:7420".to_owned(), facts: first.clone() },
            SnapshotStage::Refuted { reason: "page 3 differs".to_owned(), facts: first },
            SnapshotStage::Sealed(sealed),
            SnapshotStage::Published(sealed),
            SnapshotStage::Published(SealFacts::default()),
        ];
        let of = |domain: Option<DomainName>| {
            stages.clone().map(|stage| SnapshotRecord { domain: domain.clone(), stage })
        };
        [of(None), of("tenant-1".parse().ok())].concat()
    }

    #[test]
    fn a_record_is_read_back_equal() {
        for record in records() {
            assert_eq!(SnapshotRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn a_record_that_is_cut_short_or_goes_on_is_refused() {
        for record in records() {
            let bytes = record.encode();
            for end in 0..bytes.len() {
                assert!(SnapshotRecord::decode(&bytes[..end]).is_err(), "{end} of {record:?}");
            }
            assert!(SnapshotRecord::decode(&[bytes, vec![0]].concat()).is_err());
        }
    }
}
