//! Places for requests: the number of each kind that is worked on at once. A place is held until the work is done, also
//! after its client has gone.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::audit::Audit;
use super::problem::{Code, Problem};

/// The places for one kind of requests.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Kind of the requests, in words.
    kind: &'static str,
    count: usize,
    free: Arc<Semaphore>,
}

/// A place that is taken until the last clone of it is gone.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    _taken: Arc<OwnedSemaphorePermit>,
    audit: Option<Audit>,
}

impl Place {
    /// The same place for work that goes on after the answer, which is logged before.
    pub(crate) fn after_answer(&self) -> Self {
        Self { _taken: Arc::clone(&self._taken), audit: None }
    }

    /// The log of changes, if there is one.
    pub(crate) fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }
}

impl Places {
    pub(crate) fn new(kind: &'static str, count: usize) -> Self {
        Self { kind, count, free: Arc::new(Semaphore::new(count)) }
    }

    /// A place, or the problem that none is free now.
    fn take(&self) -> Result<Place, Problem> {
        let taken = Arc::clone(&self.free).try_acquire_owned().map_err(|_full| {
            let Self { kind, count, .. } = self;
            Problem::new(
                Code::TooMany,
                format!("{count} {kind} are being worked on, and no more at once: ask again"),
            )
        })?;
        Ok(Place { _taken: Arc::new(taken), audit: None })
    }
}

/// Takes a place for a request before its body is read; the handler finds it as a [`Place`].
pub(crate) async fn with_place(State(places): State<Places>, mut request: Request, next: Next) -> Response {
    match places.take() {
        Ok(mut place) => {
            place.audit = request.extensions().get::<Audit>().cloned();
            request.extensions_mut().insert(place);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Place {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let place = parts.extensions.remove::<Self>();
        place.ok_or_else(|| Problem::new(Code::Internal, "no place was taken for this request"))
    }
}
