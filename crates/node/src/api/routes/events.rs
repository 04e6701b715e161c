//! The daemon's events, as server-sent events.

use std::convert::Infallible;

use axum::extract::State;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::Stream;
use utoipa_axum::routes;

use super::Routes;
use crate::api::bounded::BoundedControl;
use crate::api::control::Answer;
use crate::api::event_stream::EventStream;
use crate::api::extract::{CheckedQuery, LastEventId};
use crate::api::limits;
use crate::api::places::Place;
use crate::api::types::{Event, EventsQuery};

pub(super) fn routes() -> Routes {
    Routes::default().routes(routes!(stream_events))
}

/// Streams events: `id` is the event's id, `event` its kind, `data` the event as JSON.
///
/// An event of kind `lost` says that events were left out, as its `missed` at most; the stream ends with it. The client
/// read too slowly, or the event it had last is not followed by those that are still known. A restart of the daemon
/// forgets all events: a client that asks for those after one of an earlier daemon first receives `lost`. It should
/// list sandboxes and snapshots again, and then continue after the `id` of this `lost`.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "events",
    params(EventsQuery, crate::api::document::LastEventIdParameter),
    responses((status = 200, description = "A stream without an end, unless `follow` is false", body = Event, content_type = "text/event-stream"))
)]
async fn stream_events(
    State(control): State<BoundedControl>,
    place: Place,
    CheckedQuery(query): CheckedQuery<EventsQuery>,
    LastEventId(last): LastEventId,
) -> Answer<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>> {
    let after = last.or(query.after);
    let (known, coming) = control.ask(place.clone(), move |control| Ok(control.events(after))).await?;
    let coming = query.follow.unwrap_or(true).then_some(coming);
    let events = EventStream::new(after, (known, coming), control.ending(), place).into_stream();
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(limits::EVENT_STREAM_SIGN_EVERY)))
}
