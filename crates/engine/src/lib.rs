//! Snapshots of paused guests: what they are made of, and their life from the pause to the store.
//!
//! The modules, lowest first: each uses only those before it.

// Under Shuttle the tests are those of `crates/interleavings`; the ones in here are run without it.
#![cfg(not(all(test, shuttle)))]

pub mod limits;
mod sync;
mod deadline;
mod threads;
pub mod geometry;
pub mod identity;
pub mod hooks;
pub mod precedence;
pub mod wire;
pub mod key_ring;
pub mod key_ring_file;
pub mod tag;
pub mod change;
pub mod private;
mod catalog_room;
mod catalog_file;
pub mod catalog;
pub mod stop;
pub mod budget;
pub mod pool;
pub mod byte_budget;
pub mod reaper;
pub mod page_set;
pub mod ranked_set;
pub mod working_set;
pub mod page_map;
pub mod frame;
pub mod layer_index;
pub mod manifest;
pub mod capture;
pub mod keep;
pub mod read_ahead;
pub mod extents;
mod source_speed;
pub mod hedges;
mod frame_codec;
pub mod object;
pub mod placement;
pub mod layer_facts;
mod frame_flags;
pub mod local_file;
pub mod handles;
pub mod layer;
pub mod aside;
pub mod cache;
mod pace;
mod sign;
mod store_identity;
pub mod store_opener;
pub mod store_domain;
pub mod store_gate;
pub mod store;
mod store_upload;
mod upload_record;
mod tombstones;
pub mod store_list;
mod store_read;
pub mod sources;
pub mod single_flight;
mod attempt;
pub mod fetch;
pub mod view;
pub mod ahead;
pub mod named;
pub mod read_plan;
pub mod compare;
pub mod snapshot_record;
mod records;
pub mod pack;
mod publish_error;
mod part_cutter;
mod layer_object;
mod upload;
pub mod publish;
pub mod lifecycle;
pub mod recorded;
pub mod snapshot;
mod deleted;
pub mod watch;
pub mod store_check;
pub mod verify;
pub mod working_sets;
mod merge;
mod seal;
mod life;
mod lives;
pub mod republish;
pub mod pause;
pub mod open;
pub mod replay;
pub mod regions;
pub mod tracking;
pub mod handover;
pub mod serve;
pub mod learning;
pub mod engine;

#[cfg(shuttle)]
#[path = "../../interleavings/src/steps.rs"]
pub mod steps;
