//! The command line: which words there are, and where each leads.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::demo::{self, DemoArguments};
use crate::guest::{self, arguments::GuestArguments};

/// Pauses microVM sandboxes and brings them back at once, even while the pause is still being saved.
#[derive(Debug, Parser)]
#[command(name = "rekindle", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pause, resume and fork a real guest process on this machine, and check every byte
    Demo(DemoArguments),
    /// Be a process guest, driven by the program that starts it
    #[command(hide = true)]
    Guest(GuestArguments),
}

impl Cli {
    /// Does what was asked. The exit status is 0, or 1 where a check failed; an error is status 2.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Demo(arguments) => demo::run(&arguments),
            Command::Guest(arguments) => guest::run_with(&arguments).map(|()| ExitCode::SUCCESS),
        }
    }
}
