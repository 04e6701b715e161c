//! The keeper: a small process that holds open files for the daemon and is the parent of its VMMs, so that both
//! outlive it.
//!
//! It knows nothing of snapshots and sandboxes: descriptors have names under a key, a key has a note, and under a key
//! there may be a process. A request is done whole or not at all, and only once all of it has arrived.

pub mod arguments;
mod client;
mod error;
mod exchange;
mod key;
mod server;
mod start;
mod wire;

pub use client::{Held, HeldEntry, KeeperClient, Role, Spawned};
pub use error::{KeeperError, Refusal};
pub use exchange::KeeperIdentity;
pub use key::{KEY_BYTES_MAX, NAME_BYTES_MAX};
pub use server::run;
pub use start::Found;
pub use wire::{FDS_PER_KEY_MAX, KEYS_MAX, NOTE_BYTES_MAX, ProcessNow, Spawn};

/// The name of the descriptor that the keeper adds to a key under which it started a process: its pidfd.
pub const PROCESS: &str = "process";
