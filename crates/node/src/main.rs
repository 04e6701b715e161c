//! The program `rekindle`.

use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

fn main() -> ExitCode {
    log_to_stderr();
    rekindle::cli::Cli::parse().run().unwrap_or_else(|error| {
        eprintln!("rekindle: {error:#}");
        ExitCode::from(2)
    })
}

/// Warnings, or what `RUST_LOG` asks for.
fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
