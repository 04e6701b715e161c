//! Operations of the table, each with the work that answers it.

use std::future::Future;

use axum::Router;
use axum::extract::{FromRequestParts as _, Request, State};
use axum::response::Response;
use axum::routing::{MethodFilter, on};
use serde::Serialize;

use crate::audit::About;
use crate::bounded::BoundedControl;
use crate::control::{Answer, Asked, Control, IdempotencyKey};
use crate::extract::{Key, LastEventId};
use crate::operation::{Described, Facts, Input, Operation, Output, Subject, Verb};
use crate::places::Place;
use crate::problem::Problem;
use crate::upgrade::Upgrade;

/// Operations with their handlers, and their part of the document.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(super) router: Router<BoundedControl>,
    pub(super) described: Vec<Described>,
}

/// A request for an operation, taken apart and checked.
#[derive(Debug)]
pub(super) struct Taken<S: Subject, I: Input> {
    pub(super) place: Place,
    pub(super) of: S::Taken,
    key: Option<IdempotencyKey>,
    pub(super) input: I::Value,
    /// The last event that the client had, where the operation takes it.
    pub(super) last_event: Option<u64>,
    /// The way to go on with the connection as bytes, if the request asks for it.
    pub(super) upgrade: Option<Upgrade>,
}

/// Work that is told when its client goes away.
type AskedWork<S, I, T> = fn(&dyn Control, Asked, <S as Subject>::Taken, <I as Input>::Value) -> Answer<T>;

impl<S: Subject, I: Input> Taken<S, I> {
    /// The parts of `request`, the body last: none of it is read for a request that is refused.
    async fn apart(request: Request, facts: &Facts) -> Answer<Self> {
        let (mut parts, body) = request.into_parts();
        let place = Place::from_request_parts(&mut parts, &()).await?;
        let of = S::take(&mut parts).await?;
        let Key(key) = match facts.is_keyed {
            true => Key::from_request_parts(&mut parts, &()).await?,
            false => Key(None),
        };
        let LastEventId(last_event) = match facts.goes_on_after_event {
            true => LastEventId::from_request_parts(&mut parts, &()).await?,
            false => LastEventId(None),
        };
        let upgrade = Upgrade::take(&mut parts);
        let input = I::take(Request::from_parts(parts, body)).await?;
        Ok(Self { place, of, key, input, last_event, upgrade })
    }
}

impl Routes {
    /// Those of both.
    pub(super) fn and(self, other: Self) -> Self {
        let described = self.described.into_iter().chain(other.described).collect();
        Self { router: self.router.merge(other.router), described }
    }

    /// With an operation that `work` answers on a thread that may block.
    pub(super) fn reads<S: Subject, I: Input, O: Output, T: Into<O::Value> + Send + 'static>(
        self,
        operation: &'static Operation<S, I, O>,
        work: fn(&dyn Control, S::Taken, I::Value) -> Answer<T>,
    ) -> Self
    where
        O::Value: Serialize,
    {
        self.answers(operation, move |control, Taken { place, of, input, .. }| async move {
            let value = control.ask(place, move |control| work(control, of, input)).await?;
            Ok(operation.response(value.into()))
        })
    }

    /// The same for work that is told when its client goes away.
    pub(super) fn reads_while_asked<S: Subject, I: Input, O: Output, T: Into<O::Value> + Send + 'static>(
        self,
        operation: &'static Operation<S, I, O>,
        work: AskedWork<S, I, T>,
    ) -> Self
    where
        O::Value: Serialize,
    {
        self.answers(operation, move |control, Taken { place, of, key, input, .. }| async move {
            let asked = control.ask_while(place, key, move |control, asked| work(control, asked, of, input));
            Ok(operation.response(asked.await?.into()))
        })
    }

    /// The same for work that changes something, which is logged.
    pub(super) fn changes<S: Subject, I: Input, O: Output, T: About + Into<O::Value> + Send + 'static>(
        self,
        operation: &'static Operation<S, I, O>,
        work: AskedWork<S, I, T>,
    ) -> Self
    where
        O::Value: Serialize,
    {
        self.answers(operation, move |control, Taken { place, of, key, input, .. }| async move {
            let asked = control.change(place, key, move |control, asked| work(control, asked, of, input));
            Ok(operation.response(asked.await?.into()))
        })
    }

    /// With an operation that `work` answers.
    pub(super) fn answers<S, I, O, W, R>(mut self, operation: &'static Operation<S, I, O>, work: W) -> Self
    where
        S: Subject,
        I: Input,
        O: Output,
        W: Fn(BoundedControl, Taken<S, I>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Answer<Response>> + Send,
    {
        let handler =
            async move |State(control): State<BoundedControl>, request: Request| -> Answer<Response> {
                let facts = &operation.facts;
                let answer = match Taken::apart(request, facts).await {
                    Ok(taken) => work(control, taken).await,
                    Err(problem) => Err(problem),
                };
                answer.inspect_err(|problem| note_unlisted(facts, problem))
            };
        let filter = match operation.facts.verb {
            Verb::Get => MethodFilter::GET,
            Verb::Post => MethodFilter::POST,
            Verb::Delete => MethodFilter::DELETE,
        };
        self.router = self.router.route(operation.facts.path, on(filter, handler));
        self.described.push(operation.described());
        self
    }
}

/// Says that an operation failed in a way that its entry in the table does not list; with debug assertions, which tests
/// have, the request is not answered.
fn note_unlisted(facts: &Facts, problem: &Problem) {
    let (operation, code) = (facts.id, problem.code.name());
    if !facts.may_fail_with(problem.code) {
        tracing::error!(operation, code, "a request failed with a code that its operation does not list");
        debug_assert!(false, "{operation} does not list {code}: {problem}");
    }
}
