//! The program `rekindle`.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    rekindle::cli::Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("rekindle: {error:#}");
        ExitCode::from(2)
    })
}
