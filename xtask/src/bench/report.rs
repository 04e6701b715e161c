//! Results of a run, as JSON and as a table.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::format;
use super::row::{Part, Row, Verdict};
use super::statistics::Interval;

/// Everything one run found.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
    pub(crate) rows: Vec<RowReport>,
}

/// Machine of the run.
#[derive(Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

/// Result of one row.
#[derive(Serialize)]
pub(crate) struct RowReport {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) ours: &'static str,
    pub(crate) reference: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) parts: Vec<PartReport>,
}

/// Result of one part of a row.
#[derive(Serialize)]
pub(crate) struct PartReport {
    pub(crate) ours: Interval,
    /// Absent where the reference is a published number or a limit.
    pub(crate) reference: Option<Interval>,
    /// The ratio, difference or value that the target speaks of.
    pub(crate) judged: Interval,
    pub(crate) verdict: Verdict,
    #[serde(flatten)]
    pub(crate) part: Part,
}

impl Machine {
    /// This machine.
    pub(crate) fn here() -> Self {
        let described = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = described.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

impl RowReport {
    /// Result of `row`, given its parts.
    pub(crate) fn new(row: &Row, parts: Vec<Part>) -> Self {
        let parts: Vec<PartReport> = parts.into_iter().map(PartReport::new).collect();
        let verdict = parts.iter().map(|part| part.verdict).max().unwrap_or(Verdict::Met);
        let Row { name, what, ours, reference, .. } = *row;
        Self { name, what, ours, reference, verdict, parts }
    }
}

impl PartReport {
    fn new(part: Part) -> Self {
        let reference = (!part.pairs.reference.is_empty()).then(|| Interval::of(&part.pairs.reference));
        Self {
            ours: Interval::of(&part.pairs.ours),
            reference,
            judged: Interval::of(&part.judged()),
            verdict: part.verdict(),
            part,
        }
    }

    /// The cells of this part in a table: part, ours, reference, judged, target, verdict.
    pub(crate) fn cells(&self) -> [String; 6] {
        let Part { label, unit, target, .. } = &self.part;
        [
            label.clone(),
            format::value(*unit, self.ours.median),
            self.reference.map_or("-".to_owned(), |reference| format::value(*unit, reference.median)),
            format::interval(*target, *unit, self.judged),
            format::target(*target, *unit),
            self.verdict.words().to_owned(),
        ]
    }
}

impl Report {
    /// Writes the report as JSON to `path`.
    pub(crate) fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }
}

/// Prints one row as lines of a table.
pub(crate) fn print_row(row: &RowReport) {
    for part in &row.parts {
        let [label, ours, reference, judged, target, verdict] = part.cells();
        println!(
            "{:<22} {label:<28} ours {ours:>12}  reference {reference:>12}  {judged:>26}  {target:<22} {verdict}",
            row.name
        );
    }
}
