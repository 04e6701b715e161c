use std::slice;

use super::*;
use crate::identity::SnapshotId;
use crate::manifest::ObjectName;

fn stored() -> StoredLayer {
    let object = ObjectName::new(SnapshotId::new());
    StoredLayer { object, table_digest: [0; 32], table_bytes: 9, object_bytes: 99 }
}

fn number(edition: Edition) -> u64 {
    edition.number()
}

#[test]
fn an_edition_is_put_again_with_the_same_places_and_other_places_are_a_later_one() {
    let (one, other) = (stored(), stored());
    let editions = Editions::new();
    assert_eq!(editions.last(), None);
    let put = |places: &[StoredLayer]| number(editions.for_places(places));
    assert_eq!(put(slice::from_ref(&one)), 1);
    assert_eq!(put(slice::from_ref(&one)), 1);
    assert_eq!(put(&[one.clone(), other]), 2);
    assert_eq!(
        put(slice::from_ref(&one)),
        3,
        "an edition is never put with other places, not even earlier ones"
    );
    assert_eq!(editions.last().map(number), Some(3));
}

#[test]
fn a_later_start_goes_on_from_the_edition_that_was_recorded() {
    let (one, other) = (stored(), stored());
    let editions = Editions::new();
    editions.note(Edition::of(7).expect("it is one"), [&one]);
    assert_eq!(number(editions.for_places(&[one])), 7);
    assert_eq!(number(editions.for_places(&[other])), 8);
}
