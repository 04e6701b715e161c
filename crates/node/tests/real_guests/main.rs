//! The whole program with real guest processes, real page faults and a store in a directory.

mod support;

mod demo;
mod faults;
mod history;
mod killed_servers;
mod learning;
mod overlap;
mod serving;
