//! Disks as their clients see them: independent NBD clients, one of our own that keeps to the protocol and one that does
//! not, and a model of bytes.

mod client;
mod cold;
mod hostile;
mod images;
mod model;
mod order;
mod protocol;
mod snapshots;
mod stand;
mod tools;
