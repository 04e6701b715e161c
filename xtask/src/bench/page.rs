//! `docs/benchmarks.md`: the last full run, with a picture a row and the reasons for what was missed.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use super::plot;
use super::report::{Report, RowReport};

const OPENING: &str = "# Benchmarks\n\n\
    The last full run of `cargo xtask bench`. Both sides of a row are measured in that run, one right after the other,\n\
    on the same cores; what counts is the ratio, not the seconds. Medians stand with their 95 % interval (order\n\
    statistics). A target is met when the interval includes it or better.\n\n";

/// Writes the page and its pictures under `root`'s `docs`.
pub(crate) fn write(root: &Path, report: &Report) -> anyhow::Result<()> {
    let pictures = root.join("docs/benchmarks");
    std::fs::create_dir_all(&pictures).context("making docs/benchmarks")?;
    let mut page = String::from(OPENING);
    let machine = &report.machine;
    let (processor, cores, kernel) = (&machine.processor, machine.cores, &machine.kernel);
    write!(page, "Measured on {processor}, {cores} cores, Linux {kernel}.\n\n")?;
    page.push_str("| row | part | ours | reference | judged: median [low, high] | target | |\n");
    page.push_str("| --- | --- | ---: | ---: | ---: | --- | --- |\n");
    for row in &report.rows {
        for part in &row.parts {
            writeln!(page, "| [{0}](#{0}) | {1} |", row.name, part.cells().join(" | "))?;
        }
    }
    for row in &report.rows {
        let picture = pictures.join(format!("{}.svg", row.name));
        std::fs::write(&picture, plot::svg(row)).with_context(|| format!("writing {}", picture.display()))?;
        page.push_str(&section(&pictures, row)?);
    }
    std::fs::write(root.join("docs/benchmarks.md"), page).context("writing docs/benchmarks.md")
}

/// The section of one row; `notes/<row>.md`, written by people, ends it where it exists.
fn section(pictures: &Path, row: &RowReport) -> anyhow::Result<String> {
    let RowReport { name, what, ours, reference, verdict, .. } = row;
    let mut text = format!(
        "\n## {name}\n\n{what} Target: **{}**.\n\n- ours: {ours}\n- reference: {reference}\n\n\
         ![{name}](benchmarks/{name}.svg)\n",
        verdict.words(),
    );
    let note = pictures.join(format!("notes/{name}.md"));
    if note.exists() {
        let note = std::fs::read_to_string(&note).with_context(|| format!("reading {}", note.display()))?;
        write!(text, "\n{}\n", note.trim_end())?;
    }
    Ok(text)
}
