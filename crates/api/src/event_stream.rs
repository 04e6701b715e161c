//! One client's stream of events: first the known ones, then the new ones, each once and in order.

use std::convert::Infallible;
use std::vec;

use axum::response::sse;
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::bounded::Ending;
use super::places::Place;
use super::types::Event;

/// The kind of the event that says that others were left out.
pub(crate) const LOST: &str = "lost";

/// The data of an event of kind [`LOST`].
#[derive(Debug, Serialize, serde::Deserialize)]
pub(crate) struct LostEvents {
    /// Number of events left out; an upper bound if a restart lies between, because a restart leaves ids unused.
    pub(crate) missed: u64,
}

/// Position of one client's stream.
#[derive(Debug)]
pub(crate) struct EventStream {
    known: vec::IntoIter<Event>,
    /// New events, if they are wanted.
    coming: Option<broadcast::Receiver<Event>>,
    ending: Ending,
    /// The last id that the client had before, until the first event was compared with it.
    had: Option<u64>,
    /// The last id that was sent.
    sent: Option<u64>,
    is_over: bool,
    _place: Place,
}

impl EventStream {
    /// A stream behind the event `had`; zero is before all others, and what is known of those is enough.
    pub(crate) fn new(
        had: Option<u64>,
        (known, coming): (Vec<Event>, Option<broadcast::Receiver<Event>>),
        ending: Ending,
        place: Place,
    ) -> Self {
        let (known, had) = (known.into_iter(), had.filter(|&id| id > 0));
        Self { known, coming, ending, had, sent: None, is_over: false, _place: place }
    }

    pub(crate) fn into_stream(self) -> impl Stream<Item = Result<sse::Event, Infallible>> {
        unfold(self, async |mut stream| {
            let event = stream.next().await?;
            Some((Ok(event), stream))
        })
    }

    /// The next event; none when the daemon ends, events were lost, or only known ones are wanted.
    async fn next(&mut self) -> Option<sse::Event> {
        if self.is_over {
            return None;
        }
        loop {
            let event = match self.known.next() {
                Some(event) => event,
                None => match self.next_coming().await? {
                    Ok(event) => event,
                    Err(missed) => return Some(self.lost(missed)),
                },
            };
            // A daemon's ids follow each other. Lower ones are of other directories, whose events are all new.
            let before = event.id.saturating_sub(1);
            if let Some(had) = self.had.take()
                && had != before
            {
                let missed = before.checked_sub(had).unwrap_or(before);
                return Some(self.lost(missed).id(before.to_string()));
            }
            // An event may be among the known ones and come again.
            if self.sent.is_none_or(|sent| event.id > sent) {
                self.sent = Some(event.id);
                return Some(written(&event));
            }
        }
    }

    /// The next new event, or the number of events missed; none if new events are not wanted.
    async fn next_coming(&mut self) -> Option<Result<Event, u64>> {
        let coming = self.coming.as_mut()?;
        let received = tokio::select! {
            received = coming.recv() => received,
            () = self.ending.comes() => return None,
        };
        match received {
            Ok(event) => Some(Ok(event)),
            Err(RecvError::Lagged(missed)) => Some(Err(missed)),
            Err(RecvError::Closed) => None,
        }
    }

    fn lost(&mut self, missed: u64) -> sse::Event {
        self.is_over = true;
        let data = serde_json::to_string(&LostEvents { missed }).expect("a number can be written");
        sse::Event::default().event(LOST).data(data)
    }
}

fn written(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).expect("an event is strings and numbers");
    sse::Event::default().id(event.id.to_string()).event(one_line(&event.kind)).data(data)
}

/// `kind` without what would end its line.
fn one_line(kind: &str) -> String {
    kind.replace(['\r', '\n'], " ")
}
