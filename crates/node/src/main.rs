//! The program `rekindle`: it reads its command line, runs the command, and reports errors.

use std::process::ExitCode;

use clap::Parser as _;
use clap_complete::CompleteEnv;
use rekindle::commands::status::Status;
use rekindle::commands::{Cli, Command, failure, shell, words};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The exit status is that of [`Status`].
fn main() -> ExitCode {
    // A shell's question for completions is answered, and nothing else is done.
    CompleteEnv::with_factory(shell::offered).var(shell::COMPLETE).complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => match words::explain(&error) {
            Some(hint) => {
                eprintln!("rekindle: {hint}");
                return Status::Error.into();
            }
            None => words::in_short(error).exit(),
        },
    };
    if !matches!(cli.command, Command::Serve(_)) {
        log_to_stderr();
    }
    let json = cli.global.json;
    rekindle::commands::run(cli).unwrap_or_else(|error| failure::tell(&error, json).into())
}

/// Warnings, or what `RUST_LOG` asks for.
fn log_to_stderr() {
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
