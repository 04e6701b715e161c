//! Pages of lists.

use uuid::Uuid;

use crate::api::control::Answer;
use crate::api::problem::{Code, Problem};
use crate::api::types::{Labels, ListQuery};

/// Entries of a page where nothing is said.
const LIMIT_DEFAULT: u32 = 200;
/// Entries of a page, at most.
const LIMIT_MAX: u32 = 1000;

/// The page of `all`, which is in the order of ids, that `query` asks for, and what comes after it.
pub(super) fn page<T>(
    all: impl Iterator<Item = T>,
    query: &ListQuery,
    facts: impl Fn(&T) -> (Uuid, Labels),
) -> Answer<(Vec<T>, Option<Uuid>)> {
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        let why = format!("limit={limit}: a page of a list has 1 to {LIMIT_MAX} entries");
        return Err(Problem::new(Code::InvalidRequest, why));
    }
    let label = query.label.as_deref().map(label_of).transpose()?;
    let limit = usize::try_from(limit).expect("at most a thousand");
    let mut found: Vec<T> = all
        .filter(|thing| {
            let (id, labels) = facts(thing);
            query.after.is_none_or(|after| id > after)
                && label
                    .as_ref()
                    .is_none_or(|(name, value)| labels.get(*name).map(String::as_str) == Some(*value))
        })
        .take(limit + 1)
        .collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| facts(last).0);
    Ok((found, next))
}

fn label_of(text: &str) -> Answer<(&str, &str)> {
    let why = || Problem::new(Code::InvalidRequest, format!("label={text}: it is to be name=value"));
    text.split_once('=').ok_or_else(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_given_page_by_page() {
        let ids: Vec<Uuid> = (1..=5).map(Uuid::from_u128).collect();
        let ask = |after, limit| {
            let query = ListQuery { limit: Some(limit), after, label: None };
            page(ids.iter().copied(), &query, |id| (*id, Labels::new())).map_err(|problem| problem.code)
        };
        assert_eq!(ask(None, 2), Ok((ids[..2].to_vec(), Some(ids[1]))));
        assert_eq!(ask(Some(ids[3]), 2), Ok((ids[4..].to_vec(), None)));
        assert_eq!(ask(None, 0), Err(Code::InvalidRequest));
    }

    #[test]
    fn a_list_can_be_of_one_label() {
        let labels = |id: &Uuid| Labels::from([("parity".to_owned(), (id.as_u128() % 2).to_string())]);
        let ids: Vec<Uuid> = (1..=4).map(Uuid::from_u128).collect();
        let query = ListQuery { limit: None, after: None, label: Some("parity=0".to_owned()) };
        let found = page(ids.iter().copied(), &query, |id| (*id, labels(id))).expect("a legal question");
        assert_eq!(found, (vec![ids[1], ids[3]], None));
    }
}
