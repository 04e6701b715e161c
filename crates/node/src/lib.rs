//! The program `rekindle`. A module uses only those listed before it, and itself.

pub mod asker;
pub mod regular_file;
mod memory_left;
pub mod telemetry;
pub mod bucket;
pub mod settings;
pub mod privacy;
pub mod key_ring;
pub mod keeper;
pub mod copied_memory;
pub mod vmm;
pub mod disk;
pub mod api;
pub mod client;
pub mod metrics;
pub mod panics;
pub mod daemon;
pub mod commands;
