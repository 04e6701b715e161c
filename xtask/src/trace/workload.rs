//! The workload: lists of pages that a guest writes between its pauses, and the pages that it needs after a resume.

use std::ops::RangeInclusive;

use anyhow::{Context, bail, ensure};
use rekindle_engine::geometry::{GuestPage, GuestPages};

/// Pages of a block, the unit in which the workload's guest tracks its writes.
pub(crate) const BLOCK_PAGES: u32 = 512;

/// Lists of the pauses of one guest.
#[derive(Debug, Default)]
pub(crate) struct Workload {
    /// Pages of the guest.
    pub(crate) pages: u32,
    /// Zero pages of the first snapshot; every other page of it has bytes of its own.
    pub(crate) first_zero: Vec<GuestPages>,
    /// The guest's writes before each pause.
    pub(crate) cycles: Vec<Cycle>,
    /// The pages that the guest needs after the resume of the last snapshot.
    pub(crate) wanted: Vec<GuestPages>,
}

/// The guest's writes between two pauses.
#[derive(Debug, Default)]
pub(crate) struct Cycle {
    /// Pages with new bytes.
    pub(crate) new: Vec<GuestPages>,
    /// Pages that are zero now.
    pub(crate) zero: Vec<GuestPages>,
    /// Pages written with the bytes that they had.
    pub(crate) same: Vec<GuestPages>,
}

impl Workload {
    /// Reads lists of a guest of `pages`.
    pub(crate) fn parse(text: &str, pages: u32) -> anyhow::Result<Self> {
        let mut workload = Self { pages, ..Self::default() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let place = line.get(..20).unwrap_or(line);
            match *words.as_slice() {
                ["first", "zero", ref runs @ ..] => workload.first_zero = read_runs(runs, 1)?,
                ["working-set", "blocks", ref runs @ ..] => workload.wanted = read_runs(runs, BLOCK_PAGES)?,
                ["cycle", number, kind, ref runs @ ..] => {
                    let number: usize = number.parse().with_context(|| format!("the cycle of {place:?}"))?;
                    ensure!(number <= workload.cycles.len() + 1, "cycles come in their order, at {place:?}");
                    workload.cycles.resize_with(workload.cycles.len().max(number), Cycle::default);
                    let cycle = number.checked_sub(1).and_then(|index| workload.cycles.get_mut(index));
                    let cycle = cycle.context("the first cycle has number 1")?;
                    let list = match kind {
                        "new" => &mut cycle.new,
                        "zero" => &mut cycle.zero,
                        "same" => &mut cycle.same,
                        _ => bail!("a cycle has lists of new, zero and same pages, not of {kind}"),
                    };
                    *list = read_runs(runs, 1)?;
                }
                _ => bail!("no list begins with {place:?}"),
            }
        }
        Ok(workload)
    }
}

/// Runs of `unit` pages each, as numbers and ranges with both ends.
fn read_runs(words: &[&str], unit: u32) -> anyhow::Result<Vec<GuestPages>> {
    let read = |word: &&str| {
        let range = range_of(word).with_context(|| format!("{word:?} is no run of pages"))?;
        let count = (range.end() - range.start() + 1) * unit;
        anyhow::Ok(GuestPages::new(GuestPage::new(range.start() * unit), count))
    };
    words.iter().map(read).collect()
}

fn range_of(word: &str) -> anyhow::Result<RangeInclusive<u32>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let range = first.parse()?..=last.parse()?;
    ensure!(!range.is_empty(), "it ends before it begins");
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_runs_and_an_unknown_one_is_refused_by_name() {
        let text =
            "# a comment\nfirst zero 3 5-6\ncycle 1 new 9\ncycle 1 zero 10-11\nworking-set blocks 2-3 7";
        let workload = Workload::parse(text, 4096).expect("well-formed lists");
        let run = |start, count| GuestPages::new(GuestPage::new(start), count);
        assert_eq!(workload.first_zero, [run(3, 1), run(5, 2)]);
        assert_eq!(workload.cycles[0].new, [run(9, 1)]);
        assert_eq!(workload.cycles[0].zero, [run(10, 2)]);
        assert_eq!(workload.wanted, [run(1024, 1024), run(3584, 512)]);
        let refused = Workload::parse("cycle 1 old 3", 4096).expect_err("there is no such list").to_string();
        assert!(refused.contains("not of old"), "{refused}");
    }
}
