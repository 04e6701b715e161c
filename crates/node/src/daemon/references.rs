//! References of people to things: by id, by the unique beginning or end of one, or by name.

use rekindle_api::control::Answer;
use rekindle_api::problem::{Code, Problem};
use rekindle_api::types::Reference;
use uuid::Uuid;

/// Letters of a part of an id, at least.
const PART_LETTERS_MIN: usize = 4;
/// A thing that can be referred to.
pub(super) trait Named {
    fn id(&self) -> Uuid;
    fn name(&self) -> Option<&str>;
}

/// The one thing that `reference` means among `things`, which are called `what`.
pub(super) fn find<'a, T: Named>(
    what: &str,
    reference: &Reference,
    things: impl Iterator<Item = &'a T> + Clone,
) -> Answer<&'a T> {
    if let Ok(id) = Uuid::try_parse(reference)
        && let Some(found) = things.clone().find(|thing| thing.id() == id)
    {
        return Ok(found);
    }
    if let Some(found) = things.clone().find(|thing| thing.name() == Some(&**reference)) {
        return Ok(found);
    }
    let part = reference.to_ascii_lowercase();
    let mut meant = things.filter(|thing| is_part_of(&part, thing.id()));
    match (meant.next(), meant.next()) {
        (Some(found), None) => Ok(found),
        (Some(first), Some(second)) => Err(Problem::new(
            Code::AmbiguousReference,
            format!(
                "more than one {what} id begins or ends with {reference:?}: {} and {} do; give more of it",
                first.id(),
                second.id()
            ),
        )),
        (None, _) => Err(Problem::new(Code::NotFound, format!("there is no {what} {reference:?}"))),
    }
}

/// True if `reference` may be the beginning or the end of an id.
pub(super) fn is_part(reference: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_hexdigit() || letter == '-';
    reference.len() >= PART_LETTERS_MIN && reference.chars().all(is_letter)
}

/// True if `part`, in lower case, is the beginning or the end of an id, and long enough to mean one.
fn is_part_of(part: &str, id: Uuid) -> bool {
    let id = id.hyphenated().to_string();
    part.len() >= PART_LETTERS_MIN && (id.starts_with(part) || id.ends_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(Uuid, Option<&'static str>);

    impl Named for Thing {
        fn id(&self) -> Uuid {
            self.0
        }

        fn name(&self) -> Option<&str> {
            self.1
        }
    }

    fn found(reference: &str) -> Result<u128, Code> {
        let id = |number: u128| Uuid::from_u128(0xaaaa_0000 << 96 | number);
        let things = [Thing(id(1), Some("one")), Thing(id(2), None), Thing(Uuid::from_u128(3), Some("aaaa"))];
        let reference: Reference = reference.parse().expect("it can be one");
        find("thing", &reference, things.iter())
            .map(|thing| thing.0.as_u128() & 0xff)
            .map_err(|problem| problem.code)
    }

    #[test]
    fn a_reference_is_an_id_a_name_or_a_unique_beginning_or_end_of_an_id() {
        assert_eq!(found("aaaa0000-0000-0000-0000-000000000001"), Ok(1));
        assert_eq!(found("one"), Ok(1));
        assert_eq!(found("aaaa"), Ok(3), "a name goes before a beginning");
        assert_eq!(found("AAAA0"), Err(Code::AmbiguousReference));
        assert_eq!(found("0000"), Ok(3));
        assert_eq!(found("00000002"), Ok(2));
        assert_eq!(found("0000-000000000001"), Ok(1));
        assert_eq!(found("00-0000-0000-0000-0000"), Err(Code::NotFound), "the middle of an id means nothing");
        assert_eq!(found("000"), Err(Code::NotFound), "three letters are too few to mean an id");
        assert_eq!(found("two"), Err(Code::NotFound));
    }
}
