//! Measures every target against its reference: both sides in one run, interleaved, placed alike.

mod accounting;
mod caching;
mod checkpoints;
mod cold;
mod daemon;
mod disks;
mod eager;
mod faults;
mod forks;
mod format;
mod machines;
mod map;
mod nbd_client;
mod node;
mod page;
mod pausing;
mod peer_nodes;
mod peers;
mod plot;
mod reading;
mod report;
mod resuming;
mod row;
mod saving;
mod served;
mod sharing;
mod statistics;
mod volume;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};

use report::{Machine, Report, RowReport, print_row};
use row::{Effort, Row};

/// Every row, in the order of the targets they belong to.
const ROWS: [&Row; 44] = [
    &resuming::OVERLAP,
    &pausing::READABLE,
    &map::LOOKUP,
    &map::RAM,
    &map::WIRE,
    &reading::COMPARE,
    &reading::PAGE,
    &reading::FRAGMENTED,
    &caching::HIT,
    &caching::EVICTING,
    &caching::START,
    &accounting::USAGE,
    &accounting::REQUESTS,
    &faults::BARE,
    &faults::THROUGHPUT,
    &faults::BULK,
    &sharing::FAULT,
    &sharing::INSTALL,
    &sharing::PAUSE,
    &forks::RAM,
    &forks::TIME,
    &checkpoints::STOP,
    &checkpoints::WRITE,
    &checkpoints::FAULT_SOCKET,
    &saving::SEAL,
    &saving::PUBLISH,
    &pausing::HELD,
    &pausing::ANSWER,
    &daemon::RESUME,
    &daemon::RESTART,
    &daemon::SANDBOXES,
    &disks::NBD,
    &cold::PROGRESS,
    &cold::WORKING_SET,
    &machines::PAUSE,
    &machines::OVERLAP,
    &machines::COLD,
    &machines::WORKING_SET,
    &machines::FULL,
    &peers::FIRST_PAGE,
    &peers::THROUGHPUT,
    &peers::OVERLAP,
    &peers::MOVE,
    &peers::TAX,
];

/// Rows to measure and places for the results.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Take few samples: shows that a row works, not what it measures.
    #[arg(long)]
    quick: bool,
    /// Write what was found to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only this row; may be given several times.
    #[arg(long, value_name = "NAME")]
    row: Vec<String>,
    /// Measure only the rows that take seconds and need nothing of the machine.
    #[arg(long)]
    fast: bool,
    /// Write what was found into docs/benchmarks.md and its pictures, which no quick run may do. Other rows stay.
    #[arg(long, conflicts_with = "quick")]
    write_docs: bool,
}

/// Measures what `options` ask for and prints each row as it is done.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    for name in &options.row {
        ensure!(names.contains(&name.as_str()), "no row is named {name}; rows: {}", names.join(", "));
    }
    let effort = Effort { quick: options.quick };
    let mut report = Report { machine: Machine::here(), quick: options.quick, rows: Vec::new() };
    for row in ROWS.into_iter().filter(|row| wanted(row, options)) {
        let parts = (row.measure)(effort).with_context(|| format!("measuring {}", row.name))?;
        let found = RowReport::new(row, parts);
        print_row(&found);
        report.rows.push(found);
        // After each row: a run takes the better part of an hour, and may be cut short.
        if let Some(path) = &options.json {
            report.write_json(path)?;
        }
        if options.write_docs {
            page::write(root, &report, &names)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn wanted(row: &Row, options: &Options) -> bool {
    (options.row.is_empty() || options.row.iter().any(|name| name == row.name)) && (row.fast || !options.fast)
}
