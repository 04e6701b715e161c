//! The tables of layers' objects in a manifest: a resume that has them asks for frames at once.
//!
//! Layout, at the end of a publication's body: for each layer a byte 0, or a byte 1 and its object's table, which is as
//! long as the layer's place says. The newest layers have theirs, up to a limit.

use std::cmp::Reverse;

use bytes::Bytes;

use super::StoredLayer;
use crate::limits::MANIFEST_TABLES_BYTES_MAX;
use crate::wire::{Reader, WireError, Writer};

/// A place of a layer that a manifest has.
pub(super) trait Place {
    /// The object there, if it is known.
    fn stored(&self) -> Option<&StoredLayer>;
}

impl Place for StoredLayer {
    fn stored(&self) -> Option<&StoredLayer> {
        Some(self)
    }
}

impl Place for Option<StoredLayer> {
    fn stored(&self) -> Option<&StoredLayer> {
        self.as_ref()
    }
}

/// True for each of the layers whose table a manifest has: the last uploaded first, as many as the limit allows. It
/// follows from their places alone, so that an edition of a manifest has one content.
#[must_use]
pub(crate) fn carried(stored: &[StoredLayer]) -> Vec<bool> {
    let mut newest: Vec<usize> = (0..stored.len()).collect();
    newest.sort_by_key(|slot| Reverse((stored[*slot].object.upload, *slot)));
    let (mut left, mut carried) = (MANIFEST_TABLES_BYTES_MAX, vec![false; stored.len()]);
    for slot in newest {
        let rest = usize::try_from(stored[slot].table_bytes).ok().and_then(|bytes| left.checked_sub(bytes));
        if let Some(rest) = rest {
            carried[slot] = true;
            left = rest;
        }
    }
    carried
}

pub(super) fn write_tables(writer: &mut Writer, tables: &[Option<Bytes>]) {
    for table in tables {
        writer.u8(table.is_some().into());
        if let Some(table) = table {
            writer.bytes(table);
        }
    }
}

/// Reads the tables of the objects at these places.
pub(super) fn read_tables<P: Place>(
    reader: &mut Reader<'_>,
    places: &[P],
) -> Result<Vec<Option<Bytes>>, WireError> {
    let mut left = MANIFEST_TABLES_BYTES_MAX;
    let mut read_table = |place: &P| {
        let stored = match (reader.u8("layer table")?, place.stored()) {
            (0, _) => return Ok(None),
            (1, Some(stored)) => stored,
            _ => return Err(reader.invalid("layer table", "it is neither there nor missing")),
        };
        let bytes = usize::try_from(stored.table_bytes).ok().filter(|bytes| *bytes <= left);
        let bytes =
            bytes.ok_or(reader.invalid("layer tables", "they are longer than a manifest may have"))?;
        left -= bytes;
        let wrong = reader.invalid("layer table", "its digest is not the one that its layer's place has");
        let table = reader.bytes("layer table", bytes)?;
        if stored.is_table(table) { Ok(Some(Bytes::copy_from_slice(table))) } else { Err(wrong) }
    };
    places.iter().map(&mut read_table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SnapshotId;
    use crate::manifest::ObjectName;

    fn stored(time: u8, table_bytes: usize) -> StoredLayer {
        let publisher = SnapshotId::from_bytes([1; 16]);
        let object = ObjectName { publisher, upload: uuid::Uuid::from_bytes([time; 16]) };
        let table_bytes = u64::try_from(table_bytes).expect("64 bits");
        StoredLayer { object, table_digest: [0; 32], table_bytes, object_bytes: table_bytes }
    }

    #[test]
    fn the_newest_layers_have_their_tables_and_one_that_is_too_long_leaves_room_for_older_ones() {
        let half = MANIFEST_TABLES_BYTES_MAX / 2;
        let layers =
            [stored(1, half), stored(3, half), stored(4, 2 * half + 2), stored(2, half - 9), stored(0, 9)];
        assert_eq!(carried(&layers), [false, true, false, true, true]);
    }
}
