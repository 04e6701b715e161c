//! Working sets as bytes.
//!
//! Layout, little-endian: magic `RKWS`, version u16, snapshot 16 bytes; then varints: pages of the volume, faults, number
//! of runs, and for each run how far it begins from the end of the one before (twice the distance, plus one where it is
//! backwards) and how many pages it has; last the tag. Version 1 has no tag, and before the snapshot the CRC-64/NVME of
//! all that follows, a u64.

use crc_fast::CrcAlgorithm;

use super::WorkingSet;
use crate::geometry::{GuestPage, GuestPages, usize_of};
use crate::identity::SnapshotId;
use crate::key_ring::{DomainKey, KeyRing};
use crate::limits::{MANIFEST_PAGES_MAX, WORKING_SET_BYTES_MAX, WORKING_SET_PAGES_MAX};
use crate::tag::{TaggedError, check_tag, write_tag};
use crate::wire::{Reader, WireError, Writer};

const MAGIC: &[u8] = b"RKWS";
const VERSION: u16 = 2;
/// The form of each version, from 1 on.
const FORMS: [Form; 2] = [Form::WithChecksum, Form::Tagged];

#[derive(Clone, Copy)]
enum Form {
    WithChecksum,
    Tagged,
}

impl WorkingSet {
    /// The one encoding that `key` tags.
    #[must_use]
    pub fn encode(&self, key: &DomainKey) -> Vec<u8> {
        let mut body = Writer::new();
        body.bytes(MAGIC);
        body.u16(VERSION);
        self.write(&mut body);
        let bytes = write_tag(body, key);
        assert!(bytes.len() <= WORKING_SET_BYTES_MAX, "a working set within its limits is never too long");
        bytes
    }

    /// Writes it without what a stored thing begins and ends with.
    pub(crate) fn write(&self, body: &mut Writer) {
        body.bytes(self.snapshot.as_bytes());
        body.varint(self.volume_pages.into());
        body.varint(self.faults.into());
        body.varint_usize(self.runs.len());
        let mut at = GuestPage::FIRST;
        for run in &self.runs {
            let (forwards, backwards) = (run.start().number().checked_sub(at.number()), at.number());
            body.varint(match forwards {
                Some(distance) => u64::from(distance) << 1,
                None => u64::from(backwards - run.start().number()) << 1 | 1,
            });
            body.varint(run.count().into());
            at = run.end();
        }
    }

