//! A stream of events, as server-sent events come in.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::error::ClientError;
use super::exchange::{self, Call, Driving};
use crate::event_stream::{LOST, LostEvents};
use crate::types::Event;

/// Bytes of one event: far beyond what any has.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Events, as they happen. Ends when the daemon ends; the last item is an error where the connection broke or events
/// were left out.
pub struct Events {
    endpoint: Endpoint,
    runtime: Runtime,
    driving: Driving,
    _sender: SendRequest<Full<Bytes>>,
    body: Incoming,
    reader: Reader,
    is_over: bool,
}

impl Events {
    pub(super) fn open(endpoint: &Endpoint, call: Call, within: Duration) -> Result<Self, ClientError> {
        let runtime = exchange::runtime(endpoint)?;
        let silent = |_elapsed| ClientError::Silent { endpoint: endpoint.to_string(), within };
        let opening = async { timeout(within, exchange::open(endpoint, call)).await };
        let open = runtime.block_on(opening).map_err(silent)??;
        if !open.response.status().is_success() {
            let collecting = async { timeout(within, open.collected(endpoint)).await };
            runtime.block_on(collecting).map_err(silent)??.succeeded()?;
            return Err(ClientError::Strange {
                endpoint: endpoint.to_string(),
                status: 0,
                reason: "an answer without events".to_owned(),
            });
        }
        Ok(Self {
            endpoint: endpoint.clone(),
            runtime,
            driving: open.driving,
            _sender: open.sender,
            body: open.response.into_body(),
            reader: Reader::default(),
            is_over: false,
        })
    }

    /// The next event, or none where none comes within `limit`; an error where the stream has ended.
    pub fn next_within(&mut self, limit: Duration) -> Result<Option<Event>, ClientError> {
        if self.is_over {
            return Err(self.ended());
        }
        let Self { endpoint, runtime, driving, body, reader, .. } = self;
        let next = runtime.block_on(async { timeout(limit, next(endpoint, driving, body, reader)).await });
        match next {
            Err(_elapsed) => Ok(None),
            Ok(Ok(Some(event))) => Ok(Some(event)),
            Ok(Ok(None)) => {
                self.is_over = true;
                Err(self.ended())
            }
            Ok(Err(error)) => {
                self.is_over = true;
                Err(error)
            }
        }
    }

    fn ended(&self) -> ClientError {
        ClientError::Broken {
            endpoint: self.endpoint.to_string(),
            reason: "the daemon ended the events".to_owned(),
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let Self { endpoint, runtime, driving, body, reader, .. } = self;
        let next = runtime.block_on(next(endpoint, driving, body, reader)).transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Events").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// The next event; none where the stream has ended in order. The bytes already read stay in `reader` if this is
/// dropped.
async fn next(
    endpoint: &Endpoint,
    driving: &mut Driving,
    body: &mut Incoming,
    reader: &mut Reader,
) -> Result<Option<Event>, ClientError> {
    loop {
        let strange =
            |reason: String| ClientError::Strange { endpoint: endpoint.to_string(), status: 200, reason };
        if let Some(message) = reader.messages.pop_front() {
            return message.into_event(strange).map(Some);
        }
        let Some(frame) = exchange::driven(driving, body.frame()).await else { return Ok(None) };
        let frame = frame.map_err(|error| exchange::broken(endpoint, &error))?;
        if let Ok(bytes) = frame.into_data() {
            reader.take(&bytes).map_err(strange)?;
        }
    }
}

/// One message of the stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: Option<u64>,
    kind: String,
    data: String,
}

impl Message {
    fn into_event(self, strange: impl Fn(String) -> ClientError) -> Result<Event, ClientError> {
        if self.kind == LOST {
            let lost: LostEvents =
                serde_json::from_str(&self.data).map_err(|error| strange(error.to_string()))?;
            return Err(ClientError::EventsLost { missed: lost.missed, go_on_behind: self.id });
        }
        serde_json::from_str(&self.data).map_err(|error| strange(error.to_string()))
    }
}

/// Takes a stream apart, as the HTML standard says under "Server-sent events".
#[derive(Debug, Default)]
struct Reader {
    /// The bytes of a line that has not ended.
    line: Vec<u8>,
    /// The message whose lines come in.
    message: Message,
    /// Messages that are whole.
    messages: VecDeque<Message>,
}

impl Reader {
    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
            self.take_line(text);
        }
        match self.line.len() + self.message.data.len() > EVENT_BYTES_MAX {
            true => Err("an event without an end".to_owned()),
            false => Ok(()),
        }
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            if !message.data.is_empty() {
                self.messages.push_back(message);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.message.kind = value.to_owned(),
            "data" if self.message.data.is_empty() => self.message.data = value.to_owned(),
            "data" => {
                self.message.data.push('\n');
                self.message.data.push_str(value);
            }
            // The id of an event is in its data too; that of a message about lost ones is not.
            "id" => self.message.id = value.parse().ok(),
            // The rest is for browsers.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: Option<u64>, kind: &str, data: &str) -> Message {
        Message { id, kind: kind.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let stream =
            ": a sign\n\nid: 7\nevent: a.b\ndata: {\"x\":\ndata: 1}\n\nretry: 5\r\ndata:2\r\n\r\ndata";
        for piece in 1..stream.len() {
            let mut reader = Reader::default();
            stream.as_bytes().chunks(piece).for_each(|bytes| reader.take(bytes).unwrap());
            let expected = [message(Some(7), "a.b", "{\"x\":\n1}"), message(None, "", "2")];
            assert_eq!(Vec::from(reader.messages), expected);
        }
    }

    #[test]
    fn an_event_without_an_end_is_refused() {
        let mut reader = Reader::default();
        let line = [b"data: ".as_slice(), &[b'x'; 4000], b"\n"].concat();
        assert!((0..1000).any(|_| reader.take(&line).is_err()));
    }
}
