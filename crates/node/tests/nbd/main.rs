//! Disks as their clients see them: independent NBD clients, one of our own that keeps to the protocol and one that does
//! not, and a model of bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests use this")]

mod client;
mod cold;
mod hostile;
mod images;
mod killed;
mod model;
mod order;
mod protocol;
mod snapshots;
mod stand;
mod tools;
