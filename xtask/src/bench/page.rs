//! `docs/benchmarks.md`: the last full run of every row, with a picture a row and the reasons for missed targets.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use super::plot;
use super::report::{Report, RowReport};

const OPENING: &str = "# Benchmarks\n\n\
    The last full run of each row of `cargo xtask bench`. Both sides of a row are measured in one run, one right after the\n\
    other, on the same cores; what counts is the ratio, not the seconds. Medians stand with their 95 % interval (order\n\
    statistics). A target is *met* when the whole interval is at the target or better, *missed* when none of it is, and\n\
    *not shown* when the interval straddles the target.\n\n";

/// The text below this line is written by people and stays.
const BY_PEOPLE: &str = "<!-- What follows is not written by `cargo xtask bench` and stays as it is. -->";

/// Writes the page and its pictures under `root`'s `docs`: of the rows called `names`, in this order, those that were
/// measured now as they are now, and the others as they stand there.
pub(crate) fn write(root: &Path, report: &Report, names: &[&str]) -> anyhow::Result<()> {
    let pictures = root.join("docs/benchmarks");
    std::fs::create_dir_all(&pictures).context("making docs/benchmarks")?;
    let path = root.join("docs/benchmarks.md");
    let before = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
    let measured = |name: &str| report.rows.iter().find(|row| row.name == name);
    let mut page = String::from(OPENING);
    let machine = &report.machine;
    let (processor, cores, kernel) = (&machine.processor, machine.cores, &machine.kernel);
    write!(page, "Measured on {processor}, {cores} cores, Linux {kernel}.\n\n")?;
    page.push_str("| row | part | ours | reference | judged: median [low, high] | target | |\n");
    page.push_str("| --- | --- | ---: | ---: | ---: | --- | --- |\n");
    for name in names {
        let start = format!("| [{name}](#{name}) | ");
        match measured(name) {
            Some(row) => {
                for part in &row.parts {
                    writeln!(page, "{start}{} |", part.cells().join(" | "))?;
                }
            }
            None => before.lines().filter(|line| line.starts_with(&start)).for_each(|line| {
                page.push_str(line);
                page.push('\n');
            }),
        }
    }
    for name in names {
        match measured(name) {
            Some(row) => {
                let picture = pictures.join(format!("{name}.svg"));
                std::fs::write(&picture, plot::svg(row))
                    .with_context(|| format!("writing {}", picture.display()))?;
                page.push_str(&section(&pictures, row)?);
            }
            None => page.push_str(section_before(&before, name)),
        }
    }
    page.push_str(&by_people(&before));
    std::fs::write(&path, page).context("writing docs/benchmarks.md")
}

/// The section of a row as it stands in the page, with the empty line before it; empty where there is none.
fn section_before<'a>(page: &'a str, name: &str) -> &'a str {
    let Some(start) = page.find(&format!("\n## {name}\n")) else { return "" };
    let rest = &page[start..];
    let end = [rest[1..].find("\n## "), rest.find(&format!("\n{BY_PEOPLE}")).map(|end| end - 1)];
    end.into_iter().flatten().min().map_or(rest, |end| &rest[..=end])
}

/// The part of the page that people wrote, with the line that it begins with.
fn by_people(page: &str) -> String {
    page.find(BY_PEOPLE).map_or_else(String::new, |start| format!("\n{}", &page[start..]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Machine;
    use crate::bench::row::{Pairs, Part, Row, Target, Unit};

    fn report() -> Report {
        let row = Row {
            name: "some-row",
            what: "What it measures.",
            ours: "ours",
            reference: "theirs",
            fast: true,
            measure: |_| Ok(Vec::new()),
        };
        let pairs = Pairs { ours: vec![2e-6, 2.2e-6, 2.1e-6], reference: vec![1e-6, 1e-6, 1e-6] };
        let part =
            Part { label: "a < b".to_owned(), unit: Unit::Seconds, pairs, target: Target::RatioAtMost(1.1) };
        let rows = vec![RowReport::new(&row, vec![part])];
        Report { machine: Machine::here(), quick: false, rows }
    }

    #[test]
    fn the_page_holds_every_row_its_picture_and_its_note() {
        let root = tempfile::tempdir().expect("a directory for the page");
        let notes = root.path().join("docs/benchmarks/notes");
        std::fs::create_dir_all(&notes).expect("the directory can be made");
        std::fs::write(notes.join("some-row.md"), "Why it is missed.\n").expect("the note can be written");
        let before = format!("# Benchmarks\n\nOld.\n\n{BY_PEOPLE}\n\n## The soak\n\nNothing grew.\n");
        std::fs::write(root.path().join("docs/benchmarks.md"), before).expect("the page can be written");
        write(root.path(), &report(), &["some-row"]).expect("the page can be written");
        let nothing = Report { rows: Vec::new(), ..report() };
        write(root.path(), &nothing, &["no-row", "some-row"])
            .expect("a row that is not measured again stays");
        let read = |path| std::fs::read_to_string(root.path().join(path)).expect("the page was written");
        let page = read("docs/benchmarks.md");
        for piece in [
            "| [some-row](#some-row) | a < b | 2.10 us | 1.00 us | 2.10 [2.00, 2.20] |",
            "| missed |",
            "Target: **missed**",
            "Why it is",
        ] {
            assert!(page.contains(piece), "{piece} is not in\n{page}");
        }
        assert!(!page.contains("Old."), "{page}");
        let kept = format!("Why it is missed.\n\n{BY_PEOPLE}\n\n## The soak\n\nNothing grew.\n");
        assert!(page.ends_with(&kept), "what people wrote stays as it is:\n{page}");
        let picture = read("docs/benchmarks/some-row.svg");
        assert_eq!(picture.matches("<circle").count(), 3, "a dot for each pair");
        assert!(picture.contains("a &lt; b"), "labels are escaped");
    }
}
