//! Tools for developers and CI: `tidy` checks facts about the sources and documents, `bench` measures, `crash` kills
//! daemons, `soak` lets one work for long, `mutate` puts faults into the engine that tests must notice, `trace` runs a known workload
//! over a store with virtual time.

mod bench;
mod crash;
mod load;
mod mutate;
mod soak;
mod tidy;
#[cfg(any(test, feature = "trace"))]
mod trace;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// The tasks of this workspace, run as `cargo xtask <task>`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check what a machine can check about names, layout and documents.
    Tidy,
    /// Measure every row of design targets against its reference, interleaved in one run.
    Bench(bench::Options),
    /// Kill a daemon under load at random instants, start it again, and compare all it has with a model.
    Crash(crash::Options),
    /// Let a daemon work with fifty sandboxes and see that nothing grows.
    Soak(soak::Options),
    /// Put faults into a copy of the engine, one at a time, and see that its tests notice each.
    Mutate(mutate::Options),
    /// Pause and resume by the lists of a known workload, over a store with virtual time, against goals.
    Trace {
        /// Write what was found to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Instead, pause a Linux guest that runs Python in QEMU six times.
        #[arg(long)]
        real: bool,
    },
    /// Get Debian's kernel for virtual machines, which tests and `bench` start guests with, and say where it is.
    Guests,
    /// Be the guest of a row that measures page faults.
    #[command(hide = true, disable_help_flag = true)]
    Guest {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(CommandLine::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command_line: CommandLine) -> anyhow::Result<ExitCode> {
    let root = workspace_root().context("finding the workspace's root")?;
    match command_line.task {
        Task::Tidy => Ok(tidy::report(&tidy::check(&root)?)),
        Task::Bench(options) => bench::run(&root, &options),
        Task::Crash(options) => crash::run(&root, &options),
        Task::Soak(options) => soak::run(&root, &options),
        Task::Mutate(options) => mutate::run(&root, &options),
        Task::Trace { json, real } => trace(&root, json.as_deref(), real),
        Task::Guests => guests(),
        Task::Guest { words } => rekindle_guest::process::run(words).map(|()| ExitCode::SUCCESS),
    }
}

/// Runs the trace.
#[cfg(any(test, feature = "trace"))]
fn trace(root: &Path, json: Option<&Path>, real: bool) -> anyhow::Result<ExitCode> {
    if real { trace::real::run(root, json) } else { trace::run(root, json) }
}

/// Has the trace run by this program as it is built with virtual time.
#[cfg(not(any(test, feature = "trace")))]
fn trace(root: &Path, json: Option<&Path>, real: bool) -> anyhow::Result<ExitCode> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.current_dir(root).args(["run", "--release", "--package", "xtask", "--features", "trace"]);
    cargo.args(["--", "trace"]);
    if real {
        cargo.arg("--real");
    }
    if let Some(json) = json {
        // It runs at the root of the workspace.
        cargo.arg("--json").arg(std::path::absolute(json)?);
    }
    let ended = cargo.status().context("running cargo")?;
    Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Gets the guests' kernel, unless it is there, and prints what is where.
fn guests() -> anyhow::Result<ExitCode> {
    let directory = rekindle_testkit::linux::directory();
    let kernel = rekindle_guest::machine::LinuxKernel::of_debian(&directory)?;
    println!("{}: {}", kernel.name, kernel.image.display());
    for (name, bytes) in &kernel.modules {
        println!("{name}: {} bytes", bytes.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory that holds the workspace's `Cargo.toml`.
fn workspace_root() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    Ok(root.canonicalize()?)
}
