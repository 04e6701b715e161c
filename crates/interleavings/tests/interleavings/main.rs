//! The engine's shared parts, a few operations at a time, in the orders that Shuttle can make of their threads.
//!
//! A failure prints the seed and the schedule; `SHUTTLE_RANDOM_SEED=<seed>` runs it again.

mod budget;
mod cache;
mod node;
mod remote;
mod schedule;
mod single_flight;
mod snapshots;
mod views;
