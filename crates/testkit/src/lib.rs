//! Models, operations and failing stores for the tests.

pub mod damage;
pub mod decoders;
pub mod skip;
pub mod programs;
pub mod linux;
pub mod random;
pub mod model;
pub mod rules;
pub mod stores;
pub mod timed_store;
#[cfg(feature = "s3")]
mod s3_keys;
#[cfg(feature = "s3")]
pub mod s3;
pub mod store_checks;
pub mod fake_daemon;
pub mod catalogs;
pub mod hooks;
pub mod keeper;
pub mod site;
pub mod started_keeper;
pub mod guest;
pub mod sandbox;
pub mod mini_guest;
pub mod history;
pub mod black_box;
