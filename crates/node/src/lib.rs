//! The program `rekindle`. A module uses only those listed before it, and itself.

mod memory_left;
pub mod telemetry;
pub mod privacy;
pub mod key_ring;
pub mod panics;
pub mod daemon;
pub mod commands;
