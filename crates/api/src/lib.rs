//! The control API: HTTP and JSON over the operations of the daemon, which is a trait here, and a client.

pub mod limits;
mod quoted;
pub mod types;
pub mod problem;
pub mod engine_problems;
pub mod control;
mod query;
mod checks;
mod places;
mod bounded;
mod admission;
mod audit;
mod extract;
mod operation;
mod operations;
mod answer;
mod event_stream;
mod upgrade;
mod document;
mod routes;
pub mod listen;
mod patient;
pub mod serve;
pub mod client;

pub use listen::{ListenError, ListenOptions, Listeners, Secrets, TcpOptions};
pub use routes::document_text;
pub use serve::serve;

/// The version of the routes and of what they take and give: it goes up when something is added, its first number when
/// something is taken away.
pub const API_VERSION: &str = "1.0";
