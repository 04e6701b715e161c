//! A known workload of pauses on the real engine, and a cold resume over a store with virtual time, against goals.

mod found;
mod pauses;
mod python_guest;
pub(crate) mod real;
mod resume;
mod workload;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use rekindle_testkit::timed_store::Network;

use found::{Found, Numbers};
use pauses::pause;
use resume::{Knowledge, resume};
use workload::Workload;

/// The lists of the workload.
const LISTS: &str = "xtask/data/pause-cycles.txt";
/// Pages of its guest.
const PAGES: u32 = 1 << 16;
/// The network of its cost model.
const NETWORK: Network =
    Network { first_byte: Duration::from_millis(25), bytes_a_second: 150 << 20, streams: 16 };

/// Runs the workload, prints its numbers with their goals, and writes them to `json`.
pub(crate) fn run(root: &Path, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let lists = std::fs::read_to_string(root.join(LISTS)).with_context(|| format!("reading {LISTS}"))?;
    let found = trace(&Workload::parse(&lists, PAGES)?)?;
    for (title, judged) in ["without a working set", "with a working set"].into_iter().zip(found.judged()) {
        println!("{title}");
        for number in judged {
            let verdict = if number.is_met() { "met" } else { "missed" };
            println!("  {:<12} {:>8.1}  at most {:<6} {verdict}", number.name, number.found, number.goal);
        }
    }
    println!("{}", serde_json::to_string_pretty(&found)?);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&found)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn trace(workload: &Workload) -> anyhow::Result<Found> {
    let stored = pause(workload)?;
    let resumed = |knowledge| {
        let resumed = resume(&stored, NETWORK, &workload.wanted, knowledge)?;
        anyhow::Ok(Numbers::new(NETWORK, &resumed))
    };
    let without = resumed(Knowledge::Given)?;
    Ok(Found::new(&stored, without, resumed(Knowledge::WorkingSet)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight blocks, two of which change, one of them twice.
    const SMALL: &str = "first zero 7 512-520\n\
                         cycle 1 new 1024-1100 1200\ncycle 1 zero 1101\ncycle 1 same 1102\n\
                         cycle 2 new 1024-1030 2048-2080\n\
                         working-set blocks 0 2 4 7";

    #[test]
    fn a_trace_stores_each_new_page_once_and_reads_every_wanted_page_back_in_bounded_round_trips() {
        let workload = Workload::parse(SMALL, 8 * 512).expect("well-formed lists");
        let found = trace(&workload).expect("a store in memory");
        let new_pages = 78.0 + 40.0;
        let stored_pages = found.stored_mib * 256.0;
        assert!(
            (new_pages..new_pages + 4.0).contains(&stored_pages),
            "{stored_pages} pages and tables are stored of {new_pages} new ones"
        );
        let Numbers { fetched_mib, depth, .. } = found.without_working_set;
        assert!(fetched_mib >= 4.0 * 2.0 - 0.1, "{fetched_mib} MiB of 4 blocks of 2 MiB");
        assert_eq!(depth, 2, "the lists and the manifest, then frames");
        let depth = found.with_working_set.depth;
        assert_eq!(depth, 2, "the lists and the manifest, then the working set with its pages");
    }
}
