//! Tables of layers' objects in publications, whole and damaged.

use super::*;

/// The publication of [`small`], with the tables of both its layers' objects.
fn with_tables() -> Publication {
    let (manifest, mut stored) = published(small()).into_parts();
    let tables = [b"table of the first", &b"and of the second"[..]].map(Bytes::from_static);
    for (place, table) in stored.iter_mut().zip(&tables) {
        place.table_digest = *blake3::hash(table).as_bytes();
        place.table_bytes = u64::try_from(table.len()).expect("64 bits");
    }
    Publication::new(Edition::FIRST, manifest, stored).with_tables(tables.map(Some).into())
}

#[test]
fn the_tables_of_layers_are_read_back_and_one_that_is_not_its_objects_is_refused() {
    let publication = with_tables();
    assert_eq!(read(&publication.encode(keys().own())).as_ref(), Ok(&publication));
    let other = tampered(&publication, b"table of the first", b"table of the other");
    assert_eq!(other, Problem::Invalid("its digest is not the one that its layer's place has"));
    let code = tampered(&publication, b"\x01and of the", b"\x02and of the");
    assert_eq!(code, Problem::Invalid("it is neither there nor missing"));
}

#[test]
fn tables_that_are_longer_than_a_manifest_may_have_are_refused_before_they_are_read() {
    let (manifest, mut stored) = with_tables().into_parts();
    let long = u64::try_from(crate::limits::MANIFEST_TABLES_BYTES_MAX).expect("64 bits") + 1;
    stored[1].table_bytes = long;
    stored[1].object_bytes = long;
    let publication = Publication::new(Edition::FIRST, manifest, stored);
    // Its body ends in a byte for each of the two tables, of which there is none.
    let refused = tampered(&publication, b"state 2\x00\x00", b"state 2\x00\x01");
    assert_eq!(refused, Problem::Invalid("they are longer than a manifest may have"));
}
