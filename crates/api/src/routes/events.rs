//! The daemon's events, as server-sent events.

use axum::response::IntoResponse as _;
use axum::response::sse::{KeepAlive, Sse};

use super::{Routes, Taken};
use crate::event_stream::EventStream;
use crate::limits;
use crate::operations::STREAM_EVENTS;

pub(super) fn routes() -> Routes {
    Routes::default().answers(&STREAM_EVENTS, async |control, Taken { place, last_event, input, .. }| {
        let after = last_event.or(input.after);
        let (known, coming) = control.ask(place.clone(), move |control| Ok(control.events(after))).await?;
        let coming = input.follow.unwrap_or(true).then_some(coming);
        let events = EventStream::new(after, (known, coming), control.ending(), place).into_stream();
        let signs = KeepAlive::new().interval(limits::EVENT_STREAM_SIGN_EVERY);
        Ok(Sse::new(events).keep_alive(signs).into_response())
    })
}
