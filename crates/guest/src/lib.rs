//! Guests that judge their own memory, for the demo, tests and benchmarks.

pub mod process;
pub mod machine;
