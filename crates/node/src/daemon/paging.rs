//! Pages of lists.

use rekindle_api::types::{Labels, ListQuery, PageLimit};
use uuid::Uuid;

use super::references::Named;

/// Entries of a page where nothing is said.
const ENTRIES_DEFAULT: u32 = 200;

/// Something that lists can be of.
pub(super) trait Listed: Named {
    fn labels(&self) -> &Labels;
}

/// The page that `query` asks for of `all`, which are in the order of ids and after the query's, and what comes after it.
pub(super) fn page<'a, T: Listed + Clone + 'a>(
    all: impl Iterator<Item = &'a T>,
    query: &ListQuery,
) -> (Vec<T>, Option<Uuid>) {
    let limit = query.limit.map_or(ENTRIES_DEFAULT, PageLimit::get);
    let limit = usize::try_from(limit).expect("at most a thousand");
    let matching = all.filter(|thing| query.labels.iter().all(|label| label.is_in(thing.labels())));
    let mut found: Vec<T> = matching.take(limit + 1).cloned().collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(Named::id);
    (found, next)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Thing(Uuid, Labels);

    impl Named for Thing {
        fn id(&self) -> Uuid {
            self.0
        }

        fn name(&self) -> Option<&str> {
            None
        }
    }

    impl Listed for Thing {
        fn labels(&self) -> &Labels {
            &self.1
        }
    }

    fn things() -> Vec<Thing> {
        let label = |name: &str, number: u128| (name.to_owned(), number.to_string());
        let thing = |number| {
            let labels = BTreeMap::from([label("parity", number % 2), label("third", number % 3)]);
            Thing(Uuid::from_u128(number), labels.try_into().expect("they are labels"))
        };
        (1..=6).map(thing).collect()
    }

    fn numbers(query: &ListQuery) -> (Vec<u128>, Option<u128>) {
        let all = things();
        let after = all.iter().filter(|thing| query.after.is_none_or(|after| thing.0 > after));
        let (found, next) = page(after, query);
        (found.iter().map(|thing| thing.0.as_u128()).collect(), next.map(|id| id.as_u128()))
    }

    #[test]
    fn a_list_is_given_page_by_page() {
        let ask = |after: Option<u128>, limit: u32| {
            let after = after.map(Uuid::from_u128);
            let limit = limit.try_into().expect("a page has as many");
            numbers(&ListQuery { limit: Some(limit), after, labels: Vec::new() })
        };
        assert_eq!(ask(None, 2), (vec![1, 2], Some(2)));
        assert_eq!(ask(Some(4), 2), (vec![5, 6], None));
    }

    #[test]
    fn a_list_can_be_of_those_that_have_all_of_several_labels() {
        let of = |labels: &[&str]| {
            let labels =
                labels.iter().map(|&label| label.to_owned().try_into().expect("it is one")).collect();
            numbers(&ListQuery { limit: None, after: None, labels })
        };
        assert_eq!(of(&["parity=0"]), (vec![2, 4, 6], None));
        assert_eq!(of(&["parity=0", "third=1"]), (vec![4], None));
        assert_eq!(of(&["parity=0", "parity=1"]), (vec![], None));
    }
}
