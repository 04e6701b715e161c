//! The query of a request, after its `?`, read into the type that says its fields. Each comes once, unless it is a list.

use std::fmt;
use std::str::FromStr;

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{DeserializeOwned, Deserializer, Expected, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::problem::{Code, Problem};
use super::quoted::quoted;

/// Reads the fields of a query and their texts, in the order in which they came.
pub(crate) fn read<Q: DeserializeOwned>(pairs: &[(String, String)]) -> Result<Q, Problem> {
    let mut fields: Vec<Field<'_>> = Vec::new();
    for (name, value) in pairs {
        match fields.iter_mut().find(|field| field.name == name) {
            Some(field) => field.values.push(value),
            None => fields.push(Field { name, values: vec![value] }),
        }
    }
    let fields = fields.into_iter().map(|field| (field.name, field));
    Q::deserialize(MapDeserializer::new(fields))
        .map_err(|QueryError(why)| Problem::new(Code::InvalidRequest, why))
}

/// A field, with the values that it has.
#[derive(Clone, Debug)]
struct Field<'q> {
    name: &'q str,
    values: Vec<&'q str>,
}

/// The fault in a query, in words for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct QueryError(String);

impl serde::de::Error for QueryError {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self(why.to_string())
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        Self(format!("the query has a field {}: this takes {known}", quoted(name)))
    }

    fn missing_field(name: &'static str) -> Self {
        Self(format!("`{name}` is missing in the query"))
    }
}

impl<'q> Field<'q> {
    /// The value of a field that comes once.
    fn one(&self) -> Result<&'q str, QueryError> {
        match self.values[..] {
            [value] => Ok(value),
            _ => Err(QueryError(format!("`{}` comes twice: say it once", self.name))),
        }
    }

    fn parsed<T: FromStr>(&self, expected: &str) -> Result<T, QueryError> {
        let value = self.one()?;
        value.parse().map_err(|_| self.wrong(value, expected))
    }

    fn wrong(&self, value: &str, expected: &str) -> QueryError {
        QueryError(format!("`{}` is {}: it must be {expected}", self.name, quoted(value)))
    }
}

impl<'q> IntoDeserializer<'q, QueryError> for Field<'q> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Field<'de> {
    type Error = QueryError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, QueryError> {
        let expected: &dyn Expected = &visitor;
        let (value, expected) = (self.one()?, expected.to_string());
        visitor.visit_str(value).map_err(|QueryError(_)| self.wrong(value, &expected))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, QueryError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, QueryError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, QueryError> {
        let Self { name, values } = self;
        let each = values.into_iter().map(|value| Field { name, values: vec![value] });
        visitor.visit_seq(SeqDeserializer::new(each))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, QueryError> {
        let value = self.one()?;
        if !known.contains(&value) {
            return Err(self.wrong(value, &format!("one of {}", known.join(", "))));
        }
        visitor.visit_enum(StrDeserializer::new(value))
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, QueryError> {
        visitor.visit_u32(self.parsed("a whole number")?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, QueryError> {
        visitor.visit_u64(self.parsed("a whole number")?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, QueryError> {
        visitor.visit_bool(self.parsed("true or false")?)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple tuple_struct map
        struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ConsoleQuery, EventsQuery, LabelFilter, ListQuery, PageLimit, WaitQuery};

    fn read<Q: DeserializeOwned>(pairs: &[(&str, &str)]) -> Result<Q, String> {
        let pairs: Vec<_> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        super::read(&pairs).map_err(|problem| problem.detail)
    }

    #[test]
    fn a_label_may_come_again_and_every_other_field_once() {
        let query = read::<ListQuery>(&[("label", "a=1"), ("limit", "7"), ("label", "b=2")]);
        let labels = ["a=1", "b=2"].map(|label| LabelFilter::try_from(label.to_owned()).unwrap()).to_vec();
        let limit = PageLimit::try_from(7_u32).ok();
        assert_eq!(query, Ok(ListQuery { limit, after: None, labels }));
        assert_eq!(read::<ListQuery>(&[]), Ok(ListQuery::default()));
        let twice = read::<ListQuery>(&[("limit", "1"), ("limit", "2")]);
        assert_eq!(twice.unwrap_err(), "`limit` comes twice: say it once");
        let follow = read::<EventsQuery>(&[("follow", "true"), ("after", "7")]);
        assert_eq!(follow, Ok(EventsQuery { after: Some(7), follow: Some(true) }));
    }

    #[test]
    fn what_a_query_cannot_say_is_told_in_plain_words() {
        let unknown = read::<EventsQuery>(&[("since", "1")]);
        assert_eq!(unknown.unwrap_err(), "the query has a field \"since\": this takes `after`, `follow`");
        let odd = read::<ConsoleQuery>(&[("from", "-1")]);
        assert_eq!(odd.unwrap_err(), "`from` is \"-1\": it must be a whole number");
        let many = read::<ListQuery>(&[("limit", "1001")]);
        assert_eq!(many.unwrap_err(), "`limit` is 1001: a page of a list has 1 to 1000");
        let no_id = read::<ListQuery>(&[("after", "x")]);
        let no_id = no_id.unwrap_err();
        assert!(no_id.starts_with("`after` is \"x\": it must be a") && no_id.contains("UUID"), "{no_id}");
        let no_label = read::<ListQuery>(&[("label", "a=1"), ("label", "b")]);
        assert!(no_label.unwrap_err().contains("must be a label's name, `=` and its value"));
        let missing = read::<WaitQuery>(&[]);
        assert_eq!(missing.unwrap_err(), "`state` is missing in the query");
        let long = read::<WaitQuery>(&[("state", &"x".repeat(10_000))]).unwrap_err();
        assert!(long.contains("it must be one of captured, sealed, published") && long.len() < 300);
    }
}
