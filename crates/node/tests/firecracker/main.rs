//! The Firecracker driver against a peer that plays Firecracker: its API, its hand-over, its files, its failures.
#![allow(clippy::panic, reason = "a test that cannot go on fails")]

mod peer;
mod support;

mod console;
mod deaths;
mod disks;
mod faults;
mod jailed;
mod kept;
mod lives;
mod requests;
mod versions;
