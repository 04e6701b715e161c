//! The keeper as a real process: its holdings, its children, and its refusals.

mod clients;
mod guests;
mod holding;
mod hostile;
mod lives;
mod processes;
mod support;
