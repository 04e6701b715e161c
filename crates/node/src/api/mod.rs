//! The control API: HTTP and JSON over what the daemon does.

pub mod types;
pub mod problem;
pub mod control;
