//! Snapshots between nodes: a node serves those that it has to the nodes of its fleet, also before they are saved, and
//! reads those of others.
//!
//! HTTP/2 over TLS 1.3, with certificates of the fleet's own authority on both sides.

pub mod limits;
pub mod message;
pub mod layers;
mod taking;
mod tls;
mod client;
mod server;

pub use client::{KnownNodes, PeerClients};
pub use server::{HasEngine, Listener, serve};
pub use taking::{TakeError, Taken, Taking};
pub use tls::{TlsError, TlsFiles};
