//! An operation of the control API: method, path, request, answer and problems, said once for server, client and document.

mod input;
mod output;
mod subject;

use std::fmt::Display;
use std::marker::PhantomData;

use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Ref, RefOr};

use super::problem::Code;

pub(crate) use input::{Body, BodySchema, EncodedInput, GuestCommand, InQuery, Input, NoInput};
pub(crate) use output::{
    AnyJson, ByteStream, Done, EventStreamOf, JSON, Json, JsonArray, Measurements, Output,
};
pub(crate) use subject::{Nothing, OfFaultSocket, OfSandbox, OfSnapshot, Subject};

/// The characters of a path or query that are sent as they are: RFC 3986 calls them unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Schemas by name, as the document lists them.
pub(crate) type Schemas = Vec<(String, RefOr<Schema>)>;

/// Media types of an answer, each with its schema.
pub(crate) type Content = Vec<(&'static str, RefOr<Schema>)>;

/// HTTP methods that operations have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Reads.
    Get,
    /// Makes or changes.
    Post,
    /// Removes.
    Delete,
}

/// An operation without its types, as the document tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Its name in generated clients.
    pub(crate) id: &'static str,
    pub(crate) verb: Verb,
    /// Its path, with the name of what it is about in braces.
    pub(crate) path: &'static str,
    /// The kind of thing that it is about.
    pub(crate) tag: &'static str,
    /// Its effect, in a sentence.
    pub(crate) summary: &'static str,
    /// More about it, if there is more.
    pub(crate) description: Option<&'static str>,
    /// Status of its success.
    pub(crate) status: u16,
    /// Its answer, in words.
    pub(crate) said: &'static str,
    /// A second status that the same answer may come with, and its words.
    pub(crate) or: Option<(u16, &'static str)>,
    /// Kinds of problems of its own; [`Facts::may_fail_with`] adds those of all operations like it.
    pub(crate) problems: &'static [Code],
    /// Kinds of problems of the thing that its path names.
    pub(crate) problems_of_subject: &'static [Code],
    /// True if a request may come with an idempotency key.
    pub(crate) is_keyed: bool,
    /// True if a request may name the last event that its client had.
    pub(crate) goes_on_after_event: bool,
    /// True if a body without fields may be left out.
    pub(crate) is_body_optional: bool,
}

/// An operation with its types as schemas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described {
    pub(crate) facts: Facts,
    /// Parameters of its path.
    pub(crate) path: fn() -> Vec<Parameter>,
    /// Parameters of its query.
    pub(crate) query: fn() -> Vec<Parameter>,
    /// Its body, if it takes one.
    pub(crate) body: fn(&mut Schemas) -> Option<BodySchema>,
    /// Its answer, by media type.
    pub(crate) content: fn(&mut Schemas) -> Content,
}

impl Facts {
    /// True if a request for it may be refused or fail with this kind of problem.
    pub(crate) fn may_fail_with(&self, code: Code) -> bool {
        let of_key = self.is_keyed && Code::OF_KEY.contains(&code);
        let lists = [Code::OF_ALL, self.problems_of_subject, self.problems];
        of_key || lists.iter().any(|list| list.contains(&code))
    }
}

/// An operation about `Subject`, which takes `Input` and answers `Output`.
#[derive(Debug)]
pub(crate) struct Operation<Subject, Input, Output: self::Output> {
    pub(crate) facts: Facts,
    /// The path of what it made.
    pub(crate) location: Option<fn(&Output::Value) -> String>,
    types: PhantomData<fn(Subject, Input) -> Output>,
}

impl<S: Subject, I: Input, O: Output> Operation<S, I, O> {
    pub(crate) const fn get(id: &'static str, path: &'static str, tag: &'static str) -> Self {
        Self::new(id, Verb::Get, path, tag)
    }

    pub(crate) const fn post(id: &'static str, path: &'static str, tag: &'static str) -> Self {
        Self::new(id, Verb::Post, path, tag)
    }

    pub(crate) const fn delete(id: &'static str, path: &'static str, tag: &'static str) -> Self {
        Self::new(id, Verb::Delete, path, tag)
    }

