//! Models, operations and failing stores for the tests.

pub mod skip;
