//! The words of the command line, and the commands, a module each.

pub mod demo;

use clap::{Parser, Subcommand};

use crate::guest::arguments::GuestArguments;
use crate::keeper::arguments::KeeperArguments;
use demo::arguments::DemoArguments;

/// Pauses microVM sandboxes and brings them back at once, even while the pause is still being saved.
#[derive(Debug, Parser)]
#[command(name = "rekindle", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The words.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Pause, resume and fork a real guest process on this machine, and check every byte
    Demo(DemoArguments),
    /// Be a process guest, driven by the program that starts it
    #[command(hide = true)]
    Guest(GuestArguments),
    /// Hold open files for the daemon and be the parent of its VMMs, so that both outlive it
    #[command(hide = true)]
    Keeper(KeeperArguments),
}
