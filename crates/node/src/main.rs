//! The program `rekindle`: where each word of its command line leads.

use std::process::ExitCode;

use clap::Parser as _;
use rekindle::commands::{Cli, Command, demo};
use rekindle::{guest, keeper};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The exit status is 0, 1 where a check failed, or 2 for an error.
fn main() -> ExitCode {
    log_to_stderr();
    let done = match Cli::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Guest(arguments) => guest::run_with(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Keeper(arguments) => keeper::run(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("rekindle: {error:#}");
        ExitCode::from(2)
    })
}

/// Warnings, or what `RUST_LOG` asks for.
fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