    /// Reads a working set of any version; of the newest, refuses every encoding that [`WorkingSet::encode`] does not
    /// write, and one that none of `keys` has tagged.
    pub fn decode(bytes: &[u8], keys: &KeyRing) -> Result<Self, TaggedError> {
        let mut reader = Reader::new(bytes);
        if bytes.len() > WORKING_SET_BYTES_MAX {
            return Err(reader.invalid("working set", "it is longer than a working set can be").into());
        }
        reader.expect_bytes("working set magic", MAGIC)?;
        let form = reader.version("working set version", &FORMS)?;
        let set = match form {
            Form::WithChecksum => {
                let checksum = reader.u64("working set checksum")?;
                if checksum != crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes[reader.offset()..]) {
                    return Err(reader
                        .invalid("working set checksum", "it is not that of what follows")
                        .into());
                }
                Self::read(&mut reader)?
            }
            Form::Tagged => {
                let set = Self::read(&mut reader)?;
                check_tag(&mut reader, bytes, keys)?;
                set
            }
        };
        reader.finish()?;
        Ok(set)
    }

    /// Reads what [`WorkingSet::write`] writes.
    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let snapshot = SnapshotId::from_bytes(reader.array("snapshot")?);
        let volume_pages = reader.varint_u32("volume pages", MANIFEST_PAGES_MAX)?;
        let faults = reader.varint_u32("faults", u32::MAX)?;
        let count = reader.varint_usize("runs", usize_of(WORKING_SET_PAGES_MAX))?;
        let mut set = Self { snapshot, volume_pages, faults, runs: Vec::new() };
        let mut left = WORKING_SET_PAGES_MAX;
        for _ in 0..count {
            let run = set.read_run(reader)?;
            left = left.checked_sub(run.count()).ok_or(reader.invalid("run", "there are too many pages"))?;
            set.runs.push(run);
        }
        if !set.is_disjoint() {
            return Err(reader.invalid("runs", "a page is in two of them"));
        }
        Ok(set)
    }

    fn read_run(&self, reader: &mut Reader<'_>) -> Result<GuestPages, WireError> {
        let before = self.runs.last().map(|run| run.end());
        let at = before.unwrap_or(GuestPage::FIRST).number();
        let pages = self.volume_pages;
        let coded = reader.varint_at_most("run start", u64::from(MANIFEST_PAGES_MAX) << 1 | 1)?;
        let distance = u32::try_from(coded >> 1).expect("at most twice the pages of a volume");
        let start = match coded & 1 {
            0 => at.checked_add(distance),
            // Forwards by nothing has its own form.
            _ if distance == 0 => None,
            _ => at.checked_sub(distance),
        };
        let start = start.filter(|start| *start < pages);
        let start = start.ok_or(reader.invalid("run start", "it is not a page of the volume"))?;
        if before.is_some_and(|before| before.number() == start) {
            return Err(reader.invalid("run start", "the run before goes on"));
        }
        let count = reader.varint_u32("run length", pages - start)?;
        if count == 0 {
            return Err(reader.invalid("run length", "it has no page"));
        }
        Ok(GuestPages::new(GuestPage::new(start), count))
    }

    fn is_disjoint(&self) -> bool {
        let mut sorted: Vec<_> = self.runs.clone();
        sorted.sort_unstable_by_key(|run| run.start());
        sorted.windows(2).all(|pair| pair[0].end() <= pair[1].start())
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::working_set::Touch;

    fn run(start: u32, count: u32) -> GuestPages {
        GuestPages::new(GuestPage::new(start), count)
    }

    /// A working set as its fields say, whether it can be one or not.
    fn raw(volume_pages: u32, runs: &[GuestPages]) -> WorkingSet {
        WorkingSet { snapshot: SnapshotId::from_bytes([3; 16]), volume_pages, faults: 9, runs: runs.to_vec() }
    }

    fn keys() -> KeyRing {
        KeyRing::of_name("a")
    }

    fn encoded(set: &WorkingSet) -> Vec<u8> {
        set.encode(keys().own())
    }

    fn decoded(bytes: &[u8]) -> Result<WorkingSet, TaggedError> {
        WorkingSet::decode(bytes, &keys())
    }

    fn refused(set: &WorkingSet) -> &'static str {
        match decoded(&encoded(set)).expect_err("it cannot be") {
            TaggedError::Wire(error) => error.field,
            error @ (TaggedError::Key(_) | TaggedError::Forged { .. }) => unreachable!("{error}"),
        }
    }

    #[test]
    fn a_working_set_that_no_guest_has_is_refused() {
        assert_eq!(decoded(&encoded(&raw(100, &[run(90, 10), run(3, 1)]))).map(|set| set.pages()), Ok(11));
        assert_eq!(refused(&raw(100, &[run(90, 11)])), "run length");
        assert_eq!(refused(&raw(100, &[run(100, 1)])), "run start");
        assert_eq!(refused(&raw(100, &[run(3, 1), run(4, 1)])), "run start");
        assert_eq!(refused(&raw(100, &[run(3, 0)])), "run length");
        assert_eq!(refused(&raw(100, &[run(3, 5), run(90, 1), run(7, 2)])), "runs");
        let many: Vec<_> = (0..3).map(|part| run(part * (1 << 20), WORKING_SET_PAGES_MAX / 2)).collect();
        assert_eq!(refused(&raw(1 << 25, &many)), "run");
    }

    #[test]
    fn a_working_set_of_as_many_runs_as_there_may_be_is_read_back() {
        let pages = 4 * WORKING_SET_PAGES_MAX;
        let far = |page: u32| GuestPage::new(page.wrapping_mul(2_654_435_761) % pages);
        let touches = (0..2 * WORKING_SET_PAGES_MAX).map(|page| Touch::Fault(far(page)));
        let set = WorkingSet::new(SnapshotId::from_bytes([3; 16]), pages, touches);
        assert_eq!(set.pages(), WORKING_SET_PAGES_MAX);
        assert_eq!(decoded(&encoded(&set)), Ok(set));
    }

    #[test]
    fn a_working_set_of_another_key_is_refused() {
        let bytes = raw(100, &[run(3, 1)]).encode(KeyRing::of_name("b").own());
        assert!(matches!(decoded(&bytes), Err(TaggedError::Key(_))));
    }

    #[test]
    fn a_flipped_bit_or_a_cut_is_refused() {
        let bytes = encoded(&raw(100, &[run(90, 10), run(3, 1)]));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decoded(&flipped).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(decoded(&bytes[..end]).is_err(), "{end} bytes");
        }
        assert!(decoded(&[bytes, vec![0]].concat()).is_err());
        assert!(decoded(&vec![0; WORKING_SET_BYTES_MAX + 1]).is_err());
    }
}
