//! Faults put into the engine on purpose, one at a time: each must be noticed by the tests named beside it.
//!
//! `xtask/mutations.toml` lists them as text to find and text to put there. Nothing in the workspace changes: the
//! sources are copied, and the copy is built and tested.

mod list;
mod workshop;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use rekindle_testkit::random::Random;

use list::Mutation;
use workshop::{Outcome, Workshop};

/// Faults to put in.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only those whose name, file or test has this in it.
    filter: Option<String>,
    /// Only this many of them, drawn by the seed.
    #[arg(long)]
    sample: Option<usize>,
    /// Draw as an earlier run did.
    #[arg(long)]
    seed: Option<u64>,
    /// Say which there are, and whether the sources still have their text.
    #[arg(long)]
    list: bool,
    /// Build here; the workspace's own directory saves building third-party code again.
    #[arg(long, value_name = "DIRECTORY")]
    target_directory: Option<PathBuf>,
}

/// The file that lists them, from the workspace's root.
const LIST: &str = "xtask/mutations.toml";

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let all = list::read(&root.join(LIST))?;
    list::check(root, &all)?;
    let chosen = chosen(all, options);
    ensure!(!chosen.is_empty(), "no mutation has this in its name, file or test; see them with --list");
    if options.list {
        chosen.iter().for_each(|mutation| println!("{}: {}", mutation.name, mutation.file));
        return Ok(ExitCode::SUCCESS);
    }
    let target = options.target_directory.clone().unwrap_or_else(|| root.join("target/mutate/target"));
    let target = std::path::absolute(target).context("finding the directory to build in")?;
    let workshop = Workshop::prepare(root, root.join("target/mutate/sources"), target)?;
    let tests: BTreeSet<&str> = chosen.iter().map(|mutation| mutation.noticed_by.as_str()).collect();
    for tests in tests {
        workshop.pass_unchanged(tests)?;
    }
    let mut survived = Vec::new();
    for mutation in &chosen {
        let begun = Instant::now();
        let outcome = workshop.try_out(mutation)?;
        let seconds = begun.elapsed().as_secs();
        println!("{:<12} {} ({seconds} s)", outcome.word(), mutation.name);
        if outcome == Outcome::Survived {
            survived.push(mutation);
        }
    }
    println!("{} of {} were noticed", chosen.len() - survived.len(), chosen.len());
    for mutation in &survived {
        println!("not noticed by `cargo test {}`: {}", mutation.noticed_by, mutation.name);
    }
    Ok(if survived.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Those that the options ask for.
fn chosen(all: Vec<Mutation>, options: &Options) -> Vec<Mutation> {
    let wanted = |mutation: &Mutation| {
        let filter = options.filter.as_deref().unwrap_or_default();
        [&mutation.name, &mutation.file, &mutation.noticed_by].iter().any(|text| text.contains(filter))
    };
    let mut chosen: Vec<Mutation> = all.into_iter().filter(wanted).collect();
    let Some(sample) = options.sample else { return chosen };
    let seed = options.seed.unwrap_or_else(fresh_seed);
    println!("draw the same with --sample {sample} --seed {seed}");
    let mut random = Random::new(seed);
    while chosen.len() > sample {
        chosen.swap_remove(random.position(chosen.len()));
    }
    chosen
}

fn fresh_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(since.subsec_nanos()) ^ since.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_have_the_text_of_every_mutation_once() {
        let root = crate::workspace_root().unwrap();
        let all = list::read(&root.join(LIST)).unwrap();
        list::check(&root, &all).unwrap();
    }

    #[test]
    fn a_sample_follows_from_its_seed() {
        let root = crate::workspace_root().unwrap();
        let draw = |seed| {
            let options = Options {
                filter: None,
                sample: Some(3),
                seed: Some(seed),
                list: false,
                target_directory: None,
            };
            let drawn = chosen(list::read(&root.join(LIST)).unwrap(), &options);
            drawn.into_iter().map(|mutation| mutation.name).collect::<Vec<_>>()
        };
        assert_eq!((draw(1), draw(1).len()), (draw(1), 3));
        assert!((2..20).any(|seed| draw(seed) != draw(1)));
    }
}
