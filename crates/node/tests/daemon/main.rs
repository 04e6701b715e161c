//! The program as its users have it: a real daemon in directories of its own, asked over its socket, killed and started
//! again.

#[path = "../firecracker/peer/mod.rs"]
mod peer;
mod support;

mod audit;
mod catalog_faults;
mod checkpoints;
mod collections;
mod crashes;
mod disconnects;
mod drains;
mod exports;
mod firecracker;
mod forgetting;
mod jails;
mod keeper_loss;
mod key_rings;
mod lives;
mod machine_checkpoints;
mod machine_clones;
mod machine_console;
mod machine_disks;
mod machine_network;
mod machines;
mod moves;
mod older_catalogs;
mod origins;
mod outages;
mod peers;
mod periodic;
mod documents;
mod prefault;
mod proxy;
mod privacy;
mod resource_limits;
mod restarts;
mod retention;
mod room;
mod run_directory;
mod sockets;
mod two_nodes;
mod undeleting;
mod usage;
mod used_once;
mod whole_requests;
