//! The query of a request, after its `?`: fields and their texts, each taken once unless it may come again.

use std::str::FromStr;

use uuid::Uuid;

use super::problem::{Code, Problem};
use super::quoted::quoted;
use super::types::{ConsoleQuery, EventsQuery, LabelFilter, ListQuery, SnapshotState, WaitQuery};

/// The fields of a query, in their order.
#[derive(Debug)]
pub(crate) struct Fields(Vec<(String, String)>);

/// A question in the fields behind the `?`.
pub(crate) trait Queried: Sized {
    /// The names of its fields.
    const NAMES: &'static [&'static str];

    /// Reads the query's fields.
    fn of(fields: &Fields) -> Result<Self, Problem>;
}

impl Queried for ListQuery {
    const NAMES: &'static [&'static str] = &["limit", "after", "label"];

    fn of(fields: &Fields) -> Result<Self, Problem> {
        Ok(Self {
            limit: fields.number("limit")?,
            after: fields.one("after", "the id after which the page begins", Uuid::from_str)?,
            labels: fields.all("label").map(label_filter).collect::<Result<_, _>>()?,
        })
    }
}

impl Queried for WaitQuery {
    const NAMES: &'static [&'static str] = &["state", "timeout_seconds"];

    fn of(fields: &Fields) -> Result<Self, Problem> {
        let state = fields.one("state", "captured, sealed or published", state_of)?;
        let state = state.ok_or_else(|| {
            invalid("`state` is missing: captured, sealed and published can be waited for".to_owned())
        })?;
        Ok(Self { state, timeout_seconds: fields.number("timeout_seconds")? })
    }
}

impl Queried for EventsQuery {
    const NAMES: &'static [&'static str] = &["after", "follow"];

    fn of(fields: &Fields) -> Result<Self, Problem> {
        let follow = fields.one("follow", "true or false", bool::from_str)?;
        Ok(Self { after: fields.number("after")?, follow })
    }
}

impl Queried for ConsoleQuery {
    const NAMES: &'static [&'static str] = &["from", "wait_seconds"];

    fn of(fields: &Fields) -> Result<Self, Problem> {
        Ok(Self { from: fields.number("from")?, wait_seconds: fields.number("wait_seconds")? })
    }
}

impl Fields {
    /// The fields of a query that asks for a `Q`; an unknown one is a problem.
    pub(crate) fn read<Q: Queried>(pairs: Vec<(String, String)>) -> Result<Self, Problem> {
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !Q::NAMES.contains(&name.as_str())) {
            let known = Q::NAMES.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(invalid(format!("the query has a field {}: this takes {known}", quoted(name))));
        }
        Ok(Self(pairs))
    }

    /// The values of a field that may come again.
    fn all<'f>(&'f self, name: &'static str) -> impl Iterator<Item = &'f str> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The value of a field that comes once at most; `what` says what it must be.
    fn one<T, E>(
        &self,
        name: &'static str,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let mut values = self.all(name);
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(invalid(format!("`{name}` comes twice: say it once")));
        }
        let wrong = |_| invalid(format!("`{name}` is {}: it must be {what}", quoted(value)));
        parse(value).map(Some).map_err(wrong)
    }

    fn number<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, Problem> {
        self.one(name, "a whole number", T::from_str)
    }
}

fn state_of(word: &str) -> Result<SnapshotState, ()> {
    use SnapshotState::{Captured, Discarded, Lost, Published, Sealed};
    let states = [Captured, Sealed, Published, Discarded, Lost];
    states.into_iter().find(|state| state.to_string() == word).ok_or(())
}

fn label_filter(text: &str) -> Result<LabelFilter, Problem> {
    LabelFilter::try_from(text.to_owned()).map_err(|error| invalid(error.to_string()))
}

fn invalid(detail: String) -> Problem {
    Problem::new(Code::InvalidRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<Q: Queried>(pairs: &[(&str, &str)]) -> Result<Q, String> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Fields::read::<Q>(pairs).and_then(|fields| Q::of(&fields)).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_label_may_come_again_and_every_other_field_once() {
        let query = read::<ListQuery>(&[("label", "a=1"), ("limit", "7"), ("label", "b=2")]);
        let labels = ["a=1", "b=2"].map(|label| label_filter(label).unwrap()).to_vec();
        assert_eq!(query, Ok(ListQuery { limit: Some(7), after: None, labels }));
        let twice = read::<ListQuery>(&[("limit", "1"), ("limit", "2")]);
        assert_eq!(twice.unwrap_err(), "`limit` comes twice: say it once");
    }

    #[test]
    fn what_a_query_cannot_say_is_told_in_plain_words() {
        let unknown = read::<EventsQuery>(&[("since", "1")]);
        assert_eq!(unknown.unwrap_err(), "the query has a field \"since\": this takes `after`, `follow`");
        let odd = read::<ConsoleQuery>(&[("from", "-1")]);
        assert_eq!(odd.unwrap_err(), "`from` is \"-1\": it must be a whole number");
        let missing = read::<WaitQuery>(&[]);
        assert!(missing.unwrap_err().contains("captured, sealed and published can be waited for"));
        let long = read::<WaitQuery>(&[("state", &"x".repeat(10_000))]);
        assert!(long.unwrap_err().len() < 300);
    }
}
