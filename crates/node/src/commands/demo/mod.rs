//! `rekindle demo`: the whole story with a real guest process, every page checked.

pub mod report;
mod story;
mod timeline;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use rekindle_kernel::hugepages;

use story::Story;
use timeline::Timeline;

/// What the demo is to show.
#[derive(Args, Clone, Debug)]
pub struct DemoArguments {
    /// Guest memory, from 64MiB on, a multiple of 2MiB
    #[arg(long, default_value = "1GiB")]
    memory: ByteSize,
    /// Percent of the guest's pages rewritten between the two pauses
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    dirty: u8,
    /// Pages of guest memory; huge ones of 2 MiB must be reserved first
    #[arg(long, value_enum, default_value_t = PageSize::Small)]
    pages: PageSize,
    /// How a pause takes the guest's memory: as it is, or by copying what was written
    #[arg(long, value_enum, default_value_t = CaptureKind::Adopt)]
    capture: CaptureKind,
    /// Make each resume wait until its snapshot is saved, for comparison
    #[arg(long)]
    no_early_serve: bool,
    /// Directory of the object store; a temporary one unless given
    #[arg(long)]
    store: Option<PathBuf>,
    /// Print one JSON object and nothing else
    #[arg(long)]
    json: bool,
}

/// Pages of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PageSize {
    /// 4 KiB
    Small,
    /// 2 MiB
    Huge,
}

/// How a pause takes the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaptureKind {
    /// The guest's memory is a memfd, which is kept as it is
    Adopt,
    /// The guest's memory is its own; written pages are copied
    Copy,
}

/// Runs the demo. Status 1 means that a page was wrong.
pub fn run(arguments: &DemoArguments) -> anyhow::Result<ExitCode> {
    check(arguments)?;
    let timeline = Timeline::new(arguments.json);
    let report = Story::new(arguments, &timeline)?.tell()?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report).context("the report as JSON")?);
    } else {
        report.print();
    }
    Ok(ExitCode::from(u8::from(report.verified.mismatches > 0)))
}

fn check(arguments: &DemoArguments) -> anyhow::Result<()> {
    let bytes = arguments.memory.as_u64();
    if bytes < ByteSize::mib(64).as_u64() || bytes % ByteSize::mib(2).as_u64() != 0 {
        bail!("--memory {}: at least 64MiB, and a multiple of 2MiB", arguments.memory);
    }
    let (free, needed) = (available_memory()?, bytes.saturating_mul(5));
    if free < needed {
        bail!(
            "--memory {}: up to five guests' memory is held at once, {}, but {} is available; try --memory {}",
            arguments.memory,
            ByteSize::b(needed),
            ByteSize::b(free),
            ByteSize::mib((free / 6 / ByteSize::mib(2).as_u64() * 2).max(64)),
        );
    }
    if arguments.pages == PageSize::Huge {
        check_huge_pages(needed)?;
    }
    Ok(())
}

fn check_huge_pages(needed_bytes: u64) -> anyhow::Result<()> {
    let (free, needed) = (hugepages::pages_free()?, needed_bytes / ByteSize::mib(2).as_u64());
    if free < needed {
        bail!(
            "--pages huge: {free} huge pages are free, {needed} are needed; reserve them, and give them back after \
             it, with: echo {needed} | sudo tee /proc/sys/vm/nr_hugepages"
        );
    }
    Ok(())
}

fn available_memory() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    Ok(kib.context("/proc/meminfo has no MemAvailable")? * 1024)
}
