//! Models, operations and failing stores for the tests.

pub mod damage;
pub mod decoders;
pub mod skip;
pub mod random;
