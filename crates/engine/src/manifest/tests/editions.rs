//! Editions of publications.

use super::*;

#[test]
fn a_publication_says_its_edition_and_none_is_of_edition_0() {
    let first = published(small());
    let later = Publication::new(Edition::of(300).expect("it is one"), small(), first.stored().to_vec());
    assert_eq!(read(&later.encode(keys().own())).map(|read| read.edition().number()), Ok(300));
    let at = [&small().snapshot().as_bytes()[..], &[1]].concat();
    let none = [&small().snapshot().as_bytes()[..], &[0]].concat();
    assert_eq!(tampered(&first, &at, &none), Problem::Invalid("the first one has number 1"));
}
