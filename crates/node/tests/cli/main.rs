//! The command line as people and programs meet it: the program itself, with a daemon that does what it is told to.
//!
//! Its output is compared with files in `expected`; `UPDATE_EXPECTED=1` writes them anew.

mod answers;
mod doctor;
mod help;
mod listening_daemon;
mod program;
mod serve;
mod settings;