    const fn new(id: &'static str, verb: Verb, path: &'static str, tag: &'static str) -> Self {
        let facts = Facts {
            id,
            verb,
            path,
            tag,
            summary: "",
            description: None,
            status: 200,
            said: "",
            or: None,
            problems: &[],
            problems_of_subject: S::PROBLEMS,
            is_keyed: false,
            goes_on_after_event: false,
            is_body_optional: false,
        };
        Self { facts, location: None, types: PhantomData }
    }

    /// The same, with the sentence that says its effect.
    pub(crate) const fn does(mut self, summary: &'static str) -> Self {
        self.facts.summary = summary;
        self
    }

    /// The same, with more about it.
    pub(crate) const fn more(mut self, description: &'static str) -> Self {
        self.facts.description = Some(description);
        self
    }

    /// The same, answered so.
    pub(crate) const fn answers(mut self, status: u16, said: &'static str) -> Self {
        self.facts.status = status;
        self.facts.said = said;
        self
    }

    /// The same, whose answer may come with another status too.
    pub(crate) const fn or_answers(mut self, status: u16, said: &'static str) -> Self {
        self.facts.or = Some((status, said));
        self
    }

    /// The same, which may also fail with these kinds of problems.
    pub(crate) const fn fails(mut self, problems: &'static [Code]) -> Self {
        self.facts.problems = problems;
        self
    }

    /// The same, whose answer has the path of the thing that was made in `Location`.
    pub(crate) const fn located(mut self, location: fn(&O::Value) -> String) -> Self {
        self.location = Some(location);
        self
    }

    /// The same, whose requests may come with an idempotency key.
    pub(crate) const fn keyed(mut self) -> Self {
        self.facts.is_keyed = true;
        self
    }

    /// The same, whose requests may name the last event that their client had.
    pub(crate) const fn after_event(mut self) -> Self {
        self.facts.goes_on_after_event = true;
        self
    }

    /// The same, whose body may be left out.
    pub(crate) const fn with_optional_body(mut self) -> Self {
        self.facts.is_body_optional = true;
        self
    }

    /// The response of a success.
    pub(crate) fn response(&self, value: O::Value) -> Response
    where
        O::Value: Serialize,
    {
        let status = StatusCode::from_u16(self.facts.status).expect("the table has statuses of HTTP");
        let path = self.location.map(|location| location(&value));
        let mut response = O::written(status, value);
        if let Some(path) = path.and_then(|path| HeaderValue::try_from(path).ok()) {
            response.headers_mut().insert(LOCATION, path);
        }
        response
    }

    /// The operation as the document describes it.
    pub(crate) fn described(&self) -> Described {
        Described {
            facts: self.facts,
            path: S::parameters,
            query: I::parameters,
            body: I::body_schema,
            content: O::content,
        }
    }

    /// Its path about the thing that `name` names.
    pub(crate) fn path_of(&self, name: &S::Name) -> String {
        match (self.facts.path.split_once('{'), S::text(name)) {
            (Some((before, rest)), Some(text)) => {
                let after = rest.split_once('}').map_or("", |(_, after)| after);
                format!("{before}{}{after}", encoded(&text))
            }
            (_, _) => self.facts.path.to_owned(),
        }
    }
}

/// `text` as it may stand in a path or query.
pub(crate) fn encoded(text: &str) -> impl Display {
    utf8_percent_encode(text, RESERVED)
}

/// A reference to the schema of `T`, which is added to `schemas` with those that it names.
fn named<T: ToSchema>(schemas: &mut Schemas) -> RefOr<Schema> {
    schemas.push((T::name().into_owned(), T::schema()));
    T::schemas(schemas);
    RefOr::Ref(Ref::from_schema_name(T::name()))
}

#[cfg(test)]
mod tests {
    use crate::operations::{LIST_SANDBOXES, PAUSE_SANDBOX, SHOW_FAULT_SOCKET};

    #[test]
    fn a_path_names_its_thing_in_letters_that_may_stand_there() {
        assert_eq!(PAUSE_SANDBOX.path_of("web-1.a_b~"), "/v1/sandboxes/web-1.a_b~/pause");
        assert_eq!(PAUSE_SANDBOX.path_of("a/b?c ä"), "/v1/sandboxes/a%2Fb%3Fc%20%C3%A4/pause");
        assert_eq!(LIST_SANDBOXES.path_of(&()), "/v1/sandboxes");
        let id = uuid::Uuid::nil();
        assert_eq!(SHOW_FAULT_SOCKET.path_of(&id), format!("/v1/fault-sockets/{id}"));
    }
}
