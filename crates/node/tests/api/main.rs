//! The control API over real sockets, before a daemon without an engine.

mod admission;
mod disconnects;
mod document;
mod events;
mod fake;
mod hostile;
mod limits;
mod raw;
mod routes;
mod schemathesis;
mod served;
