//! The keeper as a real process: what it holds, what it starts, and what nobody can make it do.

mod clients;
mod guests;
mod holding;
mod hostile;
mod lives;
mod processes;
mod support;
