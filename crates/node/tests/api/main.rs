//! The control API over real sockets, before a daemon without an engine.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admission;
mod channels;
mod disconnects;
mod document;
mod events;
mod hostile;
mod limits;
mod placement;
mod raw;
mod routes;
mod schemathesis;
mod served;
